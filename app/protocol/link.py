"""The frames on the link between server and keeper that go with every message. They are no JSON.

All integers are little-endian. A frame's first byte tells what it is:

    R  a request for a kernel     handle, channel, owner's length, number of parts | their sizes |
                                  owner | parts
    S  a message of the server's  handle, channel, flags, owner's length | owner | v1 frame
    B  a doorbell, from the       for each kernel whose log has grown: handle, first place, end,
       keeper                     tip, how many requests the kernel's sockets have taken

and, between a keeper and a server on another host, which keeps copies of the logs:

    F  follow a log               handle, the first number that is wanted, credit in bytes
    C  further credit             handle, bytes
    L  records, from the keeper   handle, flags | a piece of the log's records, as they stand
    H  a heartbeat                nothing; the keeper returns it

The handle is the keeper's number for a kernel. Places and tips are those of `app.keeper.log`. The
keeper writes records to their file before it sends the bell: all records that a bell tells of can
be read when it comes. A bell's facts are totals, not steps: the next bell makes up for one that is
lost with a link.
"""

from __future__ import annotations

from collections.abc import Iterable
from struct import Struct, error, pack, unpack_from
from typing import Any, Final, NamedTuple

from .messages import CHANNELS, Buffer, ClientMessage, MalformedMessage, decode_header
from .records import EVERYBODY

__all__ = [
    "BELLS",
    "CREDIT",
    "FOLLOW",
    "HEARTBEAT",
    "RECORDS",
    "REQUEST",
    "SAID",
    "Bell",
    "Credit",
    "Follow",
    "Piece",
    "Said",
    "pack_bells",
    "pack_credit",
    "pack_follow",
    "pack_records",
    "pack_request",
    "pack_said",
    "unpack_bells",
    "unpack_credit",
    "unpack_follow",
    "unpack_records",
    "unpack_request",
    "unpack_said",
]

REQUEST: Final = b"R"
SAID: Final = b"S"
BELLS: Final = b"B"
FOLLOW: Final = b"F"
CREDIT: Final = b"C"
RECORDS: Final = b"L"
HEARTBEAT: Final = b"H"
"""The whole frame of a heartbeat: it has no fields."""

ANEW: Final = 1
"""A flag of a piece: it begins with a whole record, and the piece before it may have ended within
a record."""

_REQUEST: Final = Struct("<cIBHH")
_SAID: Final = Struct("<cIBBH")
_BELL: Final = Struct("<I7Q")
_FOLLOW: Final = Struct("<cIQQ")
_CREDIT: Final = Struct("<cIQ")
_RECORDS: Final = Struct("<cIB")
_NUMBERS: Final = {name: number for number, name in enumerate(CHANNELS)}


class Bell(NamedTuple):
    """The doorbell of one kernel: how far its log goes.

    ``first`` is the place of the oldest message and ``end`` the place behind the newest one, each a
    number and an offset. ``tip`` is where the next record will be written: the segment's first
    number and the position in its file. ``taken`` counts the requests that were sent to the kernel
    or dropped, since the keeper began to hear it.
    """

    handle: int
    first: tuple[int, int]
    end: tuple[int, int]
    tip: tuple[int, int]
    taken: int


class Said(NamedTuple):
    """A message that the server has made, to be appended to the log."""

    handle: int
    channel: str
    flags: int
    owner: str | None
    frame: bytes


class Follow(NamedTuple):
    """A server's request for a copy of a log, from a number on; ``credit`` is in bytes."""

    handle: int
    after: int
    credit: int


class Credit(NamedTuple):
    """A server's further credit for one kernel's log: how many bytes more the keeper may send."""

    handle: int
    size: int


class Piece(NamedTuple):
    """A piece of a log's records. It goes on where the last piece ended, unless it is ``anew``."""

    handle: int
    anew: bool
    data: memoryview


def pack_request(handle: int, message: ClientMessage, owner: str) -> list[Buffer]:
    """The pieces of a frame with a request of the session ``owner``."""
    # Pieces, to be written together: a large cell, or a buffer, is not copied into a frame first.
    name = owner.encode("utf-8", "surrogatepass")
    parts = message.parts
    head = _REQUEST.pack(REQUEST, handle, _NUMBERS[message.channel], len(name), len(parts))
    return [head, pack(f"<{len(parts)}Q", *map(len, parts)), name, *parts]


