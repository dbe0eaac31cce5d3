"""Files of a log that are written over: what is in them, and what of them no reader takes."""

from __future__ import annotations

import mmap
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from app.keeper.log import FIRST_BYTES, SEGMENT_BYTES, LogRoom, LogWriter, Position
from app.keeper.log_files import SPARE
from app.keeper.segment_files import SegmentFiles
from app.managers.log.entries import Gap
from app.managers.log.message_log import Reader
from app.protocol import records
from tests.support.logs import KERNEL, WrittenLog, drained, message

KIB = 2**10
EACH = 512 * KIB


def written(path: Path, *, resumed: bool = False) -> WrittenLog:
    return WrittenLog(EACH, path / KERNEL, resumed=resumed)


def numbered(count: int, size: int = KIB) -> list[bytes]:
    return [f"{number:0{size}}".encode() for number in range(count)]


def told(log: WrittenLog) -> list[bytes]:
    return [entry.message.frame for entry in drained(Reader(log.log, "s", Position(1, 0))).entries]


def inodes(directory: Path) -> set[int]:
    return {path.stat().st_ino for path in directory.iterdir()}


def test_a_log_that_has_its_bound_writes_over_its_own_files(tmp_path: Path) -> None:
    log = written(tmp_path)
    said = numbered(3000)
    log.fill(*said[:1000])
    before = inodes(log.writer.directory)

    log.fill(*said[1000:])

    # New ones are the small files that were the spare until a segment was dropped, and went then.
    now = inodes(log.writer.directory)
    assert len(now & before) >= len(now) - 1
    found = told(log)
    assert found == said[-len(found) :]
    assert sum(map(len, found)) >= EACH - KIB
    assert sum(path.stat().st_size for path in log.writer.directory.iterdir()) < 2 * EACH


