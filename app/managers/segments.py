"""The part of a kernel's log that is on disk: segments, written once, dropped from the front.

What leaves the memory of a `MessageLog` comes here in order, a segment at a time. Files are written
and read in a thread. What waits to be written is bounded, and a segment that cannot be kept (the
disk is full, or too slow for long) is *lost*: its place is remembered, and announced to readers
like everything else that is gone.

A segment's file has the v1 frames of its messages behind each other, from which they are made
again, then, as JSON, the owner and transience of those that have any, and the length of that. Its
name tells the places of both ends. The file of a segment that is dropped is written over by the
next: to make one anew costs more than to fill it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from io import FileIO
from operator import attrgetter
from pathlib import Path
from struct import Struct
from typing import Final

import msgspec

from app.managers.entries import Entry, Gap, Position
from app.managers.in_order import InOrder
from app.protocol import v1
from app.protocol.frames import FrameError

__all__ = ["SEGMENT_BYTES", "Segments"]

logger = logging.getLogger(__name__)

SEGMENT_BYTES: Final = 2**22
"""About how much of the log moves to disk at a time, and lies in one file, but for a message that
is larger."""

READ_BYTES: Final = 2**20
"""About how much of a segment is read at a time."""

WAITING_BYTES: Final = 16 * 2**20
"""When so much waits to be written, what comes is lost instead, unless somebody is about to read
it. A message counts only once it waits: one alone may be as large as it likes."""

EXPIRY_SECONDS: Final = 0.1
"""How much later than it may a segment goes: those that become too old together go together."""

WRITTEN_TOGETHER: Final = 1024
"""How many buffers one system call may write [writev(2), IOV_MAX]."""

_SUFFIX: Final = ".frames"

_LENGTH: Final = Struct("<Q")

_Notes = tuple[int, list[tuple[int, str | None, bool]]]
"""The first number; index, owner and transience of messages."""


class _Segment:
    """A run of entries: waiting to be written, in a file, or lost."""

    __slots__ = ("bytes", "end", "entries", "marks", "path", "start", "written_at")

    def __init__(
        self, start: Position, end: Position, entries: list[Entry] | None, path: Path | None
    ) -> None:
        self.start = start
        self.end = end
        self.entries = entries
        self.path = path
        self.bytes = end.offset - start.offset
        self.written_at = time.monotonic()
        # Where in the file the frames of some numbers begin, in order.
        self.marks = [(start.cursor, 0)]

    @property
    def lost(self) -> bool:
        return self.entries is None and self.path is None

    def lose(self) -> None:
        self.entries = self.path = None

    def mark_before(self, cursor: int) -> tuple[int, int]:
        """The nearest number at or before ``cursor`` whose place in the file is known."""
        return self.marks[bisect_right(self.marks, cursor, key=lambda mark: mark[0]) - 1]

    def mark(self, cursor: int, position: int) -> None:
        """The frame of this number begins there: pages that follow each other need no more."""
        index = bisect_left(self.marks, cursor, key=lambda mark: mark[0])
        if index == len(self.marks) and position - self.marks[-1][1] >= READ_BYTES // 2:
            self.marks.append((cursor, position))


class Segments:
    """One kernel's messages on disk: at most ``max_bytes``, none older than ``max_age`` seconds.

    Its methods are called from the event loop; the threads of ``executor`` touch the files. They
    write and remove in order, and beside that read in order: one kernel has two of them at most.
    ``wanted_from`` tells the number that a client which reads just now comes to next. For that
    client up to twice ``max_bytes`` are kept, and, as long as ``may_hold`` says so, more waits to
    be written than otherwise.
    """

    def __init__(
        self, directory: Path, executor: Executor, *, max_bytes: int, max_age: float
    ) -> None:
        self._directory = directory
        self._reading, self._executor = InOrder(executor), InOrder(executor)
        self.may_hold: Callable[[], bool] = lambda: False
        self.wanted_from: Callable[[], int | None] = lambda: None
        self._max_bytes = max_bytes
        self._max_age = max_age
        self._segments: list[_Segment] = []
        self._writer: asyncio.Task[None] | None = None
        self._expiry: asyncio.TimerHandle | None = None
        self._spares: list[Path] = []  # the files of dropped segments, to be written over
        self._warned = False
        self.bytes = 0
        self.lost_messages = 0

    @property
    def start(self) -> Position | None:
        """The place of the oldest message that is kept, or None when there is none."""
        return self._segments[0].start if self._segments else None

    def push(self, entries: list[Entry]) -> None:
        """Take the entries that follow those taken before; they are written soon."""
        waiting = self.waiting
        added = []
        for part in _parts(entries):
            last = part[-1]
            start = Position(part[0].seq, part[0].offset)
            end = Position(last.seq + 1, last.offset + len(last.message.frame))
            path = self._directory / _name(start, end)
            added.append(self._add(_Segment(start, end, part, path)))
        if waiting > WAITING_BYTES and not self.may_hold():
            for segment in added:
                self._lose(segment, "the disk is too slow")
        self._expire(spared=len(self._waiting()))
        if self._writer is None:
            self._writer = asyncio.get_running_loop().create_task(
                self._write(), name="write log segments"
            )

    @property
    def waiting(self) -> int:
        """How many bytes wait to be written."""
        return sum(segment.bytes for segment in self._waiting())

    def _waiting(self) -> list[_Segment]:
        """Those that are not written yet, the newest first; they lie behind all that are."""
        waiting = []
        for segment in reversed(self._segments):
            if segment.entries is not None:
                waiting.append(segment)
            elif segment.path is not None:
                break
        return waiting

    def push_lost(self, end: Position) -> None:
        """What lies between the messages taken before and ``end`` is gone; say so to readers."""
        if self._segments and self._segments[-1].end.cursor < end.cursor:
            segment = self._add(_Segment(self._segments[-1].end, end, None, None))
            self.lost_messages += segment.end.cursor - segment.start.cursor

    def _add(self, segment: _Segment) -> _Segment:
        self._segments.append(segment)
        self.bytes += segment.bytes
        return segment

    @property
    def end(self) -> Position | None:
        """The place behind the newest message that was taken, or None when there is none."""
        return self._segments[-1].end if self._segments else None

    async def restore(self) -> None:
        """Take over what another process has written here; begin with this."""
        loop = asyncio.get_running_loop()
        for start, end, path, age in await loop.run_in_executor(
            self._executor, _find_files, self._directory
        ):
            if self.end is not None and start.cursor < self.end.cursor:
                continue  # not of one log: somebody has put it here
            self.push_lost(start)
            self._add(_Segment(start, end, None, path)).written_at -= age
        self._expire()

    async def written(self) -> None:
        """Return when all that was taken is in files, or lost. Bounded by the disk."""
        while self._writer is not None:
            await asyncio.wait({self._writer})

    async def read(self, place: Position) -> Gap | list[Entry]:
        """Entries from ``place`` on, of its segment only, or what is lost of them.

        ``place`` must be in a segment: from `start` on, and before the entries in memory.
        """
        cursor = place.cursor
        index = bisect_right(self._segments, cursor, key=lambda s: s.start.cursor) - 1
        segment = self._segments[index]
        if segment.entries is None and segment.path is not None:
            loop = asyncio.get_running_loop()
            try:
                entries, position = await loop.run_in_executor(
                    self._reading, _read_file, segment.path, segment.mark_before(cursor), cursor
                )
                # A segment that was dropped while a thread read it may have been written over.
                # Dropping comes first, in the event loop: with its path still there it was not.
                if segment.path is not None:
                    segment.mark(entries[-1].seq + 1, position)
                    return entries
            except (OSError, ValueError, RecursionError, msgspec.MsgspecError) as error:
                if segment in self._segments:
                    self._lose(segment, str(error))
        if segment.entries is not None:
            return segment.entries[cursor - segment.start.cursor :]
        return Gap(segment.end.cursor - cursor, segment.end.offset - place.offset)

    async def close(self) -> None:
        """Remove every file. What was kept is gone."""
        if self._writer is not None:
            self._writer.cancel()
            await asyncio.wait({self._writer})
        self._segments, self._spares = [], []
        self.bytes = 0
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._executor, _remove_directory, self._directory)

    def _lose(self, segment: _Segment, why: str) -> None:
        """Give up a segment, but remember what it held."""
        self.lost_messages += segment.end.cursor - segment.start.cursor
        if not self._warned:
            logger.warning("a kernel's log is not kept on disk: %s", why)
            self._warned = True
        segment.lose()

    def _expire(self, spared: int = 0) -> None:
        """Drop segments from the front until the bounds hold.

        Up to ``spared`` of their files are kept, to be written over.
        """
        oldest_time = time.monotonic() - self._max_age
        dropped = []
        while self._segments:
            first = self._segments[0]
            if first.written_at >= oldest_time and (
                self.bytes <= self._max_bytes or self._is_wanted(first)
            ):
                break
            del self._segments[0]
            self.bytes -= first.bytes
            if first.path is not None and first.entries is None:
                if len(self._spares) < spared:
                    self._spares.append(first.path)
                else:
                    dropped.append(first.path)
            first.lose()
        loop = asyncio.get_running_loop()
        if dropped:
            loop.run_in_executor(self._executor, _remove, dropped)
        if self._segments and self._expiry is None:  # of a kernel that says nothing more, too
            pause = max(0.0, self._segments[0].written_at - oldest_time)
            self._expiry = loop.call_later(pause + EXPIRY_SECONDS, self._on_expiry)

    def _on_expiry(self) -> None:
        self._expiry = None
        self._expire()

    def _is_wanted(self, segment: _Segment) -> bool:
        """Whether a segment stays beyond the bound, for a client that is about to read it."""
        wanted = self.wanted_from()
        return (
            wanted is not None and segment.end.cursor > wanted and self.bytes <= 2 * self._max_bytes
        )

    async def _write(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while True:
                waiting = self._waiting()
                if not waiting:
                    if self._spares:
                        loop.run_in_executor(self._executor, _remove, self._spares)
                        self._spares = []
                    return
                segment = waiting[-1]
                path, entries = segment.path, segment.entries or []
                assert path is not None
                spare = self._spares.pop() if self._spares else None
                # Gathered here: for Python that runs in a thread the event loop has to wait again
                # and again, and in all for longer than this takes.
                buffers = [entry.message.frame for entry in entries]
                notes = _notes(segment.start.cursor, entries)
                buffers += notes, _LENGTH.pack(len(notes))
                try:
                    await loop.run_in_executor(self._executor, _write_file, path, buffers, spare)
                except OSError as error:
                    self._lose(segment, error.strerror or str(error))
                    loop.run_in_executor(self._executor, _remove, [path])
                else:
                    self._warned = False
                    if segment.path is None:  # dropped from the front meanwhile
                        loop.run_in_executor(self._executor, _remove, [path])
                    segment.entries = None
        finally:
            self._writer = None


def _name(start: Position, end: Position) -> str:
    """A file's name tells what is in it, so that it need not be read for that."""
    return f"{start.cursor:020}-{start.offset}-{end.cursor}-{end.offset}{_SUFFIX}"


