"""The segment files of a log, as the keeper reads, makes and writes them."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from ..protocol import records
from ..protocol.messages import Buffer
from ..protocol.records import DamagedLog, Record

__all__ = [
    "FIRST_BYTES",
    "SEGMENT_BYTES",
    "SPARE",
    "SUFFIX",
    "Position",
    "Segment",
    "Tip",
    "allocate",
    "blank",
    "end_of",
    "make_file",
    "records_of",
    "segments_in",
    "write_all",
]

logger = logging.getLogger(__name__)

FIRST_BYTES: Final = 2**15
SEGMENT_BYTES: Final = 2**22
"""The sizes of a log's first file and of its largest ones. Each file is four times as large as the
one before, so thousands of silent kernels take little. A larger message has a file of its own."""

SUFFIX: Final = ".log"
SPARE: Final = "spare"


class Position(NamedTuple):
    """A place in a log: the next number to read, and the bytes of all frames before it."""

    cursor: int
    offset: int


class Tip(NamedTuple):
    """Where the next record will be: the first number of its segment, and the byte in that file."""

    segment: int
    position: int


class Segment:
    """One file of a log: records that follow each other."""

    __slots__ = ("begun_at", "bytes", "path", "room", "start", "written_at")

    def __init__(self, start: Position, path: Path, room: int) -> None:
        self.start = start
        self.path = path
        self.room = room  # the bytes that the file may have, its head included
        self.bytes = records.HEAD_BYTES
        self.begun_at = self.written_at = time.time()

    def cut(self) -> None:
        """Give back the blocks behind the records: the next message takes another file."""
        # The next keeper takes the size of a file for that of its records. Where this fails a half
        # record may stay; readers know it by the number that is missing at its end.
        self.room = self.bytes
        with contextlib.suppress(OSError):
            os.truncate(self.path, self.bytes)

    def end_before(self, number: int) -> None:
        """Cut blank space off that a killed keeper has left in front of the next segment's file.

        ``number`` is that segment's first one. Raises `OSError`.
        """
        # Readers stop at blank space. The copies on other hosts are made of all bytes of a file.
        with self.path.open("rb") as file:
            file.seek(-records.TAIL_BYTES, os.SEEK_END)
            if records.unpack_tail(file.read(), 0)[0] == number - 1:  # the last record ends here
                return
        self.bytes, _, _ = end_of(self.path, self.start)
        self.cut()


def segments_in(directory: Path, kernel_id: str) -> Iterable[tuple[Position, Path, str]]:
    """The segments in a directory: the first place, path and epoch of each. Other files go.

    Raises `OSError` where a file cannot be opened or read now: it may be a segment, and stays.
    """
    for path in directory.glob("*"):
        if path.name == SPARE:
            continue
        try:
            # Kernels may run as the keeper's user, and put a named pipe or a link here: the first
            # must not be waited for, and what the second leads to is no file of the log.
            flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            try:
                descriptor = os.open(path, flags)
            except FileNotFoundError:  # somebody has just removed it
                continue
            except OSError as error:
                if error.errno not in (errno.ELOOP, errno.ENXIO):  # a link; a socket
                    raise
                raise DamagedLog(str(error)) from None
            try:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise DamagedLog("it is no file")
                head = records.read_head(os.read(descriptor, records.HEAD_BYTES), kernel_id)
            finally:
                os.close(descriptor)
            if path.name != f"{head.number:020}{SUFFIX}":
                raise DamagedLog("its name is not that of its first message")
        except records.OtherFormat as error:
            logger.error("%s is not used: %s", path, error)
        except DamagedLog as error:
            logger.error("%s is removed: %s", path, error)
            with contextlib.suppress(OSError):
                path.unlink()
        else:
            yield Position(head.number, head.offset), path, head.epoch


def end_of(path: Path, start: Position) -> tuple[int, Position, float]:
    """Where the last whole record of a segment ends, in its file and in the log.

    The third value is the time of the oldest record, in seconds since the epoch. Raises `OSError`.
    """
    position, place, begun_at = records.HEAD_BYTES, start, time.time()
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        data, data_at = b"", 0
        while True:
            if not data_at <= position <= data_at + len(data) - records.FRAME_AT:
                data, data_at = os.pread(descriptor, SEGMENT_BYTES, position), position
            record = records.next_record(data, position - data_at, place.cursor)
            if record is None:
                break
            # The frame is not looked at: the number behind it tells that it was written to its end.
            behind = position + records.FRAME_AT + record.size
            end = position + record.whole
            records.owner_of(record, os.pread(descriptor, end - behind, behind))
            begun_at = min(begun_at, record.time)
            position, place = end, Position(record.number + 1, record.offset + record.size)
    except DamagedLog:  # the last record was cut short, when its keeper was killed
        pass
    finally:
        os.close(descriptor)
    return position, place, begun_at


def records_of(path: Path, start: Position) -> Iterator[tuple[Record, str | None, bytes]]:
    """The records of a segment, with their owners and frames.

    Raises `OSError`, and `DamagedLog` at a record that was not written to its end.
    """
    position, number = records.HEAD_BYTES, start.cursor
    with path.open("rb") as file:
        while True:
            file.seek(position)
            head = file.read(records.FRAME_AT)
            record = records.next_record(head, 0, number)
            # A length is checked before so many bytes are read: in a damaged head it may be any.
            if record is None or record.whole > os.fstat(file.fileno()).st_size - position:
                return
            frame = file.read(record.size)
            tail = file.read(record.whole - records.FRAME_AT - record.size)
            yield record, records.owner_of(record, tail), frame
            position, number = position + record.whole, record.number + 1


def make_file(path: Path, room: int) -> int:
    """Make a file with ``room`` bytes (0600); returns ``room``. Raises `OSError`."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        descriptor = os.open(path, flags, 0o600)
    except FileNotFoundError:
        # The log's directory is made with its first file. Those above it are not made: they
        # would be open to others, and a state directory that somebody has removed stays away.
        path.parent.mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(path, flags, 0o600)
    try:
        allocate(descriptor, room)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)
    return room


def allocate(descriptor: int, room: int) -> None:
    """Allocate a file's blocks, if the platform and the file system can. Raises `OSError`."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, 0, room)
        except OSError as error:  # these two numbers mean that the file system cannot
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise


def blank(path: Path, room: int) -> None:
    """Fill a file with zeros, from its head on, so that no old record is left. Raises `OSError`."""
    # Written rather than cut and allocated anew: on a full disk the blocks would be gone between.
    flags = os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    descriptor = os.open(path, flags)
    try:
        write_all(descriptor, [bytes(room)])
    finally:
        os.close(descriptor)


def write_all(descriptor: int, buffers: list[Buffer]) -> None:
    """Write all buffers, in as many calls as that needs. Raises `OSError`."""
    left = sum(map(len, buffers)) - os.writev(descriptor, buffers)
    if not left:
        return
    # One call writes 2 GiB at most, and less if the disk becomes full: the next call then raises.
    data = memoryview(b"".join(buffers))[-left:]
    while data:
        written = os.write(descriptor, data)
        if not written:  # no file system should do so; without this it would be tried for ever
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        data = data[written:]
