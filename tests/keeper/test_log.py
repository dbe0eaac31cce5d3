"""The writer of a log: numbers, files and their bounds, resuming, and disks that fail.

These are the tests of `app.keeper.log_files`, too.
"""

from __future__ import annotations

import errno
import logging
import mmap
import os
import re
import shutil
import time
from pathlib import Path

import pytest

from app.keeper.log import (
    FIRST_BYTES,
    SEGMENT_BYTES,
    UNWRITTEN_BYTES,
    LogRoom,
    LogWriter,
    Position,
    Tip,
)
from app.managers.log.entries import Entry, Gap
from app.managers.log.message_log import Reader
from app.protocol import records
from tests.support.logs import KERNEL, WrittenLog, drained, message
from tests.support.processes import own_descriptors

KIB = 2**10
MIB = 2**20


def written(path: Path, *, each: int = MIB, resumed: bool = False) -> WrittenLog:
    return WrittenLog(each, path / KERNEL, resumed=resumed)


def told(log: WrittenLog) -> list[bytes]:
    """The frames that are kept, from the oldest on."""
    return [entry.message.frame for entry in drained(from_begin(log)).entries]


def kept(entries: list[Entry]) -> list[bytes]:
    return [entry.message.frame for entry in entries]


def from_begin(log: WrittenLog) -> Reader:
    return Reader(log.log, "s", Position(1, 0))


def frames(count: int, size: int = 100) -> list[bytes]:
    return [f"{number:0{size}}".encode() for number in range(count)]


