"""The message log and its readers, in memory: numbers, bounds, gaps, and what a reader is owed."""

from __future__ import annotations

import asyncio
import tracemalloc

import pytest

from app.managers.entries import ENTRY_OVERHEAD
from app.managers.log import Entry, Gap, LogBudget, MessageLog, Position, Reader
from app.protocol.messages import Header, Message

WAIT = 10  # seconds


def message(size: int) -> Message:
    """A message whose frame has so many bytes."""
    return Message("iopub", bytes(size), Header(), Header())


def fill(log: MessageLog, *sizes: int, owner: str | None = None) -> list[Entry]:
    return [log.append(message(size), owner) for size in sizes]


def numbers(entries: list[Entry]) -> list[int]:
    return [entry.seq for entry in entries]


def room_for(messages: int, size: int) -> int:
    """The bound of a log that keeps so many messages of that size."""
    return messages * (size + ENTRY_OVERHEAD)


def kept(log: MessageLog) -> list[Entry]:
    return log.read(log.first_seq, 2**31, 2**62)


def test_messages_are_numbered_from_one() -> None:
    log = MessageLog(10**6)
    assert (log.first_seq, log.next_seq, log.end) == (1, 1, Position(1, 0))

    entries = fill(log, 10, 0, 25)

    assert numbers(entries) == [1, 2, 3]
    assert [entry.offset for entry in entries] == [0, 10, 10]
    assert (log.first_seq, log.next_seq, log.end) == (1, 4, Position(4, 35))


def test_a_reader_starts_now_and_sees_what_follows_once_and_in_order() -> None:
    log = MessageLog(10**6)
    fill(log, 1, 2)
    reader = Reader(log, "a")

    assert reader.take() == (None, [])
    entries = fill(log, 3, 4)

    assert reader.behind
    assert reader.take() == (None, entries)
    assert not reader.behind
    assert reader.take() == (None, [])


def test_a_reader_can_go_on_from_anothers_position() -> None:
    log = MessageLog(10**6)
    first = Reader(log, "a")
    fill(log, 1, 2, 3)
    first.take(max_messages=2)
    position = first.position

    assert position == Position(3, 3)
    fill(log, 4)
    assert numbers(Reader(log, "a", position).take().entries) == [3, 4]


def test_a_reader_sees_what_is_for_all_and_what_is_its_own() -> None:
    log = MessageLog(10**6)
    readers = [Reader(log, name) for name in ("a", "b", "")]
    fill(log, 1)
    fill(log, 1, owner="a")
    fill(log, 1, owner="b")
    fill(log, 1, owner="c")
    fill(log, 1)
    fill(log, 1, owner="")

    assert [numbers(reader.take().entries) for reader in readers] == [
        [1, 2, 5],
        [1, 3, 5],
        [1, 5, 6],
    ]
    assert not any(reader.behind for reader in readers)


def test_a_reader_passes_what_is_for_others() -> None:
    log = MessageLog(10**6)
    reader = Reader(log, "a")
    fill(log, *[1] * 100, owner="b")
    mine = fill(log, 7, owner="a")

    assert reader.take(max_messages=64) == (None, [])
    assert reader.behind
    assert reader.take(max_messages=64) == (None, mine)


def test_what_tells_a_passing_state_is_not_shown_to_those_who_come_later() -> None:
    log = MessageLog(10**6)
    early = Reader(log, "a")
    start = early.position
    log.append(message(1), transient=True)
    fill(log, 1)

    late = Reader(log, "a", start)
    log.append(message(1), transient=True)

    assert numbers(early.take().entries) == [1, 2, 3]
    assert numbers(late.take().entries) == [2, 3]
    assert late.position == early.position


def test_the_oldest_messages_leave_when_the_bound_is_reached() -> None:
    log = MessageLog(room_for(5, 100))
    fill(log, *[100] * 5)
    assert (log.first_seq, log.bytes) == (1, room_for(5, 100))

    fill(log, 100)
    assert (log.first_seq, log.bytes) == (2, room_for(5, 100))

    fill(log, 3 * 100 + 2 * ENTRY_OVERHEAD)
    assert numbers(kept(log)) == [5, 6, 7]
    assert log.bytes == room_for(5, 100)


