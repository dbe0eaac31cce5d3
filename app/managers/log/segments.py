"""Reading the segment files of a kernel's log (`app.keeper.log` writes them).

A read is a system call into the page cache, so a file that is cut short, changed or removed while
it is read does no harm: the reader finds fewer bytes, or other numbers, and reports a gap.
"""

from __future__ import annotations

import contextlib
import os
import re
from bisect import bisect_right
from collections import OrderedDict
from pathlib import Path
from typing import Final, NamedTuple

from ...keeper.log import SUFFIX, Tip
from ...keeper.open_files import OpenFiles
from ...protocol import records
from ...protocol.messages import Buffer, Message
from ...protocol.records import (
    CHANNELS,
    EVERYBODY,
    FRAME_AT,
    HEAD_BYTES,
    MAX_FRAME,
    PUBLISHED,
    REQUEST,
    TAIL_BYTES,
    TRANSIENT,
    DamagedLog,
    owner_name,
    unpack_head,
    unpack_tail,
    version_of,
)
from .entries import Entry, Position
from .large_frames import Large, LargeFrames, pread

__all__ = ["READERS", "SegmentReader"]

CHUNK_BYTES: Final = 2**18
"""About how many bytes one call reads, unless a frame is larger."""

AT_LEAST: Final = 2**14
"""How many bytes one call reads at the least, if there are so many: many small messages fit."""

ROUGHLY: Final = 100
"""How many bytes a record takes beside its frame, for a first guess at how much to read."""

MARKS: Final = 256
"""For how many numbers their positions in files are remembered: one read begins where another has
ended, and need not search."""

CHANNEL_COUNT: Final = len(CHANNELS)

_NUMBER: Final = re.compile(r"[0-9]{20}").fullmatch


class _Open(NamedTuple):
    """An open file: its segment's first number, the descriptor (-1: none), and the head it had."""

    start: int
    descriptor: int
    head: bytes


class _Wanted(NamedTuple):
    """What one read wants: from which number on, up to which place, and how much at the most."""

    first: int
    end: Position
    max_messages: int
    limit: int  # the offset up to which the last message may begin
    large: Large


