"""Late output: output of an execution that comes after its end, and later updates of its displays.

Threads of the code go on printing. What child processes and C code write to a file descriptor may
reach the kernel after the end of the code that started them. Code that runs later updates displays.
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
"""The types of messages that change the outputs of an execution."""

NEAR: Final = 64
"""Two pieces of late output with fewer messages between them are noted as one stretch."""

MAX_STRETCHES: Final = 64
"""How many stretches one execution may have; beyond that the last one grows, however far."""

MAX_UPDATES: Final = 256
"""For how many displays of one execution updates are noted."""

TRANSIENT_BYTES: Final = 512
"""In how many bytes at the end of a display's content its last field is looked for first."""

_DESCRIPTORS: Final = re.compile(
    r"\b(subprocess|system|popen|Popen|posix_spawn\w*|spawn\w+|fork|ctypes|cffi|os\.writev?)\b"
)


def may_straggle(code: str) -> bool:
    """Whether code looks as if it, or a function it defines, writes to file descriptors itself.

    This is a guess. If it is wrong, the kernel is sent one needless request; a kernel whose output
    was seen to come late is sent that request in any case.
    """
    return _DESCRIPTORS.search(code) is not None


class Stretch(msgspec.Struct, array_like=True):
    """A part of a log: the place of its first message, and the number behind its last."""

    cursor: int
    offset: int
    end: int

    @property
    def start(self) -> Position:
        """The place of the stretch's first message."""
        return Position(self.cursor, self.offset)


class LateOutput(msgspec.Struct, array_like=True):
    """Where the late output of one execution lies in the log."""

    own: list[Stretch] = []
    updates: dict[str, Stretch] = {}
    """The newest update of each of the execution's displays, by this or any later execution."""

    def add(self, place: Position) -> None:
        """Note the place of late output of the execution itself; places come in order."""
        cursor, offset = place
        if self.own:
            last = self.own[-1]
            if cursor < last.end:  # noted already: a new server reads a part of the log again
                return
            if cursor - last.end < NEAR or len(self.own) >= MAX_STRETCHES:
                last.end = cursor + 1
                return
        self.own.append(Stretch(cursor, offset, cursor + 1))

    def update(self, display_id: str, place: Position) -> None:
        """Note the place of an update of one of the execution's displays."""
        self.updates[display_id] = Stretch(*place, place.cursor + 1)

    def stretches(self) -> Iterable[Stretch]:
        """The stretches of the log that hold the late output, in order."""
        own = self.own
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
    """The display id of a ``display_data`` or ``update_display_data``; empty if it has none.

    Most displays have none. Only content that seems to have one is parsed: large data is not.
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
