"""Durations, counted into buckets."""

from __future__ import annotations

from app.managers.telemetry.counters import Counters, Durations


def test_a_duration_is_in_the_first_bucket_that_holds_it() -> None:
    durations = Durations((0.1, 1.0, 10.0))
    for seconds in (0.0, 0.1, 0.10001, 1.0, 5.0, 10.0, 10.5, 1000.0):
        durations.observe(seconds)
    assert durations.counts == [2, 2, 2, 2]
    assert durations.total == sum((0.0, 0.1, 0.10001, 1.0, 5.0, 10.0, 10.5, 1000.0))


def test_every_histogram_has_ascending_bounds() -> None:
    counters = Counters()
    for durations in (
        counters.execution_seconds,
        counters.lag_seconds,
        counters.start_seconds["a"],
        counters.request_seconds["GET", "/", "200"],
    ):
        assert list(durations.bounds) == sorted(set(durations.bounds))


def test_each_kind_has_durations_of_its_own() -> None:
    counters = Counters()
    counters.start_seconds["a"].observe(1.0)
    assert sum(counters.start_seconds["b"].counts) == 0
