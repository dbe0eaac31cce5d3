"""The bound on what all logs hold in memory: whatever happens, the sums are right.

And no log's trouble is another's.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import example, given, settings
from hypothesis import strategies as st

from app.managers.entries import Position
from app.managers.log import LogBudget, MessageLog
from app.managers.segments import Segments
from app.protocol.compose import make_message
from app.protocol.messages import Message

TOTAL = 20_000
LOGS = 3

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["append", "append", "append", "charge", "save", "hole", "back", "close"]),
        st.integers(0, LOGS - 1),
        st.integers(0, 5000) | st.just(2 * TOTAL),
    ),
    max_size=60,
)


def message(size: int) -> Message:
    return make_message("iopub", "stream", {"name": "stdout", "text": "x" * size}, session="s")


@settings(max_examples=60)
@given(steps=STEPS, on_disk=st.booleans())
@example(
    steps=[("append", 0, 40000), ("append", 1, 40000), ("hole", 1, 0), ("charge", 1, 0)],
    on_disk=False,
)
def test_the_sums_are_right_after_every_step(
    steps: list[tuple[str, int, int]], on_disk: bool
) -> None:
    with TemporaryDirectory() as directory, ThreadPoolExecutor(2) as threads:

        async def run() -> None:
            budget = LogBudget(TOTAL)
            logs = [
                MessageLog(
                    TOTAL,
                    Segments(Path(directory, str(number)), threads, max_bytes=10**6, max_age=60)
                    if on_disk
                    else None,
                    budget,
                )
                for number in range(LOGS)
            ]
            for step, number, size in steps:
                await take(step, logs[number], size)
                check(budget, logs)
            for log in logs:
                log.close()
                await log.remove_files()
            assert budget.used == 0

        asyncio.run(run())


async def take(step: str, log: MessageLog, size: int) -> None:
    if step == "append":
        log.append(message(size))
    elif step == "charge":
        entries = log._entries[log._start :]
        for entry in entries:
            entry.message.legacy = b"x" * (size % 500)
        log.charge(entries)
    elif step == "save":
        await log.save()
    elif step == "hole":
        end = log.end
        log.put_back_hole(Position(end.cursor + 2, end.offset + size))
    elif step == "back":
        log.put_back(message(size), None, log.end, transient=False)
    elif not log.closed:
        log.close()


def check(budget: LogBudget, logs: list[MessageLog]) -> None:
    for log in logs:
        assert log.bytes == sum(entry.charged for entry in log._entries[log._start :])
    assert budget.used == sum(log.bytes for log in logs if not log.closed)


def test_a_large_message_beside_a_log_that_has_nothing() -> None:
    async def run() -> None:
        budget = LogBudget(TOTAL)
        talkative, silent = (MessageLog(10**6, None, budget) for _ in range(2))
        talkative.append(message(2 * TOTAL))
        silent.append(message(1))
        assert talkative.first_seq == silent.first_seq == 1

    asyncio.run(run())


async def test_a_saved_log_takes_nothing_from_the_others(tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as threads:
        budget = LogBudget(TOTAL)
        saved, living = (
            MessageLog(
                TOTAL, Segments(tmp_path / name, threads, max_bytes=10**6, max_age=60), budget
            )
            for name in "ab"
        )
        for _ in range(10):
            saved.append(message(1000))
        await saved.save()
        assert (saved.bytes, budget.used) == (0, 0)
        for _ in range(10):
            living.append(message(1000))
        assert living.first_in_memory == 1
        # It goes on where it was.
        saved.append(message(1))
        assert (saved.first_seq, saved.next_seq) == (1, 12)
        for log in (saved, living):
            log.close()
            await log.remove_files()
