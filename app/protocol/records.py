"""The records of a kernel's log, and the head of the files that they lie in.

All integers are little-endian. A segment file begins with a head of 64 bytes: eight that name the
format and its version, 16 of the log's epoch, 16 of a digest of the kernel's id, the number and the
offset of its first message (eight each), and eight that are free. Behind it lie records without
space between them:

    frame's length, number, offset, time | owner's length, channel, flags | frame | owner | number
    8 bytes each, the time as a float    | 2, 1 and 1 bytes, 4 free       |       |       | 8 bytes

The frame is the message in the v1 WebSocket framing (`app.protocol.v1`), to be sent as it stands.
The offset counts the bytes of all frames before it since the log began. The number at the end is
written last: a record without it was cut short when the keeper was killed. Numbers only grow. If a
record has a higher number than the one behind its predecessor's, the messages between are lost; a
record with a lower one is a left-over in a file that was written over, and ends the segment.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container, Sequence
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
    "version_of",
]

MAGIC: Final = b"kklog"
VERSION: Final = b"001"
"""The version of the format that the keeper writes.

It is raised if readers of the version before would misread a file. A server reads this version and,
once there is one, the version before (`app.managers.log.segments.READERS`), and refuses any other.
"""

_SEGMENT: Final = Struct("<5s3s16s16sQQ8x")
_HEAD: Final = Struct("<QQQdHBB4x")
_TAIL: Final = Struct("<Q")

unpack_head: Final = _HEAD.unpack_from
"""Reads a record's head: the frame's length, number, offset and time, the owner's length, channel
and flags. None of these is checked."""

unpack_tail: Final = _TAIL.unpack_from
"""Reads the end of a record: the number behind the frame and the owner."""

HEAD_BYTES: Final = _SEGMENT.size
RECORD_BYTES: Final = _HEAD.size + _TAIL.size
"""How many bytes a record takes beside its frame and its owner."""

TAIL_BYTES: Final = _TAIL.size

FRAME_AT: Final = _HEAD.size
"""How many bytes behind the beginning of its record a frame begins."""

MAX_FRAME: Final = 2**40
"""A frame with more bytes than this is taken for damage: no message comes near."""

EVERYBODY: Final = 0xFFFF
"""In place of the length of an owner's name: the message is for every session."""

PUBLISHED: Final = 1
"""A flag: the message is the kernel's own; without it the server has made it."""

TRANSIENT: Final = 2
"""A flag: the message tells a state of its moment, and clients that come later do not see it."""

REQUEST: Final = 4
"""A flag: the record has the header of a request that its owner sends to the kernel.

It is written just before the request is sent.
"""

CHANNELS: Final = ("shell", "control", "stdin", "iopub")
_NUMBERS: Final = {name: number for number, name in enumerate(CHANNELS)}


class DamagedLog(ValueError):
    """A file is no segment of the log, or its records are damaged; the text says why."""


class OtherFormat(DamagedLog):
    """A file has another version of the format."""


class SegmentHead(msgspec.Struct, frozen=True):
    """The head of a segment's file; ``number`` and ``offset`` are those of its first message."""

    epoch: str
    kernel: bytes
    number: int
    offset: int


class Record(msgspec.Struct, gc=False):
    """The head of one record.

    All sizes are in bytes. ``size`` is that of the frame, which begins `FRAME_AT` bytes behind the
    record's begin. ``owner_size`` is that of the owner's name, which follows the frame, or
    `EVERYBODY`. ``whole`` is the size of the record.
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
    """The digest of a kernel's id, by which the heads of its files name the kernel (16 bytes)."""
    return hashlib.blake2b(kernel_id.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def pack_head(epoch: str, kernel_id: str, number: int, offset: int) -> bytes:
    """The head of a segment's file whose first message has this number and offset."""
    return _SEGMENT.pack(MAGIC, VERSION, epoch.encode(), kernel_digest(kernel_id), number, offset)


def version_of(head: bytes) -> bytes:
    """The version of the format that the head of a segment names."""
    return head[len(MAGIC) : len(MAGIC) + len(VERSION)]


def read_head(data: bytes, kernel_id: str, versions: Container[bytes] = (VERSION,)) -> SegmentHead:
    """The head of a segment of this kernel's log. Raises `DamagedLog` or `OtherFormat`.

    ``versions`` are those of the format that can be used; the head is the same in all of them.
    """
    if len(data) < HEAD_BYTES:
        raise DamagedLog("it is cut short")
    magic, version, epoch, kernel, number, offset = _SEGMENT.unpack_from(data)
    if magic != MAGIC:
        raise DamagedLog("it is no segment of a log")
    if version not in versions:
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
    """The pieces of a record, to be written in order; ``rest`` are further pieces of its frame."""
    # The number once more at the end: one process writes in order, so a record whose last bytes are
    # there is whole, however its writer ended. (A power cut is something else; the log then ends at
    # the first record that does not fit.)
    tail, length, size = _TAIL.pack(number), EVERYBODY, len(frame)
    if owner is not None:
        name = owner.encode("utf-8", "surrogatepass")
        length, tail = len(name), name + tail
    if rest:
        size += sum(map(len, rest))
    head = _HEAD.pack(size, number, offset, time, length, _NUMBERS[channel], flags)
    return (head, frame, *rest, tail) if rest else (head, frame, tail)


def next_record(data: Buffer, start: int, number: int) -> Record | None:
    """Read the head of the record that begins at ``start``; the rest need not be in ``data``.

    The record's number has to be ``number`` or higher: with a lower one, and behind the last
    record, this returns None. Raises `DamagedLog` for a head that no keeper has written.
    """
    try:
        size, found, offset, time, owner_size, channel, flags = _HEAD.unpack_from(data, start)
    except error:
        return None
    # A lower number is that of an old record in a file that was written over, or of blank space:
    # zeros read as a record with number 0, which no message has. A caller that gives ``number`` 0
    # knows that the file has neither.
    if found < number:
        return None
    # A head may be half written, if its keeper was killed. Its length would lead anywhere.
    if channel >= len(CHANNELS) or size > MAX_FRAME:
        raise DamagedLog(f"number {number} is damaged")
    whole = RECORD_BYTES + size + (0 if owner_size == EVERYBODY else owner_size)
    return Record(found, offset, time, CHANNELS[channel], flags, size, owner_size, whole)


def owner_of(record: Record, tail: bytes) -> str | None:
    """The session that a message is for; None if it is for every session.

    ``tail`` are the record's bytes behind its frame. Raises `DamagedLog` if the record was not
    written to its end.
    """
    if tail[-_TAIL.size :] != _TAIL.pack(record.number):
        raise DamagedLog(f"number {record.number} was not written to its end")
    if record.owner_size == EVERYBODY:
        return None
    return owner_name(tail[: -_TAIL.size])


# A log has few owners and many messages. Bounded, as sessions come and go.
@lru_cache(1024)
def owner_name(name: bytes) -> str:
    """A session's name from its bytes in a record. Raises `DamagedLog`."""
    try:
        return name.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError as problem:
        raise DamagedLog(f"the name of a session: {problem}") from None
