"""Streams that a test has opened itself, and that are closed when it fails, too."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Stream", "aborted"]

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@contextmanager
def aborted(stream: Stream) -> Iterator[Stream]:
    """A stream that is cut off at the end of the block.

    A socket that a failed test leaves open makes pytest exit with 1 at the end of the session, even
    if the test has passed when it was tried again.
    """
    try:
        yield stream
    finally:
        stream[1].transport.abort()
