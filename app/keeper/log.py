"""Writing the log of a kernel: numbered messages, appended to segment files.

The keeper writes the files by system calls, and servers read them by system calls: they share the
page cache. (A mapped file would save one copy, but a process that touches it is killed if the file
was shortened, or if the disk is full.) Messages appended in one turn of the event loop are written
in one call, and only then the bell tells servers of them: no reader finds half a record before the
place that a bell tells.

A segment's blocks are allocated when its file is made, so that a full disk shows there rather than
in the middle of a record; and one more file, the spare, is held ready. If no further file can be
had, the oldest one is written over: the log goes on, and is shorter.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import secrets
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from ..protocol import records
from ..protocol.messages import Buffer
from ..protocol.records import DamagedLog, Record
from .log_files import (
    FIRST_BYTES,
    SEGMENT_BYTES,
    SPARE,
    SUFFIX,
    Position,
    Segment,
    Tip,
    allocate,
    blank,
    end_of,
    make_file,
    records_of,
    segments_in,
    write_all,
)
from .log_room import LogRoom

__all__ = ["FIRST_BYTES", "SEGMENT_BYTES", "SUFFIX", "LogRoom", "LogWriter", "Position", "Tip"]

logger = logging.getLogger(__name__)

WRITTEN_TOGETHER: Final = 1020
"""How many buffers one system call may write [writev(2), IOV_MAX]."""

UNWRITTEN_BYTES: Final = 2**18
"""If more bytes than this wait for the end of the turn, they are written at once."""

QUIET_SECONDS: Final = 60.0
"""How many seconds pass at the least between two warnings about one log that cannot be written."""


class LogWriter:
    """The writer of one kernel's log, which is new, or which the keeper before has left (`resume`).

    ``directory`` is the log's own. ``epoch``, of 16 characters, names a log that is new.
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
        self._segments: deque[Segment] = deque()
        self._descriptor = -1  # of the last segment; -1 while its file is closed
        self._spare = 0  # the bytes of the spare file; 0 if there is none
        # The place of the next message, as integers: to make a Position for each one takes time.
        self._number, self._offset = 1, 0
        self._written = Position(1, 0)
        self._pending: list[Buffer] = []
        self._pending_bytes = 0
        self._pending_messages = 0
        self._recycles = False  # whether files are written over, as no new ones can be had
        self._warned = False
        self._warned_at = 0.0
        self._closed = False
        room.add(self)

    # Looking

    @property
    def next(self) -> Position:
        """The place of the next message."""
        return Position(self._number, self._offset)

    @property
    def end(self) -> Position:
        """The place behind all messages that are written, and so can be read."""
        return self._written

    @property
    def first(self) -> Position:
        """The place of the oldest message in the log; the end if there is none."""
        return self._segments[0].start if self._segments else self._written

    @property
    def tip(self) -> Tip:
        """Where the next record will be written."""
        if not self._segments:
            return Tip(self._written.cursor, records.HEAD_BYTES)
        last = self._segments[-1]
        return Tip(last.start.cursor, last.bytes)

    @property
    def segments(self) -> Sequence[Segment]:
        """The segments, the oldest first. Those that are dropped are missing from then on."""
        return self._segments

    @property
    def is_closed(self) -> bool:
        """Whether nothing more is written."""
        return self._closed

    @property
    def droppable(self) -> int:
        """How many bytes can be dropped from the front: those of all segments but the newest."""
        return self.bytes - self._segments[-1].bytes if len(self._segments) > 1 else 0

    # Writing

    def prepare(self) -> None:
        """Make the first file and the spare now. Raises `OSError` if the disk is full, say."""
        if not self._segments:
            self._open(self._new_segment(0))
        self._hold_spare()

    def share(self, key: str, size: int) -> None:
        """Have the log share so many bytes with others (`LogRoom.share`)."""
        self._room.share(self, key, size)

    def append(
        self,
        frame: Buffer,
        channel: str,
        owner: str | None = None,
        flags: int = 0,
        rest: Sequence[Buffer] = (),
    ) -> tuple[int, int]:
        """Give a message the next number; the next `flush` writes it. Returns its place.

        ``rest`` are further pieces of its frame. If it has no room on the disk, it is lost, and its
        number is a gap for every reader.
        """
        number, offset = self._number, self._offset
        pieces = records.pack_record(
            number, offset, time.time(), channel, owner, flags, frame, rest
        )
        size = len(frame)
        if rest:
            size += sum(map(len, rest))
        self._put(pieces, len(pieces[0]) + size + len(pieces[-1]), size)
        if self._pending_bytes > UNWRITTEN_BYTES:
            self.flush()
        return number, offset

    def _put(self, pieces: Sequence[Buffer], taken: int, size: int) -> None:
        """Have the next record written; it takes so many bytes, ``size`` of them for its frame."""
        # Messages that wait count, as `flush` writes them to this segment.
        fits = self._fits(self._pending_bytes + taken) or self._make_room(taken)
        # Lost or not, the message has its number: readers find a gap, and no later message there.
        self._number += 1
        self._offset += size
        if not fits:
            self._lose(1)
            return
        self._pending += pieces
        self._pending_bytes += taken
        self._pending_messages += 1

    def skip(self, messages: int, size: int = 0) -> None:
        """Leave out numbers, for messages that no keeper has: they are a gap for every reader."""
        self.flush()  # the messages that wait lie before the gap
        self._number += messages
        self._offset += size
        self.lost_messages += messages
        self._written = self.next

    def skip_to(self, number: int, offset: int) -> None:
        """Go on from this place, if it lies behind the end: no number is given a second time."""
        if number > self.next.cursor:
            self.skip(number - self.next.cursor, max(0, offset - self.next.offset))

    def renew(self) -> None:
        """Go on in another file: a server cannot read messages that are written to this one."""
        self.flush()
        if self._segments:
            self._segments[-1].cut()

    def flush(self) -> None:
        """Write the messages that were appended; from then on they can be read."""
        pending, size = self._pending, self._pending_bytes
        if not pending:
            self._written = self.next
            return
        messages = self._pending_messages
        # Taken out first: an error leaves some messages in the file, and none may be written twice.
        self._pending, self._pending_bytes, self._pending_messages = [], 0, 0
        last = self._segments[-1]
        try:
            for start in range(0, len(pending), WRITTEN_TOGETHER):
                write_all(self._writable(), pending[start : start + WRITTEN_TOGETHER])
        except OSError as error:  # a disk fails, or is full on a file system that cannot allocate
            # All of them are lost, even those written before the error: which ones is not known.
            # The last write may have ended within a record, which is cut off.
            self._warn(error)
            last.cut()
            self._lose(messages)
            return
        if self._warned and not self._recycles:
            self._warned = time.monotonic() < self._warned_at + QUIET_SECONDS
        # The size counts only now: what lies behind it in the file is never read (`end`, `tip`).
        last.bytes += size
        last.written_at = time.time()
        self.bytes += size
        self._written = self.next
        self._room.grow(self, size)
        if size <= SEGMENT_BYTES:  # a huge message alone does not drop all that lies before it
            self._shrink()

    def _fits(self, size: int) -> bool:
        if not self._segments or self._closed:
            return False
        last = self._segments[-1]
        return last.bytes + size <= last.room

    def _make_room(self, taken: int) -> bool:
        """Write the messages that wait, and go on in another file if this one is full."""
        if self._closed:
            return False
        self.flush()  # which may fail, and so end the file
        return self._fits(taken) or self._roll(taken)

    def _lose(self, messages: int) -> None:
        self.lost_messages += messages
        self._written = self.next

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            reason = error.strerror or str(error)
            logger.warning("kernel %s: its log cannot be written: %s", self.kernel_id, reason)
            self._warned, self._warned_at = True, time.monotonic()

    # Segments

    def _roll(self, taken: int) -> bool:
        """Go on in another file, with room for ``taken`` bytes; False if none can be had."""
        try:
            segment = self._new_segment(taken)
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
        with contextlib.suppress(OSError):  # without a spare, another file is written over
            self._hold_spare()
        return True

    def _new_segment(self, taken: int) -> Segment:
        """A new segment, for the next message, with room for ``taken`` bytes. Raises `OSError`."""
        start = self.next
        path = self.directory / f"{start.cursor:020}{SUFFIX}"
        wanted = max(self._next_room, records.HEAD_BYTES + taken)
        try:
            room = make_file(path, wanted)
            self._recycles = False
        except OSError as error:
            # For another error, as of rights or descriptors, no messages are to be written over.
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
                raise
            self._recycles = True
            room = self._recycle(path, records.HEAD_BYTES + taken, error)
        return Segment(start, path, room)

    @property
    def _next_room(self) -> int:
        before = self._segments[-1].room if self._segments else FIRST_BYTES // 4
        return max(FIRST_BYTES, min(4 * before, SEGMENT_BYTES, self._room.part_of(self)))

    def _recycle(self, path: Path, least: int, error: OSError) -> int:
        """Give the spare, or the oldest file, a new name; returns its room. Raises ``error``.

        A server may be reading the oldest file. It is renamed, blanked from its head on, and gets a
        new head before any record: a reader that looks at the head after its records sees that they
        may have changed (`app.managers.log.segments`).
        """
        self._warn(error)
        if self._spare >= least:
            room, self._spare = self._spare, 0
            with contextlib.suppress(OSError):  # somebody has removed the spare
                (self.directory / SPARE).rename(path)
                return room
        # Not the newest file, which holds the messages that readers need next.
        while len(self._segments) > 1:
            oldest = self._segments.popleft()
            # Before its file is touched: no bell and no feed names it from now on.
            self.bytes -= oldest.bytes
            self._room.grow(self, -oldest.bytes)
            with contextlib.suppress(OSError):  # somebody has removed it, or there is no room yet
                # The server may have a larger one mapped (`app.managers.log.large_frames`).
                if not least <= oldest.room <= SEGMENT_BYTES:
                    oldest.path.unlink(missing_ok=True)
                    return make_file(path, least)
                oldest.path.rename(path)
                break
        else:
            raise error
        try:
            blank(path, oldest.room)
        except OSError:
            path.unlink(missing_ok=True)
            raise
        return oldest.room

    def _open(self, segment: Segment) -> None:
        """Write a segment's head, and records to its file from now on. Raises `OSError`.

        A reader may find the file before its head is written. It takes the file for no segment, and
        no bell has told of messages in it yet.
        """
        # `files.open` may close the file of this very log (`close_file`), to bound how many are
        # open: so the descriptor of the last segment is looked at only behind that.
        descriptor = self._room.files.open(self, segment.path, os.O_WRONLY)
        try:
            head = records.pack_head(self.epoch, self.kernel_id, *segment.start)
            write_all(descriptor, [head])
        except BaseException:
            os.close(descriptor)
            if self._descriptor == -1:
                self._room.files.closed(self)
            raise
        last = self._segments[-1] if self._segments else None
        if last is not None and last.start.cursor == segment.start.cursor:
            # The last segment has no message yet, and too little room for this one. The new file
            # has the same name, and so has replaced it.
            self._segments.pop()
            self.bytes -= last.bytes
            self._room.grow(self, -last.bytes)
        elif last is not None:
            last.cut()
        before, self._descriptor = self._descriptor, descriptor
        if before != -1:
            os.close(before)
        self._segments.append(segment)
        self.bytes += segment.bytes
        self._room.grow(self, segment.bytes)

    def _hold_spare(self) -> None:
        """Have the spare file, for when the disk is full. Raises `OSError`."""
        if not self._spare:
            self._spare = make_file(self.directory / SPARE, FIRST_BYTES)

    def _shrink(self) -> None:
        """Drop the oldest segment while the others fill the log's bound, or all pass it by far."""
        bound = self._room.bound_of(self)
        while len(self._segments) > 1 and (
            self.bytes - self._segments[0].bytes >= bound or self.bytes > bound + SEGMENT_BYTES
        ):
            self.drop_first()

    def drop_first(self) -> None:
        """Drop the oldest segment. A server that has its file open can go on reading it."""
        # A server that is about to open the file lists the directory anew (`SegmentReader.read`).
        first = self._segments.popleft()
        self.bytes -= first.bytes
        self._room.grow(self, -first.bytes)
        with contextlib.suppress(OSError):
            first.path.unlink()

    def expire(self, before: float) -> None:
        """Drop the segments that were written last before a time, in seconds since the epoch.

        A segment whose oldest message is older takes no more messages, so that no message stays for
        more than about twice the bound.
        """
        # Not while messages wait: they are to be written to the descriptor that is closed here.
        while self._segments and self._segments[0].written_at < before and not self._pending:
            if len(self._segments) == 1:
                self._close_descriptor()
            self.drop_first()
        # Without this, a segment that is written now and then would never be dropped.
        if self._segments and self._segments[-1].begun_at < before:
            self._segments[-1].cut()

    # Beginning and end

    def resume(self) -> None:
        """Go on with the segments that the keeper before has left in the directory.

        Files that are no segments of this log are removed, with a line in the keeper's own log.
        The keeper before has ended: one keeper at a time has the state directory. Raises `OSError`.
        """
        # The newest file may end in half a record, and has blank space behind that. Each other one
        # was cut when the next was opened, unless the keeper was killed at that moment.
        found = sorted(segments_in(self.directory, self.kernel_id))
        if not found:
            return
        self.epoch = found[-1][2]  # the newest segment tells which log it is
        for start, path, epoch in found:
            if epoch != self.epoch:  # a segment of an earlier log
                path.unlink(missing_ok=True)
                continue
            status = path.stat()
            segment = Segment(start, path, status.st_size)
            segment.bytes, segment.written_at = status.st_size, status.st_mtime
            self._segments.append(segment)
        *before, last = self._segments
        if before:
            before[-1].end_before(last.start.cursor)
        last.bytes, self._written, last.begun_at = end_of(last.path, last.start)
        self._number, self._offset = self._written
        self._descriptor = self._room.files.open(self, last.path, os.O_WRONLY)
        # Bytes behind the last whole record are those of one that was cut short when the keeper was
        # killed, or older. No reader may take them for a record when new ones lie before them.
        os.ftruncate(self._descriptor, last.bytes)
        try:
            allocate(self._descriptor, last.room)
        except OSError:  # the disk is full: the next message takes the spare, or another file
            last.room = last.bytes
        os.lseek(self._descriptor, last.bytes, os.SEEK_SET)
        self.bytes = sum(segment.bytes for segment in self._segments)
        self._room.grow(self, self.bytes)
        spare = self.directory / SPARE
        if spare.exists():
            self._spare = spare.stat().st_size

    def newest(self) -> Iterator[tuple[Record, str | None, bytes]]:
        """The records of the two newest segments, in order, each with its owner and frame."""
        self.flush()
        for segment in [*self._segments][-2:]:
            with contextlib.suppress(OSError, DamagedLog):
                yield from records_of(segment.path, segment.start)

    def close(self) -> None:
        """Write the messages that wait, and close; the files stay."""
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
        with contextlib.suppress(OSError):  # it was never made, or a file in it cannot be removed
            self.directory.rmdir()

    def close_file(self) -> None:
        """Close the file, which is opened again by the next `flush` that has messages."""
        if self._descriptor != -1:
            os.close(self._descriptor)
            self._descriptor = -1

    def _writable(self) -> int:
        """The descriptor of the newest file, opened again if it was closed. Raises `OSError`."""
        if self._descriptor == -1:
            last = self._segments[-1]
            self._descriptor = self._room.files.open(self, last.path, os.O_WRONLY)
            os.lseek(self._descriptor, last.bytes, os.SEEK_SET)
        return self._descriptor

    def _close_descriptor(self) -> None:
        self.close_file()
        self._room.files.closed(self)