def test_one_message_larger_than_the_bound_is_kept_until_the_next() -> None:
    log = MessageLog(2000)
    reader = Reader(log, "a")
    fill(log, 10, 1_000_000)

    assert numbers(kept(log)) == [2]
    assert log.bytes == 1_000_000 + ENTRY_OVERHEAD
    gap, entries = reader.take()
    assert (gap, numbers(entries)) == (Gap(1, 10), [2])

    fill(log, 1)
    assert numbers(kept(log)) == [3]
    assert log.bytes == 1 + ENTRY_OVERHEAD


def test_a_reader_that_fell_behind_is_told_exactly_what_is_gone() -> None:
    log = MessageLog(room_for(3, 50))
    reader = Reader(log, "a")
    fill(log, 1, 2, 3, 4, 5, 6, 50, 50, 50)

    gap, entries = reader.take()

    assert gap == Gap(6, 1 + 2 + 3 + 4 + 5 + 6)
    assert numbers(entries) == [7, 8, 9]
    assert reader.take() == (None, [])
    assert reader.position == log.end


def test_a_gap_counts_from_where_the_reader_was() -> None:
    log = MessageLog(room_for(2, 50))
    reader = Reader(log, "a")
    fill(log, 10, 20)
    reader.take(max_messages=1)
    fill(log, 30, 50, 50)

    assert reader.take() == (Gap(2, 20 + 30), kept(log))


def test_a_reader_meets_one_gap_after_another() -> None:
    log = MessageLog(room_for(2, 10))
    reader = Reader(log, "a")

    for turn in range(5):
        fill(log, *[10] * 5)
        gap, entries = reader.take()
        assert gap == Gap(3, 30)
        assert numbers(entries) == [5 * turn + 4, 5 * turn + 5]


def test_a_gap_is_met_by_one_who_returns() -> None:
    log = MessageLog(room_for(2, 10))
    position = Reader(log, "a").position
    fill(log, *[10] * 7)

    gap, entries = Reader(log, "a", position).take()

    assert (gap, numbers(entries)) == (Gap(5, 50), [6, 7])


def test_a_gap_can_be_all_there_is_for_a_session() -> None:
    log = MessageLog(room_for(2, 10))
    reader = Reader(log, "a")
    fill(log, *[10] * 3, owner="b")

    assert reader.take() == (Gap(1, 10), [])
    assert not reader.behind


def test_a_batch_has_at_most_so_many_messages() -> None:
    log = MessageLog(10**6)
    reader = Reader(log, "a")
    fill(log, *[1] * 10)

    batches = [numbers(reader.take(max_messages=4).entries) for _ in range(4)]

    assert batches == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10], []]


def test_a_batch_ends_at_the_message_that_passes_its_bytes() -> None:
    log = MessageLog(10**6)
    reader = Reader(log, "a")
    fill(log, 100, 100, 100, 900, 1, 1)

    batches = [numbers(reader.take(max_bytes=250).entries) for _ in range(4)]

    assert batches == [[1, 2, 3], [4], [5, 6], []]


def test_a_message_larger_than_a_batch_is_a_batch() -> None:
    log = MessageLog(10**6)
    reader = Reader(log, "a")
    fill(log, 5000, 5000)

    assert [numbers(reader.take(max_bytes=1).entries) for _ in range(3)] == [[1], [2], []]


async def test_readers_that_wait_are_woken_by_the_next_message() -> None:
    log = MessageLog(10**6)
    readers = [Reader(log, name) for name in "abc"]
    waiting = [asyncio.ensure_future(reader.wait()) for reader in readers]
    await asyncio.sleep(0)
    assert not any(task.done() for task in waiting)

    fill(log, 1, 1)

    await asyncio.wait_for(asyncio.gather(*waiting), WAIT)
    assert [numbers(reader.take().entries) for reader in readers] == [[1, 2]] * 3


async def test_a_reader_that_is_behind_does_not_wait() -> None:
    log = MessageLog(10**6)
    reader = Reader(log, "a")
    fill(log, 1)

    await asyncio.wait_for(reader.wait(), WAIT)

    assert reader.behind


