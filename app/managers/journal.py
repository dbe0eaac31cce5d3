"""How far a kernel's readers came, and what it was sent, in a file that survives the process.

The file is mapped into memory: to note something is to write a few bytes there, without a system
call, and what was written is the operating system's to keep, however the process ends.

Layout: a head; places of sessions; which of the requests that waited were sent to the kernel.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import time
from pathlib import Path
from struct import Struct
from typing import Final, Self

from app.managers.entries import Position

__all__ = ["Journal", "UnusableJournal"]

PLACES: Final = 256
"""Sessions whose places are remembered; the one longest unchanged makes room for another."""

SENT: Final = 8192
"""Requests that had waited, and of which it is remembered that they were sent."""

_MAGIC: Final = b"kkjourn2"
_HEAD: Final = Struct("<8s16s64s16s")  # magic, epoch, the server's session, identity of the sockets
_PLACE: Final = Struct("<16sQQd")  # of which session, cursor, offset, seconds since the epoch

_PLACES_AT: Final = 4096
_SENT_AT: Final = _PLACES_AT + 12288
_SENT_HEAD: Final = Struct("<QQ")  # how many were ever sent; whether the process is being replaced
_SENT_KEYS_AT: Final = _SENT_AT + _SENT_HEAD.size
_KEY_BYTES: Final = 16
_FILE_BYTES: Final = _SENT_KEYS_AT + SENT * _KEY_BYTES


class UnusableJournal(Exception):
    """A journal that cannot be made or read; the text says why."""


class Journal:
    """Of one kernel. Raises `UnusableJournal` when its file cannot be had."""

    def __init__(self, path: Path, memory: mmap.mmap) -> None:
        self._path = path
        self._memory = memory
        self._places: dict[bytes, int] = {}  # the longest unchanged first

    @classmethod
    def create(cls, path: Path, epoch: str, session: str, identity: bytes) -> Self:
        """A new journal, in place of what was there."""
        try:
            path.unlink(missing_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            descriptor = os.open(path, flags, 0o600)
            try:
                # A hole that the disk cannot fill would end this process at a write.
                os.posix_fallocate(descriptor, 0, _FILE_BYTES)
                memory = mmap.mmap(descriptor, _FILE_BYTES)
            finally:
                os.close(descriptor)
        except (OSError, AttributeError) as error:  # there is no fallocate on some platforms
            path.unlink(missing_ok=True)
            raise UnusableJournal(f"{path} cannot be made: {error}") from None
        head = (epoch.encode(), session.encode(), identity)
        _HEAD.pack_into(memory, 0, _MAGIC, *head)
        return cls(path, memory)

    @classmethod
    def open(cls, path: Path) -> Self:
        """The journal that another process has left; to be read, and then to be gone on with."""
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                memory = mmap.mmap(descriptor, _FILE_BYTES)
            finally:
                os.close(descriptor)
        except (OSError, ValueError) as error:
            raise UnusableJournal(f"{path} cannot be read: {error}") from None
        if bytes(memory[:8]) != _MAGIC:
            raise UnusableJournal(f"{path} is no journal of this version")
        journal = cls(path, memory)
        found = [(when, key, index) for index, key, _, when in journal._read_places()]
        journal._places = {key: index for _, key, index in sorted(found)}
        return journal

    @property
    def head(self) -> tuple[str, str, bytes]:
        """The log's epoch, the server's own session, and the identity of its sockets."""
        _, epoch, session, identity = _HEAD.unpack_from(self._memory, 0)
        return (epoch.decode("ascii", "replace"), session.rstrip(b"\0").decode(), identity)

    def set_identity(self, identity: bytes) -> None:
        """The kernel's process, and so its sockets, are others now."""
        _, epoch, session, _ = _HEAD.unpack_from(self._memory, 0)
        _HEAD.pack_into(self._memory, 0, _MAGIC, epoch, session, identity)

    # Places

    def put_place(self, session: str, place: Position) -> None:
        """Remember how far the client of a session is known to have come."""
        key = _session_key(session)
        index = self._places.pop(key, None)
        if index is None:
            index = len(self._places)
            if index >= PLACES:
                index = self._places.pop(next(iter(self._places)))
        self._places[key] = index
        _PLACE.pack_into(self._memory, _PLACES_AT + index * _PLACE.size, key, *place, time.time())

    def place_of(self, session: str, max_age: float) -> Position | None:
        """How far a session has come, if that is known and not older than so many seconds."""
        index = self._places.get(_session_key(session))
        if index is None:
            return None
        _, cursor, offset, when = _PLACE.unpack_from(self._memory, _PLACES_AT + index * _PLACE.size)
        return Position(cursor, offset) if time.time() - when <= max_age else None

    def _read_places(self) -> list[tuple[int, bytes, Position, float]]:
        found = []
        for index in range(PLACES):
            key, cursor, offset, when = _PLACE.unpack_from(
                self._memory, _PLACES_AT + index * _PLACE.size
            )
            if when:
                found.append((index, key, Position(cursor, offset), when))
        return found

    # Requests that have waited

    def note_sent(self, execution_id: str, session: str) -> None:
        """This request leaves for the kernel next, whatever the registry still says of it."""
        count, replaced = _SENT_HEAD.unpack_from(self._memory, _SENT_AT)
        place = _SENT_KEYS_AT + count % SENT * _KEY_BYTES
        self._memory[place : place + _KEY_BYTES] = _request_key(execution_id, session)
        _SENT_HEAD.pack_into(self._memory, _SENT_AT, count + 1, replaced)

    def take_back_sent(self) -> None:
        """The request that was noted last has not left: the socket took no more."""
        count, replaced = _SENT_HEAD.unpack_from(self._memory, _SENT_AT)
        place = _SENT_KEYS_AT + (count - 1) % SENT * _KEY_BYTES
        self._memory[place : place + _KEY_BYTES] = bytes(_KEY_BYTES)
        _SENT_HEAD.pack_into(self._memory, _SENT_AT, count - 1, replaced)

    def was_sent(self, execution_id: str, session: str) -> bool:
        """Whether a request that had waited was sent."""
        key = _request_key(execution_id, session)
        keys = self._memory[_SENT_KEYS_AT:_FILE_BYTES]
        return any(keys[at : at + _KEY_BYTES] == key for at in range(0, len(keys), _KEY_BYTES))

    @property
    def replaced(self) -> bool:
        """Whether the kernel's process was about to be stopped, for another to follow."""
        return bool(_SENT_HEAD.unpack_from(self._memory, _SENT_AT)[1])

    @replaced.setter
    def replaced(self, value: bool) -> None:
        count, _ = _SENT_HEAD.unpack_from(self._memory, _SENT_AT)
        _SENT_HEAD.pack_into(self._memory, _SENT_AT, count, value)

    def close(self) -> None:
        """Nothing more will be noted; what was stays for the next process."""
        self._memory.close()

    def remove(self) -> None:
        """The kernel is gone, and nobody will ask for its numbers."""
        self._memory.close()
        self._path.unlink(missing_ok=True)


def _request_key(execution_id: str, session: str) -> bytes:
    return _session_key(f"{execution_id}\0{session}")


def _session_key(session: str) -> bytes:
    return hashlib.blake2b(session.encode("utf-8", "surrogatepass"), digest_size=16).digest()