def _places(path: Path) -> tuple[Position, Position]:
    """Both ends of a segment by its file's name. Raises `ValueError` if it is no such name."""
    cursor, offset, end_cursor, end_offset = map(int, path.stem.split("-"))
    if path.suffix != _SUFFIX:
        raise ValueError(f"{path.suffix} is not {_SUFFIX}")
    return Position(cursor, offset), Position(end_cursor, end_offset)


def _find_files(directory: Path) -> list[tuple[Position, Position, Path, float]]:
    """The segments in a directory in order: their places, paths, and ages in seconds."""
    found = []
    now = time.time()
    for path in directory.glob("*"):
        try:
            start, end = _places(path)
            age = max(0.0, now - path.stat().st_mtime)
        except (ValueError, OSError):
            _remove([path])  # what was being written when the other process ended
            continue
        found.append((start, end, path, age))
    return sorted(found)


def _parts(entries: list[Entry]) -> Iterator[list[Entry]]:
    """Entries in runs of about `SEGMENT_BYTES`."""
    start = 0
    while start < len(entries):
        limit = entries[start].offset + SEGMENT_BYTES
        end = bisect_left(entries, limit, start + 1, key=attrgetter("offset"))
        yield entries[start:end]
        start = end


def _notes(first: int, entries: list[Entry]) -> bytes:
    """What a message's frame does not tell: its owner, and whether it is transient.

    The first number tells that the file is not what another segment has left of it.
    """
    notes = [
        (index, entry.owner, entry.transient)
        for index, entry in enumerate(entries)
        if entry.owner is not None or entry.transient
    ]
    return json.dumps((first, notes)).encode()  # an owner's name may have what is not UTF-8


