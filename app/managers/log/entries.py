"""The entries of a message log, and places in it."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from ...keeper.log import Position
from ...protocol.messages import Message

__all__ = ["Batch", "Entry", "Gap", "Position"]


class Entry(msgspec.Struct, gc=False, eq=False):
    """One message in the log.

    ``owner`` is the session that sees the message; None is every session. A ``transient`` entry
    tells a state of its moment (the kernel restarts, is idle again); clients that come later do not
    see it. A ``published`` entry is a message of the kernel; others are the server's. An entry with
    ``is_request`` has the header of a request that the keeper sends to the kernel; no client sees
    it.
    """

    seq: int
    offset: int  # bytes of all messages before this one, since the log began
    message: Message
    owner: str | None
    transient: bool = False
    published: bool = False
    is_request: bool = False
    size: int = 0  # of its frame in the log


class Gap(NamedTuple):
    """Messages that a reader will never see, and their bytes: the log dropped them before."""

    messages: int
    bytes: int


class Batch(NamedTuple):
    """The messages that a reader took at once: a gap, if there is one, then entries in order."""

    gap: Gap | None
    entries: list[Entry]
