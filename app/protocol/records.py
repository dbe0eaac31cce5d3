"""The records of a kernel's log, and the head of the files that they lie in.

All integers are little-endian. A segment file begins with a head of 64 bytes: eight that name the
format and its version, 16 of the log's epoch, 16 that tell the kernel, then the number and the
offset of its first message, and eight that are kept free. Behind it lie records without space
between them:

    frame's length, number, offset, time | owner's length, channel, flags | frame | owner | number
    8 bytes each, the time as a float    | 2, 1 and 1 bytes, 4 free       |       |       | 8 bytes

The frame is the message in the v1 WebSocket framing (`app.protocol.v1`), to be sent as it stands.
The offset counts the bytes of all frames before it since the log began. The number at the end is
written last: a record without it was cut short with its writer. Numbers only grow; where the next
record has a higher one than the next, what lies between is lost.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from struct import Struct, error
from typing import Final

import msgspec

from .messages import Buffer

__all__ = [
    "CHANNELS",
    "EVERYBODY",
    "FRAME_AT",
    "HEAD_BYTES",
    "MAX_FRAME",
    "PUBLISHED",
    "RECORD_BYTES",
    "REQUEST",
    "TAIL_BYTES",
    "TRANSIENT",
    "DamagedLog",
    "OtherFormat",
    "Record",
    "SegmentHead",
    "kernel_digest",
    "next_record",
    "owner_name",
    "owner_of",
    "pack_head",
    "pack_record",
    "read_head",
    "unpack_head",
    "unpack_tail",
]

MAGIC: Final = b"kklog"
VERSION: Final = b"001"
"""Raised where a reader of before would misread a file. Readers refuse what they do not know."""

_SEGMENT: Final = Struct("<5s3s16s16sQQ8x")
_HEAD: Final = Struct("<QQQdHBB4x")
_TAIL: Final = Struct("<Q")

unpack_head: Final = _HEAD.unpack_from
"""A frame's length, number, offset, time, owner's length, channel and flags: all unchecked."""

unpack_tail: Final = _TAIL.unpack_from
"""The number behind a frame and its owner."""

HEAD_BYTES: Final = _SEGMENT.size
RECORD_BYTES: Final = _HEAD.size + _TAIL.size
"""What a record takes beside its frame and its owner."""

TAIL_BYTES: Final = _TAIL.size

FRAME_AT: Final = _HEAD.size
"""How far behind its record's begin a frame begins."""

MAX_FRAME: Final = 2**40
"""Bytes of a frame; nothing that is meant comes near."""

EVERYBODY: Final = 0xFFFF
"""In place of the length of an owner: the message is for every session."""

PUBLISHED: Final = 1
"""A flag: the kernel has sent the message; without it the service has made it."""

TRANSIENT: Final = 2
"""A flag: the message tells a state of its moment, and is not for readers that come later."""

REQUEST: Final = 4
"""A flag: the header of a request that leaves for the kernel next, in the name of its owner."""

CHANNELS: Final = ("shell", "control", "stdin", "iopub")
_NUMBERS: Final = {name: number for number, name in enumerate(CHANNELS)}


class DamagedLog(ValueError):
    """A file of a log that is not what its writer has made it; the text says why."""


class OtherFormat(DamagedLog):
    """A file of another version of the format."""


class SegmentHead(msgspec.Struct, frozen=True):
    """What a segment's file begins with; ``number`` and ``offset`` are of its first message."""

    epoch: str
    kernel: bytes
    number: int
    offset: int


class Record(msgspec.Struct, gc=False):
    """The head of one message in a log.

    ``size`` is that of the frame, which begins `FRAME_AT` bytes behind the record's begin;
    ``owner_size`` that of the owner's name behind it, or `EVERYBODY`. ``whole`` is the record's.
    """

    number: int
    offset: int
    time: float
    channel: str
    flags: int
    size: int
    owner_size: int
    whole: int


def kernel_digest(kernel_id: str) -> bytes:
    """What tells one kernel's files from another's."""
    return hashlib.blake2b(kernel_id.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def pack_head(epoch: str, kernel_id: str, number: int, offset: int) -> bytes:
    """The head of a segment's file whose first message has this number and offset."""
    return _SEGMENT.pack(MAGIC, VERSION, epoch.encode(), kernel_digest(kernel_id), number, offset)


def read_head(data: bytes, kernel_id: str) -> SegmentHead:
    """The head of a kernel's segment. Raises `DamagedLog`, or `OtherFormat`."""
    if len(data) < HEAD_BYTES:
        raise DamagedLog("it is cut short")
    magic, version, epoch, kernel, number, offset = _SEGMENT.unpack_from(data)
    if magic != MAGIC:
        raise DamagedLog("it is no segment of a log")
    if version != VERSION:
        other = version.decode("ascii", "replace")
        raise OtherFormat(f"its format is {other}, not {VERSION.decode()}")
    if kernel != kernel_digest(kernel_id):
        raise DamagedLog("it is of another kernel")
    return SegmentHead(epoch.decode("ascii", "replace"), kernel, number, offset)


def pack_record(
    number: int,
    offset: int,
    time: float,
    channel: str,
    owner: str | None,
    flags: int,
    frame: Buffer,
    rest: Sequence[Buffer] = (),
) -> tuple[Buffer, ...]:
    """A record's pieces, to be written one behind the other; ``rest`` are more of its frame."""
    tail, length, size = _TAIL.pack(number), EVERYBODY, len(frame)
    if owner is not None:
        name = owner.encode("utf-8", "surrogatepass")
        length, tail = len(name), name + tail
    if rest:
        size += sum(map(len, rest))
    head = _HEAD.pack(size, number, offset, time, length, _NUMBERS[channel], flags)
    return (head, frame, *rest, tail) if rest else (head, frame, tail)


def next_record(data: bytes, start: int, number: int) -> Record | None:
    """The record that begins at ``start``; only its head need be in ``data``.

    None where none begins, as behind the last: one has number ``number`` or a higher one. Raises
    `DamagedLog` for what no writer can have made.
    """
    try:
        size, found, offset, time, owner_size, channel, flags = _HEAD.unpack_from(data, start)
    except error:
        return None
    if found < number:  # left of a file that was written over, or never written
        return None
    if channel >= len(CHANNELS) or size > MAX_FRAME:
        raise DamagedLog(f"number {number} is damaged")
    whole = RECORD_BYTES + size + (0 if owner_size == EVERYBODY else owner_size)
    return Record(found, offset, time, CHANNELS[channel], flags, size, owner_size, whole)


def owner_of(record: Record, tail: bytes) -> str | None:
    """Whom a message is for: a session, or everybody (None).

    ``tail`` is what lies behind its frame. Raises `DamagedLog` where its end was not written.
    """
    if tail[-_TAIL.size :] != _TAIL.pack(record.number):
        raise DamagedLog(f"number {record.number} was not written to its end")
    if record.owner_size == EVERYBODY:
        return None
    return owner_name(tail[: -_TAIL.size])


@lru_cache(1024)
def owner_name(name: bytes) -> str:
    """The session's name as it was before it was written. Raises `DamagedLog`."""
    try:
        return name.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError as problem:
        raise DamagedLog(f"the name of a session: {problem}") from None