def _write_file(path: Path, buffers: list[bytes], spare: Path | None) -> None:
    # Under its name it is whole, whenever this process ends.
    unfinished = path.with_name("unfinished")
    if spare is not None:
        try:
            spare.rename(unfinished)
        except FileNotFoundError:
            pass  # somebody has removed it; a new one will do
    descriptor = _open(unfinished)
    try:
        for start in range(0, len(buffers), WRITTEN_TOGETHER):
            _write_all(descriptor, buffers[start : start + WRITTEN_TOGETHER])
        os.ftruncate(descriptor, sum(map(len, buffers)))
    finally:
        os.close(descriptor)
    unfinished.rename(path)


def _write_all(descriptor: int, buffers: Sequence[bytes]) -> None:
    left = sum(map(len, buffers)) - os.writev(descriptor, buffers)
    if not left:
        return
    # A call writes 2 GiB at most; and of what has no room on the disk, as much as has.
    data = memoryview(b"".join(buffers))[-left:]
    while data:
        data = data[os.write(descriptor, data) :]


def _open(path: Path) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0)
    try:
        return os.open(path, flags, 0o600)
    except FileNotFoundError:  # the first one of this kernel
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return os.open(path, flags, 0o600)


def _read_file(path: Path, mark: tuple[int, int], cursor: int) -> tuple[list[Entry], int]:
    """Entries of a segment from number ``cursor`` on, about `READ_BYTES` of them.

    With the place behind them in the file. Where the frame of a number before begins is known by
    ``mark``. Raises `OSError`, and `ValueError` if the file is damaged.
    """
    (seq, offset), end = _places(path)
    with path.open("rb", buffering=0) as file:
        notes_at, notes = _read_notes(file, path.name, seq)
        index, position = mark[0] - seq, mark[1]
        entries: list[Entry] = []
        data, data_at = b"", position
        while index < end.cursor - seq:
            size = _size_at(data, position - data_at, notes_at - position)
            if size is None or position + size > data_at + len(data):
                if entries:
                    break
                wanted = max(READ_BYTES, size or 2 * len(data))
                if position == data_at and len(data) >= notes_at - position:
                    raise ValueError(f"{path.name} is cut off")
                data = _read_at(file, position, min(wanted, notes_at - position))
                data_at = position
                continue
            if seq + index >= cursor:
                start = position - data_at
                message = v1.restore(data[start : start + size])
                message.seq = seq + index
                owner, transient = notes.get(index, (None, False))
                entries.append(Entry(message.seq, offset + position, message, owner, transient))
            position += size
            index += 1
        if index == end.cursor - seq and position != notes_at:
            raise ValueError(f"{path.name} has other messages than its name says")
    return entries, position


