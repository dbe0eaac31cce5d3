"""The files of one log's directory: made, written over and removed.

A segment's blocks are allocated when its file is made, so that a full disk shows there rather than
in the middle of a record. One more file is held ready: the spare. At first it has the blocks for a
segment on a full disk. Later it is the file of the segment that was dropped last, and the next
segment is written over it: its pages are in the page cache already. To write over them takes half
of the time that new pages take, and a tenth where the machine is a virtual one, which has to get
new pages from its host.
"""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path
from typing import Final

from ..protocol.records import FRAME_AT
from .log_files import FIRST_BYTES, SPARE, SUFFIX

__all__ = ["SegmentFiles", "allocate", "end_here"]

_FLAGS: Final = os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK

_NO_RECORD: Final = bytes(FRAME_AT)


class SegmentFiles:
    """The files in ``directory``, which is the log's own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._spare = 0  # the bytes of the spare; 0 if there is none
        self._written_at = 0.0  # when the segment that the spare was got its last record

    def path(self, number: int) -> Path:
        """The file of the segment whose first message has this number."""
        return self.directory / f"{number:020}{SUFFIX}"

    def find_spare(self) -> None:
        """Have the spare that the keeper before has left, if there is one."""
        with contextlib.suppress(OSError):
            status = (self.directory / SPARE).lstat()
            self._spare, self._written_at = status.st_size, status.st_mtime

    def hold_spare(self) -> None:
        """Make the spare if there is none. Raises `OSError`."""
        if not self._spare:
            self._spare = self._create(self.directory / SPARE, FIRST_BYTES)

    def drop(self, path: Path) -> None:
        """Remove a segment's file. A server that has it open can go on reading it."""
        with contextlib.suppress(OSError):
            path.unlink()

    def hold(self, path: Path, size: int, written_at: float) -> None:
        """Have the file of a segment that is dropped, with ``size`` bytes, for the spare."""
        # A server that has the file open can go on reading it until it is written over.
        try:
            path.rename(self.directory / SPARE)
        except OSError:  # somebody has removed it, or has made a directory where the spare is
            self.drop(path)
        else:
            self._spare, self._written_at = size, written_at

    def expire(self, before: float) -> None:
        """Remove what the spare has of a segment that was written last before a time."""
        if self._spare > FIRST_BYTES and self._written_at < before:
            self._spare = 0
            self.drop(self.directory / SPARE)
            with contextlib.suppress(OSError):
                self.hold_spare()

    def make(self, path: Path, wanted: int, least: int) -> tuple[int, int]:
        """Have a file for a segment of ``wanted`` bytes, or ``least`` if there are no more.

        Returns the bytes that the file has room for, and up to which of them it may have old
        content. Raises `OSError`.
        """
        if self._spare > FIRST_BYTES:
            with contextlib.suppress(OSError):
                return self.take_spare(path, wanted, least)
        return self._create(path, wanted), 0

    def take_spare(self, path: Path, wanted: int, least: int) -> tuple[int, int]:
        """As `make`, of the spare; without room for ``least`` bytes it is removed.

        Raises `OSError`.
        """
        # A server may be reading this file. It reads the head again after the records, and the head
        # is what is written first (`app.managers.log.segments`). A server that finds the file cut
        # short has a gap, as it would have had a moment later.
        if not self._spare:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._spare = 0
        spare = self.directory / SPARE
        try:
            descriptor = os.open(spare, _FLAGS)
            try:
                size = os.fstat(descriptor).st_size
                room = _resize(descriptor, size, wanted, least)
            finally:
                os.close(descriptor)
            spare.rename(path)
        except OSError:
            self.drop(spare)
            raise
        return room, min(size, room)

    def _create(self, path: Path, room: int) -> int:
        """Make a file with ``room`` bytes (0600); returns ``room``. Raises `OSError`."""
        flags = _FLAGS | os.O_CREAT | os.O_TRUNC
        try:
            descriptor = os.open(path, flags, 0o600)
        except FileNotFoundError:
            # The log's directory is made with its first file. Those above it are not made: they
            # would be open to others, and a state directory that somebody has removed stays away.
            path.parent.mkdir(mode=0o700, exist_ok=True)
            descriptor = os.open(path, flags, 0o600)
        try:
            allocate(descriptor, 0, room)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)
        return room

    def remove(self) -> None:
        """Remove all files, and the directory."""
        for path in self.directory.glob("*"):
            self.drop(path)
        with contextlib.suppress(OSError):  # it was never made, or a file in it cannot be removed
            self.directory.rmdir()


def allocate(descriptor: int, start: int, end: int) -> None:
    """Allocate a file's blocks, if the platform and the file system can. Raises `OSError`."""
    if end > start and hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, start, end - start)
        except OSError as error:  # these two numbers mean that the file system cannot
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise


def end_here(descriptor: int, position: int, stale: int) -> None:
    """Have no record be found at ``position``, where the next records will end.

    ``stale`` is where old content ends. Raises `OSError`.
    """
    # Before the records are written, not after: a keeper that is killed between the two would leave
    # records in front of bytes that may look like one. A kernel may choose what it says.
    if position < stale:
        os.pwrite(descriptor, _NO_RECORD[: stale - position], position)


def _resize(descriptor: int, size: int, wanted: int, least: int) -> int:
    """Give a file of ``size`` bytes the room for ``wanted``, or for ``least``; returns its room."""
    if size > wanted:
        os.ftruncate(descriptor, wanted)
        return wanted
    try:
        allocate(descriptor, size, wanted)
    except OSError:
        if size < least:
            raise
        return size
    return wanted
