"""The part of a log that is on disk: written over and over, read again, damaged, without room."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import FileIO
from pathlib import Path
from struct import pack

import pytest

from app.managers import segments as segments_module
from app.managers.entries import Entry, Gap, Position
from app.managers.segments import SEGMENT_BYTES, WAITING_BYTES, Segments
from app.protocol.compose import make_message
from tests.support.processes import eventually

KILOBYTE = "x" * 1024


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as executor:
        yield executor


class Log:
    """Makes entries as a log does."""

    def __init__(self) -> None:
        self.end = Position(1, 0)

    def entries(self, *texts: str, owner: str | None = None) -> list[Entry]:
        made = []
        for text in texts:
            message = make_message("iopub", "stream", {"text": text}, session="kernel")
            message.seq = self.end.cursor
            made.append(Entry(*self.end, message, owner, transient=text == "transient"))
            self.end = Position(self.end.cursor + 1, self.end.offset + len(message.frame))
        return made


def make(path: Path, executor: ThreadPoolExecutor, max_bytes: int = 2**20) -> Segments:
    return Segments(path / "kernel", executor, max_bytes=max_bytes, max_age=3600)


def told(entries: list[Entry] | Gap) -> list[tuple[object, ...]]:
    assert isinstance(entries, list)
    return [(e.seq, e.offset, e.owner, e.transient, e.message.frame) for e in entries]


async def test_what_was_written_is_read_again(tmp_path: Path, executor: ThreadPoolExecutor) -> None:
    log, segments = Log(), make(tmp_path, executor)
    first = log.entries("a", "transient", KILOBYTE)
    # More than one call may write; and a name that is no UTF-8.
    second = log.entries(*map(str, range(1500))) + log.entries("b", owner="se\udc80ssion")
    for entries in (first, second):
        segments.push(entries)
    await segments.written()

    assert told(await segments.read(Position(1, 0))) == told(first)
    assert told(await segments.read(Position(1000, 0))) == told(second[996:])
    later = make(tmp_path, executor)
    await later.restore()
    assert (later.start, later.end) == (Position(1, 0), log.end)
    assert told(await later.read(Position(4, 0))) == told(second)


async def test_a_large_segment_is_read_a_part_at_a_time(
    tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    log, segments = Log(), make(tmp_path, executor, max_bytes=2**24)
    entries = log.entries(*[KILOBYTE * 100] * 25)
    segments.push(entries)
    await segments.written()

    read, parts = await read_all(segments, 25)

    assert told(read) == told(entries)
    assert parts == 3


async def read_all(segments: Segments, count: int) -> tuple[list[Entry], int]:
    read: list[Entry] = []
    parts = 0
    while len(read) < count:
        part = await segments.read(Position(len(read) + 1, 0))
        assert isinstance(part, list)
        read += part
        parts += 1
    return read, parts


async def test_what_comes_together_is_kept_together_in_files_of_a_bounded_size(
    tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    log, segments = Log(), make(tmp_path, executor, max_bytes=2**26)
    # Three times as much as may wait, as when a server ends.
    entries = log.entries(*[KILOBYTE * 1000] * 48, KILOBYTE * 10_000, "the last")
    segments.push(entries)
    await segments.written()

    assert segments.lost_messages == 0
    sizes = sorted(file.stat().st_size for file in (tmp_path / "kernel").iterdir())
    assert sizes[-2] < SEGMENT_BYTES + 2**20, "a message may be larger, a file of several is not"
    read, _ = await read_all(segments, 50)
    assert told(read) == told(entries)


async def test_frames_that_are_not_where_they_were_are_read_all_the_same(
    tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    log, segments = Log(), make(tmp_path, executor)
    entries = log.entries("a", "b", "c")
    # As after a restart of the server that has another setting, and shows a message otherwise.
    entries[1].message.frame = make_message("iopub", "stream", {}, session="kernel").frame
    segments.push(entries)
    await segments.written()

    read = await segments.read(Position(1, 0))

    assert isinstance(read, list)
    assert [entry.message.frame for entry in read] == [e.message.frame for e in entries]


async def test_nothing_is_left_of_a_kernel_that_is_gone(
    tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    log, segments = Log(), make(tmp_path, executor, max_bytes=4096)
    for _ in range(5):  # some wait, some are to be written over
        segments.push(log.entries(KILOBYTE, KILOBYTE))
    await segments.close()

    assert not (tmp_path / "kernel").exists()


async def test_files_are_written_over_and_hold_nothing_of_before(
    tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    log, segments = Log(), make(tmp_path, executor, max_bytes=10 * 1024)
    for count in (8, 2, 1, 8, 1, 3, 7, 2):
        entries = log.entries(*[KILOBYTE] * count)
        segments.push(entries)
        await segments.written()
        assert told(await segments.read(Position(entries[0].seq, 0))) == told(entries)
        assert segments.start is not None

    await asyncio.get_running_loop().run_in_executor(executor, int)  # behind the removals
    files = list((tmp_path / "kernel").iterdir())
    size = sum(file.stat().st_size for file in files)
    assert size <= 10 * 1024 + 100 * len(files), "beside the notes of each"
    assert all(file.stat().st_mode & 0o777 == 0o600 for file in files)
    await segments.close()
    assert not (tmp_path / "kernel").exists()


async def test_a_file_that_somebody_has_removed_is_made_anew(
    tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    log, segments = Log(), make(tmp_path, executor, max_bytes=4096)
    for _ in range(4):
        entries = log.entries(KILOBYTE, KILOBYTE)
        segments.push(entries)
        await segments.written()
        for file in (tmp_path / "kernel").iterdir():
            file.unlink()
    assert segments.lost_messages == 0, "it could be written"

    assert await segments.read(Position(entries[0].seq, 0)) == Gap(2, log.end.offset)


async def test_a_write_that_is_cut_short_goes_on(
    tmp_path: Path, executor: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def part(descriptor: int, buffers: list[bytes]) -> int:
        return os.write(descriptor, b"".join(buffers)[:700])

    monkeypatch.setattr(os, "writev", part)
    log, segments = Log(), make(tmp_path, executor)
    entries = log.entries(KILOBYTE, "a", KILOBYTE)
    segments.push(entries)
    await segments.written()

    assert told(await segments.read(Position(1, 0))) == told(entries)


async def test_what_has_no_room_is_lost_and_what_comes_then_is_kept(
    tmp_path: Path, executor: ThreadPoolExecutor, caplog: pytest.LogCaptureFixture
) -> None:
    in_the_way = tmp_path / "kernel"
    in_the_way.write_text("no directory")
    log, segments = Log(), make(tmp_path, executor)
    segments.push(log.entries("a", "b"))
    await segments.written()
    in_the_way.unlink()
    kept = log.entries("c")
    segments.push(kept)
    await segments.written()

    lost = await segments.read(Position(1, 0))
    assert lost == Gap(2, kept[0].offset)
    assert told(await segments.read(Position(3, 0))) == told(kept)
    assert segments.lost_messages == 2
    assert "not kept on disk" in caplog.text


@pytest.mark.parametrize("cut", ["empty", "end", "length", "notes", "segment", "table", "frame"])
async def test_a_damaged_file_is_a_gap(
    tmp_path: Path, executor: ThreadPoolExecutor, cut: str
) -> None:
    log, segments = Log(), make(tmp_path, executor)
    segments.push(log.entries("a", "b", owner="me"))
    await segments.written()
    (file,) = (tmp_path / "kernel").iterdir()
    data = file.read_bytes()
    frames = data[: log.end.offset]
    damaged = {
        "empty": b"",
        "end": data[:-1],
        "length": data[:-8] + b"\xff" * 8,
        "notes": frames + b"[1, [3]]" + pack("<Q", 8),
        "segment": frames + b"[7, []]" + pack("<Q", 7),
        "table": b"\xff" * 8 + data[8:],
        "frame": data[:48] + data[40:48] + data[56:],
    }
    file.write_bytes(damaged[cut])

    assert await segments.read(Position(1, 0)) == Gap(2, log.end.offset)


async def test_what_has_become_too_old_goes_although_nothing_is_said(
    tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    log = Log()
    segments = Segments(tmp_path / "kernel", executor, max_bytes=2**20, max_age=0.2)
    segments.push(log.entries("a"))
    segments.push(log.entries("b"))
    await segments.written()

    await eventually(lambda: segments.start is None)
    await eventually(lambda: not [*(tmp_path / "kernel").iterdir()])
    assert segments.bytes == 0


async def test_one_message_may_be_larger_than_what_may_wait(
    tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    log, segments = Log(), make(tmp_path, executor, max_bytes=2**26)
    small, large = log.entries("a"), log.entries("x" * (WAITING_BYTES + 1))
    goes_on = threading.Event()
    executor.submit(goes_on.wait, 30)  # a disk that is slow
    segments.push(small)
    segments.push(large)
    assert segments.lost_messages == 0
    # What comes when so much waits is lost, unless a client is about to read it.
    segments.push(log.entries("b"))
    assert segments.lost_messages == 1
    segments.may_hold = lambda: True
    segments.push(log.entries("c"))
    assert segments.lost_messages == 1
    goes_on.set()
    await segments.written()
    assert told(await segments.read(Position(2, small[0].offset))) == told(large)


async def test_a_page_is_read_without_what_is_before_it(
    tmp_path: Path, executor: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, segments = Log(), make(tmp_path, executor, max_bytes=2**26)
    entries = log.entries(*[KILOBYTE] * 3000)
    segments.push(entries)
    await segments.written()
    read: list[int] = []

    def pread(descriptor: int, size: int, position: int) -> bytes:
        data = real(descriptor, size, position)
        read.append(len(data))
        return data

    real = os.pread
    monkeypatch.setattr(os, "pread", pread)
    place, found = Position(1, 0), []
    while place.cursor <= 3000:
        page = await segments.read(place)
        assert isinstance(page, list)
        found += page
        last = page[-1]
        place = Position(last.seq + 1, last.offset + len(last.message.frame))
    assert told(found) == told(entries)
    assert sum(read) < 2 * log.end.offset


async def test_what_a_client_is_about_to_read_stays_beyond_the_bound(
    tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    log, segments = Log(), make(tmp_path, executor, max_bytes=3000)
    segments.wanted_from = lambda: 2
    for text in "abc":
        segments.push(log.entries(text + KILOBYTE))
    assert segments.start is not None
    assert segments.start.cursor == 2
    for text in "defg":
        segments.push(log.entries(text + KILOBYTE))
    assert segments.start.cursor > 2  # twice the bound, but no more
    assert segments.bytes <= 6000
    await segments.written()


async def test_files_that_are_not_of_this_kind_are_removed(
    tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    log, segments = Log(), make(tmp_path, executor)
    entries = log.entries("a")
    segments.push(entries)
    await segments.written()
    (file,) = (tmp_path / "kernel").iterdir()
    strange = [file.with_name("unfinished"), file.with_suffix(".segment"), file.with_name("1-x")]
    for path in strange:
        path.write_bytes(b"")

    later = make(tmp_path, executor)
    await later.restore()

    await asyncio.get_running_loop().run_in_executor(executor, int)  # behind the removals
    assert [path.name for path in (tmp_path / "kernel").iterdir()] == [file.name]
    assert told(await later.read(Position(1, 0))) == told(entries)


async def test_what_is_written_over_while_it_is_read_is_a_gap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, goes_on = threading.Event(), threading.Event()
    read_notes = segments_module._read_notes

    def read_notes_slowly(file: FileIO, name: str, seq: int) -> object:
        found = read_notes(file, name, seq)
        opened.set()
        goes_on.wait(30)
        return found

    with ThreadPoolExecutor(2) as executor:
        log, segments = Log(), make(tmp_path, executor, max_bytes=2**16)
        segments.push(log.entries(*["a" * 10000] * 4))
        await segments.written()
        first_end = log.end
        monkeypatch.setattr(segments_module, "_read_notes", read_notes_slowly)
        reading = asyncio.create_task(segments.read(Position(1, 0)))
        try:
            assert await asyncio.to_thread(opened.wait, 30)
            # Frames of the same sizes, in the file of the first ones.
            segments.push(log.entries(*["b" * 10000] * 4))
            await segments.written()
            assert segments.start == first_end
        finally:
            goes_on.set()
        assert await reading == Gap(4, first_end.offset)