def _read_notes(
    file: FileIO, name: str, seq: int
) -> tuple[int, dict[int, tuple[str | None, bool]]]:
    """Where the notes of a segment begin in its file, and what they say of messages."""
    frames_and_notes = os.fstat(file.fileno()).st_size - _LENGTH.size
    if frames_and_notes < 0:
        raise ValueError(f"{name} is cut off")
    length = _LENGTH.unpack(_read_at(file, frames_and_notes, _LENGTH.size))[0]
    if length > frames_and_notes:
        raise ValueError(f"{name} is cut off")
    notes_at = frames_and_notes - length
    first, noted = msgspec.convert(json.loads(_read_at(file, notes_at, length)), _Notes)
    if first != seq:
        raise ValueError(f"{name} has messages of another segment")
    return notes_at, {index: (owner, transient) for index, owner, transient in noted}


def _size_at(data: bytes, start: int, left: int) -> int | None:
    """The size of the frame that begins there; None if too little of it is there to tell.

    There are ``left`` bytes of frames in the file. Raises `FrameError` for what is no frame.
    """
    try:
        return v1.size_of(data, start)
    except FrameError:
        if len(data) - start >= 8 and not 6 <= _LENGTH.unpack_from(data, start)[0] < left // 8:
            raise
        return None


def _read_at(file: FileIO, position: int, size: int) -> bytes:
    """So many bytes of a file. Raises `ValueError` where there are fewer."""
    data = b""
    while len(data) < size:
        part = os.pread(file.fileno(), size - len(data), position + len(data))
        if not part:
            raise ValueError("the file is cut off")
        data = data + part if data else part
    return data


def _remove(paths: list[Path]) -> None:
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            logger.warning("cannot remove a log segment: %s", error.strerror)


def _remove_directory(directory: Path) -> None:
    """With all that is in it: segments, and what was to become one."""
    _remove(list(directory.glob("*")))
    try:
        directory.rmdir()
    except OSError:
        pass  # never made, or it holds what cannot be removed
