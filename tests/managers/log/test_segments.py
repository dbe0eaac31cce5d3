"""Reading the files of a log that somebody damages: a gap, and never a wrong message."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from struct import pack
from typing import Any

import pytest

from app.managers.log.entries import Entry, Gap, Position
from app.managers.log.message_log import Reader
from app.managers.log.segments import READERS, SegmentReader
from app.protocol import records
from tests.support.logs import KERNEL, WrittenLog, drained
from tests.support.processes import own_descriptors

KIB = 2**10
RECORD = records.RECORD_BYTES + KIB
COUNT = 300


def frame(number: int) -> bytes:
    return f"{number:01024}".encode()


@pytest.fixture
def log(tmp_path: Path) -> WrittenLog:
    """300 messages of a kilobyte, in files that begin at 1, 31, 151."""
    log = WrittenLog(2**20, tmp_path / KERNEL)
    log.fill(*[frame(number) for number in range(1, COUNT + 1)])
    assert len(log.files()) == 3
    return log


def starts(log: WrittenLog) -> list[int]:
    return [int(file.stem) for file in log.files()]


def check(log: WrittenLog, reader: Reader | None = None) -> list[int]:
    """Read all; returns the numbers that are lost."""
    reader = reader or Reader(log.log, "a", Position(1, 0))
    begin = reader.position
    gap, entries = drained(reader)
    told = [entry.seq for entry in entries]
    assert told == sorted(set(told))
    for entry in entries:
        assert entry.message.frame == frame(entry.seq)
        assert entry.offset == (entry.seq - 1) * KIB
    lost = sorted({*range(begin.cursor, log.log.next_seq)} - {*told})
    assert gap == (Gap(len(lost), KIB * len(lost)) if lost else None)
    assert reader.position == log.log.end
    return lost


def more(log: WrittenLog, count: int = 20) -> None:
    begin = log.log.next_seq
    log.fill(*[frame(number) for number in range(begin, begin + count)])


Damage = Callable[[Path], None]


def cut_to(size: int) -> Damage:
    return lambda path: os.truncate(path, size)


def change(position: int, data: bytes) -> Damage:
    def change(path: Path) -> None:
        with path.open("r+b") as file:
            file.seek(position)
            file.write(data)

    return change


def replaced(path: Path) -> None:
    path.unlink()
    path.write_bytes(b"x" * 100_000)


def as_a_link(path: Path) -> None:
    other = path.rename(path.with_name("elsewhere"))
    path.symlink_to(other)


def as_a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def as_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def renamed(path: Path) -> None:
    path.rename(path.with_name(f"{int(path.stem) + 3:020}.log"))


# What of a file is lost, counted from its first message.
WHOLE_FILES: dict[str, Damage] = {
    "empty": cut_to(0),
    "head cut": cut_to(30),
    "no record": cut_to(64),
    "removed": Path.unlink,
    "renamed": renamed,
    "replaced": replaced,
    "link": as_a_link,
    "directory": as_a_directory,
    "pipe": as_a_pipe,
    "newer format": change(5, b"002"),
    "another kernel": change(24, b"\xff" * 16),
    "another's messages": change(40, pack("<Q", 2**63)),
    "first record": change(64, b"\xff" * 40),
}


def goes_on(damage: Damage) -> bool:
    """Whether what is written to the file afterwards can be read."""
    return damage in (WHOLE_FILES["no record"], WHOLE_FILES["first record"])


PARTS: dict[str, tuple[Damage, int]] = {
    "cut in a head": (cut_to(64 + 9 * RECORD + 10), 9),
    "cut in a frame": (cut_to(64 + 9 * RECORD + 100), 9),
    "cut before the end": (cut_to(64 + 10 * RECORD - 8), 9),
    "length": (change(64 + 9 * RECORD, pack("<Q", 5)), 9),
    "huge length": (change(64 + 9 * RECORD, pack("<Q", 2**39)), 9),
    "impossible length": (change(64 + 9 * RECORD, pack("<Q", 2**64 - 1)), 9),
    "low number": (change(64 + 9 * RECORD + 8, pack("<Q", 0)), 9),
    "high number": (change(64 + 9 * RECORD + 8, pack("<Q", 2**63)), 9),
    "offset": (change(64 + 9 * RECORD + 16, pack("<Q", 2**63)), 9),
    "owner's length": (change(64 + 9 * RECORD + 32, pack("<H", 50)), 9),
    "channel": (change(64 + 9 * RECORD + 34, b"\x04"), 9),
    "end": (change(64 + 10 * RECORD - 8, b"\xff"), 9),
    "zeros": (change(64 + 9 * RECORD, bytes(5 * RECORD)), 9),
    "text": (change(64 + 9 * RECORD + 17, b"[]" * 2000), 9),
}


@pytest.mark.parametrize("which", range(3))
@pytest.mark.parametrize("damage", WHOLE_FILES.values(), ids=WHOLE_FILES)
@pytest.mark.parametrize("begun", [False, True])
def test_a_damaged_file_is_a_gap(
    log: WrittenLog, which: int, damage: Damage, begun: bool, caplog: pytest.LogCaptureFixture
) -> None:
    first, *behind = [*starts(log), COUNT + 1][which:]
    readers = [Reader(log.log, name, Position(1, 0)) for name in "ab"]
    if begun:  # in the file before
        while readers[0].position.cursor < first - 3:
            readers[0].take(2)
    damage(log.files()[which])

    lost = [check(log, reader) for reader in readers]

    assert lost[0] == lost[1] == list(range(first, behind[0]))
    assert len(caplog.records) <= 1
    # What goes on in a file that is none any more is lost with it.
    more(log, 200)
    assert len(log.files()) >= 3
    newest = starts(log)[-1]
    assert newest > COUNT
    missed = list(range(COUNT + 1, newest)) if which == 2 and not goes_on(damage) else []
    assert check(log, readers[0]) == missed
    assert check(log) == lost[0] + missed


@pytest.mark.parametrize("which", range(3))
@pytest.mark.parametrize(("damage", "before"), PARTS.values(), ids=PARTS)
@pytest.mark.parametrize("page", [1, 64])
def test_what_lies_before_damage_and_behind_it_is_read(
    log: WrittenLog, which: int, damage: Damage, before: int, page: int
) -> None:
    first, *behind = [*starts(log), COUNT + 1][which:]
    damage(log.files()[which])
    reader = Reader(log.log, "a", Position(1, 0))
    for _ in range(400):
        reader.take(page)

    lost = check(log)

    assert lost == list(range(first + before, behind[0]))
    more(log)
    assert check(log, reader) == []
    assert check(log) == lost, "those who come later read what was written since"


def test_a_file_of_another_kind_hides_nothing(log: WrittenLog) -> None:
    directory = log.writer.directory
    for name in ("5.log", "²³.log", f"{0:020}.log", f"{100:020}.log", f"{9**20:020}.log", "x.log"):
        (directory / name).write_bytes(b"something else")
    (directory / f"{120:020}.log").write_bytes(
        log.files()[1].read_bytes().replace(b"kklog001", b"kklog002")
    )

    assert check(log) == []
    reader = SegmentReader(directory, KERNEL)
    assert [reader.read(Position(n, 0), log.log.end, 1, 0)[0].seq for n in (1, 99, 130, 300)] == [
        1,
        99,
        130,
        300,
    ]


def test_a_directory_that_is_gone_is_a_gap_up_to_what_comes_then(log: WrittenLog) -> None:
    for file in log.writer.directory.iterdir():
        file.unlink()
    log.writer.directory.rmdir()

    assert check(log) == list(range(1, COUNT + 1))
    more(log, 200)
    lost = check(log)
    assert lost == list(range(1, starts(log)[0]))


def test_a_file_that_is_written_over_while_it_is_read_is_a_gap(
    log: WrittenLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its head is looked at again when a page was read."""
    path = log.files()[0]
    reader = SegmentReader(log.writer.directory, KERNEL)
    assert len(reader.read(Position(1, 0), log.log.end, 3, KIB * 10)) == 3
    real = os.pread
    overwritten: list[Path] = []

    def pread(descriptor: int, size: int, position: int) -> bytes:
        data = real(descriptor, size, position)
        if size != records.HEAD_BYTES and not overwritten:
            overwritten.append(path.rename(path.with_name(f"{COUNT + 1:020}.log")))
            head = records.pack_head(log.writer.epoch, KERNEL, COUNT + 1, COUNT * KIB)
            change(0, head)(overwritten[0])
        return data

    monkeypatch.setattr(os, "pread", pread)
    entries = reader.read(Position(4, 3 * KIB), log.log.end, 3, KIB * 10)

    assert overwritten
    assert entries[0].seq == 31
    assert "written over" in reader.trouble


