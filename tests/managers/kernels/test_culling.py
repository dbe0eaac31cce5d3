"""The culling policy, and what a kernelspec says about it, without a kernel."""

from __future__ import annotations

import logging
import math
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.managers.kernels.culling import Candidate, Culler, CullingPolicy, timeout_of_spec

KERNEL = Candidate(dead=False, busy=False, connections=0, idle_seconds=100.0, spec_timeout=None)
POLICY = CullingPolicy(idle_timeout=60.0, connected=False, busy=False)

candidates = st.builds(
    Candidate,
    dead=st.booleans(),
    busy=st.booleans(),
    connections=st.integers(0, 3),
    idle_seconds=st.floats(0, 1e9),
    spec_timeout=st.none() | st.floats(0, 1e9),
)


@pytest.mark.parametrize(
    ("idle_seconds", "culled"), [(0.0, False), (59.9, False), (60.0, False), (60.1, True)]
)
def test_a_kernel_is_culled_once_it_was_idle_for_longer_than_the_timeout(
    idle_seconds: float, culled: bool
) -> None:
    assert POLICY.culls(KERNEL._replace(idle_seconds=idle_seconds)) is culled


@pytest.mark.parametrize("asked", [False, True])
def test_one_with_connections_only_when_asked(asked: bool) -> None:
    policy = POLICY._replace(connected=asked)
    assert policy.culls(KERNEL._replace(connections=1)) is asked
    assert policy.culls(KERNEL)


@pytest.mark.parametrize("asked", [False, True])
def test_one_that_runs_something_only_when_asked(asked: bool) -> None:
    policy = POLICY._replace(busy=asked)
    assert policy.culls(KERNEL._replace(busy=True)) is asked
    assert policy.culls(KERNEL)


@pytest.mark.parametrize(("connected", "busy"), [(True, False), (False, True)])
def test_a_busy_one_with_connections_only_when_both_are_asked_for(
    connected: bool, busy: bool
) -> None:
    kernel = KERNEL._replace(connections=1, busy=True)
    assert not POLICY._replace(connected=connected, busy=busy).culls(kernel)
    assert POLICY._replace(connected=True, busy=True).culls(kernel)


@pytest.mark.parametrize(
    ("spec_timeout", "culled"),
    [
        (0.0, False),  # never
        (1.0, True),
        (99.0, True),
        (100.0, False),
        (1000.0, False),
        (None, True),  # what the option says: 60 s
    ],
)
def test_the_kernelspecs_own_timeout_comes_first_and_0_there_means_never(
    spec_timeout: float | None, culled: bool
) -> None:
    assert POLICY.culls(KERNEL._replace(spec_timeout=spec_timeout)) is culled


@given(candidates)
def test_never_by_the_kernelspec_holds_however_much_is_asked_for(kernel: Candidate) -> None:
    policy = CullingPolicy(idle_timeout=1e-9, connected=True, busy=True)
    assert not policy.culls(kernel._replace(spec_timeout=0.0, dead=False))


@given(candidates, st.booleans(), st.booleans())
def test_a_timeout_of_0_culls_nothing_at_all(
    kernel: Candidate, connected: bool, busy: bool
) -> None:
    policy = CullingPolicy(idle_timeout=0.0, connected=connected, busy=busy)
    assert not policy.culls(kernel)


@given(candidates)
def test_a_dead_one_is_culled_whatever_else_is_true_of_it(kernel: Candidate) -> None:
    assert POLICY.culls(kernel._replace(dead=True))


@given(candidates, st.floats(0, 1e9))
def test_more_idle_time_never_saves_a_kernel(kernel: Candidate, more: float) -> None:
    later = kernel._replace(idle_seconds=kernel.idle_seconds + more)
    assert POLICY.culls(later) >= POLICY.culls(kernel)


@pytest.mark.parametrize(("value", "seconds"), [(0, 0.0), (7, 7.0), (0.5, 0.5), (86400, 86400.0)])
def test_a_kernelspecs_timeout_is_a_number_of_seconds(value: float, seconds: float) -> None:
    assert timeout_of_spec("r", {"cull_idle_timeout": value}) == seconds


def test_a_kernelspec_without_a_timeout_has_none(caplog: pytest.LogCaptureFixture) -> None:
    assert timeout_of_spec("r", {}) is None
    assert timeout_of_spec("r", {"cull_idle_timeout": None}) is None
    assert not caplog.records


@pytest.mark.parametrize(
    "value",
    [-1, -0.5, True, False, "60", "", [60], {"seconds": 60}, math.nan, math.inf, 10**400],
    ids=lambda value: str(value)[:12],
)
def test_a_timeout_that_makes_no_sense_counts_as_none_and_is_logged_with_the_spec(
    value: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert timeout_of_spec("odd", {"cull_idle_timeout": value}) is None
    (record,) = caplog.records
    assert "odd" in record.getMessage()
    assert "cull_idle_timeout" in record.getMessage()


def test_a_kernel_that_cannot_be_looked_at_keeps_no_other_from_being_culled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked: list[Any] = []

    def look(_: Culler, kernel: Any, now: float) -> None:
        looked.append(kernel)
        assert kernel.id != "broken", now

    async def stop(*_: object) -> None: ...

    kernels: list[Any] = [SimpleNamespace(id="broken"), SimpleNamespace(id="other")]
    monkeypatch.setattr(Culler, "cull_kernel_if_idle", look)
    Culler(kernels, stop, POLICY, 1.0).cull_kernels()
    assert looked == kernels