class FullDisk:
    """A disk that has no more blocks, from a point on: of files of any of these logs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = 2**62
        self.refused = 0
        self._allocate = os.posix_fallocate
        monkeypatch.setattr(os, "posix_fallocate", self)

    def __call__(self, descriptor: int, offset: int, size: int) -> None:
        if size > self.left:
            self.refused += 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.left -= size
        self._allocate(descriptor, offset, size)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> FullDisk:
    return FullDisk(monkeypatch)


# Numbers and files


def test_numbers_begin_with_one_and_offsets_count_frames(tmp_path: Path) -> None:
    log = written(tmp_path)
    assert (log.writer.first, log.writer.next, log.writer.end) == (Position(1, 0),) * 3
    assert log.writer.tip == Tip(1, records.HEAD_BYTES)

    places = [log.append(message(size), "owner") for size in (10, 0, 25)]

    assert places == [(1, 0), (2, 10), (3, 10)]
    assert (log.writer.first, log.writer.next, log.writer.end) == ((1, 0), (4, 35), (4, 35))


def test_what_is_appended_is_written_together(tmp_path: Path) -> None:
    writer = written(tmp_path).writer
    for _ in range(500):  # more buffers than one call may write
        writer.append(b"x", "iopub")
    assert writer.end == (1, 0)

    writer.flush()

    assert writer.end == (501, 500)
    assert writer.bytes == 64 + 500 * (records.RECORD_BYTES + 1)


def test_a_frame_may_be_in_pieces(tmp_path: Path) -> None:
    log = written(tmp_path)

    places = [
        log.writer.append(b"one ", "iopub", rest=(b"", memoryview(b"and "), b"another")),
        log.writer.append(b"two", "iopub"),
    ]
    log.tell()

    assert places == [(1, 0), (2, 15)]
    assert told(log) == [b"one and another", b"two"]


def test_what_is_much_does_not_wait(tmp_path: Path) -> None:
    writer = written(tmp_path, each=2**26).writer
    writer.append(bytes(UNWRITTEN_BYTES), "iopub")
    assert writer.end == (2, UNWRITTEN_BYTES)


def test_files_grow_fourfold(tmp_path: Path) -> None:
    log = written(tmp_path, each=2**28)
    log.fill(*[FIRST_BYTES // 2] * 800)

    sizes = [file.stat().st_size for file in log.files()]
    newest = sizes.pop()
    assert newest == SEGMENT_BYTES, "its blocks are taken beforehand"
    # What the others have not come to use they have given back.
    rooms = [FIRST_BYTES, 4 * FIRST_BYTES, 16 * FIRST_BYTES, 2 * MIB]
    rooms += [SEGMENT_BYTES] * (len(sizes) - 4)
    assert all(
        room - FIRST_BYTES // 2 - 100 < size <= room
        for room, size in zip(rooms, sizes, strict=True)
    )


def test_files_of_a_small_log_are_small(tmp_path: Path) -> None:
    log = written(tmp_path, each=256 * KIB)
    log.fill(*[KIB] * 1000)

    assert max(file.stat().st_size for file in log.files()) == 64 * KIB


def test_a_large_message_has_a_file_of_its_own(tmp_path: Path) -> None:
    log = written(tmp_path, each=2**26)
    log.fill(1, SEGMENT_BYTES + 1, 1)

    first, large, last = log.files()

    assert large.stat().st_size == 64 + records.RECORD_BYTES + SEGMENT_BYTES + 1
    assert [int(file.stem) for file in (first, large, last)] == [1, 2, 3]
    assert list(map(len, told(log))) == [1, SEGMENT_BYTES + 1, 1]


@pytest.mark.parametrize("bound", [2**16, 2**20])
def test_a_large_message_may_be_the_first(tmp_path: Path, bound: int) -> None:
    """The file that is made beforehand has no room for it, and the same name."""
    log = WrittenLog(bound, tmp_path / KERNEL)
    log.writer.prepare()
    log.fill(100_000)
    assert [int(file.stem) for file in log.files()] == [1]
    assert len(drained(Reader(log.log, "a", Position(1, 0))).entries) == 1
    log.fill(*[100_000] * 20)
    gap, entries = drained(Reader(log.log, "a", Position(1, 0)))
    assert (gap.messages if gap else 0) + len(entries) == 21
    assert int(log.files()[0].stem) == entries[0].seq
    *whole, _ = log.files()  # the last one has room for more
    assert sum(file.stat().st_size for file in whole) < log.writer.bytes <= bound + 2**22


def test_a_file_that_is_left_before_it_is_full_gives_its_blocks_back(tmp_path: Path) -> None:
    log = written(tmp_path)
    for number in range(3):
        log.append(message(number))
        log.writer.renew()
    files = sorted(log.writer.directory.glob("*.log"))
    assert [file.stat().st_size for file in files[:-1]] == [
        segment.bytes for segment in [*log.writer.segments][:-1]
    ]


def test_nobody_else_may_read_them(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        log = written(tmp_path)
        log.fill(*[KIB] * 200)
    finally:
        os.umask(before)

    assert log.writer.directory.stat().st_mode & 0o777 == 0o700
    made = list(log.writer.directory.iterdir())
    assert len(made) == 4, "three segments, and one more file that is held ready"
    assert {file.stat().st_mode & 0o777 for file in made} == {0o600}


def test_room_is_taken_before_the_first_message(tmp_path: Path, disk: FullDisk) -> None:
    log = written(tmp_path)
    log.writer.prepare()
    assert sum(file.stat().st_blocks * 512 for file in log.writer.directory.iterdir()) >= 64 * KIB
    log.writer.prepare()
    assert len(log.files()) == 1

    disk.left = 0
    (tmp_path / "other").mkdir()
    with pytest.raises(OSError, match="No space left"):
        written(tmp_path / "other").writer.prepare()
    assert not list((tmp_path / "other" / KERNEL).iterdir())


def test_only_its_own_directory_is_made(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        written(tmp_path / "removed" / "logs").writer.prepare()
    assert not (tmp_path / "removed").exists()


# Bounds


@pytest.mark.parametrize("size", [10, 1000, 40 * KIB, 200 * KIB])
def test_the_newest_bytes_are_there_and_not_much_more(tmp_path: Path, size: int) -> None:
    each = 256 * KIB
    log = written(tmp_path, each=each)
    largest = max(each // 4, size + 200)
    for _ in range(3 * each // size):
        log.fill(size)
        assert log.writer.bytes <= each + largest + 2 * KIB
        assert log.writer.first == (1, 0) or log.writer.bytes >= each
    assert log.writer.first > (1, 0)

    on_disk = sum(file.stat().st_size for file in log.files())
    assert log.writer.bytes <= on_disk <= each + 2 * largest + 2 * KIB
    assert log.log.start == log.writer.first
    assert len(told(log)) == log.writer.end.cursor - log.writer.first.cursor


def test_one_message_stays_whatever_its_size(tmp_path: Path) -> None:
    log = written(tmp_path, each=64 * KIB)
    log.fill(10, 2 * SEGMENT_BYTES)
    assert told(log)[-1] == bytes(2 * SEGMENT_BYTES)

    log.fill(1)
    assert told(log) == [bytes(1)]
    assert drained(from_begin(log)).gap == Gap(2, 10 + 2 * SEGMENT_BYTES)


def test_the_largest_log_makes_room_for_all(tmp_path: Path) -> None:
    room = LogRoom(MIB, MIB, 3600)
    small, large = (WrittenLog(0, tmp_path / name, room) for name in ("small", "large"))
    small.fill(*frames(100))
    large.fill(*[10 * KIB] * 90)
    assert small.writer.first == large.writer.first == (1, 0)

    small.fill(*[KIB] * 400)

    assert small.writer.first == (1, 0)
    assert large.writer.first > (1, 0)
    assert room.used == small.writer.bytes + large.writer.bytes <= MIB
    assert told(small) == frames(100) + [bytes(KIB)] * 400


def test_a_log_that_is_gone_takes_no_room(tmp_path: Path) -> None:
    room = LogRoom(MIB, MIB, 3600)
    gone, closed, other = (WrittenLog(0, tmp_path / name, room) for name in "abc")
    for log in (gone, closed, other):
        log.fill(*[KIB] * 100)
    gone.writer.remove()
    closed.writer.close()
    closed.writer.close()
    assert room.used == other.writer.bytes

    for log in (gone, closed):
        log.fill(*[KIB] * 100)

    assert room.used == other.writer.bytes
    assert not gone.writer.directory.exists()
    assert gone.writer.end.cursor == 201
    assert gone.writer.lost_messages == 100


def test_what_is_too_old_goes_although_nothing_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = LogRoom(MIB, MIB, 100)
    log = WrittenLog(0, tmp_path / KERNEL, room)
    log.fill(*[KIB] * 50)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 60)
    log.fill(KIB)
    room.expire()
    assert log.writer.first == (1, 0)

    monkeypatch.setattr(time, "time", lambda: now + 101)
    room.expire()
    newest = int(log.files()[0].stem)
    assert log.writer.first == (newest, (newest - 1) * KIB)
    assert len(log.files()) == 1

    monkeypatch.setattr(time, "time", lambda: now + 161)
    room.expire()
    assert log.files() == []
    assert log.writer.first == log.writer.end == (52, 51 * KIB)
    assert log.writer.bytes == room.used == 0
    assert drained(from_begin(log)) == (Gap(51, 51 * KIB), [])

    log.fill(b"again")
    assert told(log) == [b"again"]


def test_a_kernel_that_says_little_keeps_nothing_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = LogRoom(MIB, MIB, 100)
    log = WrittenLog(0, tmp_path / KERNEL, room)
    now = time.time()
    for turn in range(24):
        monkeypatch.setattr(time, "time", lambda now=now + 10 * turn: now)
        log.fill(f"{10 * turn}".encode())
        room.expire()

    assert int(told(log)[0]) >= 20


def test_a_gap_tells_to_the_byte_what_a_log_could_not_hold(tmp_path: Path) -> None:
    log = written(tmp_path, each=MIB)
    size = 0
    for number in range(4096):
        frame = bytes(7 * KIB + number % 3000)
        log.append(message(frame))
        size += len(frame)
    assert size > 32 * MIB

    gap, entries = drained(from_begin(log))

    assert gap is not None
    assert gap.messages + len(entries) == 4096
    assert gap.bytes + sum(len(entry.message.frame) for entry in entries) == size
    assert MIB <= size - gap.bytes <= 1.5 * MIB


# Resuming


def test_it_goes_on_where_another_has_left(tmp_path: Path) -> None:
    before = written(tmp_path)
    before.fill(*frames(500), owner="\udc80")
    before.writer.close()

    log = written(tmp_path, resumed=True)

    assert log.writer.epoch == before.writer.epoch
    assert log.writer.first == (1, 0)
    assert log.writer.next == log.writer.end == (501, 50_000)
    assert log.writer.tip == before.writer.tip
    log.fill(b"more")
    assert Reader(log.log, "\udc80", Position(1, 0)).take(1).entries[0].owner == "\udc80"
    assert [
        e.message.frame for e in drained(Reader(log.log, "\udc80", Position(1, 0))).entries
    ] == [
        *frames(500),
        b"more",
    ]


def test_it_begins_where_nothing_is_left(tmp_path: Path) -> None:
    log = written(tmp_path, resumed=True)
    log.fill(1)
    assert log.writer.end == (2, 1)


def test_a_file_is_cut_at_every_byte_of_its_last_record(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = written(tmp_path)
    before.fill(*[FIRST_BYTES // 3] * 3)
    begin = before.writer.tip.position
    before.fill(b"the last", owner="me")
    end = before.writer.tip.position
    before.writer.close()
    data = before.files()[-1].read_bytes()
    for cut in range(begin, end):
        copy = tmp_path / f"{cut}"
        shutil.copytree(before.writer.directory, copy / KERNEL)
        (copy / KERNEL / before.files()[-1].name).write_bytes(data[:cut])

        log = written(copy, resumed=True)

        assert log.writer.end == (4, 3 * (FIRST_BYTES // 3))
        log.fill(b"x", b"y")
        assert told(log)[3:] == [b"x", b"y"]
        log.writer.close()
        assert told(written(copy, resumed=True))[3:] == [b"x", b"y"]
    assert not caplog.records


@pytest.mark.parametrize("tail", [b"\xff" * 1000, b"{}" * 500, b"\0" * 1000, b""])
def test_a_garbage_tail_is_no_message(tmp_path: Path, tail: bytes) -> None:
    before = written(tmp_path)
    before.fill(*frames(10))
    position = before.writer.tip.position
    before.writer.close()
    (file,) = before.files()
    file.write_bytes(file.read_bytes()[:position] + tail)

    log = written(tmp_path, resumed=True)
    log.fill(b"more")

    assert told(log) == [*frames(10), b"more"]


def test_what_lay_behind_damage_does_not_come_back(tmp_path: Path) -> None:
    before = written(tmp_path)
    before.fill(*frames(10))
    before.writer.close()
    (file,) = before.files()
    data = bytearray(file.read_bytes())
    record = records.RECORD_BYTES + 100
    data[64 + 5 * record - 8] ^= 255  # the number at the fifth's end
    file.write_bytes(data)

    for _ in range(2):  # the second time there is a new fifth before the sixth of before
        log = written(tmp_path, resumed=True)
        if log.writer.next.cursor == 5:
            log.fill(b"n" * 100)
        log.writer.close()

    assert told(log) == [*frames(4), b"n" * 100]


def test_it_goes_on_behind_a_file_that_was_written_over(tmp_path: Path, disk: FullDisk) -> None:
    before = written(tmp_path, each=256 * KIB)
    before.fill(*frames(200, KIB))
    disk.left = 0
    before.fill(*frames(150, 900))
    assert disk.refused
    end = before.writer.end
    before.writer.close()

    log = written(tmp_path, each=256 * KIB, resumed=True)

    assert log.writer.end == end
    log.fill(b"more")
    found = told(log)
    assert found == [*frames(200, KIB), *frames(150, 900), b"more"][-len(found) :]


def test_what_a_kernel_has_said_is_not_taken_for_records(tmp_path: Path, disk: FullDisk) -> None:
    """A file that is written over has held bytes of the kernel's choice."""
    log = written(tmp_path, each=256 * KIB)
    forged = b"".join(records.pack_record(2**64 - 1, 0, 1.0, "shell", "other", 0, b""))
    log.fill(*[forged * (KIB // len(forged))] * 300)
    disk.left = 0
    while disk.refused < 4:  # the spare file comes first
        log.fill(KIB)
    start = log.writer.tip.segment
    log.fill(*[1] * 5)
    log.writer.close()
    newest = log.files()[-1].read_bytes()
    assert forged not in newest
    assert int(log.files()[-1].stem) == start

    resumed = written(tmp_path, each=256 * KIB, resumed=True)

    assert resumed.writer.end == log.writer.end


def kept_from(tmp_path: Path) -> tuple[WrittenLog, list[Path]]:
    """A closed log of three files, with a message of 20 KiB in each."""
    log = written(tmp_path)
    log.fill(*[20 * KIB] * 2)
    log.fill(*[110 * KIB] * 1, 20 * KIB)
    log.writer.close()
    return log, log.files()


def test_files_that_are_not_of_this_log_are_removed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before, files = kept_from(tmp_path)
    head = records.pack_head(before.writer.epoch, "another", 50, 0)
    directory = before.writer.directory
    (directory / f"{50:020}.log").write_bytes(head)
    (directory / f"{60:020}.log").write_bytes(files[0].read_bytes())
    (directory / f"{70:020}.log").write_bytes(b"")
    (directory / "unfinished").write_bytes(b"x" * 100)
    os.mkfifo(directory / f"{80:020}.log")
    (directory / f"{90:020}.log").symlink_to(files[0])

    log = written(tmp_path, resumed=True)

    assert log.files() == files
    assert not (directory / "unfinished").exists()
    assert len(told(log)) == 4
    assert log.writer.end.cursor == 5
    reasons = "another kernel", "not that of its first message", "cut short", "no segment of a log"
    assert all(reason in caplog.text for reason in reasons)
    assert len(caplog.records) == 6


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EACCES, errno.EIO])
def test_a_file_that_cannot_be_opened_now_is_not_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    before, files = kept_from(tmp_path)
    really = os.open

    def fails(path: Path, flags: int, *rest: int) -> int:
        if path == files[1]:
            raise OSError(number, os.strerror(number))
        return really(path, flags, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", fails)
        with pytest.raises(OSError, match=re.escape(os.strerror(number))):
            written(tmp_path, resumed=True)

    log = written(tmp_path, resumed=True)
    assert log.files() == files
    assert len(told(log)) == 4
    assert log.writer.end == before.writer.end


def test_files_of_an_epoch_before_are_removed(tmp_path: Path) -> None:
    before, files = kept_from(tmp_path)
    data = bytearray(files[0].read_bytes())
    data[8:24] = b"f" * 16
    files[0].write_bytes(data)

    log = written(tmp_path, resumed=True)

    assert log.writer.epoch == before.writer.epoch
    assert log.files() == files[1:]
    assert log.writer.first.cursor == int(files[1].stem)


def test_files_of_another_version_are_left_and_do_no_harm(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, files = kept_from(tmp_path)
    newer = files[0].with_name(f"{6:020}.log")
    newer.write_bytes(files[-1].read_bytes().replace(b"kklog001", b"kklog002"))

    log = written(tmp_path, resumed=True)

    assert "is not used: its format is 002, not 001" in caplog.text
    assert newer.exists()
    log.fill(*frames(10))
    assert told(log)[4:] == frames(10)
    log.writer.remove()
    assert not log.writer.directory.exists()


def test_a_log_begins_anew_where_all_is_of_another_version(tmp_path: Path) -> None:
    before, files = kept_from(tmp_path)
    for file in files:
        file.write_bytes(file.read_bytes().replace(b"kklog001", b"kklog002"))

    log = written(tmp_path, resumed=True)

    assert log.writer.end == (1, 0)
    assert log.writer.epoch != before.writer.epoch
    said = frames(10, 30 * KIB)
    for count in range(1, 11):
        log.fill(said[count - 1])
        assert told(log) == said[:count]


def test_nothing_is_left_of_a_log_that_is_removed(tmp_path: Path) -> None:
    log = written(tmp_path)
    log.fill(*[KIB] * 200)
    log.writer.remove()
    log.writer.remove()
    assert list(tmp_path.iterdir()) == []

    written(tmp_path).writer.remove()  # of a kernel that has said nothing


# Disks that fail


@pytest.mark.parametrize("full_from", range(6))
def test_a_full_disk_makes_a_log_shorter(
    tmp_path: Path, disk: FullDisk, caplog: pytest.LogCaptureFixture, full_from: int
) -> None:
    other = WrittenLog(MIB, tmp_path / "other")
    other.fill(*frames(50, KIB))
    log = written(tmp_path)
    log.writer.prepare()
    said: list[bytes] = []
    while len(log.files()) < full_from + 1:
        said += frames(1, 5 * KIB + len(said))
        log.fill(said[-1])
    disk.left = 0

    for number in range(400):
        said.append(f"{number:03000}".encode())
        assert log.append(message(said[-1])).cursor == len(said)

    gap, entries = drained(from_begin(log))
    assert gap is not None
    assert gap == Gap(len(said) - len(entries), sum(map(len, said)) - sum(map(len, kept(entries))))
    # One gap, and nothing is missed behind it.
    assert kept(entries) == said[gap.messages :]
    assert log.writer.lost_messages == 0
    assert len(caplog.records) == 1
    assert "its log cannot be written: No space left on device" in caplog.text
    assert told(other) == frames(50, KIB)

    disk.left = 2**40
    log.fill(*frames(100, KIB))
    assert told(log)[-100:] == frames(100, KIB)


def test_what_a_server_may_have_mapped_is_never_written_over(
    tmp_path: Path, disk: FullDisk
) -> None:
    """The file of a message that is larger than a segment (`app.managers.log.large_frames`)."""
    log = written(tmp_path, each=64 * MIB)
    log.fill(b"\1" * (SEGMENT_BYTES + 1))
    (large,) = log.files()
    with large.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        before = bytes(mapped)
        log.fill(*[KIB] * 100)
        disk.left = 0
        log.fill(*[SEGMENT_BYTES // 4] * 10, *[KIB] * 1000)
        assert large not in log.files()
        assert bytes(mapped) == before


def test_one_line_tells_of_a_full_disk(
    tmp_path: Path, disk: FullDisk, caplog: pytest.LogCaptureFixture
) -> None:
    log = written(tmp_path)
    log.fill(*[KIB] * 300)
    disk.left = 0
    log.fill(*[KIB] * 3000)
    assert disk.refused > 2
    assert len(caplog.records) == 1


def test_a_disk_that_is_full_now_and_then_is_told_of_once_a_minute(
    tmp_path: Path,
    disk: FullDisk,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log = written(tmp_path)
    log.fill(*[KIB] * 300)
    now = time.monotonic()
    for minute in range(3):
        for left in (0, 2**40) * 3:
            disk.left = left
            log.fill(*[KIB] * 600)
        assert len(caplog.records) == 1 + minute
        monkeypatch.setattr(time, "monotonic", lambda now=now + 61 * (minute + 1): now)
        log.fill(1)


def test_what_has_no_room_at_all_is_counted(tmp_path: Path, disk: FullDisk) -> None:
    log = written(tmp_path)
    disk.left = 0
    log.fill(*[KIB] * 10)
    assert log.writer.lost_messages == 10
    assert drained(from_begin(log)) == (Gap(10, 10 * KIB), [])

    disk.left = 2**40
    log.fill(*frames(3))
    assert drained(from_begin(log)).gap == Gap(10, 10 * KIB)
    assert told(log) == frames(3)


def test_a_message_larger_than_all_there_is_is_lost_alone(tmp_path: Path, disk: FullDisk) -> None:
    log = written(tmp_path)
    log.fill(*frames(2))
    disk.left = 0
    log.fill(2 * SEGMENT_BYTES, b"next")

    gap, entries = drained(from_begin(log))

    assert gap == Gap(1, 2 * SEGMENT_BYTES)
    assert [entry.seq for entry in entries] == [1, 2, 4]
    assert log.writer.lost_messages == 1


def test_a_file_system_that_takes_no_blocks_beforehand_will_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int, offset: int, size: int) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    log = written(tmp_path)
    log.fill(*frames(100, KIB))
    log.writer.close()

    log = written(tmp_path, resumed=True)
    log.fill(b"more")
    assert told(log) == [*frames(100, KIB), b"more"]


class FailingWrites:
    """From now on only so many calls write, and so many bytes each; then there are errors."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = 2**62
        self.bytes = 2**62
        self._write = os.write
        monkeypatch.setattr(os, "writev", self.writev)
        monkeypatch.setattr(os, "write", self.write)

    def writev(self, descriptor: int, buffers: list[bytes]) -> int:
        return self.write(descriptor, b"".join(buffers))

    def write(self, descriptor: int, data: bytes) -> int:
        if self.calls <= 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self.calls -= 1
        return self._write(descriptor, data[: self.bytes])


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> FailingWrites:
    return FailingWrites(monkeypatch)


def test_a_write_that_is_cut_short_goes_on(tmp_path: Path, writes: FailingWrites) -> None:
    log = written(tmp_path)
    writes.bytes = 7
    log.fill(*frames(20), b"")

    assert told(log) == [*frames(20), b""]
    assert log.writer.lost_messages == 0


@pytest.mark.parametrize("calls", range(6))
def test_what_could_not_be_written_is_a_gap(
    tmp_path: Path, writes: FailingWrites, caplog: pytest.LogCaptureFixture, calls: int
) -> None:
    log = written(tmp_path)
    log.fill(*frames(5))
    writes.calls, writes.bytes = calls, 30
    for frame in (b"a" * 100, b"b" * 100):
        log.writer.append(frame, "iopub")
    log.fill(b"c" * 100)
    log.fill(b"d" * 100)
    writes.calls, writes.bytes = 2**62, 2**62
    log.fill(b"next")

    gap, entries = drained(from_begin(log))

    assert gap == Gap(4, 400)
    assert log.writer.lost_messages == 4
    assert [e.message.frame for e in entries] == [*frames(5), b"next"]
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert sum(file.stat().st_size > 0 for file in log.files()) == len(log.files()) == 2
    log.writer.close()
    assert told(written(tmp_path, resumed=True)) == [*frames(5), b"next"]


def test_half_a_message_is_cut_off_a_file_that_takes_no_more(
    tmp_path: Path, writes: FailingWrites, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = LogRoom(MIB, MIB, 100)
    log = WrittenLog(0, tmp_path / KERNEL, room)
    now = time.time()
    log.fill(b"old")
    log.writer.append(b"a" * 100, "iopub")
    monkeypatch.setattr(time, "time", lambda: now + 50)
    log.writer._segments[-1].written_at = now + 50
    log.writer.expire(now + 10)
    writes.calls, writes.bytes = 1, 30
    log.writer.flush()

    (file,) = log.files()
    assert file.stat().st_size == log.writer.bytes


def test_a_write_that_does_nothing_is_an_error(tmp_path: Path, writes: FailingWrites) -> None:
    log = written(tmp_path)
    log.fill(b"first")
    writes.bytes = 0
    log.fill(b"lost")
    writes.bytes = 2**62
    log.fill(b"next")

    assert told(log) == [b"first", b"next"]


def test_a_directory_that_somebody_has_removed_is_made_anew(tmp_path: Path) -> None:
    log = written(tmp_path)
    log.fill(*[KIB] * 100)
    for _ in range(3):
        shutil.rmtree(log.writer.directory)
        log.fill(*[100 * KIB] * 5)
    log.fill(*frames(3))

    assert log.writer.lost_messages == 0
    assert told(log)[-3:] == frames(3)
    assert log.writer.directory.stat().st_mode & 0o777 == 0o700


def test_a_directory_is_removed_and_the_disk_is_full(tmp_path: Path, disk: FullDisk) -> None:
    log = written(tmp_path)
    log.fill(*[KIB] * 100)
    shutil.rmtree(log.writer.directory)
    disk.left = 0
    log.fill(*[100 * KIB] * 5)
    disk.left = 2**40
    log.fill(*[100 * KIB] * 3, *frames(3))

    assert told(log)[-3:] == frames(3)


def test_something_that_is_in_the_way_is_a_loss(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / KERNEL).write_text("no directory")
    log = written(tmp_path)
    log.fill(1, 2)
    (tmp_path / KERNEL).unlink()
    log.fill(b"kept")

    assert drained(from_begin(log)).gap == Gap(2, 3)
    assert told(log) == [b"kept"]
    assert log.writer.lost_messages == 2
    assert len(caplog.records) == 1


def test_nothing_is_left_open(tmp_path: Path, writes: FailingWrites, disk: FullDisk) -> None:
    before = own_descriptors()
    log = LogWriter(tmp_path / KERNEL, KERNEL, LogRoom(256 * KIB, MIB, 3600))
    for number in range(2000):
        disk.left = 0 if number % 300 > 100 else 2**40
        writes.calls = 0 if number % 500 == 499 else 2**62
        log.append(bytes(5 * KIB), "iopub")
        log.flush()
    assert own_descriptors() == before + 1
    log.close()
    assert own_descriptors() == before