def test_a_reader_of_a_file_that_is_written_over_comes_to_what_is_kept(
    log: WrittenLog,
) -> None:
    """The descriptor that it has open leads to newer messages."""
    reader = SegmentReader(log.writer.directory, KERNEL)
    reader.read(Position(1, 0), log.log.end, 3, KIB * 10)
    path = log.files()[0]
    path.rename(path.with_name(f"{COUNT + 1:020}.log"))
    new = records.pack_head(log.writer.epoch, KERNEL, COUNT + 1, COUNT * KIB)
    for number in range(COUNT + 1, COUNT + 20):
        new += b"".join(
            records.pack_record(number, (number - 1) * KIB, 1.0, "iopub", None, 0, frame(number))
        )
    change(0, new)(path.with_name(f"{COUNT + 1:020}.log"))

    entries = reader.read(Position(4, 3 * KIB), log.log.end, 64, 2**20)

    assert entries[0].seq == 31
    end = Position(COUNT + 20, (COUNT + 19) * KIB)
    reader.newest = COUNT + 1
    behind = reader.read(Position(COUNT + 1, COUNT * KIB), end, 64, 2**20)
    assert [entry.message.frame for entry in behind] == [
        frame(number) for number in range(COUNT + 1, COUNT + 20)
    ]


def test_a_page_is_read_without_what_is_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = WrittenLog(2**26, tmp_path / KERNEL)
    log.fill(*[frame(number) for number in range(1, 3001)])
    reader = SegmentReader(log.writer.directory, KERNEL)
    read: list[int] = []
    real = os.pread

    def pread(descriptor: int, size: int, position: int) -> bytes:
        data = real(descriptor, size, position)
        read.append(len(data))
        return data

    monkeypatch.setattr(os, "pread", pread)
    place, found = Position(1, 0), list[Entry]()
    while place.cursor <= 3000:
        page = reader.read(place, log.log.end, 64, 2**20)
        found += page
        last = page[-1]
        place = Position(last.seq + 1, last.offset + len(last.message.frame))
    assert [entry.message.frame for entry in found] == [frame(n) for n in range(1, 3001)]
    assert sum(read) < 2 * log.log.end.offset

    read.clear()  # a page that was read before, and one in the midst of another
    for number in (found[640].seq, found[650].seq):
        (entry,) = reader.read(Position(number, found[number - 1].offset), log.log.end, 1, 0)
        assert entry.message.frame == frame(number)
    assert sum(read) < 200 * KIB


