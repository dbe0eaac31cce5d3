"""The part of a kernel's log that is on disk: segments, written once, dropped from the front.

What leaves the memory of a `MessageLog` comes here in order, a segment at a time. Files are written
and read in a thread. What waits to be written is bounded, and a segment that cannot be kept (the
disk is full, or too slow for long) is *lost*: its place is remembered, and announced to readers
like everything else that is gone.

A segment's file is a row of records: a header, the owner, then the message's v1 frame, from which
the message is made again.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from bisect import bisect_right
from concurrent.futures import Executor
from pathlib import Path
from struct import Struct
from typing import Final

from app.managers.entries import Entry, Gap, Position
from app.protocol import v1

__all__ = ["SEGMENT_BYTES", "Segments"]

logger = logging.getLogger(__name__)

SEGMENT_BYTES: Final = 2**20
"""About how much of the log moves to disk at a time; one larger message is a segment of its own."""

WAITING_BYTES: Final = 16 * 2**20
"""What may wait to be written before segments are lost instead."""

# Bytes of the frame, number, byte offset, whether it is transient, and the length of the owner
# (-1: the message is for every session).
_RECORD: Final = Struct("<QQQ?h")


class _Segment:
    """A run of entries: waiting to be written, in a file, or lost."""

    __slots__ = ("bytes", "end", "entries", "path", "start", "written_at")

    def __init__(
        self, start: Position, end: Position, entries: list[Entry] | None, path: Path | None
    ) -> None:
        self.start = start
        self.end = end
        self.entries = entries
        self.path = path
        self.bytes = end.offset - start.offset
        self.written_at = time.monotonic()

    @property
    def lost(self) -> bool:
        return self.entries is None and self.path is None

    def lose(self) -> None:
        self.entries = self.path = None


class Segments:
    """One kernel's messages on disk: at most ``max_bytes``, none older than ``max_age`` seconds.

    Its methods are called from the event loop; ``executor`` touches the files.
    """

    def __init__(
        self, directory: Path, executor: Executor, *, max_bytes: int, max_age: float
    ) -> None:
        self._directory = directory
        self._executor = executor
        self._max_bytes = max_bytes
        self._max_age = max_age
        self._segments: list[_Segment] = []
        self._writer: asyncio.Task[None] | None = None
        self._warned = False
        self.bytes = 0
        self.lost_messages = 0

    @property
    def start(self) -> Position | None:
        """The place of the oldest message that is kept, or None when there is none."""
        return self._segments[0].start if self._segments else None

    def push(self, entries: list[Entry]) -> None:
        """Take the entries that follow those taken before; they are written soon."""
        last = entries[-1]
        start = Position(entries[0].seq, entries[0].offset)
        end = Position(last.seq + 1, last.offset + len(last.message.frame))
        segment = self._add(_Segment(start, end, entries, self._directory / _name(start, end)))
        waiting = sum(s.bytes for s in self._segments if s.entries is not None)
        if waiting > max(WAITING_BYTES, segment.bytes):
            self._lose(segment, "the disk is too slow")
        self._expire()
        if self._writer is None:
            self._writer = asyncio.get_running_loop().create_task(
                self._write(), name="write log segments"
            )

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
        """The entries from ``place`` to the end of its segment, or what is lost of them.

        ``place`` must be in a segment: from `start` on, and before the entries in memory.
        """
        cursor = place.cursor
        index = bisect_right(self._segments, cursor, key=lambda s: s.start.cursor) - 1
        segment = self._segments[index]
        if segment.entries is None and segment.path is not None:
            loop = asyncio.get_running_loop()
            try:
                entries = await loop.run_in_executor(self._executor, _read_file, segment.path)
            except (OSError, ValueError) as error:
                if segment in self._segments:
                    self._lose(segment, str(error))
            else:
                return [entry for entry in entries if entry.seq >= cursor]
        if segment.entries is not None:
            return segment.entries[cursor - segment.start.cursor :]
        return Gap(segment.end.cursor - cursor, segment.end.offset - place.offset)

    async def close(self) -> None:
        """Remove every file. What was kept is gone."""
        if self._writer is not None:
            self._writer.cancel()
            await asyncio.wait({self._writer})
        segments, self._segments = self._segments, []
        self.bytes = 0
        paths = [segment.path for segment in segments if segment.path is not None]
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._executor, _remove, paths, self._directory)

    def _lose(self, segment: _Segment, why: str) -> None:
        """Give up a segment, but remember what it held."""
        self.lost_messages += segment.end.cursor - segment.start.cursor
        if not self._warned:
            logger.warning("a kernel's log is not kept on disk: %s", why)
            self._warned = True
        segment.lose()

    def _expire(self) -> None:
        """Drop segments from the front until the bounds hold."""
        oldest_time = time.monotonic() - self._max_age
        dropped = []
        while self._segments:
            first = self._segments[0]
            if self.bytes <= self._max_bytes and first.written_at >= oldest_time:
                break
            del self._segments[0]
            self.bytes -= first.bytes
            if first.path is not None and first.entries is None:
                dropped.append(first.path)
            first.lose()
        if dropped:
            asyncio.get_running_loop().run_in_executor(self._executor, _remove, dropped, None)

    async def _write(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while True:
                segment = next((s for s in self._segments if s.entries is not None), None)
                if segment is None or segment.entries is None or segment.path is None:
                    return
                path = segment.path
                try:
                    await loop.run_in_executor(self._executor, _write_file, path, segment.entries)
                except OSError as error:
                    self._lose(segment, error.strerror or str(error))
                    loop.run_in_executor(self._executor, _remove, [path], None)
                else:
                    self._warned = False
                    if segment.path is None:  # dropped from the front meanwhile
                        loop.run_in_executor(self._executor, _remove, [path], None)
                    segment.entries = None
        finally:
            self._writer = None


def _name(start: Position, end: Position) -> str:
    """A file's name tells what is in it, so that it need not be read for that."""
    return f"{start.cursor:020}-{start.offset}-{end.cursor}-{end.offset}.segment"


