"""The journal: the places of one kernel's clients, in a file that survives the server's process.

The file is mapped into memory while the kernel has a client: a place is noted by writing a few
bytes there, without a system call. The operating system has these bytes from then on, however the
process ends.

Layout: a head, then the places of `PLACES` sessions. One server at a time has the file, as it holds
the lock of the state directory: nothing is written while the next server reads. Each session has a
slot of its own, so that a server which is killed during a write hurts one place at the most.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import mmap
import os
import time
from pathlib import Path
from struct import Struct
from typing import Final, Self

from .entries import Position

__all__ = ["Journal", "UnusableJournal"]

logger = logging.getLogger(__name__)

PLACES: Final = 256
"""How many sessions have a place; the one unchanged for longest makes room for another."""

_MAGIC: Final = b"kkjourn3"
_HEAD: Final = Struct("<8s16s?")  # magic, epoch, whether the process is being replaced
_PLACE: Final = Struct("<16sQQd")  # of which session, cursor, offset, seconds since the epoch

_PLACES_AT: Final = 64
_FILE_BYTES: Final = _PLACES_AT + PLACES * _PLACE.size


class UnusableJournal(Exception):
    """The journal cannot be made or read; the text says why."""


class Journal:
    """The journal of one kernel; make it by `create` or `open`.

    It is mapped when it is needed, and until `close`. If it cannot be mapped then, that is logged
    once, and nothing is noted.
    """

    def __init__(self, path: Path, memory: mmap.mmap) -> None:
        self._path = path
        self._memory: mmap.mmap | None = memory
        self._warned = False
        self._places: dict[bytes, int] = {}  # slots by session key, the longest unchanged first

    @classmethod
    def create(cls, path: Path, epoch: str) -> Self:
        """A new journal, in place of a file that is there. Raises `UnusableJournal`."""
        try:
            path.unlink(missing_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            descriptor = os.open(path, flags, 0o600)
            try:
                # All blocks are taken now. If the disk were full when a page is first written,
                # this process would be killed (SIGBUS).
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
        """The journal that the server before has left, to be read and continued.

        Raises `UnusableJournal`.
        """
        try:
            memory = _mapped(path)
        except OSError as error:
            raise UnusableJournal(f"{path} cannot be read: {error}") from None
        if bytes(memory[:8]) != _MAGIC:
            raise UnusableJournal(f"{path} is no journal of this version")
        journal = cls(path, memory)
        found = [(when, key, index) for index, key, _, when in journal._read_places()]
        journal._places = {key: index for _, key, index in sorted(found)}
        return journal

    @property
    def epoch(self) -> str:
        """The epoch of the log whose places these are."""
        memory = self._map()
        return "" if memory is None else _epoch(memory)

    # Places

    def put_place(self, session: str, place: Position) -> None:
        """Write how far the client of a session is known to have come."""
        key = _session_key(session)
        index = self._places.pop(key, None)
        if index is None:
            index = len(self._places)
            if index >= PLACES:
                index = self._places.pop(next(iter(self._places)))
        self._places[key] = index
        memory = self._map()
        if memory is not None:
            _PLACE.pack_into(memory, _PLACES_AT + index * _PLACE.size, key, *place, time.time())

    def place_of(self, session: str, max_age: float) -> Position | None:
        """How far a session has come; None if unknown, or noted over ``max_age`` seconds ago."""
        index = self._places.get(_session_key(session))
        memory = None if index is None else self._map()
        if index is None or memory is None:
            return None
        _, cursor, offset, when = _PLACE.unpack_from(memory, _PLACES_AT + index * _PLACE.size)
        return Position(cursor, offset) if time.time() - when <= max_age else None

    @property
    def furthest(self) -> Position:
        """The place of the session that has come furthest."""
        return max((place for _, _, place, _ in self._read_places()), default=Position(1, 0))

    def _read_places(self) -> list[tuple[int, bytes, Position, float]]:
        found: list[tuple[int, bytes, Position, float]] = []
        memory = self._map()
        for index in range(0 if memory is None else PLACES):
            assert memory is not None
            at = _PLACES_AT + index * _PLACE.size
            key, cursor, offset, when = _PLACE.unpack_from(memory, at)
            if when:
                found.append((index, key, Position(cursor, offset), when))
        return found

    @property
    def replaced(self) -> bool:
        """Whether the kernel's process was about to be stopped, with another one to follow."""
        memory = self._map()
        return memory is not None and bool(_HEAD.unpack_from(memory, 0)[2])

    @replaced.setter
    def replaced(self, value: bool) -> None:
        memory = self._map()
        if memory is not None:
            _HEAD.pack_into(memory, 0, _MAGIC, _epoch(memory).encode(), value)

    def close(self) -> None:
        """Unmap the file, which stays for the next server, until it is needed again."""
        if self._memory is not None:
            self._memory.close()
            self._memory = None

    def remove(self) -> None:
        """Remove the file: the kernel is gone, and no client comes back to its log."""
        self.close()
        self._path.unlink(missing_ok=True)

    def _map(self) -> mmap.mmap | None:
        if self._memory is None:
            try:
                self._memory = _mapped(self._path)
            except OSError as error:  # no descriptors are left, or somebody has removed it
                if not self._warned:
                    self._warned = True
                    logger.error("how far clients are is not noted in %s: %s", self._path, error)
        return self._memory


def _mapped(path: Path) -> mmap.mmap:
    """A journal's file, mapped. Raises `OSError`."""
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        return mmap.mmap(descriptor, _FILE_BYTES)
    except ValueError as error:
        raise OSError(errno.EINVAL, str(error)) from None
    finally:
        os.close(descriptor)


def _epoch(memory: mmap.mmap) -> str:
    return str(_HEAD.unpack_from(memory, 0)[1].decode("ascii", "replace"))


def _session_key(session: str) -> bytes:
    return hashlib.blake2b(session.encode("utf-8", "surrogatepass"), digest_size=16).digest()