def test_nothing_is_left_open(log: WrittenLog) -> None:
    before = own_descriptors()
    reader = SegmentReader(log.writer.directory, KERNEL)
    for number in range(1, COUNT, 7):
        assert reader.read(Position(number, 0), log.log.end, 2, 0)
    os.truncate(log.files()[0], 10)
    os.truncate(log.files()[1], 64)
    for number in range(1, COUNT, 7):
        reader.read(Position(number, 0), log.log.end, 2, 0)
    reader.newest = starts(log)[-1]
    reader.hold_newest()
    assert own_descriptors() <= before + 2
    del reader
    assert own_descriptors() == before


def test_one_line_tells_of_what_is_lost(log: WrittenLog, caplog: pytest.LogCaptureFixture) -> None:
    for file in log.files():
        os.truncate(file, 10)
    with caplog.at_level(logging.DEBUG):
        check(log)
        check(log)
    assert [record.getMessage() for record in caplog.records] == [
        "a part of a kernel's log is lost: the file from number 1 on: it is cut short"
    ]


def test_each_version_of_the_format_has_a_reader_of_its_own(
    log: WrittenLog, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As after an upgrade that brings a new format: the log has files of both."""
    read: list[bytes] = []

    def read_backwards(reader: SegmentReader, segment: Any, *arguments: Any) -> list[Entry]:
        read.append(records.version_of(segment.head))
        entries = SegmentReader._read(reader, segment, *arguments)
        for entry in entries:
            entry.message.frame = entry.message.frame[::-1]
        return entries

    path = log.files()[1]
    data = bytearray(path.read_bytes())
    data[5:8] = b"002"
    position, number = records.HEAD_BYTES, int(path.stem)
    while (record := records.next_record(bytes(data), position, number)) is not None:
        begin = position + records.FRAME_AT
        data[begin : begin + record.size] = data[begin : begin + record.size][::-1]
        position, number = position + record.whole, record.number + 1
    path.write_bytes(data)
    assert check(log) == [*range(starts(log)[1], starts(log)[2])]
    (line,) = caplog.messages
    assert "its format is 002, not 001" in line

    monkeypatch.setitem(READERS, b"002", read_backwards)
    assert check(log) == []
    assert {*read} == {b"002"}
