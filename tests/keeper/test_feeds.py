"""What a server on another host gets of logs: every record once, in order, in turns, on credit."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.keeper.feeds import PIECE_BYTES, Feed, Feeds
from app.keeper.log import FIRST_BYTES, LogRoom, LogWriter
from app.protocol.link import unpack_records
from app.protocol.records import next_record

KIB = 2**10
PLENTY = 2**40


def writer_in(path: Path, each: int = 2**24) -> LogWriter:
    path.mkdir(exist_ok=True)
    writer = LogWriter(path / "k", "k", LogRoom(each, 2**40, 3600.0))
    writer.prepare()
    return writer


def append(writer: LogWriter, count: int, size: int = 100) -> None:
    for _ in range(count):
        writer.append(bytes(size), "iopub")
    writer.flush()


class Got:
    """The pieces of one log, put together."""

    def __init__(self) -> None:
        self.data = b""
        self.numbers: list[int] = []

    def take(self, feed: Feed, most: int = PIECE_BYTES) -> None:
        """All that there is now."""
        while True:
            anew, data = feed.take(most)
            if not data:
                return
            self.piece(anew, data)

    def piece(self, anew: bool, data: bytes) -> None:
        self.data = data if anew else self.data + data
        while (record := next_record(self.data, 0, 1)) and record.whole <= len(self.data):
            self.numbers.append(record.number)
            self.data = self.data[record.whole :]


@pytest.mark.parametrize("most", [7, 100, PIECE_BYTES])
def test_every_record_comes_once_over_all_files(tmp_path: Path, most: int) -> None:
    writer, got = writer_in(tmp_path), Got()
    feed = Feed(writer, 1, PLENTY)
    for _ in range(5):
        append(writer, 100)
        got.take(feed, most)
        assert got.data == b""
    assert len(writer.segments) > 1
    assert got.numbers == [*range(1, 501)]
    writer.close()


@pytest.mark.parametrize("after", [1, 2, 150, 500, 501, 900])
def test_it_begins_where_it_is_asked_to(tmp_path: Path, after: int) -> None:
    writer, got = writer_in(tmp_path), Got()
    append(writer, 500)
    feed = Feed(writer, after, PLENTY)
    got.take(feed)
    assert got.numbers == [*range(after, 501)]
    append(writer, 3)
    got.take(feed)
    assert got.numbers[-3:] == [501, 502, 503]
    writer.close()


def test_it_waits_for_a_log_that_has_no_file_and_for_credit(tmp_path: Path) -> None:
    writer, got = LogWriter(tmp_path / "k", "k", LogRoom(2**24, 2**40, 3600.0)), Got()
    feed = Feed(writer, 1, 150)
    assert feed.take(100) == (False, b"")
    append(writer, 10)
    got.take(feed)
    assert got.numbers == [1]  # a record has 148 bytes
    feed.credit += PLENTY
    got.take(feed)
    assert got.numbers == [*range(1, 11)]
    writer.close()


def test_what_the_log_drops_meanwhile_is_missing_and_nothing_else(tmp_path: Path) -> None:
    writer, got = writer_in(tmp_path, 256 * KIB), Got()
    append(writer, 10, KIB)
    feed = Feed(writer, 1, PLENTY)
    got.piece(*feed.take(1500))  # in the middle of the second record
    append(writer, 1000, KIB)
    first = writer.first.cursor
    assert first > 10
    got.take(feed)
    assert got.numbers == [1, *range(first, 1011)]
    # All of it goes, as it is old, and something comes after.
    append(writer, 1, KIB)
    got.piece(*feed.take(50))
    writer.expire(2**40)
    got.take(feed)
    append(writer, 1)
    got.take(feed)
    assert got.numbers[-2:] == [1010, 1012]
    writer.close()


def test_an_empty_file_that_is_replaced_by_a_larger_one_is_read_from_its_begin(
    tmp_path: Path,
) -> None:
    writer, got = writer_in(tmp_path), Got()
    feed = Feed(writer, 1, PLENTY)
    append(writer, 1, 2 * FIRST_BYTES)
    got.take(feed)
    assert got.numbers == [1]
    writer.close()


def test_a_file_that_somebody_removes_is_a_gap(tmp_path: Path) -> None:
    writer, got = writer_in(tmp_path), Got()
    append(writer, 10)
    feed = Feed(writer, 1, PLENTY)
    got.piece(*feed.take(200))
    writer.segments[-1].path.unlink()
    got.take(feed)
    append(writer, 2)
    got.take(feed)
    assert got.numbers == [1, 11, 12]
    assert Feed(writer, 5, PLENTY).take(100)[0]
    writer.close()


def test_kernels_take_turns_while_there_is_room(tmp_path: Path) -> None:
    flood, other = writer_in(tmp_path / "a"), writer_in(tmp_path / "b")
    append(flood, 3000, KIB)
    append(other, 1)
    sent: list[tuple[int, int]] = []
    room = 3

    def send(frame: bytes) -> None:
        piece = unpack_records(frame)
        sent.append((piece.handle, len(piece.data)))

    feeds = Feeds(send, lambda: len(sent) < room)
    feeds.follow(1, flood, 1, PLENTY)
    feeds.follow(2, other, 1, PLENTY)
    assert [handle for handle, _ in sent] == [1, 1, 1]
    room = 5
    feeds.pump()
    assert sorted(handle for handle, _ in sent[3:]) == [1, 2]
    flood.remove()
    room = 100
    feeds.follow(2, other, 1, 10)  # which forgets the one that is gone
    feeds.grown([1, 2, 7])
    feeds.grant(1, 10)
    feeds.grant(2, 138)
    assert sent[5:] == [(2, 10), (2, 138)]
    other.close()
