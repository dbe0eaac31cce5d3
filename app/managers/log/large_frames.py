"""Reading the frame of a large message: whole, its beginning only, or mapped.

New memory for such a frame costs several times what it costs to send it. So whoever passes it on as
it is has it mapped. The process is killed if it touches a mapped page that somebody has cut off the
file. Therefore a mapped frame may only be handed to a system call, which fails instead.
"""

from __future__ import annotations

import enum
import mmap
import os
import struct
from typing import Final, NamedTuple
from weakref import WeakValueDictionary

from ...keeper.log import SEGMENT_BYTES
from ...protocol.messages import Buffer, MalformedMessage, Message
from ...protocol.records import TAIL_BYTES, DamagedLog, unpack_tail

__all__ = ["Large", "LargeFrame", "LargeFrames", "pread"]

HEAD_OF_FRAME: Final = 2**16
"""How many bytes of a large frame are read if its beginning is enough: all parts but the content
mostly lie in them."""

_OUTPUT: Final = frozenset({"stream", "display_data", "update_display_data", "execute_result"})
"""The messages whose content this server does not read on the way to a client."""


class Large(enum.Enum):
    """What a reader gets of a frame on iopub that is read by itself; other frames come whole."""

    WHOLE = enum.auto()
    BEGINNING = enum.auto()
    """At least the header and the parent header, if they are in the first `HEAD_OF_FRAME`."""
    MAPPED = enum.auto()
    """The content is mapped, if the frame has a file of its own, and the message is output."""


class LargeFrame(NamedTuple):
    """A frame, or its beginning; what follows that, if it is mapped; the owner's name; the tail."""

    frame: bytes
    rest: tuple[Buffer, ...]
    name: bytes
    tail: tuple[int]


class LargeFrames:
    """Reads the large frames of one log; a content that is mapped has one mapping for all clients.

    A mapping takes a descriptor. It is there for as long as a client is being sent from it.
    """

    def __init__(self) -> None:
        self._mapped: WeakValueDictionary[tuple[int, int], mmap.mmap] = WeakValueDictionary()

    def read(
        self,
        segment: tuple[int, int],
        position: int,
        size: int,
        name: int,
        channel: str,
        large: Large,
    ) -> LargeFrame:
        """Read the frame of ``size`` bytes at ``position``; ``name`` bytes and the tail follow it.

        ``segment`` is its first number, and the descriptor of its file. On other channels than
        iopub a frame comes whole. Raises `OSError` and `DamagedLog`.
        """
        descriptor, whole = segment[1], size + name + TAIL_BYTES
        if position + whole > os.fstat(descriptor).st_size:
            raise DamagedLog("a message is cut short")
        frame = b""
        rest: tuple[Buffer, ...] = ()
        if channel == "iopub" and large is Large.BEGINNING:
            frame = _beginning(descriptor, position, size)
        elif channel == "iopub" and large is Large.MAPPED and size > SEGMENT_BYTES:
            frame, rest = self._map(segment, position, size)
        if not frame:
            frame = pread(descriptor, size, position)
            if len(frame) < size:
                raise DamagedLog("a message is cut short")
        behind = pread(descriptor, name + TAIL_BYTES, position + size)
        if len(behind) < name + TAIL_BYTES:
            raise DamagedLog("a message is cut short")
        return LargeFrame(frame, rest, behind[:name], unpack_tail(behind, name))

    def _map(
        self, segment: tuple[int, int], position: int, size: int
    ) -> tuple[bytes, tuple[Buffer, ...]]:
        """The parts of a frame before its content, and that, mapped; empty if it cannot be."""
        first, descriptor = segment
        head = Message("iopub", pread(descriptor, HEAD_OF_FRAME, position))
        content = _content_at(head)
        if content is None or head.msg_type not in _OUTPUT:
            return b"", ()
        start = (position + content) // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
        # The keeper writes no file over in which a frame of this size lies, so what is mapped is
        # the frame for as long as that is being sent (`app.keeper.log`).
        view = self._mapped.get((first, start))
        if view is None:
            length = position + size - start
            try:
                view = mmap.mmap(descriptor, length, prot=mmap.PROT_READ, offset=start)
            # A file system may have no mapped files, no descriptor may be left, or (`ValueError`)
            # the file was cut short just now.
            except (OSError, ValueError):
                return b"", ()
            self._mapped[first, start] = view
        return head.frame[:content], (memoryview(view)[position + content - start :],)

    def forget(self) -> None:
        """Map anew from now on: the segments are those of another log, or keeper."""
        self._mapped.clear()


def _beginning(descriptor: int, position: int, size: int) -> bytes:
    """The beginning of a frame, if it is enough to draw conclusions from the message; else empty.

    It is if it has all parts before the content. Only a display is read whole, as its id lies at
    the end of the content.
    """
    head = Message("iopub", pread(descriptor, min(size, HEAD_OF_FRAME), position))
    if _content_at(head) is None or head.msg_type in ("display_data", "update_display_data"):
        return b""
    return head.frame


def _content_at(head: Message) -> int | None:
    """Where the content of a frame begins, if ``head`` has all before it; else None."""
    try:
        content = head.bounds[4]
        return content if 0 < content <= len(head.frame) and head.msg_type else None
    except (MalformedMessage, struct.error, IndexError):
        return None


def pread(descriptor: int, size: int, position: int) -> bytes:
    """Up to ``size`` bytes of a file, fewer only at its end. Raises `OSError`."""
    data = os.pread(descriptor, size, position)
    while len(data) < size:
        part = os.pread(descriptor, size - len(data), position + len(data))
        if not part:
            break
        data += part
    return data
