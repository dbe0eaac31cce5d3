"""The message log and its readers: numbers, gaps, and what a reader is owed."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from app.managers.errors import AfterBeyondEnd, StaleEpoch
from app.managers.log.entries import Entry, Gap, Position
from app.managers.log.message_log import NOBODY, Reader
from tests.support.logs import KERNEL, WrittenLog, drained, message

WAIT = 10  # seconds
KIB = 2**10


def numbers(entries: list[Entry]) -> list[int]:
    return [entry.seq for entry in entries]


def written(path: Path, max_bytes: int = 2**20) -> WrittenLog:
    return WrittenLog(max_bytes, path / KERNEL)


@pytest.fixture
def log(tmp_path: Path) -> WrittenLog:
    return written(tmp_path)


def test_messages_are_numbered_from_one(log: WrittenLog) -> None:
    assert (log.log.first_seq, log.log.next_seq, log.log.end) == (1, 1, Position(1, 0))

    log.fill(10, 0, 25)

    entries = drained(Reader(log.log, "a", Position(1, 0))).entries
    assert numbers(entries) == [1, 2, 3]
    assert [entry.offset for entry in entries] == [0, 10, 10]
    assert [(entry.message.seq, entry.message.offset) for entry in entries] == [
        (1, 0),
        (2, 10),
        (3, 10),
    ]
    assert (log.log.first_seq, log.log.next_seq, log.log.end) == (1, 4, Position(4, 35))


def test_a_message_comes_back_as_it_was(log: WrittenLog) -> None:
    log.append(message(b"reply", "shell"), "\udc80", published=False)
    log.append(message(b"state"), NOBODY, transient=True, published=True)

    (first,) = Reader(log.log, "\udc80", Position(1, 0)).take(1).entries
    found = log.log.read(Position(1, 0), 10, 1000)

    assert isinstance(found, list)
    assert (first.message.channel, first.message.frame) == ("shell", b"reply")
    told = [(e.message.channel, e.owner, e.transient, e.published) for e in found]
    assert told[0] == ("shell", "\udc80", False, False)
    assert numbers(drained(Reader(log.log, NOBODY, Position(1, 0))).entries) == []
    rest = log.log.read(Position(2, 5), 10, 1000)
    assert isinstance(rest, list)
    (last,) = rest
    assert (last.message.channel, last.owner, last.transient, last.published) == (
        "iopub",
        NOBODY,
        True,
        True,
    )


def test_a_reader_starts_now_and_sees_what_follows_once_and_in_order(log: WrittenLog) -> None:
    log.fill(1, 2)
    reader = Reader(log.log, "a")

    assert reader.take() == (None, [])
    log.fill(3, 4)

    assert reader.behind
    assert numbers(reader.take().entries) == [3, 4]
    assert not reader.behind
    assert reader.take() == (None, [])


def test_a_reader_can_go_on_from_anothers_position(log: WrittenLog) -> None:
    first = Reader(log.log, "a")
    log.fill(1, 2, 3)
    first.take(max_messages=2)
    position = first.position

    assert position == Position(3, 3)
    log.fill(4)
    assert numbers(Reader(log.log, "a", position).take().entries) == [3, 4]


def test_a_reader_sees_what_is_for_all_and_what_is_its_own(log: WrittenLog) -> None:
    readers = [Reader(log.log, name) for name in ("a", "b", "d")]
    for owner in (None, "a", "b", "c", None, NOBODY):
        log.fill(1, owner=owner)

    assert [numbers(reader.take().entries) for reader in readers] == [[1, 2, 5], [1, 3, 5], [1, 5]]
    assert not any(reader.behind for reader in readers)


def test_a_reader_passes_what_is_for_others(log: WrittenLog) -> None:
    reader = Reader(log.log, "a")
    log.fill(*[1] * 100, owner="b")
    log.fill(7, owner="a")

    assert reader.take(max_messages=64) == (None, [])
    assert reader.behind
    assert numbers(reader.take(max_messages=64).entries) == [101]


def test_what_tells_a_passing_state_is_not_shown_to_those_who_come_later(log: WrittenLog) -> None:
    early = Reader(log.log, "a")
    start = early.position
    log.append(message(1), transient=True)
    log.fill(1)

    late = Reader(log.log, "a", start)
    log.append(message(1), transient=True)

    assert numbers(early.take().entries) == [1, 2, 3]
    assert numbers(late.take().entries) == [2, 3]
    assert late.position == early.position


def test_readers_that_are_level_share_what_is_read(log: WrittenLog) -> None:
    readers = [Reader(log.log, name) for name in "abc"]
    for _ in range(3):
        log.fill(*[KIB] * 20)
        while readers[0].behind:
            taken = [reader.take().entries for reader in readers]
            assert len({tuple(map(id, entries)) for entries in taken}) == 1


def test_a_large_page_is_not_kept_for_others(tmp_path: Path) -> None:
    log = written(tmp_path, 2**26)
    log.fill(2**20 + 1)

    first, second = (log.log.read(Position(1, 0), 64, 2**20) for _ in range(2))

    assert isinstance(first, list)
    assert isinstance(second, list)
    assert first[0] is not second[0]


def test_a_reader_that_fell_behind_is_told_exactly_what_is_gone(tmp_path: Path) -> None:
    log = written(tmp_path, 64 * KIB)
    reader = Reader(log.log, "a")
    sizes = [1 + number % 2000 for number in range(2000)]
    # One that reads now is waited for, up to twice the bound.
    log.fill(*sizes)
    first = log.log.first_seq
    assert first > 1

    gap, entries = drained(reader)

    assert gap == Gap(first - 1, sum(sizes[: first - 1]))
    assert numbers(entries) == list(range(first, 2001))
    assert reader.take() == (None, [])
    assert reader.position == log.log.end


def test_a_gap_counts_from_where_the_reader_was(tmp_path: Path) -> None:
    log = written(tmp_path, 64 * KIB)
    reader = Reader(log.log, "a")
    log.fill(10, 20)
    reader.take(max_messages=1)
    log.fill(*[KIB] * 300)
    first = log.log.first_seq

    gap, entries = reader.take()

    assert gap == Gap(first - 2, 20 + (first - 3) * KIB)
    assert entries[0].seq == first


def test_a_gap_can_be_all_there_is_for_a_session(tmp_path: Path) -> None:
    log = written(tmp_path, 64 * KIB)
    reader = Reader(log.log, "a")
    log.fill(*[40 * KIB] * 10, owner="b")

    gap, entries = drained(reader)

    assert gap is not None
    assert gap.bytes == gap.messages * 40 * KIB
    assert entries == []


def test_numbers_that_nobody_has_are_a_gap(log: WrittenLog) -> None:
    reader = Reader(log.log, "a")
    log.fill(1, 2)
    log.skip(5)
    assert [reader.take(), reader.take()][1] == (Gap(5, 0), [])
    log.fill(4)
    log.skip(2, 30)
    log.fill(5)

    assert numbers(reader.take().entries) == [8]
    assert reader.take() == (Gap(2, 30), [])
    assert numbers(reader.take().entries) == [11]
    assert numbers(drained(Reader(log.log, "a", Position(1, 0))).entries) == [1, 2, 8, 11]


def test_a_batch_has_at_most_so_many_messages(log: WrittenLog) -> None:
    reader = Reader(log.log, "a")
    log.fill(*[1] * 10)

    batches = [numbers(reader.take(max_messages=4).entries) for _ in range(4)]

    assert batches == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10], []]


def test_a_batch_ends_at_the_message_that_passes_its_bytes(log: WrittenLog) -> None:
    reader = Reader(log.log, "a")
    log.fill(100, 100, 100, 900, 1, 1)

    batches = [numbers(reader.take(max_bytes=250).entries) for _ in range(4)]

    assert batches == [[1, 2, 3], [4], [5, 6], []]


def test_a_message_larger_than_a_batch_is_a_batch(tmp_path: Path) -> None:
    log = written(tmp_path, 2**26)
    reader = Reader(log.log, "a")
    log.fill(5_000_000, 5000)

    assert [numbers(reader.take(max_bytes=1).entries) for _ in range(3)] == [[1], [2], []]


def test_a_reader_can_begin_after_any_number(tmp_path: Path) -> None:
    log = written(tmp_path, 64 * KIB)
    log.fill(*[KIB] * 300)
    start = log.log.start

    assert log.log.place_after(0) == Position(1, 0)
    assert log.log.place_after(300, log.log.epoch) == log.log.end
    for seq in (start.cursor, start.cursor + 1, 299):
        assert log.log.place_after(seq) == Position(seq + 1, seq * KIB)
    # What is gone is not known to the byte; the read tells.
    assert log.log.place_after(5) == Position(6, start.offset)
    for seq in (-1, 301):
        with pytest.raises(AfterBeyondEnd):
            log.log.place_after(seq)
    with pytest.raises(StaleEpoch):
        log.log.place_after(0, "another")


def test_it_goes_on_in_another_process(tmp_path: Path) -> None:
    before = written(tmp_path)
    before.fill(*[KIB] * 100)
    position = Reader(before.log, "a").position
    before.writer.close()

    log = WrittenLog(2**20, tmp_path / KERNEL, resumed=True)
    log.fill(b"more")

    assert log.log.epoch == before.log.epoch
    assert numbers(Reader(log.log, "a", position).take().entries) == [101]
    assert len(drained(Reader(log.log, "a", Position(1, 0))).entries) == 101


async def test_readers_that_wait_are_woken_by_the_next_message(log: WrittenLog) -> None:
    readers = [Reader(log.log, name) for name in "abc"]
    waiting = [asyncio.ensure_future(reader.wait()) for reader in readers]
    await asyncio.sleep(0)
    assert not any(task.done() for task in waiting)

    log.fill(1, 1)

    await asyncio.wait_for(asyncio.gather(*waiting), WAIT)
    assert [numbers(reader.take().entries) for reader in readers] == [[1, 2]] * 3


async def test_a_reader_that_is_behind_does_not_wait(log: WrittenLog) -> None:
    reader = Reader(log.log, "a")
    log.fill(1)

    await asyncio.wait_for(reader.wait(), WAIT)

    assert reader.behind


async def test_a_reader_can_be_woken_for_nothing(log: WrittenLog) -> None:
    reader = Reader(log.log, "a")
    waiting = asyncio.ensure_future(reader.wait())
    await asyncio.sleep(0)

    log.log.wake()

    await asyncio.wait_for(waiting, WAIT)
    assert reader.take() == (None, [])
    assert not reader.finished


async def test_a_wait_that_is_given_up_disturbs_nobody(log: WrittenLog) -> None:
    gone, there = Reader(log.log, "a"), Reader(log.log, "b")
    tasks = [asyncio.ensure_future(reader.wait()) for reader in (gone, there)]
    await asyncio.sleep(0)

    tasks[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await tasks[0]
    log.fill(1)

    await asyncio.wait_for(tasks[1], WAIT)


async def test_a_reader_is_finished_when_the_log_is_closed_and_all_is_read(
    log: WrittenLog,
) -> None:
    reader = Reader(log.log, "a")
    idle = Reader(log.log, "b")
    waiting = asyncio.ensure_future(idle.wait())
    await asyncio.sleep(0)
    log.fill(1, 2)
    idle.take()
    log.log.close()
    log.log.close()

    await asyncio.wait_for(waiting, WAIT)
    await asyncio.wait_for(idle.wait(), WAIT)
    assert idle.finished
    assert not reader.finished
    reader.take(max_messages=1)
    assert not reader.finished
    await asyncio.wait_for(reader.wait(), WAIT)
    reader.take()
    assert reader.finished


@pytest.mark.parametrize("read_before", [0, 1, 100])
def test_the_last_words_can_be_read_when_the_files_are_gone(
    tmp_path: Path, read_before: int
) -> None:
    log = written(tmp_path)
    reader = Reader(log.log, "a")
    log.fill(*[KIB] * 100)
    newest = int(log.files()[-1].stem)
    assert 1 < newest < 100
    while reader.position.cursor <= read_before:
        reader.take(1)
    log.fill(b"the last")

    log.remove()

    assert not log.writer.directory.exists()
    for _ in range(2):
        gap, entries = drained(Reader(log.log, "b", reader.position))
        first = entries[0].seq
        assert first <= max(newest, read_before + 1)
        assert numbers(entries) == list(range(first, 102))
        assert (0 if gap is None else gap.messages) == first - reader.position.cursor
        assert entries[-1].message.frame == b"the last"
