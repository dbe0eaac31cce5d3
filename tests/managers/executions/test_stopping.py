"""Executions that are cancelled, or that run longer than they may."""

from __future__ import annotations

import asyncio

import pytest

from app.managers.executions import stopping
from app.managers.executions.execution import ExecutionState
from tests.managers.scripted import ScriptedKernel, turns
from tests.support.processes import eventually

QUEUED, RUNNING, OK, ERROR, ABORTED, CANCELLED, LOST = ExecutionState


@pytest.fixture
async def kernel() -> ScriptedKernel:
    return ScriptedKernel()


async def test_one_that_is_held_never_runs(kernel: ScriptedKernel) -> None:
    first, second, third = kernel.run(), kernel.run(), kernel.run()
    await kernel.executions.cancel(second)
    assert second.state is CANCELLED
    assert [step.step for step in second.steps] == ["cancel"]
    kernel.finishes(first)
    assert [sent.id for sent in kernel.requests] == [first.id, third.id]
    assert (second.started_at, second.first_seq) == (None, None)


async def test_one_that_runs_is_interrupted(kernel: ScriptedKernel) -> None:
    execution, behind = kernel.run(), kernel.run()
    kernel.is_busy(execution)
    await kernel.executions.cancel(execution)
    assert kernel.interrupts == 1
    kernel.replies(execution, "error")
    kernel.is_idle(execution)
    assert execution.state is CANCELLED
    assert [step.step for step in execution.steps] == ["cancel", "interrupt"]
    assert behind.sent  # it was no failure


async def test_one_that_ends_well_all_the_same_is_not_cancelled(kernel: ScriptedKernel) -> None:
    execution = kernel.run()
    kernel.is_busy(execution)
    await kernel.executions.cancel(execution)
    kernel.replies(execution)
    kernel.is_idle(execution)
    assert execution.state is OK
    assert "interrupted" in execution.reason


async def test_an_interrupt_that_may_have_come_too_early_is_sent_again_once(
    kernel: ScriptedKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stopping, "EARLY_SECONDS", 0.05)
    execution = kernel.run()
    kernel.is_busy(execution)
    await kernel.executions.cancel(execution)
    await eventually(lambda: kernel.interrupts == 2)
    await asyncio.sleep(0.2)  # long enough for another
    assert kernel.interrupts == 2


async def test_a_late_interrupt_is_sent_once(
    kernel: ScriptedKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stopping, "EARLY_SECONDS", 0.0)
    execution = kernel.run()
    kernel.is_busy(execution)
    await kernel.executions.cancel(execution)
    await turns()
    assert kernel.interrupts == 1


async def test_one_that_does_not_heed_the_interrupt_is_killed_if_asked(
    kernel: ScriptedKernel,
) -> None:
    execution = kernel.run()
    kernel.is_busy(execution)
    await kernel.executions.cancel(execution, kill_after=0.05)
    await eventually(lambda: kernel.kills == 1)
    await kernel.die()
    assert execution.state is CANCELLED
    assert "killed" in execution.reason
    assert execution.steps[-1].step == "kill"


async def test_one_that_ends_in_time_is_not_killed(kernel: ScriptedKernel) -> None:
    execution = kernel.run()
    kernel.is_busy(execution)
    await kernel.executions.cancel(execution, kill_after=0.1)
    kernel.replies(execution, "error")
    kernel.is_idle(execution)
    await asyncio.sleep(0.3)
    assert kernel.kills == 0


async def test_one_in_the_kernels_own_queue_is_interrupted_when_it_begins(
    kernel: ScriptedKernel,
) -> None:
    first, second = (kernel.execution(kernel.send()) for _ in range(2))
    await kernel.executions.cancel(second, kill_after=0.05)
    await turns()
    assert (kernel.interrupts, second.state) == (0, QUEUED)
    kernel.finishes(first)
    kernel.is_busy(second)
    await eventually(lambda: kernel.kills == 1)
    assert kernel.interrupts >= 1


async def test_cancelling_one_that_has_ended_changes_nothing(kernel: ScriptedKernel) -> None:
    execution = kernel.run()
    kernel.finishes(execution)
    await kernel.executions.cancel(execution, kill_after=0)
    await turns()
    assert (execution.state, execution.steps, kernel.interrupts) == (OK, [], 0)


async def test_one_that_takes_too_long_is_interrupted_then_killed() -> None:
    kernel = ScriptedKernel(execution_interrupt_grace=0.1)
    execution = kernel.run(timeout=0.05)
    kernel.is_busy(execution)
    await eventually(lambda: kernel.kills == 1)
    await kernel.die()
    assert execution.state is LOST
    steps = [step.step for step in execution.steps]
    assert (steps[:2], steps[-1]) == (["timeout", "interrupt"], "kill")
    assert "timeout of 0.05 s" in execution.reason


async def test_one_that_takes_too_long_and_heeds_the_interrupt_has_failed() -> None:
    kernel = ScriptedKernel(execution_interrupt_grace=0.2)
    execution, behind = kernel.run(timeout=0.05), kernel.run()
    kernel.is_busy(execution)
    await eventually(lambda: kernel.interrupts == 1)
    kernel.replies(execution, "error")
    kernel.is_idle(execution)
    assert (execution.state, behind.state) == (ERROR, ABORTED)
    assert "timeout" in execution.reason
    await asyncio.sleep(0.4)
    assert kernel.kills == 0


async def test_time_that_it_waits_does_not_count(kernel: ScriptedKernel) -> None:
    first = kernel.run()
    kernel.is_busy(first)
    second = kernel.run(timeout=0.05)
    await asyncio.sleep(0.2)
    assert kernel.interrupts == 0
    kernel.replies(first)
    kernel.is_idle(first)
    kernel.is_busy(second)
    await eventually(lambda: kernel.interrupts >= 1)
    kernel.replies(second)
    kernel.is_idle(second)


async def test_one_that_ends_in_time_is_left_alone(kernel: ScriptedKernel) -> None:
    execution = kernel.run(timeout=0.05)
    kernel.finishes(execution)
    await asyncio.sleep(0.2)
    assert (kernel.interrupts, execution.reason) == (0, "")
