"""Whether a kernel that died is started again, and when."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.managers.kernels.restarts import RestartPolicy

STABLE = RestartPolicy.stable_time


def test_the_first_restart_is_at_once_and_each_further_one_waits_longer() -> None:
    policy = RestartPolicy(8)

    delays = [policy.on_death(0.0) for _ in range(9)]

    assert delays == [0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0, None]
    assert policy.deaths == 9


@pytest.mark.parametrize("limit", [0, 1, 5])
def test_a_kernel_is_restarted_up_to_the_limit(limit: int) -> None:
    policy = RestartPolicy(limit)

    delays = [policy.on_death(0.0) for _ in range(limit + 3)]

    assert [delay is not None for delay in delays] == [True] * limit + [False] * 3


def test_a_kernel_that_lived_for_long_enough_starts_the_count_anew() -> None:
    policy = RestartPolicy(2)
    policy.on_death(0.0)
    policy.on_death(0.0)
    policy.on_ready(100.0)

    assert policy.on_death(100.0 + STABLE) == 0.0
    assert policy.deaths == 1


def test_a_kernel_that_died_a_moment_too_soon_does_not() -> None:
    policy = RestartPolicy(2)
    policy.on_death(0.0)
    policy.on_death(0.0)
    policy.on_ready(100.0)

    assert policy.on_death(100.0 + STABLE - 0.001) is None


def test_time_spent_on_starting_is_not_time_lived() -> None:
    policy = RestartPolicy(1)
    policy.on_ready(0.0)
    policy.on_death(1.0)

    # It never became ready again, however long that took.
    assert policy.on_death(1000.0) is None


def test_a_limit_that_was_passed_can_be_earned_back() -> None:
    policy = RestartPolicy(0)
    assert policy.on_death(0.0) is None
    policy.on_ready(0.0)

    assert policy.on_death(STABLE) is None


@given(st.integers(0, 6), st.lists(st.tuples(st.booleans(), st.floats(0, 30)), max_size=40))
def test_no_more_than_the_limit_die_in_a_row(limit: int, lives: list[tuple[bool, float]]) -> None:
    policy = RestartPolicy(limit)
    now, row = 0.0, 0
    for ready, lived in lives:
        if ready:
            policy.on_ready(now)
        born, now = now, now + lived
        row = 1 if ready and now - born >= STABLE else row + 1
        delay = policy.on_death(now)
        assert policy.deaths == row
        assert (delay is None) == (row > limit)
        assert delay is None or 0.0 <= delay <= RestartPolicy.longest_delay
