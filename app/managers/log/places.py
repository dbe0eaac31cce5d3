"""How far the clients of a kernel have come in its log, in the form in which that is stored."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Final, NamedTuple

import msgspec

from .entries import Position

__all__ = ["MAX_PLACES", "Places", "SessionPlace", "session_key"]

MAX_PLACES: Final = 256
"""How many sessions of a kernel have a place; the one that has left first makes room."""


class SessionPlace(NamedTuple):
    """The place of one session. ``left`` is 0 if it had a connection when this was stored.

    Otherwise it is when the session left, in seconds since the epoch.
    """

    session: bytes
    """The session's key (`session_key`)."""
    cursor: int
    offset: int
    left: float


class Places(msgspec.Struct, frozen=True):
    """The places of one kernel's sessions, those that have left first at the beginning.

    ``epoch`` is that of the log in which these places are.
    """

    kernel_id: str
    epoch: str
    data: bytes

    @classmethod
    def of(cls, kernel_id: str, epoch: str, places: Iterable[SessionPlace]) -> Places:
        """The newest `MAX_PLACES` of these places, which are in order."""
        return cls(kernel_id, epoch, _encode([*places][-MAX_PLACES:]))

    def read(self) -> list[SessionPlace]:
        """The places, in order. Raises `msgspec.MsgspecError` if they make no sense."""
        return _decode(self.data)

    @property
    def furthest(self) -> Position:
        """The place of the session that has come furthest. Raises as `read`."""
        places = (Position(place.cursor, place.offset) for place in self.read())
        return max(places, default=Position(1, 0))


def session_key(session: str) -> bytes:
    """The key under which a session's place is stored: short, however long the session's id is."""
    return hashlib.blake2b(session.encode("utf-8", "surrogatepass"), digest_size=16).digest()


_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(list[SessionPlace]).decode