def unpack_request(data: bytes) -> tuple[int, ClientMessage, str]:
    """The handle, the request and its owner that a frame holds. Raises `ValueError`."""
    try:
        _, handle, channel, name_size, count = _REQUEST.unpack_from(data)
        sizes = unpack_from(f"<{count}Q", data, _REQUEST.size)
        start = _REQUEST.size + 8 * count
        owner = data[start : start + name_size].decode("utf-8", "surrogatepass")
        start += name_size
        # The sizes may be wrong, and are checked before the parts are cut out: a slice that passes
        # the end of the frame would just be shorter than its size says.
        if count < 4 or start + sum(sizes) != len(data):
            raise MalformedMessage("the parts of a request do not fit its frame")
        parts: list[Buffer] = []
        for size in sizes:
            parts.append(data[start : start + size])
            start += size
        return handle, ClientMessage(CHANNELS[channel], decode_header(parts[0]), parts), owner
    except (error, IndexError) as problem:
        raise MalformedMessage(f"no request: {problem}") from None


def pack_said(said: Said) -> list[Buffer]:
    """The pieces of a frame with a message that the server has made."""
    # An empty name is that of `NOBODY`, a session that no client has. So a message for every
    # session is known by the length `EVERYBODY`.
    name, size = b"", EVERYBODY
    if said.owner is not None:
        name = said.owner.encode("utf-8", "surrogatepass")
        size = len(name)
    head = _SAID.pack(SAID, said.handle, _NUMBERS[said.channel], said.flags, size)
    return [head, name, said.frame]


def unpack_said(data: bytes) -> Said:
    """The message of the server that a frame holds. Raises `ValueError`."""
    try:
        _, handle, channel, flags, size = _SAID.unpack_from(data)
        start, owner = _SAID.size, None
        if size != EVERYBODY:
            owner = data[start : start + size].decode("utf-8", "surrogatepass")
            start += size
        return Said(handle, CHANNELS[channel], flags, owner, data[start:])
    except (error, IndexError) as problem:
        raise MalformedMessage(f"nothing said: {problem}") from None


def pack_bells(bells: Iterable[Bell]) -> bytes:
    """One frame with the bells of several kernels."""
    packed = [
        _BELL.pack(bell.handle, *bell.first, *bell.end, *bell.tip, bell.taken) for bell in bells
    ]
    return BELLS + b"".join(packed)


def unpack_bells(data: bytes) -> list[Bell]:
    """The bells in a frame. Raises `ValueError`."""
    # Without the first byte the frame has nothing but bells, so its size tells how many.
    try:
        return [
            Bell(handle, (first, first_at), (end, end_at), (segment, position), taken)
            for handle, first, first_at, end, end_at, segment, position, taken in _BELL.iter_unpack(
                memoryview(data)[1:]
            )
        ]
    except error as problem:
        raise MalformedMessage(f"no doorbell: {problem}") from None


def pack_follow(follow: Follow) -> list[Buffer]:
    """The pieces of a frame with the request to follow a log."""
    return [_FOLLOW.pack(FOLLOW, *follow)]


def unpack_follow(data: bytes) -> Follow:
    """The request to follow a log that a frame holds. Raises `ValueError`."""
    return Follow(*_whole(_FOLLOW, data)[1:])


def pack_credit(credit: Credit) -> list[Buffer]:
    """The pieces of a frame with further credit."""
    return [_CREDIT.pack(CREDIT, *credit)]


def unpack_credit(data: bytes) -> Credit:
    """The further credit that a frame holds. Raises `ValueError`."""
    return Credit(*_whole(_CREDIT, data)[1:])


def pack_records(handle: int, anew: bool, data: bytes) -> bytes:
    """A frame with a piece of a log's records."""
    return _RECORDS.pack(RECORDS, handle, ANEW * anew) + data


def unpack_records(data: bytes) -> Piece:
    """The piece of a log's records that a frame holds. Raises `ValueError`."""
    _, handle, flags = _whole(_RECORDS, data[: _RECORDS.size])
    return Piece(handle, bool(flags & ANEW), memoryview(data)[_RECORDS.size :])


def _whole(form: Struct, data: bytes) -> tuple[Any, ...]:
    try:
        return form.unpack(data)
    except error as problem:
        raise MalformedMessage(f"no frame {data[:1]!r}: {problem}") from None