def test_what_a_server_may_have_mapped_is_never_written_over(tmp_path: Path) -> None:
    """The file of a message that is larger than a segment."""
    log = WrittenLog(0, tmp_path / KERNEL, LogRoom(64 * 2**20, 2**40, 3600.0))
    log.fill(b"\1" * (SEGMENT_BYTES + 1))
    (large,) = log.files()
    with large.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        before = bytes(mapped)
        for number in range(2, 40):
            log.fill(bytes([number]) * (SEGMENT_BYTES // 2 if number % 3 else SEGMENT_BYTES + 1))
        assert large not in log.files()
        assert bytes(mapped) == before


@pytest.mark.parametrize("turn", [1, 2, 5, 40])
def test_what_a_kernel_has_said_is_not_taken_for_records(tmp_path: Path, turn: int) -> None:
    """A file that is written over has held bytes of the kernel's choice."""
    log = written(tmp_path)
    # Of the size of a head and a tail, so that one begins wherever a record may end, in some turn.
    forged = b"".join(records.pack_record(2**63, 0, 1.0, "shell", "other", 0, b""))
    log.fill(*[forged * (KIB // len(forged)) + bytes(number % 8) for number in range(2000)])
    stale = log.writer.segments[-1].stale
    assert stale > FIRST_BYTES

    for number in range(8):
        log.fill(*[turn + number] * turn)
        # As a keeper leaves it that is killed now.
        copy = tmp_path / f"copy {number}"
        shutil.copytree(log.writer.directory, copy / KERNEL)
        resumed = written(copy, resumed=True)
        assert resumed.writer.end == log.writer.end
        assert told(resumed) == told(log)
    assert log.writer.segments[-1].stale == stale, "still the same file"


def test_a_keeper_that_is_killed_while_it_writes_leaves_no_old_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = written(tmp_path)
    log.fill(*numbered(2000))
    for _ in range(3):
        log.writer.append(b"x" * 100, "iopub")
    end, really = log.writer.end, os.writev

    class Killed(BaseException):
        pass

    def writev(descriptor: int, buffers: list[bytes]) -> int:
        data = b"".join(buffers)
        # Two records are written and the third is not: the file goes on with what was there.
        really(descriptor, [data[: 2 * len(data) // 3]])
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(os, "writev", writev)
        with pytest.raises(Killed):
            log.writer.flush()

    resumed = written(tmp_path, resumed=True)

    assert resumed.writer.end == Position(end.cursor + 2, end.offset + 200)
    resumed.fill(b"more")
    assert told(resumed)[-3:] == [b"x" * 100, b"x" * 100, b"more"]


def test_a_reader_whose_file_is_written_over_finds_a_gap(tmp_path: Path) -> None:
    log = written(tmp_path)
    said = numbered(400)
    log.fill(*said)
    reader = Reader(log.log, "s", Position(1, 0))
    first = reader.take(2, 2**20)  # its file is open now
    assert first is not None

    more = [b"%01024d" % number for number in range(10_000, 11_600)]
    log.fill(*more)

    gap, entries = drained(reader)
    assert gap is not None
    everything = [*said, *more]
    assert [entry.message.frame for entry in entries] == everything[entries[0].seq - 1 :]
    lost = entries[0].seq - 1 - len(first.entries)
    assert gap == Gap(lost, lost * KIB)


def test_the_spare_is_found_again(tmp_path: Path) -> None:
    log = written(tmp_path)
    log.fill(*numbered(1100))
    held = (log.writer.directory / SPARE).stat()
    log.writer.close()

    resumed = written(tmp_path, resumed=True)
    while (log.writer.directory / SPARE).stat().st_ino == held.st_ino:
        resumed.fill(*numbered(10))

    assert resumed.writer.lost_messages == 0
    assert told(resumed)[-10:] == numbered(10)


def test_what_is_too_old_is_not_held_either(tmp_path: Path) -> None:
    log = written(tmp_path)
    log.fill(*numbered(1300))
    spare = log.writer.directory / SPARE
    assert spare.stat().st_size > FIRST_BYTES

    log.writer.expire(time.time() - 60)
    assert spare.stat().st_size > FIRST_BYTES
    log.writer.expire(time.time() + 60)

    assert spare.read_bytes() == bytes(FIRST_BYTES)


def in_its_place(make: Callable[[Path], None]) -> Callable[[Path], None]:
    def replaced(spare: Path) -> None:
        if not spare.is_dir():
            spare.unlink()
            make(spare)

    return replaced


@pytest.mark.parametrize(
    "change",
    {
        "removed": Path.unlink,
        "a named pipe": in_its_place(os.mkfifo),
        "a link": in_its_place(lambda spare: spare.symlink_to("/dev/full")),
        "a directory": in_its_place(Path.mkdir),
        "cut short": lambda spare: os.truncate(spare, 7),
        "other bytes": lambda spare: spare.write_bytes(b"\xff" * 10**6),
    }.items(),
    ids=lambda change: change[0],
)
def test_whatever_somebody_makes_of_the_spare(
    tmp_path: Path, change: tuple[str, Callable[[Path], None]]
) -> None:
    log = written(tmp_path)
    log.fill(*numbered(1000))
    for _ in range(3):
        change[1](log.writer.directory / SPARE)
        log.fill(*numbered(300))

    assert log.writer.lost_messages == 0
    assert told(log)[-300:] == numbered(300)
    files = sorted(log.writer.directory.glob("*.log"))
    assert files == [segment.path for segment in log.writer.segments], "what is dropped is gone"


def test_without_a_spare_there_is_none_to_take(tmp_path: Path) -> None:
    files = SegmentFiles(tmp_path)
    with pytest.raises(OSError, match="No space left on device"):
        files.take_spare(files.path(1), 100, 100)


def test_nobody_else_may_read_what_is_held(tmp_path: Path) -> None:
    writer = LogWriter(tmp_path / KERNEL, KERNEL, LogRoom(EACH, 2**40, 3600.0))
    for number in range(1200):
        writer.append(message(number % 7 + KIB).frame, "iopub")
    writer.close()
    assert {path.stat().st_mode & 0o777 for path in writer.directory.iterdir()} == {0o600}
