"""What a kernel says of an execution after that has ended, and what others change of it later.

Threads go on to print. What child processes and C code write to a file descriptor may reach the
kernel behind the end of the code that started them. A display is updated by code that runs later.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

import msgspec

from ...protocol.messages import Message
from ..log.entries import Position

__all__ = [
    "OUTPUT_TYPES",
    "LateOutput",
    "Stretch",
    "display_id_in",
    "may_straggle",
]

OUTPUT_TYPES: Final = frozenset(
    {
        "stream",
        "display_data",
        "update_display_data",
        "execute_result",
        "error",
        "clear_output",
    }
)
"""Messages that change what an execution shows."""

NEAR: Final = 64
"""Messages of a kernel that are read over rather than noted as two stretches."""

MAX_STRETCHES: Final = 64
"""Of one execution; beyond, the last one grows, however far."""

MAX_UPDATES: Final = 256
"""Displays of one execution whose updates are noted."""

TRANSIENT_BYTES: Final = 512
"""Where the last field of a display is looked for first."""

_DESCRIPTORS: Final = re.compile(
    r"\b(subprocess|system|popen|Popen|posix_spawn\w*|spawn\w+|fork|ctypes|cffi|os\.writev?)\b"
)


def may_straggle(code: str) -> bool:
    """Whether code looks as if it, or what it defines, wrote to file descriptors itself.

    A guess, which costs a question to the kernel if it is wrong; a kernel that was seen to
    straggle is asked in any case.
    """
    return _DESCRIPTORS.search(code) is not None


class Stretch(msgspec.Struct, array_like=True):
    """A part of a log: the place of its first message, and the number behind its last."""

    cursor: int
    offset: int
    end: int

    @property
    def start(self) -> Position:
        """Where it begins."""
        return Position(self.cursor, self.offset)


class LateOutput(msgspec.Struct, array_like=True):
    """Where in the log the late output of one execution is."""

    own: list[Stretch] = []
    updates: dict[str, Stretch] = {}
    """The newest update of each of its displays, whoever made it."""

    def add(self, place: Position) -> None:
        """Output of its own is there, which comes behind all that was added before."""
        cursor, offset = place
        if self.own:
            last = self.own[-1]
            if cursor < last.end:  # said again, to another process of the server
                return
            if cursor - last.end < NEAR or len(self.own) >= MAX_STRETCHES:
                last.end = cursor + 1
                return
        self.own.append(Stretch(cursor, offset, cursor + 1))

    def update(self, display_id: str, place: Position) -> None:
        """An update of one of its displays is there."""
        self.updates[display_id] = Stretch(*place, place.cursor + 1)

    def stretches(self) -> Iterable[Stretch]:
        """What is to be read, in order; what lies between is of no interest."""
        own = list(self.own)
        updates = (
            update
            for update in self.updates.values()
            if not any(stretch.cursor <= update.cursor < stretch.end for stretch in own)
        )
        return sorted((*own, *updates), key=lambda stretch: stretch.cursor)


class _Transient(msgspec.Struct, frozen=True):
    display_id: str = ""


class _Shown(msgspec.Struct):
    transient: _Transient = _Transient()


_shown_decoder: Final = msgspec.json.Decoder(_Shown)


def display_id_in(message: Message) -> str:
    """The display id of a display or an update, or nothing.

    Most displays have none, and only those that have one are looked into: large data is not read.
    """
    frame, bounds = message.frame, message.bounds
    start, end = bounds[4], bounds[5]
    # Kernels put it at the end, behind the data [ipykernel.displayhook, zmqshell].
    transient = frame.rfind(b'"transient"', max(start, end - TRANSIENT_BYTES), end)
    if frame.find(b'"display_id"', start if transient < 0 else transient, end) < 0:
        return ""
    try:
        return _shown_decoder.decode(message.part(3)).transient.display_id
    except (msgspec.MsgspecError, RecursionError):
        return ""
