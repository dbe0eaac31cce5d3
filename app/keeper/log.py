"""Writing the log of a kernel: numbered messages, appended to segment files.

Files are written by system calls, and read by others in the same way: the page cache is the memory
that they share. (A mapped file would save one copy, but a reader dies where somebody shortens the
file, and its writer where the disk is full.) What is appended in one turn of the event loop is
written in one call, before anybody is told of it.

A segment's blocks are taken when its file is made, so that there the disk's being full shows, and
one more file is always held ready. Where no further file can be had, the oldest one is written
over: the log goes on, and is shorter.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import secrets
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from ..protocol import records
from ..protocol.messages import Buffer
from ..protocol.records import DamagedLog, Record

__all__ = ["FIRST_BYTES", "SEGMENT_BYTES", "SUFFIX", "LogRoom", "LogWriter", "Place", "Tip"]

logger = logging.getLogger(__name__)

FIRST_BYTES: Final = 2**15
SEGMENT_BYTES: Final = 2**22
"""The files of a log grow from the one size to the other, fourfold each time: thousands of kernels
that say nothing take little. A larger message has a file of its own size."""

WRITTEN_TOGETHER: Final = 1020
"""How many buffers one system call may write [writev(2), IOV_MAX]."""

UNWRITTEN_BYTES: Final = 2**18
"""After so many bytes that wait for the end of the turn they are written at once."""

QUIET_SECONDS: Final = 60.0
"""For so long at least one line tells of a disk on which there is room now and then."""

SUFFIX: Final = ".log"
_SPARE: Final = "spare"


class Place(NamedTuple):
    """A place in a log: the next number to read, and the bytes of all frames before it."""

    cursor: int
    offset: int


class Tip(NamedTuple):
    """Where the next record will be written: the segment's first number, and the place in it."""

    segment: int
    position: int


class LogRoom:
    """The bounds on what logs hold: of each, of all together, in bytes, and in seconds."""

    def __init__(self, each: int, together: int, age: float) -> None:
        self.each = each
        self.together = together
        self.age = age
        self.used = 0
        self._logs: set[LogWriter] = set()

    def add(self, log: LogWriter) -> None:
        """Count a log."""
        self._logs.add(log)
        self.used += log.bytes

    def remove(self, log: LogWriter) -> None:
        """Count a log no more."""
        self._logs.discard(log)
        self.used -= log.bytes

    def grow(self, size: int) -> None:
        """Some log has grown by so much, or shrunk; the largest goes down until all fit."""
        self.used += size
        while self.used > self.together:
            largest = max(self._logs, key=lambda log: log.droppable, default=None)
            if largest is None or not largest.droppable:
                return
            largest.drop_first()

    def expire(self) -> None:
        """Drop what has become too old, also of kernels that say nothing more."""
        for log in tuple(self._logs):
            log.expire(time.time() - self.age)


class _Segment:
    """A file of records that follow each other."""

    __slots__ = ("begun_at", "bytes", "path", "room", "start", "written_at")

    def __init__(self, start: Place, path: Path, room: int) -> None:
        self.start = start
        self.path = path
        self.room = room  # of the file
        self.bytes = records.HEAD_BYTES
        self.begun_at = self.written_at = time.time()


