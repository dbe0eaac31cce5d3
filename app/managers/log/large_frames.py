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

from ...keeper.log import SEGMENT_BYTES
from ...protocol.messages import Buffer, MalformedMessage, Message
from ...protocol.records import TAIL_BYTES, DamagedLog, unpack_tail

__all__ = ["Large", "LargeFrame", "pread", "read_large"]

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


def read_large(
    descriptor: int, position: int, size: int, name: int, channel: str, large: Large
) -> LargeFrame:
    """Read the frame of ``size`` bytes at ``position``, which ``name`` bytes and the tail follow.

    On other channels than iopub it comes whole. Raises `OSError` and `DamagedLog`.
    """
    if channel != "iopub":
        large = Large.WHOLE
    whole = size + name + TAIL_BYTES
    if position + whole > os.fstat(descriptor).st_size:
        raise DamagedLog("a message is cut short")
    frame = b""
    rest: tuple[Buffer, ...] = ()
    if large is Large.BEGINNING:
        frame = _beginning(descriptor, position, size)
    elif large is Large.MAPPED and size > SEGMENT_BYTES:
        frame, rest = _mapped(descriptor, position, size)
    if not frame:
        frame = pread(descriptor, size, position)
        if len(frame) < size:
            raise DamagedLog("a message is cut short")
    behind = pread(descriptor, name + TAIL_BYTES, position + size)
    if len(behind) < name + TAIL_BYTES:
        raise DamagedLog("a message is cut short")
    return LargeFrame(frame, rest, behind[:name], unpack_tail(behind, name))


def _beginning(descriptor: int, position: int, size: int) -> bytes:
    """The beginning of a frame, if it is enough to draw conclusions from the message; else empty.

    It is if it has all parts before the content. Only a display is read whole, as its id lies at
    the end of the content.
    """
    head = Message("iopub", pread(descriptor, min(size, HEAD_OF_FRAME), position))
    if _content_at(head) is None or head.msg_type in ("display_data", "update_display_data"):
        return b""
    return head.frame


def _mapped(descriptor: int, position: int, size: int) -> tuple[bytes, tuple[Buffer, ...]]:
    """The parts of a frame before its content, and the content, mapped; empty if it cannot be."""
    head = Message("iopub", pread(descriptor, HEAD_OF_FRAME, position))
    content = _content_at(head)
    if content is None or head.msg_type not in _OUTPUT:
        return b"", ()
    start = (position + content) // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
    # The keeper writes no file over in which a frame of this size lies, so what is mapped is the
    # frame for as long as that is being sent (`app.keeper.log`).
    try:
        view = mmap.mmap(descriptor, position + size - start, prot=mmap.PROT_READ, offset=start)
    except OSError:  # a file system without mapped files, or no descriptor is left
        return b"", ()
    return head.frame[:content], (memoryview(view)[position + content - start :],)


def _content_at(head: Message) -> int | None:
    """Where the content of a frame begins, if ``head`` has all before it; else None."""
    try:
        content = head.bounds[4]
        return content if content <= len(head.frame) and head.msg_type else None
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
