"""How far a kernel's readers came, in a file that survives the process.

The file is mapped into memory: to note something is to write a few bytes there, without a system
call, and what was written is the operating system's to keep, however the process ends.

Layout: a head; places of sessions.
"""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import time
from pathlib import Path
from struct import Struct
from typing import Final, Self

from .entries import Position

__all__ = ["Journal", "UnusableJournal"]

PLACES: Final = 256
"""Sessions whose places are remembered; the one longest unchanged makes room for another."""

_MAGIC: Final = b"kkjourn3"
_HEAD: Final = Struct("<8s16s?")  # magic, epoch, whether the process is being replaced
_PLACE: Final = Struct("<16sQQd")  # of which session, cursor, offset, seconds since the epoch

_PLACES_AT: Final = 64
_FILE_BYTES: Final = _PLACES_AT + PLACES * _PLACE.size


class UnusableJournal(Exception):
    """A journal that cannot be made or read; the text says why."""


class Journal:
    """Of one kernel. Raises `UnusableJournal` when its file cannot be had."""

    def __init__(self, path: Path, memory: mmap.mmap) -> None:
        self._path = path
        self._memory = memory
        self._places: dict[bytes, int] = {}  # the longest unchanged first

    @classmethod
    def create(cls, path: Path, epoch: str) -> Self:
        """A new journal, in place of what was there."""
        try:
            path.unlink(missing_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            descriptor = os.open(path, flags, 0o600)
            try:
                # A hole that the disk cannot fill would end this process at a write.
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(descriptor, 0, _FILE_BYTES)
                elif os.pwrite(descriptor, bytes(_FILE_BYTES), 0) < _FILE_BYTES:  # macOS
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                memory = mmap.mmap(descriptor, _FILE_BYTES)
            finally:
                os.close(descriptor)
        except OSError as error:
            path.unlink(missing_ok=True)
            raise UnusableJournal(f"{path} cannot be made: {error}") from None
        _HEAD.pack_into(memory, 0, _MAGIC, epoch.encode(), False)
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
    def epoch(self) -> str:
        """That of the log whose places these are."""
        return str(_HEAD.unpack_from(self._memory, 0)[1].decode("ascii", "replace"))

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

    @property
    def furthest(self) -> Position:
        """The place of the session that has come furthest."""
        return max((place for _, _, place, _ in self._read_places()), default=Position(1, 0))

    def _read_places(self) -> list[tuple[int, bytes, Position, float]]:
        found = []
        for index in range(PLACES):
            key, cursor, offset, when = _PLACE.unpack_from(
                self._memory, _PLACES_AT + index * _PLACE.size
            )
            if when:
                found.append((index, key, Position(cursor, offset), when))
        return found

    @property
    def replaced(self) -> bool:
        """Whether the kernel's process was about to be stopped, for another to follow."""
        return bool(_HEAD.unpack_from(self._memory, 0)[2])

    @replaced.setter
    def replaced(self, value: bool) -> None:
        _HEAD.pack_into(self._memory, 0, _MAGIC, self.epoch.encode(), value)

    def close(self) -> None:
        """Nothing more will be noted; what was stays for the next process."""
        self._memory.close()

    def remove(self) -> None:
        """The kernel is gone, and nobody will ask for its numbers."""
        self._memory.close()
        self._path.unlink(missing_ok=True)


def _session_key(session: str) -> bytes:
    return hashlib.blake2b(session.encode("utf-8", "surrogatepass"), digest_size=16).digest()
