"""Meters, by a clock of the test's own."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.managers.limits.meters import ROUNDING, Meter


def test_the_capacity_can_be_used_at_once_and_not_one_more() -> None:
    meter = Meter()
    assert [meter.take(1, 3, 60, 100.0) for _ in range(3)] == [0, 0, 0]
    assert meter.take(1, 3, 60, 100.0) == pytest.approx(20)
    assert meter.used(3, 60, 100.0) == 3
    assert meter.take(1, 3, 60, 119.9) == pytest.approx(0.1)
    assert meter.take(1, 3, 60, 120.0) == 0
    assert meter.take(1, 3, 60, 120.0) == pytest.approx(20)
    assert meter.used(3, 60, 1000.0) == 0


def test_a_clock_that_goes_back_gives_nothing() -> None:
    meter = Meter()
    assert meter.take(1, 1, 1, 100.0) == 0
    assert meter.take(1, 1, 1, 50.0) > 0
    assert meter.take(1, 1, 1, 100.5) == pytest.approx(0.5)


def test_what_was_added_has_to_run_off() -> None:
    meter = Meter()
    meter.add(250, 100, 10, 0.0)
    assert meter.take(1, 100, 10, 0.0) == pytest.approx(15.1)
    assert meter.used(100, 10, 0.0) == 250
    assert meter.take(1, 100, 10, 15.2) == 0


def test_what_others_know_counts_if_it_is_more() -> None:
    meter = Meter()
    meter.learn(80, 100, 10, 0.0)
    assert meter.take(30, 100, 10, 0.0) == pytest.approx(1.0)
    meter.learn(10, 100, 10, 5.0)
    assert meter.used(100, 10, 5.0) == 30
    assert meter.used(100, 10, 6.0) == 20


def test_a_capacity_of_nothing_never_has_room() -> None:
    meter = Meter()
    assert meter.take(1, 0, 60, 0.0) == 60
    assert meter.take(0, 0, 60, 0.0) == 0


@given(
    st.integers(1, 20),
    st.lists(st.tuples(st.floats(0, 10), st.integers(1, 5)), max_size=50),
)
def test_never_more_than_the_capacity_and_what_has_run_off(
    capacity: int, steps: list[tuple[float, int]]
) -> None:
    meter, now, taken = Meter(), 0.0, 0
    for pause, amount in steps:
        now += pause
        wait = meter.take(amount, capacity, 5.0, now)
        if wait:
            if amount <= capacity:  # there is room when it was said
                assert Meter.take(_copy(meter), amount, capacity, 5.0, now + wait + 1e-6) == 0
        else:
            taken += amount
        assert taken <= capacity + now * capacity / 5.0 + ROUNDING * len(steps)
        assert -ROUNDING <= meter.used(capacity, 5.0, now) <= capacity + ROUNDING * len(steps)


def _copy(meter: Meter) -> Meter:
    copy = Meter()
    copy._used, copy._at = meter._used, meter._at
    return copy
