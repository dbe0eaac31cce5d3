"""The entries of a message log, and places in it."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from ...keeper.log import Place as Position
from ...protocol.messages import Message

__all__ = ["Batch", "Entry", "Gap", "Position"]


class Entry(msgspec.Struct, gc=False, eq=False):
    """One message in the log.

    ``owner`` is the session it is for; None is every session. A ``transient`` entry tells a state
    of its moment (the kernel restarts, is idle again), and is not shown to those who come later.
    ``published`` ones are the kernel's own, the others were made by the service. One that
    `is_request` has the header of a request that has left for the kernel; no reader is shown it.
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
    """What a reader will never see: it had left the log before the reader came to it."""

    messages: int
    bytes: int


class Batch(NamedTuple):
    """What a reader took: perhaps a gap, then messages in order."""

    gap: Gap | None
    entries: list[Entry]