class SegmentReader:
    """The files of one kernel's log. ``directory`` is the log's own.

    ``files`` bounds how many files are open, together with other readers.
    """

    def __init__(self, directory: Path, kernel_id: str, files: OpenFiles | None = None) -> None:
        self._files = files or OpenFiles()
        self._directory = directory
        self._kernel_id = kernel_id
        self._starts: list[int] = []
        self.newest = 0
        """The first number of the segment that is being written, by the last bell."""
        self.trouble = ""
        """Why the last read has passed over a file, or a part of one; empty if it has not."""
        self._open = _Open(0, -1, b"")  # the segment read last
        self._held = _Open(0, -1, b"")  # the newest one, once its file is removed
        self._marks: OrderedDict[tuple[int, int], int] = OrderedDict()
        self._large = LargeFrames()
        self._usual = ROUGHLY  # the bytes of a record, on average in the last read
        # Where reading goes on behind damage in the newest segment: the segment's first number, the
        # place of a record, and that record's position in the file.
        self._tip = (0, Position(0, 0), 0)

    def read(
        self,
        place: Position,
        end: Position,
        max_messages: int,
        max_bytes: int,
        *,
        large: Large = Large.WHOLE,
    ) -> list[Entry]:
        """Entries from ``place`` on, before ``end``: of one file, without a gap between them.

        If the first has a higher number than ``place``, the messages between are lost. There may be
        fewer entries than are wanted, but at least one unless no message is left up to ``end``.
        A frame that is mapped, as ``large`` asks, comes alone: it has a file of its own.
        """
        # The directory is listed if the listing cannot be right, not for each read. A file that the
        # keeper has begun since is found by the bell, which names the newest one.
        self.trouble = ""
        starts = self._starts
        if not starts or place.cursor < starts[0] or starts[-1] < self.newest:
            starts = self._look()
        entries = self._search(starts, place, end, max_messages, max_bytes, large)
        if not entries and self.trouble and (now := self._look()) != starts:
            # The keeper has removed or renamed the oldest files since the directory was listed: the
            # listing is out of date, not the log damaged. So look once more, at the new listing.
            self.trouble = ""
            entries = self._search(now, place, end, max_messages, max_bytes, large)
        return entries

    def _search(
        self,
        starts: list[int],
        place: Position,
        end: Position,
        max_messages: int,
        max_bytes: int,
        large: Large,
    ) -> list[Entry]:
        index = max(0, bisect_right(starts, place.cursor) - 1)
        segment = self._try_open(starts[index]) if starts else None
        # If the file named like that is no segment of the log, the place lies in the one before it.
        while segment is None and index > 0:
            index -= 1
            segment = self._try_open(starts[index])
        # If its file has no record from the place on, the next file is read: the rest is lost.
        for start in starts[index:]:
            if segment is None or segment.start != start:
                segment = self._try_open(start)
            if segment is None:
                continue
            places = [place]
            if self._tip[0] == start and self._tip[1].cursor > place.cursor:
                places.append(self._tip[1])
            for begin in places:
                try:
                    read = READERS[version_of(segment.head)]
                    entries = read(self, segment, begin, end, max_messages, max_bytes, large)
                except (OSError, DamagedLog) as error:  # records read from this file do not count
                    self._note(start, error)
                    entries = []
                if entries:
                    return entries
        return []

    def _read(
        self,
        segment: _Open,
        place: Position,
        end: Position,
        max_messages: int,
        max_bytes: int,
        large: Large,
    ) -> list[Entry]:
        start, descriptor, head = segment
        entries: list[Entry] = []
        cursor, position = self._mark_before(start, place.cursor)
        first_at = position
        left = max(0, end.offset - place.offset) + ROUGHLY * (end.cursor - cursor)
        chunk = min(left, CHUNK_BYTES, AT_LEAST + min(max_bytes, self._usual * max_messages))
        if self._usual > CHUNK_BYTES:  # a large frame is read by itself, into memory of its size
            chunk = AT_LEAST
        wanted = _Wanted(place.cursor, end, max_messages, place.offset + max_bytes, large)
        goes_on = True
        while goes_on and cursor < end.cursor and len(entries) < max_messages:
            data = pread(descriptor, chunk, position)
            if len(data) < FRAME_AT:  # the end of the file, which may have been cut short
                break
            cursor, at, goes_on = self._take(data, segment, position, cursor, wanted, entries)
            position += at
        # The race with the keeper: it may write over this file while it is read here. It then
        # renames the file, and writes a new head before any record. So if the head is the same now,
        # after the records were read, all of them are from before that.
        if entries and os.pread(descriptor, HEAD_BYTES, 0) != head:
            raise DamagedLog("it was written over while it was read")
        if entries:
            self._mark(start, cursor, position)
            self._usual = (position - first_at) // len(entries) + 1
        return entries

    def _take(
        self,
        data: bytes,
        segment: _Open,
        position: int,
        cursor: int,
        wanted: _Wanted,
        entries: list[Entry],
    ) -> tuple[int, int, bool]:
        """Add the entries in ``data``: the file's bytes from ``position`` and number ``cursor`` on.

        Returns the next number, where in ``data`` it begins, and whether to read on there. Raises
        `DamagedLog` if the first entry is damaged.
        """
        first, end, max_messages, limit, large = wanted
        behind, at, length = end.cursor, 0, len(data)
        expected = entries[-1].offset + entries[-1].size if entries else 0  # the next one's offset
        rest: tuple[Buffer, ...] = ()  # of a mapped frame, behind which its file has no other
        # This loop runs for every message that any client gets: it makes no needless objects.
        while at + FRAME_AT <= length and cursor < behind and len(entries) < max_messages:
            size, number, offset, _, owner_size, channel, flags = unpack_head(data, at)
            # A lower number is a record left over in a file that the keeper writes over, or a blank
            # space. A record from ``behind`` on may be half written, as no bell has told of it yet.
            if not cursor <= number < behind or (entries and size > MAX_FRAME):
                return cursor, at, False
            frame_at = at + FRAME_AT
            frame_end = frame_at + size
            name_end = frame_end if owner_size == EVERYBODY else frame_end + owner_size
            if size > MAX_FRAME:
                raise DamagedLog(f"number {number} is damaged")
            if number >= first:
                if entries and (offset > limit or number != cursor):
                    return cursor, at, False
                try:
                    follows = offset == expected if entries else offset + size <= end.offset
                    if channel >= CHANNEL_COUNT or not follows:
                        raise DamagedLog(f"number {number} is damaged")
                    if name_end + TAIL_BYTES <= length:
                        frame = data[frame_at:frame_end]
                        name, told = data[frame_end:name_end], unpack_tail(data, name_end)
                    elif entries:
                        return cursor, at, False
                    else:
                        where = segment[:2], position + frame_at, size, name_end - frame_end
                        frame, rest, name, told = self._large.read(*where, CHANNELS[channel], large)
                    if told[0] != number:
                        raise DamagedLog(f"number {number} was not written to its end")
                    owner = None if owner_size == EVERYBODY else owner_name(name)
                except DamagedLog as error:
                    if not entries:
                        raise
                    self._note(segment.start, error)
                    return cursor, at, False
                message = Message(CHANNELS[channel], frame, None, None, None, number, offset, rest)
                passes, said = flags & TRANSIENT > 0, flags & PUBLISHED > 0
                asked = flags & REQUEST > 0
                entries.append(Entry(number, offset, message, owner, passes, said, asked, size))
                expected = offset + size
            cursor, at = number + 1, name_end + TAIL_BYTES
        return cursor, at, True

    def _note(self, start: int, error: Exception) -> None:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        self.trouble = self.trouble or f"the file from number {start} on: {reason}"

    # Files

    def _look(self) -> list[int]:
        """List the directory: the first numbers of the segments that are there, in order."""
        found = set()
        try:
            for name in os.listdir(self._directory):
                stem, dot, suffix = name.partition(".")
                if dot + suffix == SUFFIX and _NUMBER(stem):
                    found.add(int(stem))
        except OSError:  # the directory is removed, or was never made
            pass
        if self._held.descriptor != -1:
            found.add(self._held.start)
        self._starts = sorted(found)
        return self._starts

    def _try_open(self, start: int) -> _Open | None:
        """A segment's open file; None, with a note in `trouble`, if it cannot be used."""
        if self._open.start == start and self._open.descriptor != -1:
            return self._open
        if self._held.start == start and self._held.descriptor != -1:
            return self._held
        self.close_file()
        try:
            self._open = self._opened(start, held=False)
        except (OSError, DamagedLog) as error:
            self._note(start, error)
            return None
        return self._open

    def _opened(self, start: int, *, held: bool) -> _Open:
        """Open a segment's file; one that is ``held`` stays open.

        Raises `OSError`, and `DamagedLog`.
        """
        path = self._directory / f"{start:020}{SUFFIX}"
        # O_NONBLOCK: if a named pipe was put there, opening it must not wait.
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        descriptor = os.open(path, flags) if held else self._files.open(self, path, flags)
        try:
            data = pread(descriptor, HEAD_BYTES, 0)
            if records.read_head(data, self._kernel_id, READERS).number != start:
                raise DamagedLog("it has the messages of another segment")
        except BaseException:
            os.close(descriptor)
            if not held:
                self._files.closed(self)
            raise
        return _Open(start, descriptor, data)

    def forget_before(self, number: int) -> None:
        """Close the open file if all its messages lie before a number: the log has dropped it.

        Under its old descriptor the file may hold other records soon, as the keeper recycles files.
        """
        if self._open.descriptor != -1:
            index = bisect_right(self._starts, self._open.start)
            if index < len(self._starts) and self._starts[index] <= number:
                self.close_file()

    def hold_newest(self) -> None:
        """Open the newest segment and hold it, as its file is about to be removed."""
        # The keeper removes the file only when it is asked to, after this: an open file can be read
        # although its name is gone.
        with contextlib.suppress(OSError, DamagedLog):
            self._held = self._opened(self.newest, held=True)
        self._look()

    def __del__(self) -> None:
        self.let_go()

    def let_go(self) -> None:
        """Close every file, including the one that `hold_newest` holds."""
        self.close_file()
        if self._held.descriptor != -1:
            os.close(self._held.descriptor)
            self._held = _Open(0, -1, b"")

    def has_newest(self) -> bool:
        """Whether the segment that is being written can be opened by its name."""
        self.close_file()  # an open descriptor can be that of a file that was removed
        return self._try_open(self.newest) is not None

    def forget(self) -> None:
        """Forget all that is known of the files: another keeper may have changed them."""
        self.close_file()
        self._marks.clear()
        self._large.forget()
        self._tip = (0, Position(0, 0), 0)

    def close_file(self) -> None:
        """Close the file that was read last."""
        if self._open.descriptor != -1:
            os.close(self._open.descriptor)
            self._open = _Open(0, -1, b"")
            self._files.closed(self)

    # Marks

    def _mark_before(self, start: int, number: int) -> tuple[int, int]:
        """A number at or before ``number`` in a segment, and the position of its record."""
        exact = self._marks.get((start, number))
        if exact is not None:
            return number, exact
        segment, place, position = self._tip
        best = (start, HEAD_BYTES)
        if segment == start and place.cursor <= number:
            best = (place.cursor, position)
        for (segment, marked), position in self._marks.items():
            if segment == start and best[0] < marked <= number:
                best = (marked, position)
        return best

    def _mark(self, start: int, number: int, position: int) -> None:
        # A position is right for as long as the file has this first number: records are only added,
        # and a file that is written over gets another number. `forget` is for other keepers.
        self._marks[start, number] = position
        if len(self._marks) > MARKS:
            self._marks.popitem(last=False)

    def behind_damage(self, place: Position, tip: Tip, end: Position) -> Position:
        """The place at which reading goes on if no record can be read from ``place`` on.

        That is ``end``, whose record the keeper will write at ``tip``. If an earlier reader met the
        same damage, reading goes on where the end was then: the records since can be read.
        """
        segment, found, _ = self._tip
        if segment != tip.segment or found.cursor <= place.cursor:
            self._tip = (tip.segment, end, tip.position)
        return self._tip[1]


READERS: Final = {records.VERSION: SegmentReader._read}
"""The method that reads the records of a file, by the version of the file's format.

A log may have files of the version that is written, and, by an older keeper, of the one before.
"""