def _find_files(directory: Path) -> list[tuple[Position, Position, Path, float]]:
    """The segments in a directory in order: their places, paths, and ages in seconds."""
    found = []
    now = time.time()
    for path in directory.glob("*"):
        try:
            cursor, offset, end_cursor, end_offset = map(int, path.stem.split("-"))
            age = max(0.0, now - path.stat().st_mtime)
        except (ValueError, OSError):
            _remove([path], None)  # what was being written when the other process ended
            continue
        found.append((Position(cursor, offset), Position(end_cursor, end_offset), path, age))
    return sorted(found)


def _write_file(path: Path, entries: list[Entry]) -> None:
    # As little as can be: while this runs, in a thread, the event loop does not.
    chunks: list[bytes] = []
    add, pack = chunks.append, _RECORD.pack
    for entry in entries:
        frame, owner = entry.message.frame, entry.owner
        if owner is None:
            add(pack(len(frame), entry.seq, entry.offset, entry.transient, -1))
        else:
            name = owner.encode("utf-8", "surrogatepass")
            add(pack(len(frame), entry.seq, entry.offset, entry.transient, len(name)) + name)
        add(frame)
    # Under its name it is whole, whenever this process ends.
    unfinished = path.with_name("unfinished")
    with open(_create(unfinished), "wb", buffering=0) as file:
        data = memoryview(b"".join(chunks))
        while data:
            data = data[file.write(data) :]
    unfinished.rename(path)


def _create(path: Path) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0)
    try:
        return os.open(path, flags, 0o600)
    except FileNotFoundError:  # the first one of this kernel
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return os.open(path, flags, 0o600)


def _read_file(path: Path) -> list[Entry]:
    data = path.read_bytes()
    entries = []
    position = 0
    while position < len(data):
        size, seq, offset, transient, owner_length = _RECORD.unpack_from(data, position)
        position += _RECORD.size
        owner = None
        if owner_length >= 0:
            owner = data[position : position + owner_length].decode("utf-8", "surrogatepass")
            position += owner_length
        message = v1.restore(data[position : position + size])
        position += size
        message.seq = seq
        entries.append(Entry(seq, offset, message, owner, transient))
    return entries


def _remove(paths: list[Path], directory: Path | None) -> None:
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            logger.warning("cannot remove a log segment: %s", error.strerror)
    if directory is not None:
        try:
            directory.rmdir()
        except OSError:
            pass  # never made, or something of somebody else's is in it
