"""The activity of a kernel: when it was used, and how long its executions take."""

from __future__ import annotations

import pytest

from app.managers.messages import activity as module
from app.managers.messages.activity import Activity
from app.managers.telemetry.counters import Counters


class Clock:
    """Stands in for the module ``time``."""

    def __init__(self) -> None:
        self.now = 100.0

    def time(self) -> float:
        return self.now + 1_000_000

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def test_a_client_that_comes_begins_the_idle_time_anew(clock: Clock) -> None:
    activity = Activity(Counters())
    clock.now += 60
    assert activity.idle_since == 100
    activity.touch()
    assert (activity.idle_since, activity.last) == (160, 1_000_160)


def test_an_execution_is_measured_from_busy_to_the_next_idle(clock: Clock) -> None:
    counters = Counters()
    activity = Activity(counters)
    activity.time_execution("idle")  # the idle status of something else
    activity.time_execution("busy")
    clock.now += 2.5
    activity.time_execution("idle")
    activity.time_execution("idle")
    measured = counters.execution_seconds
    assert (sum(measured.counts), measured.total) == (1, 2.5)


def test_what_a_process_began_is_not_measured_to_the_next_ones_idle(clock: Clock) -> None:
    counters = Counters()
    activity = Activity(counters)
    activity.time_execution("busy")
    activity.on_launch()
    activity.time_execution("idle")
    assert sum(counters.execution_seconds.counts) == 0