async def test_a_reader_can_be_woken_for_nothing() -> None:
    log = MessageLog(10**6)
    reader = Reader(log, "a")
    waiting = asyncio.ensure_future(reader.wait())
    await asyncio.sleep(0)

    log.wake()

    await asyncio.wait_for(waiting, WAIT)
    assert reader.take() == (None, [])
    assert not reader.finished


async def test_a_wait_that_is_given_up_disturbs_nobody() -> None:
    log = MessageLog(10**6)
    gone, there = Reader(log, "a"), Reader(log, "b")
    tasks = [asyncio.ensure_future(reader.wait()) for reader in (gone, there)]
    await asyncio.sleep(0)

    tasks[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await tasks[0]
    fill(log, 1)

    await asyncio.wait_for(tasks[1], WAIT)


async def test_a_reader_is_finished_when_the_log_is_closed_and_all_is_read() -> None:
    log = MessageLog(10**6)
    reader = Reader(log, "a")
    idle = Reader(log, "b")
    waiting = asyncio.ensure_future(idle.wait())
    await asyncio.sleep(0)
    fill(log, 1, 2)
    idle.take()
    log.close()
    log.close()

    await asyncio.wait_for(waiting, WAIT)
    await asyncio.wait_for(idle.wait(), WAIT)
    assert idle.finished
    assert not reader.finished
    reader.take(max_messages=1)
    assert not reader.finished
    await asyncio.wait_for(reader.wait(), WAIT)
    reader.take()
    assert reader.finished


def test_frames_in_the_other_framing_are_counted() -> None:
    log = MessageLog(room_for(4, 100))
    entries = fill(log, *[100] * 4)
    for entry in entries[2:]:
        entry.message.legacy = bytes(50)

    log.charge(entries)
    log.charge(entries)  # once is enough

    assert numbers(kept(log)) == [2, 3, 4]
    assert log.bytes == room_for(3, 100) + 2 * 50


def test_a_frame_built_for_a_message_that_has_left_costs_nothing() -> None:
    log = MessageLog(room_for(2, 100))
    entries = fill(log, *[100] * 4)
    entries[0].message.legacy = bytes(10_000)

    log.charge(entries)

    assert numbers(kept(log)) == [3, 4]
    assert log.bytes == room_for(2, 100)


def test_a_frame_that_was_never_counted_is_not_taken_off() -> None:
    # A client that goes away while it is sent to leaves frames that it did not report.
    log = MessageLog(room_for(2, 100))
    for _ in range(10):
        (entry,) = fill(log, 100)
        entry.message.legacy = bytes(10_000)

    assert log.bytes == room_for(2, 100)


@pytest.mark.parametrize(("size", "messages"), [(10, 15_000), (1000, 6000), (400_000, 100)])
def test_what_leaves_the_log_leaves_memory(size: int, messages: int) -> None:
    bound = 2**21
    tracemalloc.start()
    try:
        log = MessageLog(bound)
        peak = 0
        for _ in range(messages):
            (entry,) = fill(log, size)
            entry.message.legacy = bytes(size)
            log.charge([entry])
            peak = max(peak, tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()

    # What leaves is let go in steps of an eighth, counted without the other framing.
    assert peak <= bound * 1.25 + 2 * size + 2**16
    assert log.first_seq > 1


def test_the_largest_log_makes_room_when_all_together_are_too_large() -> None:
    budget = LogBudget(room_for(10, 100))
    small, large = (MessageLog(10**6, budget=budget) for _ in range(2))
    fill(small, *[100] * 3)
    fill(large, *[100] * 7)
    assert (small.first_seq, large.first_seq) == (1, 1)

    fill(small, 100)

    assert (small.first_seq, large.first_seq) == (1, 2)
    assert budget.used == small.bytes + large.bytes == room_for(10, 100)


def test_a_log_that_has_ended_draws_on_nothing() -> None:
    budget = LogBudget(room_for(10, 100))
    ended, other = (MessageLog(room_for(4, 100), budget=budget) for _ in range(2))
    entries = fill(ended, *[100] * 3)
    fill(other, *[100] * 3)
    ended.close()
    assert budget.used == other.bytes

    entries[-1].message.legacy = bytes(10_000)
    ended.charge(entries)
    fill(ended, *[100] * 10)

    assert budget.used == other.bytes == room_for(3, 100)