class LogWriter:
    """One kernel's log, from its first message on or from where another writer has left it.

    ``directory`` is the log's own; ``epoch``, of 16 characters, is for a log that is new.
    """

    def __init__(
        self, directory: Path, kernel_id: str, room: LogRoom, epoch: str | None = None
    ) -> None:
        self.directory = directory
        self.kernel_id = kernel_id
        self._room = room
        self.epoch = epoch or secrets.token_hex(8)
        self.bytes = 0
        self.lost_messages = 0
        self._segments: deque[_Segment] = deque()
        self._descriptor = -1  # of the last segment
        self._spare = 0  # the room of the file that is held ready
        # Where the next message will be: two numbers, as an object for each costs its time.
        self._number, self._offset = 1, 0
        self._written = Place(1, 0)
        self._pending: list[Buffer] = []
        self._pending_bytes = 0
        self._pending_messages = 0
        self._recycles = False  # for want of new files
        self._warned = False
        self._warned_at = 0.0
        self._closed = False
        room.add(self)

    # Looking

    @property
    def next(self) -> Place:
        """Where the next message will be."""
        return Place(self._number, self._offset)

    @property
    def end(self) -> Place:
        """The place behind all that is written, and so can be read."""
        return self._written

    @property
    def first(self) -> Place:
        """The place of the oldest message that is kept; the end if there is none."""
        return self._segments[0].start if self._segments else self._written

    @property
    def tip(self) -> Tip:
        """Where the next record will be written."""
        if not self._segments:
            return Tip(self._written.cursor, records.HEAD_BYTES)
        last = self._segments[-1]
        return Tip(last.start.cursor, last.bytes)

    @property
    def droppable(self) -> int:
        """Bytes that can be dropped from the front: not the newest segment's."""
        return self.bytes - self._segments[-1].bytes if len(self._segments) > 1 else 0

    # Writing

    def prepare(self) -> None:
        """Take the first file's blocks now. Raises `OSError` where they cannot be had."""
        if not self._segments:
            self._open(self._new_segment(self.next, 0))
        self._hold_spare()

    def append(
        self,
        frame: Buffer,
        channel: str,
        owner: str | None = None,
        flags: int = 0,
        rest: Sequence[Buffer] = (),
    ) -> tuple[int, int]:
        """Give a message the next number; it is written by the next `flush`. Returns its place.

        ``rest`` are further pieces of its frame.
        """
        number, offset = self._number, self._offset
        pieces = records.pack_record(
            number, offset, time.time(), channel, owner, flags, frame, rest
        )
        size = len(frame)
        if rest:
            size += sum(map(len, rest))
        taken = len(pieces[0]) + size + len(pieces[-1])
        fits = self._fits(self._pending_bytes + taken) or self._make_room(number, offset, taken)
        self._number, self._offset = number + 1, offset + size
        if not fits:
            self._lose(1)
            return number, offset
        self._pending += pieces
        self._pending_bytes += taken
        self._pending_messages += 1
        if self._pending_bytes > UNWRITTEN_BYTES:
            self.flush()
        return number, offset

    def skip(self, messages: int, size: int = 0) -> None:
        """Numbers that stand for what nobody has: they are a gap for every reader."""
        self.flush()
        self._number += messages
        self._offset += size
        self.lost_messages += messages
        self._written = self.next

    def skip_to(self, number: int, offset: int) -> None:
        """Go on behind this place, if that is further."""
        if number > self.next.cursor:
            self.skip(number - self.next.cursor, max(0, offset - self.next.offset))

    def renew(self) -> None:
        """Go on in another file: somebody cannot read what is written to this one."""
        self.flush()
        if self._segments:
            self._segments[-1].room = self._segments[-1].bytes

    @property
    def unwritten(self) -> bool:
        """Whether something waits for `flush`."""
        return bool(self._pending)

    def flush(self) -> None:
        """Write what was appended; afterwards it can be read."""
        pending, size = self._pending, self._pending_bytes
        if not pending:
            self._written = self.next
            return
        messages = self._pending_messages
        self._pending, self._pending_bytes, self._pending_messages = [], 0, 0
        last = self._segments[-1]
        try:
            for start in range(0, len(pending), WRITTEN_TOGETHER):
                _write_all(self._descriptor, pending[start : start + WRITTEN_TOGETHER])
        except OSError as error:  # of a disk that fails, or a file system without preallocation
            self._give_up(last, error)
            self._lose(messages)
            return
        if self._warned and not self._recycles:
            self._warned = time.monotonic() < self._warned_at + QUIET_SECONDS
        last.bytes += size
        last.written_at = time.time()
        self.bytes += size
        self._written = self.next
        self._room.grow(size)
        if size <= SEGMENT_BYTES:  # what lies before a larger one can be read until the next
            self._shrink()

    def _fits(self, size: int) -> bool:
        if not self._segments or self._closed:
            return False
        last = self._segments[-1]
        return last.bytes + size <= last.room

    def _make_room(self, number: int, offset: int, taken: int) -> bool:
        """Write what waits, and go on in another file where this one is full."""
        if self._closed:
            return False
        self.flush()
        return self._fits(taken) or self._roll(Place(number, offset), taken)

    def _give_up(self, segment: _Segment, error: OSError) -> None:
        """What was written last may be cut short: the file ends where it did before."""
        self._warn(error)
        with contextlib.suppress(OSError):
            os.ftruncate(self._descriptor, segment.bytes)
        segment.room = segment.bytes  # the next message takes another file

    def _lose(self, messages: int) -> None:
        self.lost_messages += messages
        self._written = self.next

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            reason = error.strerror or str(error)
            logger.warning("kernel %s: its log cannot be written: %s", self.kernel_id, reason)
            self._warned, self._warned_at = True, time.monotonic()

    # Segments

    def _roll(self, start: Place, taken: int) -> bool:
        """Go on in another file, with room for a message; False if there is none to be had."""
        try:
            segment = self._new_segment(start, taken)
            try:
                self._open(segment)
            except OSError:
                with contextlib.suppress(OSError):
                    segment.path.unlink()
                raise
        except OSError as error:
            self._warn(error)
            return False
        self._shrink()
        with contextlib.suppress(OSError):  # that shows when it is needed
            self._hold_spare()
        return True

    def _new_segment(self, start: Place, taken: int) -> _Segment:
        """A file with room for a message of so many bytes. Raises `OSError`."""
        path = self.directory / f"{start.cursor:020}{SUFFIX}"
        wanted = max(self._next_room, records.HEAD_BYTES + taken)
        try:
            room = self._make(path, wanted)
            self._recycles = False
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
                raise
            self._recycles = True
            room = self._recycle(path, records.HEAD_BYTES + taken, error)
        return _Segment(start, path, room)

    @property
    def _next_room(self) -> int:
        before = self._segments[-1].room if self._segments else FIRST_BYTES // 4
        return max(FIRST_BYTES, min(4 * before, SEGMENT_BYTES, self._room.each // 4))

    def _recycle(self, path: Path, least: int, error: OSError) -> int:
        """The room of a file of ours that is written over from now on. Raises ``error``."""
        self._warn(error)
        if self._spare >= least:
            room, self._spare = self._spare, 0
            with contextlib.suppress(OSError):  # somebody has removed it
                (self.directory / _SPARE).rename(path)
                return room
        # The last one is being read just now, more likely than not.
        while len(self._segments) > 1:
            oldest = self._segments.popleft()
            self.bytes -= oldest.bytes
            self._room.grow(-oldest.bytes)
            with contextlib.suppress(OSError):  # somebody has removed it, or its blocks do not do
                if not least <= oldest.room <= SEGMENT_BYTES:
                    oldest.path.unlink(missing_ok=True)
                    return self._make(path, least)
                oldest.path.rename(path)
                break
        else:
            raise error
        try:
            _blank(path, oldest.room)
        except OSError:
            path.unlink(missing_ok=True)
            raise
        return oldest.room

    def _make(self, path: Path, room: int) -> int:
        """A new file of so much room (0600). Raises `OSError`."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            descriptor = os.open(path, flags, 0o600)
        except FileNotFoundError:  # the first one of this kernel
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(path, flags, 0o600)
        try:
            _allocate(descriptor, room)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)
        return room

    def _open(self, segment: _Segment) -> None:
        """Write into this segment from now on. Raises `OSError`."""
        flags = os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(segment.path, flags)
        try:
            head = records.pack_head(self.epoch, self.kernel_id, *segment.start)
            _write_all(descriptor, [head])
        except BaseException:
            os.close(descriptor)
            raise
        last = self._segments[-1] if self._segments else None
        if last is not None and last.start.cursor == segment.start.cursor:
            # It has no message yet, for which it has no room; the new file is there by its name.
            self._segments.pop()
            self.bytes -= last.bytes
            self._room.grow(-last.bytes)
        elif self._descriptor != -1 and last is not None:
            self._give_back(last)
        self._close_descriptor()
        self._descriptor = descriptor
        self._segments.append(segment)
        self.bytes += segment.bytes
        self._room.grow(segment.bytes)

    def _give_back(self, last: _Segment) -> None:
        """Let go of the blocks that a segment has not come to use."""
        if last.room > last.bytes:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, last.bytes)
                last.room = last.bytes

    def _hold_spare(self) -> None:
        """Have a file ready for when the disk is full. Raises `OSError`."""
        if not self._spare:
            self._spare = self._make(self.directory / _SPARE, FIRST_BYTES)

    def _shrink(self) -> None:
        """Drop the oldest segments as long as those behind them are enough, or all are too much."""
        bound = self._room.each
        while len(self._segments) > 1 and (
            self.bytes - self._segments[0].bytes >= bound or self.bytes > bound + SEGMENT_BYTES
        ):
            self.drop_first()

    def drop_first(self) -> None:
        """Drop the oldest segment."""
        first = self._segments.popleft()
        self.bytes -= first.bytes
        self._room.grow(-first.bytes)
        with contextlib.suppress(OSError):
            first.path.unlink()

    def expire(self, before: float) -> None:
        """Drop the files whose newest message was written before a time (seconds since the epoch).

        A file whose oldest one was takes no more: nothing is kept for longer than twice as long.
        """
        while self._segments and self._segments[0].written_at < before and not self._pending:
            if len(self._segments) == 1:
                self._close_descriptor()
            self.drop_first()
        # What is written on and on would keep its first messages for ever.
        if self._segments and self._segments[-1].begun_at < before:
            self._segments[-1].room = self._segments[-1].bytes

    # Beginning and end

    def resume(self) -> None:
        """Go on with what another writer has left in the directory, if it is of use.

        What is not is removed, with a line in the log of the process. Raises `OSError`.
        """
        found = sorted(_segments_in(self.directory, self.kernel_id))
        if not found:
            return
        self.epoch = found[-1][2]
        for start, path, epoch in found:
            if epoch != self.epoch:  # of a log before
                path.unlink(missing_ok=True)
                continue
            status = path.stat()
            segment = _Segment(start, path, status.st_size)
            segment.bytes, segment.written_at = status.st_size, status.st_mtime
            self._segments.append(segment)
        last = self._segments[-1]
        last.bytes, self._written, last.begun_at = _end_of(last.path, last.start)
        self._number, self._offset = self._written
        self._descriptor = os.open(last.path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        # What lies behind the last record is not to be taken for more of them another time.
        os.ftruncate(self._descriptor, last.bytes)
        try:
            _allocate(self._descriptor, last.room)
        except OSError:
            last.room = last.bytes
        os.lseek(self._descriptor, last.bytes, os.SEEK_SET)
        self.bytes = sum(segment.bytes for segment in self._segments)
        self._room.grow(self.bytes)
        spare = self.directory / _SPARE
        if spare.exists():
            self._spare = spare.stat().st_size

    def newest(self) -> Iterator[tuple[Record, str | None, bytes]]:
        """The records of the last two files, in order: each with its owner and frame."""
        self.flush()
        for segment in [*self._segments][-2:]:
            with contextlib.suppress(OSError, DamagedLog):
                yield from _records_of(segment.path, segment.start)

    def close(self) -> None:
        """Write what is left, and nothing more; the files stay."""
        if not self._closed:
            self._closed = True
            self.flush()
            self._room.remove(self)
        self._close_descriptor()

    def remove(self) -> None:
        """Close, and remove the files."""
        self.close()
        for path in self.directory.glob("*"):
            with contextlib.suppress(OSError):
                path.unlink()
        with contextlib.suppress(OSError):  # never made, or it holds what cannot be removed
            self.directory.rmdir()

    def _close_descriptor(self) -> None:
        if self._descriptor != -1:
            os.close(self._descriptor)
            self._descriptor = -1


def _segments_in(directory: Path, kernel_id: str) -> Iterable[tuple[Place, Path, str]]:
    """The segments in a directory: their first places, and their epochs."""
    for path in directory.glob("*"):
        if path.name == _SPARE:
            continue
        try:
            with path.open("rb") as file:
                head = records.read_head(file.read(records.HEAD_BYTES), kernel_id)
            if path.name != f"{head.number:020}{SUFFIX}":
                raise DamagedLog("its name is not that of its first message")
        except records.OtherFormat as error:
            logger.error("%s is not used: %s", path, error)
        except (OSError, DamagedLog) as error:
            logger.error("%s is removed: %s", path, error)
            with contextlib.suppress(OSError):
                path.unlink()
        else:
            yield Place(head.number, head.offset), path, head.epoch


def _end_of(path: Path, start: Place) -> tuple[int, Place, float]:
    """Where the records of a segment end: in its file, and in the log; and the first one's time.

    Raises `OSError`.
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
            behind = position + records.FRAME_AT + record.size
            end = position + record.whole
            records.owner_of(record, os.pread(descriptor, end - behind, behind))
            begun_at = min(begun_at, record.time)
            position, place = end, Place(record.number + 1, record.offset + record.size)
    except DamagedLog:  # cut short with its writer
        pass
    finally:
        os.close(descriptor)
    return position, place, begun_at


def _records_of(path: Path, start: Place) -> Iterator[tuple[Record, str | None, bytes]]:
    """The records of a segment, their owners and frames.

    Raises `OSError`, and `DamagedLog` where one was not written to its end.
    """
    position, number = records.HEAD_BYTES, start.cursor
    with path.open("rb") as file:
        while True:
            file.seek(position)
            head = file.read(records.FRAME_AT)
            record = records.next_record(head, 0, number)
            if record is None or record.whole > os.fstat(file.fileno()).st_size - position:
                return
            frame = file.read(record.size)
            tail = file.read(record.whole - records.FRAME_AT - record.size)
            yield record, records.owner_of(record, tail), frame
            position, number = position + record.whole, record.number + 1


def _allocate(descriptor: int, room: int) -> None:
    """Take a file's blocks where the platform can. Raises `OSError`."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, 0, room)
        except OSError as error:  # the two: of a file system that cannot
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise


def _blank(path: Path, room: int) -> None:
    """Leave nothing in a file that could be taken for records. Raises `OSError`."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        _write_all(descriptor, [bytes(room)])
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, buffers: list[Buffer]) -> None:
    """Write buffers, however little a call takes. Raises `OSError`."""
    left = sum(map(len, buffers)) - os.writev(descriptor, buffers)
    if not left:
        return
    # A call writes 2 GiB at most; and of what has no room on the disk, as much as has.
    data = memoryview(b"".join(buffers))[-left:]
    while data:
        written = os.write(descriptor, data)
        if not written:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        data = data[written:]
