"""What is told of one kernel: the events, and what is counted."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from app.managers.errors import KernelNotFound, KernelStartFailed
from app.managers.telemetry.counters import Counters
from app.managers.telemetry.events import KERNEL_ACTIONS, KERNEL_LIFECYCLE, Events, Subscription
from app.managers.telemetry.reports import Action, KernelReports

ACTIONS: tuple[tuple[Action, str], ...] = (
    ("start", "Kernel k was started."),
    ("interrupt", "Kernel k was interrupted."),
    ("shutdown", "Kernel k was shutdown."),
    ("restart", "Kernel k was restarted."),
)
KERNEL = {"kernel_id": "k", "kernel_name": "Python3"}


class Told:
    """Reports of a kernel, and what was told."""

    def __init__(self, events: Events, subscription: Subscription) -> None:
        self.counters = Counters()
        self.reports = KernelReports(events, self.counters, "k", "Python3")
        self._subscription = subscription

    async def event(self) -> dict[str, Any]:
        async with asyncio.timeout(5):
            event = await self._subscription.take()
        assert event is not None
        told: dict[str, Any] = json.loads(event)
        return told


@pytest.fixture
async def told() -> AsyncIterator[Told]:
    events = Events()
    async with events.subscription() as subscription:
        yield Told(events, subscription)


@pytest.mark.parametrize(("action", "msg"), ACTIONS)
async def test_an_action_that_is_done_is_told(told: Told, action: Action, msg: str) -> None:
    async with told.reports.action(action):
        pass
    assert await told.event() == {
        **KERNEL,
        "schema_id": KERNEL_ACTIONS,
        "action": action,
        "status": "success",
        "msg": msg,
    }


@pytest.mark.parametrize(("action", "_msg"), ACTIONS)
@pytest.mark.parametrize(
    ("error", "more"),
    [
        (KernelNotFound("x"), {"status_code": 404, "msg": "Kernel does not exist: x"}),
        (KernelStartFailed("no such file"), {"status_code": 500, "msg": "no such file"}),
        (OSError("the disk is full"), {"msg": "the disk is full"}),
    ],
)
async def test_an_action_that_fails_is_told_with_its_error(
    told: Told, action: Action, _msg: str, error: Exception, more: dict[str, Any]
) -> None:
    with pytest.raises(type(error)):
        async with told.reports.action(action):
            raise error
    event = await told.event()
    expected = {"schema_id": KERNEL_ACTIONS, "action": action, "status": "error"}
    assert event == {**KERNEL, **expected, **more}


async def test_an_action_that_is_given_up_is_not_told(told: Told) -> None:
    with pytest.raises(asyncio.CancelledError):
        async with told.reports.action("restart"):
            raise asyncio.CancelledError
    told.reports.shut_down_by_client()
    assert (await told.event())["event"] == "shut_down_by_client"


async def test_every_turn_of_life_is_as_its_schema_says(told: Told) -> None:
    reports = told.reports
    reports.ready(0.25)
    reports.restarting("it died", 2)
    reports.dead("it died again")
    reports.culled("idle", 12.0, 0)
    reports.shut_down_by_client()
    reports.used(1.5, 4096)
    reports.used(None, None)
    same = {**KERNEL, "schema_id": KERNEL_LIFECYCLE}
    assert [await told.event() for _ in range(7)] == [
        {**same, "event": "ready", "seconds": 0.25},
        {**same, "event": "automatic_restart", "reason": "it died", "count": 2},
        {**same, "event": "dead", "reason": "it died again"},
        {**same, "event": "culled", "idle_seconds": 12.0, "connections": 0},
        {**same, "event": "shut_down_by_client"},
        {**same, "event": "usage", "cpu_seconds": 1.5, "memory": 4096},
        {**same, "event": "usage"},
    ]


async def test_what_happens_is_counted_by_kernelspec_and_reason(told: Told) -> None:
    reports, counters = told.reports, told.counters
    reports.launching("start")
    reports.launching("restart")
    reports.launching("restart")
    reports.ready(0.25)
    for code in (0, 3, -9, -11, -200):
        reports.died(code)
    reports.start_failed()
    reports.culled("busy", 12.0, 1)
    assert counters.starts == {("python3", "start"): 1, ("python3", "restart"): 2}
    assert counters.deaths == {
        ("python3", "exited"): 2,
        ("python3", "SIGKILL"): 1,
        ("python3", "SIGSEGV"): 1,
        ("python3", "unknown signal"): 1,
        ("python3", "start_failed"): 1,
    }
    assert counters.culls == {("python3", "busy"): 1}
    assert counters.start_seconds["python3"].total == 0.25
