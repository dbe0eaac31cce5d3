"""The entries of a message log, and places in it."""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec

from app.protocol.messages import Message

__all__ = ["ENTRY_OVERHEAD", "Batch", "Entry", "Gap", "Position"]

ENTRY_OVERHEAD: Final = 700
"""What an entry costs beside its frame: the message, its header, its numbers."""


class Entry(msgspec.Struct, gc=False, eq=False):
    """One message in the log.

    ``owner`` is the session it is for; None is every session. A ``transient`` entry tells a state
    of its moment (the kernel restarts, is idle again), and is not shown to those who come later.
    """

    seq: int
    offset: int  # bytes of all messages before this one, since the log began
    message: Message
    owner: str | None
    transient: bool = False
    charged: int = 0  # what the log counts for it


class Gap(NamedTuple):
    """What a reader will never see: it had left the log before the reader came to it."""

    messages: int
    bytes: int


class Position(NamedTuple):
    """A place in a log: the next number to read, and the bytes of all messages before it."""

    cursor: int
    offset: int


class Batch(NamedTuple):
    """What a reader took: perhaps a gap, then messages in order."""

    gap: Gap | None
    entries: list[Entry]
