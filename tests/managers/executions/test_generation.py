"""Which of a kernel's processes code is for: told in the execution, and kept to if it was asked."""

from __future__ import annotations

import pytest

from app.managers.errors import GenerationMismatch
from app.managers.executions.execution import AFTER_RESTART, ExecutionState
from app.managers.state import Lifecycle
from tests.managers.scripted import ScriptedKernel

QUEUED, RUNNING, OK, ERROR, ABORTED, CANCELLED, LOST = ExecutionState


@pytest.fixture
async def kernel() -> ScriptedKernel:
    return ScriptedKernel()


async def restart(kernel: ScriptedKernel) -> None:
    await kernel.die()
    kernel.launch()
    kernel.be_ready()


async def test_an_execution_tells_in_which_process_it_runs(kernel: ScriptedKernel) -> None:
    first, waiting = kernel.run(), kernel.run()
    theirs = kernel.execution(kernel.send())
    assert [one.generation for one in (first, waiting, theirs)] == [1, None, 1]
    await restart(kernel)
    assert [one.generation for one in (first, waiting, theirs)] == [1, None, 1]
    assert kernel.run().generation == 2


async def test_what_waits_for_a_process_is_of_the_one_that_it_gets(kernel: ScriptedKernel) -> None:
    await kernel.die()
    theirs = kernel.execution(kernel.send())
    assert theirs.generation is None
    kernel.launch()
    kernel.be_ready()
    kernel.is_busy(theirs)
    assert theirs.generation == 2


async def test_code_for_this_process_runs_and_code_for_another_is_refused(
    kernel: ScriptedKernel,
) -> None:
    kernel.finishes(kernel.run(if_generation=1))
    await restart(kernel)
    with pytest.raises(GenerationMismatch, match="is 2"):
        kernel.run(if_generation=1)
    assert len(kernel.requests) == 0
    assert kernel.run(if_generation=2).sent


@pytest.mark.parametrize("asked", ["restart", "death"])
async def test_a_process_that_is_replaced_takes_no_code(kernel: ScriptedKernel, asked: str) -> None:
    if asked == "restart":
        kernel.begin_restart()
    else:
        await kernel.die()
    for generation in (1, 2):
        with pytest.raises(GenerationMismatch):
            kernel.run(if_generation=generation)
    if asked == "restart":
        await kernel.end_process()
    kernel.launch()
    assert kernel.state.lifecycle is Lifecycle.RESTARTING
    execution = kernel.run(if_generation=2)
    kernel.be_ready()
    assert execution.sent


async def test_what_waits_for_a_process_that_never_takes_it_is_aborted(
    kernel: ScriptedKernel,
) -> None:
    await kernel.die()
    kernel.launch()  # and is not ready before another takes its place
    held = [kernel.run(if_generation=2), kernel.run(), kernel.run(if_generation=2)]
    kernel.launch()
    kernel.be_ready()
    assert [one.state for one in held] == [ABORTED, QUEUED, ABORTED]
    assert "generation" in held[0].reason
    assert [sent.id for sent in kernel.requests] == [held[1].id]


async def test_the_first_error_after_a_restart_tells_of_it(kernel: ScriptedKernel) -> None:
    earlier = kernel.run()
    kernel.finishes(earlier, "error")
    assert earlier.reason == ""
    await restart(kernel)
    first, second = kernel.run(), kernel.run()
    kernel.finishes(first, "error")
    assert (first.state, first.reason) == (ERROR, AFTER_RESTART)
    second = kernel.run()
    kernel.finishes(second, "error")
    assert (second.state, second.reason) == (ERROR, "")


async def test_what_ends_well_after_a_restart_needs_no_reason(kernel: ScriptedKernel) -> None:
    await restart(kernel)
    execution = kernel.run()
    kernel.finishes(execution)
    assert (execution.state, execution.reason) == (OK, "")


async def test_a_server_that_takes_a_kernel_over_takes_nothing_for_the_first(
    kernel: ScriptedKernel,
) -> None:
    await restart(kernel)
    done = kernel.run()
    kernel.finishes(done)
    heir = ScriptedKernel()
    heir.state.generation = 2
    heir.traffic.tracker.put_back(done)
    execution = heir.run()
    heir.finishes(execution, "error")
    assert execution.reason == ""
