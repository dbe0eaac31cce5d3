"""Executions for which a kernel sends no reply, or no idle status: they end all the same."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from app.managers.executions import execution as execution_module
from app.managers.executions import tracker as execution_tracker
from app.managers.executions.execution import ExecutionState
from app.managers.executions.incomplete import Incomplete
from app.managers.messages import own_requests
from tests.managers.scripted import ScriptedKernel
from tests.support.processes import eventually

QUEUED, RUNNING, OK, ERROR, ABORTED, CANCELLED, LOST = ExecutionState


@pytest.fixture
async def kernel() -> ScriptedKernel:
    return ScriptedKernel()


async def test_an_idle_status_that_never_comes_is_not_waited_for(
    kernel: ScriptedKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execution_tracker, "IDLE_SECONDS", 0.05)
    execution = kernel.run()
    kernel.is_busy(execution)
    kernel.replies(execution)
    await eventually(lambda: kernel.probes)
    assert execution.state is RUNNING
    kernel.answers_probe()  # behind which nothing of it can follow
    await eventually(lambda: execution.ended)
    assert execution.state is OK


async def test_a_kernel_that_does_not_tell_whether_it_has_said_all_is_asked_once(
    kernel: ScriptedKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execution_tracker, "IDLE_SECONDS", 0.05)
    monkeypatch.setattr(own_requests, "BEHIND_SECONDS", 0.05)
    for _ in range(2):
        execution = kernel.run()
        kernel.is_busy(execution)
        kernel.replies(execution)
        await eventually(lambda: not [*kernel.traffic.tracker.under_way])
        assert execution.state is OK
    assert len(kernel.probes_on_control) == 1


async def test_a_reply_that_never_comes_is_not_waited_for(
    kernel: ScriptedKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execution_tracker, "REPLY_SECONDS", 0.05)
    first, second = kernel.run(), kernel.run()
    kernel.is_busy(first)
    kernel.is_idle(first)
    await eventually(lambda: first.ended)
    assert (first.state, first.reason) == (LOST, execution_module.NO_REPLY)
    kernel.finishes(second)
    assert second.state is OK


async def test_output_that_the_reply_has_overtaken_is_waited_for(
    kernel: ScriptedKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execution_tracker, "IDLE_SECONDS", 0.2)
    execution = kernel.run()
    kernel.is_busy(execution)
    kernel.replies(execution)
    for _ in range(10):  # for longer than an idle status alone would be waited for
        await asyncio.sleep(0.06)
        kernel.says(execution, "stream", name="stdout", text="x")
    assert execution.state is RUNNING
    kernel.is_idle(execution)
    assert execution.state is OK
    assert execution.last_seq == kernel.log.next_seq - 1


async def test_each_is_waited_for_as_long_as_it_may_take(
    kernel: ScriptedKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execution_tracker, "IDLE_SECONDS", 0.05)
    monkeypatch.setattr(execution_tracker, "REPLY_SECONDS", 0.2)
    both = [kernel.execution(kernel.send()) for _ in range(2)]
    kernel.is_idle(both[0])
    kernel.says(both[1], "status", execution_state="busy")
    kernel.says(both[1], "execute_reply", "shell", status="ok")
    (probe,) = await eventually(lambda: kernel.probes_on_control)
    kernel.answers_probe(probe)
    await eventually(lambda: all(execution.ended for execution in both))
    assert [execution.state for execution in both] == [LOST, OK]


async def test_a_short_wait_does_not_last_as_long_as_one_that_began_before() -> None:
    finished: list[Any] = []
    log: Any = SimpleNamespace(next_seq=1)
    waits = Incomplete(log, finished.append, finished.append)
    first, second = (cast(Any, SimpleNamespace(ended=False, idle=True)) for _ in range(2))
    waits.add(first, 60.0)
    waits.add(second, 0.01)
    await eventually(lambda: finished == [second])
    waits.clear()
