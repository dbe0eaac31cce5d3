"""What waits at the server: in which queue, how long it may run then, and who waits for it.

These are the tests of `app.managers.executions.code`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import pytest

from app.callers import Caller, begin_call
from app.managers.errors import TimeoutTooLong
from app.managers.executions.code import Code
from app.managers.executions.execution import Execution, ExecutionState
from app.managers.executions.listeners import ExecutionStore
from app.managers.replicas.errors import RegistryUnavailable
from tests.managers.scripted import ScriptedKernel

QUEUED, RUNNING, OK, ERROR, ABORTED, CANCELLED, LOST = ExecutionState


@pytest.fixture
async def kernel() -> ScriptedKernel:
    return ScriptedKernel()


def run_as(kernel: ScriptedKernel, address: str, queue: str | None = None) -> Execution:
    begin_call(Caller("request", address))
    return kernel.run(queue=queue)


async def test_a_failure_aborts_what_waits_in_its_queue_only(kernel: ScriptedKernel) -> None:
    queues = ("a", "b", "a", None, "b", "a")
    held = [kernel.run(queue=queue) for queue in queues]
    kernel.finishes(held[0], "error")
    assert [one.state for one in held] == [ERROR, QUEUED, ABORTED, QUEUED, QUEUED, ABORTED]
    for left in (held[1], held[3], held[4]):  # in the order in which they were asked for
        assert kernel.requests[-1].id == left.id
        kernel.finishes(left)


async def test_a_caller_has_a_queue_of_its_own(kernel: ScriptedKernel) -> None:
    first, theirs, mine = (run_as(kernel, address) for address in ("1.1.1.1", "2.2.2.2", "1.1.1.1"))
    named = run_as(kernel, "1.1.1.1", "1.1.1.1")
    kernel.finishes(first, "error")
    assert [one.state for one in (theirs, mine, named)] == [QUEUED, ABORTED, QUEUED]


async def test_a_named_queue_is_the_same_for_all_callers(kernel: ScriptedKernel) -> None:
    first, second = run_as(kernel, "1.1.1.1", "a"), run_as(kernel, "2.2.2.2", "a")
    kernel.finishes(first, "error")
    assert second.state is ABORTED


async def test_a_failure_in_a_process_that_is_replaced_aborts_nothing_of_the_next(
    kernel: ScriptedKernel,
) -> None:
    failed = kernel.run()
    kernel.is_busy(failed)
    kernel.replies(failed, "error")  # and is never idle again
    kernel.begin_restart()
    meanwhile = kernel.run()
    await kernel.end_process()
    assert (failed.state, meanwhile.state) == (ERROR, QUEUED)
    kernel.launch()
    kernel.be_ready()
    assert [sent.id for sent in kernel.requests] == [meanwhile.id]


@pytest.mark.parametrize(
    ("default", "longest", "asked", "timeout"),
    [
        (0, 0, None, None),
        (0, 0, 7.5, 7.5),
        (3, 0, None, 3),
        (3, 0, 7.5, 7.5),
        (0, 9, None, 9),
        (3, 9, None, 3),
        (3, 9, 9.0, 9),
    ],
)
async def test_how_long_code_may_run(
    default: float, longest: float, asked: float | None, timeout: float | None
) -> None:
    kernel = ScriptedKernel(execution_timeout_default=default, execution_timeout_max=longest)
    assert kernel.run(timeout=asked).timeout == timeout
    assert kernel.execution(kernel.send()).timeout is None  # of a WebSocket client's


async def test_no_code_may_run_longer_than_the_server_lets_it() -> None:
    kernel = ScriptedKernel(execution_timeout_max=9)
    with pytest.raises(TimeoutTooLong, match="at most 9 s"):
        kernel.run(timeout=9.5)
    assert kernel.requests == []


async def test_one_is_deserted_when_the_last_of_those_who_wait_for_it_has_gone(
    kernel: ScriptedKernel,
) -> None:
    execution = kernel.run()
    with kernel.executions.attended(execution):
        with kernel.executions.attended(execution):
            assert not kernel.executions.is_deserted(execution)
        assert not kernel.executions.is_deserted(execution)
    assert kernel.executions.is_deserted(execution)
    execution.cancel_asked = True  # one of two that go at once has seen to it
    assert not kernel.executions.is_deserted(execution)
    execution.cancel_asked = False
    kernel.executions.close_streams()  # the server stops, and has them all go
    assert not kernel.executions.is_deserted(execution)


class Unsure:
    """A store in which something becomes of an execution before it turns out to be away."""

    def __init__(self, meanwhile: Callable[[Execution], None]) -> None:
        self.meanwhile = meanwhile

    def changed(self, execution: Execution) -> None:
        """It is told so, and stores nothing."""

    async def execution_stored(self, execution: Execution) -> None:
        self.meanwhile(execution)
        raise RegistryUnavailable


async def test_only_what_still_waits_is_refused_because_it_is_not_stored(
    kernel: ScriptedKernel,
) -> None:
    first, second, third = (kernel.run() for _ in range(3))

    def it_ends(_: Execution) -> None:
        kernel.finishes(first, "error")  # and so has what waits behind it aborted

    kernel.traffic.tracker.store = cast(ExecutionStore, Unsure(lambda _: None))
    with pytest.raises(RegistryUnavailable):
        await kernel.executions.noted(third.id)
    kernel.traffic.tracker.store = cast(ExecutionStore, Unsure(it_ends))
    await kernel.executions.noted(second.id)
    assert second.state is ABORTED


class Store:
    """A store that knows what it has."""

    def __init__(self) -> None:
        self.known: dict[str, Execution] = {}

    def changed(self, execution: Execution) -> None:
        """Store an execution."""
        self.known[execution.id] = execution

    def forgotten(self, execution: Execution) -> None:
        """Delete an execution."""
        del self.known[execution.id]


async def test_nothing_is_known_of_what_was_taken_back_and_it_can_be_asked_for_again(
    kernel: ScriptedKernel,
) -> None:
    store = Store()
    kernel.traffic.tracker.store = cast(ExecutionStore, store)
    first, taken_back = kernel.run(), kernel.run()
    await kernel.executions.withdraw(taken_back.id)
    assert taken_back.ended
    assert kernel.executions.known_id(first.id, within=60) == first.id
    assert kernel.executions.known_id(first.id, within=0) is None
    assert kernel.executions.known_id(taken_back.id, within=60) is None
    assert kernel.executions.page(9) == [first]
    assert store.known == {first.id: first}
    again = kernel.executions.run(Code("1"), taken_back.id)
    assert kernel.executions.get(taken_back.id) is store.known[again.id] is again
    kernel.finishes(first)
    assert again.sent
    await kernel.executions.withdraw(again.id)  # too late: the kernel has it
    assert not again.ended
