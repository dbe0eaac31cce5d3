"""When a kernel's time is up, and what is announced of it, without a kernel."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.managers.limits.ending import Due, TimePlan, due, notices
from app.managers.limits.limits import Limits


@pytest.mark.parametrize(
    ("whole", "told"),
    [(86400, (300, 60)), (600, (300, 60)), (599, (60,)), (120, (60,)), (119, (11.9,)), (1, (0.1,))],
)
def test_it_is_announced_five_minutes_and_one_before_or_at_a_tenth(
    whole: float, told: tuple[float, ...]
) -> None:
    assert notices(whole) == told


def test_whichever_limit_comes_first() -> None:
    limits = Limits(idle_timeout=100, lifetime=1000)
    assert due(limits, age=10, idle=10) == Due(90, "idle_timeout", 100)
    assert due(limits, age=950, idle=10) == Due(50, "lifetime", 1000)
    assert due(limits, age=10, idle=None) == Due(990, "lifetime", 1000)
    assert due(Limits(idle_timeout=100), age=10**9, idle=None) is None
    assert due(Limits(), age=10**9, idle=10**9) is None


def test_the_notices_come_once_each_and_then_the_end() -> None:
    plan, said = TimePlan(), []
    for left in (1000, 301, 300, 299, 61, 60, 59, 1):
        ends, told = plan.next(Due(left, "lifetime", 86400), 10_000 - left)
        assert not ends
        said.append(told)
    assert said == [None, None, 300, None, None, 60, None, None]
    assert plan.next(Due(0, "lifetime", 86400), 10_000) == (True, None)
    assert plan.next(Due(-5, "lifetime", 86400), 10_005) == (True, None)  # a stop may have failed


def test_one_whose_time_was_up_when_it_was_found_is_told_first() -> None:
    plan = TimePlan()
    assert plan.next(Due(-500, "lifetime", 86400), 1000) == (False, 60)
    assert plan.next(Due(-559, "lifetime", 86400), 1059) == (False, None)
    assert plan.next(Due(-560, "lifetime", 86400), 1060) == (True, None)


def test_one_that_is_used_again_is_told_again() -> None:
    plan = TimePlan()
    assert plan.next(Due(50, "idle_timeout", 1000), 0) == (False, 60)
    assert plan.next(Due(1000, "idle_timeout", 1000), 10) == (False, None)
    assert plan.next(Due(55, "idle_timeout", 1000), 955) == (False, 60)
    assert plan.next(None, 960) == (False, None)
    assert plan.next(Due(50, "idle_timeout", 1000), 1905) == (False, 60)


def test_another_limit_that_comes_first_is_told() -> None:
    plan = TimePlan()
    assert plan.next(Due(250, "lifetime", 86400), 0) == (False, 250)
    assert plan.next(Due(30, "idle_timeout", 600), 10) == (False, 60)


@given(
    st.floats(1, 1e6),
    st.lists(st.floats(0.01, 500), min_size=1, max_size=60),
)
def test_nobody_is_ended_unannounced_or_late_by_more_than_a_notice(
    whole: float, pauses: list[float]
) -> None:
    plan, now, told_at = TimePlan(), 0.0, None
    for pause in pauses:
        now += pause
        comes = due(Limits(lifetime=whole), age=now, idle=None)
        ends, told = plan.next(comes, now)
        if told is not None and told_at is None:
            told_at = now
        if ends:
            assert told_at is not None
            assert now - told_at >= min(notices(whole)) - 1e-6 or now >= whole
        elif told is None and now >= whole and told_at is not None:
            assert now <= max(whole, told_at + notices(whole)[-1]) + 1e-6
