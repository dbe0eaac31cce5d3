"""Reading the segment files of a kernel's log (`app.keeper.log` writes them).

A read is a system call into the page cache. Nothing that is read can harm the reader: a file that
was cut short, changed or removed is a gap.
"""

from __future__ import annotations

import contextlib
import os
from bisect import bisect_right
from collections import OrderedDict
from pathlib import Path
from typing import Final

from app.keeper.log import SUFFIX, Tip
from app.managers.entries import Entry, Position
from app.protocol import records
from app.protocol.messages import Message
from app.protocol.records import DamagedLog

__all__ = ["SegmentReader"]

CHUNK_BYTES: Final = 2**18
"""About how much is read by one call, but for a frame that is larger."""

ROUGHLY: Final = 100
"""What a record takes beside its frame, for a first guess at how much to read."""

MARKS: Final = 256
"""Places of numbers in files that are remembered; a page begins where another has ended."""


class SegmentReader:
    """The files of one kernel's log. ``directory`` is the log's own."""

    def __init__(self, directory: Path, kernel_id: str) -> None:
        self._directory = directory
        self._kernel_id = kernel_id
        self._starts: list[int] = []
        self.newest = 0
        """The segment that is being written, as far as anybody has told."""
        self._open: tuple[int, int] = (0, -1)  # the segment read last, and its descriptor
        self._marks: OrderedDict[tuple[int, int], int] = OrderedDict()
        self._tip = (0, 0, 0)  # segment, number and place of the record that will be written next

    def read(
        self, place: Position, end: Position, max_messages: int, max_bytes: int
    ) -> list[Entry]:
        """Entries from ``place`` on, before ``end``: of one file, without a hole between them.

        The first may have a higher number than was asked for. There may be fewer than are wanted,
        but there is one, unless nothing is left from there on. Raises `DamagedLog`, and `OSError`.
        """
        entries: list[Entry] = []
        start = self._segment_of(place.cursor)
        while start is not None:
            descriptor = self._descriptor(start)
            entries = self._read(start, descriptor, place, end, max_messages, max_bytes)
            if entries:
                return entries
            start = self._segment_behind(start)
        return entries

    def _read(
        self,
        start: int,
        descriptor: int,
        place: Position,
        end: Position,
        max_messages: int,
        max_bytes: int,
    ) -> list[Entry]:
        entries: list[Entry] = []
        cursor, position = self._mark_before(start, place.cursor)
        limit = place.offset + max_bytes
        left = max(0, end.offset - place.offset) + ROUGHLY * min(end.cursor - cursor, max_messages)
        data, data_at = b"", position
        expected = place.cursor
        while cursor < end.cursor and len(entries) < max_messages:
            at = position - data_at
            if at + records.FRAME_AT > len(data):
                data = _pread(descriptor, min(left, CHUNK_BYTES), position)
                data_at, at = position, 0
            record = records.next_record(data, at, cursor)
            if record is None:
                break
            if record.number >= end.cursor:
                break
            if record.number >= place.cursor:
                if entries and (record.offset > limit or record.number != expected):
                    break
                whole = at + record.whole
                if whole > len(data) and entries:
                    break
                frame_at = at + records.FRAME_AT
                if whole > len(data):
                    behind = position + records.FRAME_AT + record.size
                    frame = _pread(descriptor, record.size, position + records.FRAME_AT)
                    tail = _pread(descriptor, position + record.whole - behind, behind)
                    if len(frame) < record.size:
                        raise DamagedLog(f"number {record.number} is cut short")
                else:
                    frame = data[frame_at : frame_at + record.size]
                    tail = data[frame_at + record.size : whole]
                owner = records.owner_of(record, tail)
                message = Message(record.channel, frame, seq=record.number, offset=record.offset)
                entries.append(
                    Entry(
                        record.number,
                        record.offset,
                        message,
                        owner,
                        bool(record.flags & records.TRANSIENT),
                        bool(record.flags & records.PUBLISHED),
                        bool(record.flags & records.REQUEST),
                        record.size,
                    )
                )
                expected = record.number + 1
            cursor = record.number + 1
            position += record.whole
        if entries:
            self._mark(start, cursor, position)
        return entries

    # Files

    def _segment_of(self, number: int) -> int | None:
        """The segment that has the number, or where it would be; None if there is none."""
        starts = self._starts
        if not starts or number < starts[0] or starts[-1] < self.newest:
            starts = self._look()
        index = bisect_right(starts, number) - 1
        if index < 0:
            return starts[0] if starts else None
        return starts[index]

    def _segment_behind(self, start: int) -> int | None:
        starts = self._starts if start < self._starts[-1] else self._look()
        index = bisect_right(starts, start)
        return starts[index] if index < len(starts) else None

    def _look(self) -> list[int]:
        """Which segments there are."""
        found = []
        try:
            for name in os.listdir(self._directory):
                stem, dot, suffix = name.partition(".")
                if dot + suffix == SUFFIX and stem.isdigit():
                    found.append(int(stem))
        except FileNotFoundError:
            pass
        self._starts = sorted(found)
        return self._starts

    def _descriptor(self, start: int) -> int:
        opened, descriptor = self._open
        if opened == start and descriptor != -1:
            return descriptor
        self.close()
        path = self._directory / f"{start:020}{SUFFIX}"
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            head = records.read_head(_pread(descriptor, records.HEAD_BYTES, 0), self._kernel_id)
            if head.number != start:
                raise DamagedLog("it has the messages of another segment")
        except BaseException:
            os.close(descriptor)
            raise
        self._open = (start, descriptor)
        return descriptor

    def forget_before(self, number: int) -> None:
        """What lies before this number is gone: its file may be written over."""
        if self._open[1] != -1 and self._starts:
            behind = next((start for start in self._starts if start > self._open[0]), None)
            if behind is not None and behind <= number:
                self.close()

    def hold_newest(self) -> None:
        """Be able to read the newest segment although its file is about to be removed."""
        with contextlib.suppress(OSError, DamagedLog):
            self._descriptor(self.newest)

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the open file."""
        if self._open[1] != -1:
            os.close(self._open[1])
            self._open = (0, -1)

    # Marks

    def _mark_before(self, start: int, number: int) -> tuple[int, int]:
        """A number at or before ``number`` in a segment, and where its record begins."""
        exact = self._marks.get((start, number))
        if exact is not None:
            return number, exact
        segment, marked, position = self._tip
        if segment == start and marked <= number:
            return marked, position
        best = (start, records.HEAD_BYTES)
        for (segment, marked), position in self._marks.items():
            if segment == start and best[0] < marked <= number:
                best = (marked, position)
        return best

    def _mark(self, start: int, number: int, position: int) -> None:
        self._marks[start, number] = position
        if len(self._marks) > MARKS:
            self._marks.popitem(last=False)

    def on_tip(self, tip: Tip, number: int) -> None:
        """The record of this number begins at the writer's tip, wherever that is read from."""
        self.newest = tip.segment
        self._tip = (tip.segment, number, tip.position)

    def place_behind(self, number: int) -> Position | None:
        """Where the segment begins that follows the one with this number; None for the last."""
        for start in self._look():
            if start <= number:
                continue
            try:
                path = self._directory / f"{start:020}{SUFFIX}"
                with path.open("rb") as file:
                    head = records.read_head(file.read(records.HEAD_BYTES), self._kernel_id)
            except (OSError, DamagedLog):
                continue
            return Position(head.number, head.offset)
        return None


def _pread(descriptor: int, size: int, position: int) -> bytes:
    """So many bytes of a file, or as many as there are. Raises `OSError`."""
    data = os.pread(descriptor, size, position)
    while len(data) < size:
        part = os.pread(descriptor, size - len(data), position + len(data))
        if not part:
            break
        data += part
    return data
