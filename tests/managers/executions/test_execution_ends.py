"""Every execution ends exactly once: random requests, deaths, restarts, cancels and stops."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, precondition, rule

from app.managers.errors import KernelNotRunning, TooManyExecutions
from app.managers.executions.execution import Execution, ExecutionState
from app.managers.state import Lifecycle
from tests.managers.scripted import ScriptedKernel, turns

ENDS = {
    ExecutionState.OK,
    ExecutionState.ERROR,
    ExecutionState.ABORTED,
    ExecutionState.CANCELLED,
    ExecutionState.LOST,
}


class KernelOfManyFates(RuleBasedStateMachine):
    """A kernel to which anything may happen at any time."""

    executions: Bundle[Execution] = Bundle("executions")

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr("app.managers.executions.queue.MAX_WAITING", 5)
        self.kernel = self.run(_make_kernel())
        self.known: list[Execution] = []
        self.ends: dict[Execution, list[ExecutionState]] = {}
        # Those that were sent to a process that is gone, and those of them that had ended before.
        self.gone: list[Execution] = []
        self.ready = True

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        async def settled() -> Any:
            value = await work
            await turns(3)
            return value

        return self.loop.run_until_complete(settled())

    def call(self, function: Any, *arguments: Any, **options: Any) -> Any:
        async def work() -> Any:
            return function(*arguments, **options)

        return self.run(work())

    def teardown(self) -> None:
        self.patch.undo()
        if self.kernel.state.lifecycle is not Lifecycle.DEAD:
            self.call(self.kernel.state.begin, Lifecycle.STOPPING)
            self.run(self.kernel.end_process())
            self.call(self.kernel.state.begin, Lifecycle.DEAD)
        assert all(execution.ended for execution in self.known)
        assert all(len(ends) == 1 for ends in self.ends.values())
        self.loop.close()

    # Requests

    def note(self, execution: Execution) -> Execution:
        self.known.append(execution)
        ends = self.ends[execution] = [execution.state] if execution.ended else []
        if not ends:
            execution.on_end.append(lambda: ends.append(execution.state))
        return execution

    @rule(target=executions, stop=st.booleans())
    def ask_over_http(self, stop: bool) -> Any:
        try:
            execution: Execution = self.call(self.kernel.run, stop_on_error=stop)
        except (KernelNotRunning, TooManyExecutions):
            execution = self.note(Execution("refused", "nobody", self.kernel.log.end))
            self.call(execution.give_up, self.kernel.log.end, "refused")
            return execution
        return self.note(execution)

    @rule(target=executions)
    def ask_over_a_websocket(self) -> Any:
        before = {*self.kernel.traffic.tracker}
        self.call(self.kernel.send)
        new = [one for one in self.kernel.traffic.tracker if one not in before]
        if not new:  # it waits for the next process
            return self.note_refused()
        return self.note(new[0])

    def note_refused(self) -> Execution:
        execution = self.note(Execution("later", "nobody", self.kernel.log.end))
        self.call(execution.give_up, self.kernel.log.end, "later")
        return execution

    @rule(execution=executions, kill_after=st.sampled_from([None, 0.0, 60.0]))
    def cancel(self, execution: Execution, kill_after: float | None) -> None:
        ended, sent = execution.ended, execution.sent
        self.run(self.kernel.executions.cancel(execution, kill_after))
        if not ended and not sent:
            assert execution.state is ExecutionState.CANCELLED

    # What the kernel says

    def running(self, execution: Execution) -> bool:
        return self.ready and any(sent.id == execution.id for sent in self.kernel.requests)

    @rule(execution=executions)
    def go_busy(self, execution: Execution) -> None:
        if self.running(execution):
            self.call(self.kernel.is_busy, execution)

    @rule(execution=executions)
    def go_idle(self, execution: Execution) -> None:
        if self.running(execution):
            self.call(self.kernel.is_idle, execution)

    @rule(execution=executions, status=st.sampled_from(["ok", "error", "aborted", ""]))
    def reply(self, execution: Execution, status: str) -> None:
        if self.running(execution):
            self.call(self.kernel.replies, execution, status)

    @rule(execution=executions)
    def finish(self, execution: Execution) -> None:
        if self.running(execution):
            self.call(self.kernel.finishes, execution)

    @rule(execution=executions)
    def print_something(self, execution: Execution) -> None:
        if self.running(execution):
            self.call(self.kernel.says, execution, "stream", name="stdout", text="x")

    # What happens to the process

    def lose_process(self) -> None:
        self.gone += [execution for execution in self.known if execution.sent]
        self.ready = False

    @precondition(lambda self: self.kernel.state.lifecycle is not Lifecycle.DEAD)
    @rule()
    def die_and_come_back_some_time(self) -> None:
        self.lose_process()
        held = [one for one in self.known if not one.sent]
        self.run(self.kernel.die())
        assert all(execution.ended for execution in held)
        self.call(self.kernel.launch)

    @precondition(lambda self: not self.ready and self.kernel.state.lifecycle is not Lifecycle.DEAD)
    @rule()
    def become_ready(self) -> None:
        self.call(self.kernel.be_ready)
        self.ready = True

    @precondition(lambda self: self.kernel.state.lifecycle is not Lifecycle.DEAD)
    @rule()
    def be_left_dead(self) -> None:
        self.lose_process()
        self.run(self.kernel.be_buried())

    @rule()
    def be_restarted(self) -> None:
        held = [one for one in self.known if not one.sent]
        self.call(self.kernel.begin_restart)
        assert all(execution.ended for execution in held)
        self.lose_process()
        meanwhile = self.note(self.call(self.kernel.run))
        self.run(self.kernel.end_process())
        assert not meanwhile.ended
        self.call(self.kernel.launch)

    # What must hold

    @invariant()
    def nothing_is_under_way_in_a_dead_kernel(self) -> None:
        if self.kernel.state.lifecycle is Lifecycle.DEAD:
            assert all(execution.ended for execution in self.known)
            assert all(execution.ended for execution in self.kernel.traffic.tracker)

    @invariant()
    def what_a_process_had_ends_with_it(self) -> None:
        assert all(execution.ended for execution in self.gone)

    @invariant()
    def an_end_is_final_and_there_is_one(self) -> None:
        for execution in self.known:
            ends = self.ends[execution]
            assert ends == ([execution.state] if execution.state in ENDS else [])

    @invariant()
    def what_has_ended_is_complete(self) -> None:
        for execution in self.known:
            if execution.ended:
                assert execution.ended_at is not None
                assert execution.end is not None
            if execution.state is ExecutionState.ABORTED and not execution.reply_status:
                assert execution.started_at is None
            if execution.state in (ExecutionState.LOST, ExecutionState.CANCELLED):
                assert execution.reason

    @invariant()
    def what_was_cancelled_before_it_was_sent_never_reaches_the_kernel(self) -> None:
        sent = {sent.id for sent in self.kernel.requests}
        for execution in self.known:
            if execution.state is ExecutionState.CANCELLED and not execution.sent:
                assert execution.id not in sent


async def _make_kernel() -> ScriptedKernel:
    return ScriptedKernel()


TestKernelOfManyFates = KernelOfManyFates.TestCase
TestKernelOfManyFates.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
