"""The machine's network stands still while a browser has a page open.

Chromium gives up whatever it is loading when an interface of the machine comes, goes or changes
(net::ERR_NETWORK_CHANGED). Tests that lay cables run beside those that open pages, in another
process, so both take a lock between processes, and a change waits for the pages that are open.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

__all__ = ["changing_network", "still_network"]

# Whoever waits to change the network holds the gate, so that no further page is opened meanwhile.
_GATE: Final = "gate"
_NETWORK: Final = "network"

_pages = ExitStack()
_open_pages = 0


@contextmanager
def still_network() -> Iterator[None]:
    """Nobody changes the network within the block, which may be entered several times at once."""
    global _open_pages
    if not _open_pages:
        # A page of this process that holds the lock must not wait at the gate for a change that
        # waits for that page: only the first page passes it.
        with _locked(_GATE, fcntl.LOCK_SH):
            _pages.enter_context(_locked(_NETWORK, fcntl.LOCK_SH))
    _open_pages += 1
    try:
        yield
    finally:
        _open_pages -= 1
        if not _open_pages:
            _pages.close()


@contextmanager
def changing_network() -> Iterator[None]:
    """No browser has a page open within the block."""
    with _locked(_GATE, fcntl.LOCK_EX), _locked(_NETWORK, fcntl.LOCK_EX):
        yield


@contextmanager
def _locked(name: str, how: int) -> Iterator[None]:
    path = Path(tempfile.gettempdir()) / f"kernelkeep-tests-{os.geteuid()}-{name}.lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, how)
        yield
    finally:
        os.close(descriptor)  # which gives the lock up
