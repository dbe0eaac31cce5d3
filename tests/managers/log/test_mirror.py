"""A copy of a log that is written elsewhere: the same numbers, and nothing that cannot be."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from app.keeper.feeds import Feed
from app.keeper.log import LogRoom, LogWriter
from app.managers.log import mirror
from app.managers.log.mirror import MirrorWriter
from app.protocol.records import DamagedLog, pack_record

EPOCH = "0123456789abcdef"


def mirror_in(path: Path) -> MirrorWriter:
    writer = MirrorWriter(path / "mirror", "k", LogRoom(2**24, 2**40, 3600.0), EPOCH)
    writer.resume()
    writer.prepare()
    return writer


def record(number: int, offset: int, frame: bytes = b"frame") -> bytes:
    return b"".join(map(bytes, pack_record(number, offset, 1.0, "iopub", "me", 1, frame)))


def told(writer: LogWriter) -> list[tuple[int, bytes]]:
    return [(record.number, frame) for record, _, frame in writer.newest()]


def test_blank_space_that_a_killed_keeper_has_left_is_not_sent_along(tmp_path: Path) -> None:
    room = LogRoom(2**24, 2**40, 3600.0)
    log = LogWriter(tmp_path / "log", "k", room, EPOCH)
    for number in range(100):
        log.append(b"%d" % number * 400, "shell", None, 1)
    log.flush()
    log.close()
    before, last = sorted(log.directory.glob("*.log"))[-2:]
    size = before.stat().st_size
    for blank, is_newest_left in ((100, True), (20_000, True), (20_000, False)):
        os.truncate(before, size)
        os.truncate(before, size + blank)
        if not is_newest_left:  # the keeper was killed before the first record there
            os.truncate(last, 64)
        again = LogWriter(tmp_path / "log", "k", room)
        again.resume()
        assert before.stat().st_size == size
        (folder := tmp_path / f"{blank} {is_newest_left}").mkdir()
        copy = mirror_in(folder)
        feed = Feed(again, 1, 2**40)
        while (piece := feed.take(10_000))[1]:
            copy.feed(memoryview(piece[1]), anew=piece[0])
        assert [*copy.newest()] == [*again.newest()]
        copy.close()
        again.close()


def test_what_came_before_damage_is_there_for_the_next_link(tmp_path: Path) -> None:
    copy = mirror_in(tmp_path)
    with pytest.raises(DamagedLog):
        copy.feed(memoryview(record(1, 0) + record(2, 5) + record(1, 0)), anew=True)
    assert copy.end == (3, 10)
    copy.feed(memoryview(record(3, 10)), anew=True)
    assert [number for number, _ in told(copy)] == [1, 2, 3]
    copy.close()


@pytest.mark.parametrize("most", [1, 50, 10_000])
def test_it_has_what_the_log_has(tmp_path: Path, most: int) -> None:
    log = LogWriter(tmp_path / "log", "k", LogRoom(2**24, 2**40, 3600.0), EPOCH)
    for number in range(200):
        log.append(b"%d" % number * 20, "shell", "somebody" if number % 2 else None, 1)
    log.flush()
    copy = mirror_in(tmp_path)
    feed = Feed(log, 1, 2**40)
    while (piece := feed.take(most))[1]:
        copy.feed(memoryview(piece[1]), anew=piece[0])
    assert [*copy.newest()] == [*log.newest()]
    assert (copy.first, copy.end) == (log.first, log.end)
    copy.close()
    again = mirror_in(tmp_path)
    assert (again.end, again.epoch) == (log.end, EPOCH)
    again.close()
    log.close()


def test_what_is_missing_is_a_gap_and_half_a_record_is_forgotten(tmp_path: Path) -> None:
    copy = mirror_in(tmp_path)
    copy.feed(memoryview(record(1, 0) + record(2, 5)[:30]), anew=True)
    assert copy.end == (2, 5)
    copy.feed(memoryview(record(7, 100) + record(8, 105)), anew=True)
    assert told(copy) == [(1, b"frame"), (7, b"frame"), (8, b"frame")]
    assert copy.end == (9, 110)
    assert copy.lost_messages == 5
    copy.close()


def test_what_has_become_too_old_is_dropped_and_how_far_it_went_is_not_forgotten(
    tmp_path: Path,
) -> None:
    copy = mirror_in(tmp_path)
    copy.feed(memoryview(record(1, 0) + record(2, 5)), anew=True)
    copy.expire(2e10)
    assert (copy.first, copy.end, told(copy)) == ((3, 10), (3, 10), [])
    copy.expire(2e10)
    copy.close()
    again = MirrorWriter(tmp_path / "mirror", "k", LogRoom(2**24, 2**40, 3600.0), EPOCH)
    again.resume()
    assert (again.first, again.end, len(again.segments)) == ((3, 10), (3, 10), 1)
    again.feed(memoryview(record(3, 10)), anew=True)
    assert told(again) == [(3, b"frame")]
    again.remove()
    again.expire(2e10)  # what is gone stays so
    assert not (tmp_path / "mirror").exists()


def test_a_record_that_is_larger_than_a_file_comes_in_pieces(tmp_path: Path) -> None:
    copy, frame = mirror_in(tmp_path), bytes(5_000_000)
    data = memoryview(record(1, 0, frame))
    for start in range(0, len(data), 2**16):
        copy.feed(data[start : start + 2**16], anew=not start)
    assert [len(frame) for _, _, frame in copy.newest()] == [5_000_000]
    copy.close()


def test_what_has_no_room_is_a_gap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = mirror_in(tmp_path)
    monkeypatch.setattr(copy, "_make_room", lambda *_: False)
    copy.feed(
        memoryview(record(1, 0) + record(2, 5, bytes(100_000)) + record(3, 100_005)), anew=True
    )
    assert told(copy) == [(1, b"frame"), (3, b"frame")]
    copy.close()


@pytest.mark.parametrize(
    ("lie", "why"),
    [
        (record(1, 0), "number 1 comes where 3 is due"),
        (bytes(100), "number 0 comes where 3"),
        (record(2**60, 0), "comes where 3"),
        (record(3, 9), "at offset 9, not at 10"),
        (record(5, 9), "at offset 9"),
        (record(3, 10)[:-8] + bytes(8), "not written to its end"),
        (record(3, 10)[:35], ""),
        (b"\xff" * 50, "damaged|comes where"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, lie: bytes, why: str) -> None:
    copy = mirror_in(tmp_path)
    copy.feed(memoryview(record(1, 0) + record(2, 5)), anew=True)
    if why:
        with pytest.raises(DamagedLog, match=why):
            copy.feed(memoryview(lie), anew=False)
    else:  # it may go on
        copy.feed(memoryview(lie), anew=False)
    assert told(copy) == [(1, b"frame"), (2, b"frame")]
    copy.close()


def test_a_record_of_any_size_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "MAX_RECORD", 100)
    copy = mirror_in(tmp_path)
    with pytest.raises(DamagedLog, match="has 155 bytes"):
        copy.feed(memoryview(record(1, 0, bytes(105))[:45]), anew=True)
    copy.close()


@pytest.mark.parametrize("most", [60, 100, 10_000])
def test_a_record_that_is_larger_than_the_log_is_a_gap_and_takes_no_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr(mirror, "KEPT_RECORD", 200)
    copy = MirrorWriter(tmp_path / "mirror", "k", LogRoom(150, 2**40, 3600.0), EPOCH)
    copy.prepare()
    large = record(2, 5, bytes(1000))
    data = memoryview(record(1, 0) + large + record(3, 1005, b"x" * 100) + record(4, 1105))
    for start in range(0, len(data), most):
        copy.feed(data[start : start + most], anew=not start)
        assert len(copy._rest) <= 200
    assert [number for number, _ in told(copy)] == [1, 3, 4]
    assert (copy.end, copy.lost_messages) == ((5, 1110), 1)
    # The link may end in the middle of it: what comes next is the record behind.
    copy.feed(memoryview(record(5, 1110, bytes(1000))[:200]), anew=True)
    assert copy.end == (6, 2110)
    copy.feed(memoryview(record(6, 2110)), anew=True)
    assert told(copy)[-1] == (6, b"frame")
    copy.close()
