"""How late the event loop is."""

from __future__ import annotations

import asyncio
import time

import pytest

from app.managers.telemetry import lag
from app.managers.telemetry.counters import LAG_SECONDS, Durations
from app.managers.telemetry.lag import LoopLag
from tests.support.processes import eventually


@pytest.fixture
def durations(monkeypatch: pytest.MonkeyPatch) -> Durations:
    monkeypatch.setattr(lag, "TICK_SECONDS", 0.02)
    return Durations(LAG_SECONDS)


def measured(durations: Durations) -> int:
    return sum(durations.counts)


async def test_nothing_is_measured_while_nobody_asks(durations: Durations) -> None:
    LoopLag(durations)
    await asyncio.sleep(0.1)
    assert measured(durations) == 0


async def test_work_that_keeps_the_loop_is_seen(durations: Durations) -> None:
    loop_lag = LoopLag(durations)
    loop_lag.watch()
    await eventually(lambda: measured(durations) >= 2, interval=0.005)
    before = measured(durations)
    time.sleep(0.3)  # noqa: ASYNC251 - this is the work
    await eventually(lambda: measured(durations) > before, interval=0.005)
    loop_lag.close()
    assert durations.total >= 0.25
    assert sum(durations.counts[LAG_SECONDS.index(0.25) :]) >= 1


async def test_it_stops_when_nobody_has_asked_for_long(
    durations: Durations, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lag, "WATCH_SECONDS", 0.1)
    loop_lag = LoopLag(durations)
    for _ in range(2):  # and it can begin again
        before = measured(durations)
        loop_lag.watch()
        await asyncio.sleep(0.3)
        assert measured(durations) > before
        count = measured(durations)
        await asyncio.sleep(0.1)
        assert measured(durations) == count


async def test_it_is_one_timer_however_many_ask(durations: Durations) -> None:
    loop_lag = LoopLag(durations)
    started = time.monotonic()
    for _ in range(50):
        loop_lag.watch()
    await eventually(lambda: measured(durations) >= 2, interval=0.005)
    loop_lag.close()
    assert measured(durations) <= (time.monotonic() - started) / 0.02 + 1
    count = measured(durations)
    await asyncio.sleep(0.1)
    assert measured(durations) == count
