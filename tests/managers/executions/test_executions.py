"""Executions: from the request to the one end, whoever sent it and whatever the kernel does.

These are the tests of `app.managers.messages.traffic`, `app.managers.executions.listeners`,
`app.managers.executions.queue` and `app.managers.messages.conclusions`.
"""

from __future__ import annotations

import asyncio

import pytest

from app.managers.errors import (
    ExecutionNotFound,
    KernelNotRunning,
    MessageTypeNotAllowed,
    NoInputRequested,
    ServerStopping,
    TooManyExecutions,
)
from app.managers.executions import tracker as execution_tracker
from app.managers.executions.events import (
    InputRequestEvent,
    QueuedEvent,
    StartedEvent,
    follow,
)
from app.managers.executions.execution import Execution, ExecutionState
from tests.managers.scripted import ScriptedKernel, turns

QUEUED, RUNNING, OK, ERROR, ABORTED, CANCELLED, LOST = ExecutionState


@pytest.fixture
async def kernel() -> ScriptedKernel:
    return ScriptedKernel()


# One execution


@pytest.mark.parametrize(
    ("status", "state"),
    [("ok", OK), ("error", ERROR), ("aborted", ABORTED), ("abort", ABORTED), ("odd", ERROR)],
)
async def test_the_status_of_the_reply_decides_how_it_ended(
    kernel: ScriptedKernel, status: str, state: ExecutionState
) -> None:
    execution = kernel.execution(kernel.send())
    assert (execution.state, execution.seconds) == (QUEUED, None)
    kernel.is_busy(execution)
    assert execution.state is RUNNING
    kernel.replies(execution, status, count=7)
    assert execution.state is RUNNING
    kernel.is_idle(execution)
    assert execution.state is state
    assert execution.execution_count == 7
    assert execution.seconds is not None
    assert execution.queued_at <= (execution.started_at or 0) <= (execution.ended_at or 0)


async def test_idle_may_come_before_the_reply(kernel: ScriptedKernel) -> None:
    execution = kernel.run()
    kernel.is_busy(execution)
    kernel.is_idle(execution)
    assert execution.state is RUNNING
    kernel.replies(execution)
    assert execution.state is OK


async def test_it_knows_its_place_in_the_log(kernel: ScriptedKernel) -> None:
    kernel.traffic.voice.announce("idle")
    execution = kernel.execution(kernel.send())
    await turns()  # that the request has left is in the log, too
    first = kernel.log.next_seq
    kernel.is_busy(execution)
    kernel.says(execution, "stream", name="stdout", text="x")
    kernel.replies(execution)
    kernel.is_idle(execution)
    assert (execution.first_seq, execution.last_seq) == (first, first + 3)
    assert execution.end == kernel.log.end
    kernel.traffic.voice.announce("idle")
    assert execution.last_seq == first + 3


@pytest.mark.parametrize(
    "reply",
    [{}, {"status": 7, "execution_count": "x"}, {"status": "ok", "execution_count": None}],
)
async def test_an_odd_reply_is_an_end_too(kernel: ScriptedKernel, reply: dict[str, object]) -> None:
    execution = kernel.run()
    kernel.is_busy(execution)
    kernel.says(execution, "execute_reply", "shell", **reply)
    kernel.is_idle(execution)
    assert execution.state is (OK if reply.get("status") == "ok" else ERROR)
    assert execution.execution_count is None


async def test_an_id_is_taken_once(kernel: ScriptedKernel) -> None:
    """The one who has it keeps it, under way and ended, whoever uses the id again."""
    kernel.send(session="one", msg_id="same")
    first = kernel.execution("same")
    kernel.send(session="two", msg_id="same")
    assert kernel.execution("same") is first
    kernel.finishes("same", "error")
    assert first.state is ERROR
    kernel.finishes("same")
    assert kernel.execution("same") is first
    end = first.end
    kernel.send(session="one", msg_id="same")
    kernel.finishes("same")
    assert kernel.execution("same") is first
    assert (first.state, first.end) == (ERROR, end)


async def test_what_a_kernel_says_of_something_else_changes_nothing(
    kernel: ScriptedKernel,
) -> None:
    execution = kernel.execution(kernel.send())
    other = kernel.send(msg_id="other")
    kernel.is_busy(execution)
    kernel.is_idle(other)
    assert execution.state is RUNNING


# The end of the process


async def test_a_death_loses_what_ran_and_aborts_what_had_not_begun(
    kernel: ScriptedKernel,
) -> None:
    sent = [kernel.execution(kernel.send()) for _ in range(3)]
    held = kernel.run()
    kernel.finishes(sent[0])
    kernel.is_busy(sent[1])
    await kernel.die("It has died of something")
    assert [one.state for one in (*sent, held)] == [OK, LOST, ABORTED, ABORTED]
    assert {one.reason for one in (*sent[1:], held)} == {"It has died of something"}
    assert held.first_seq is None


async def test_the_first_that_was_sent_is_taken_to_have_run_if_the_kernel_was_ready(
    kernel: ScriptedKernel,
) -> None:
    sent = [kernel.execution(kernel.send()) for _ in range(2)]
    await kernel.die()
    assert [one.state for one in sent] == [LOST, ABORTED]
    kernel.launch()
    waiting = kernel.execution(kernel.send())
    await kernel.die()
    assert waiting.state is ABORTED


async def test_one_whose_reply_has_come_is_not_lost_by_a_death(kernel: ScriptedKernel) -> None:
    sent = [kernel.execution(kernel.send()) for _ in range(2)]
    kernel.is_busy(sent[0])
    kernel.replies(sent[0])
    await kernel.die()
    assert [one.state for one in sent] == [OK, LOST]


async def test_its_last_number_covers_what_was_said_in_the_kernels_place(
    kernel: ScriptedKernel,
) -> None:
    execution = kernel.execution(kernel.send())
    kernel.is_busy(execution)
    await kernel.die()  # an error, a reply and an idle status
    assert execution.first_seq is not None
    assert execution.last_seq == execution.first_seq + 3


@pytest.mark.parametrize(
    ("why", "reason"), [("", "The kernel was shut down"), ("Culled", "Culled")]
)
async def test_a_stop_ends_all_and_says_why(kernel: ScriptedKernel, why: str, reason: str) -> None:
    running, held = kernel.run(), kernel.run()
    kernel.is_busy(running)
    kernel.traffic.why_it_stops = why
    kernel.state.begin(kernel.state.lifecycle.STOPPING)
    await kernel.end_process()
    assert [running.state, held.state] == [LOST, ABORTED]
    assert [running.reason, held.reason] == [reason, reason]


async def test_a_restart_ends_what_was_asked_before_and_keeps_what_is_asked_meanwhile(
    kernel: ScriptedKernel,
) -> None:
    running, held = kernel.run(), kernel.run()
    kernel.is_busy(running)
    kernel.begin_restart()
    assert (held.state, held.reason) == (ABORTED, "The kernel was restarted")
    meanwhile = kernel.run()
    await kernel.end_process()
    assert (running.state, running.reason) == (LOST, "The kernel was restarted")
    kernel.launch()
    assert meanwhile.state is QUEUED
    assert kernel.requests == []
    kernel.be_ready()
    assert [sent.id for sent in kernel.requests] == [meanwhile.id]


async def test_a_dead_kernel_runs_nothing(kernel: ScriptedKernel) -> None:
    await kernel.be_buried()
    with pytest.raises(KernelNotRunning, match="dead"):
        kernel.run()
    execution = kernel.execution(kernel.send())
    assert (execution.state, execution.reason) == (ABORTED, "The kernel is dead")


# What the server holds


async def test_nothing_is_sent_before_the_main_shell_is_free(kernel: ScriptedKernel) -> None:
    theirs = kernel.send()
    ours = [kernel.run(str(number)) for number in range(3)]
    assert [sent.id for sent in kernel.requests] == [theirs]
    kernel.finishes(theirs)
    for number, execution in enumerate(ours):
        assert kernel.requests[-1].id == execution.id
        assert len(kernel.requests) == number + 2
        kernel.finishes(execution)


async def test_a_request_carries_all_that_was_asked(kernel: ScriptedKernel) -> None:
    kernel.run(
        "6*7",
        silent=True,
        store_history=False,
        user_expressions={"a": "1"},
        allow_stdin=True,
        stop_on_error=False,
    )
    (sent,) = kernel.requests
    assert sent.message.channel == "shell"
    assert sent.content == {
        "code": "6*7",
        "silent": True,
        "store_history": False,
        "user_expressions": {"a": "1"},
        "allow_stdin": True,
        "stop_on_error": False,
    }


async def test_each_has_a_session_of_its_own(kernel: ScriptedKernel) -> None:
    first, second = kernel.run(), kernel.run()
    assert first.session != second.session
    assert kernel.requests[0].message.header.session == first.session


async def test_a_failure_aborts_what_is_held_behind_it(kernel: ScriptedKernel) -> None:
    first, second, third = kernel.run(), kernel.run(), kernel.run()
    kernel.finishes(first, "error")
    assert [one.state for one in (first, second, third)] == [ERROR, ABORTED, ABORTED]
    assert len(kernel.requests) == 1
    assert kernel.run().sent


async def test_a_failure_may_be_asked_to_abort_nothing(kernel: ScriptedKernel) -> None:
    first, second = kernel.run(stop_on_error=False), kernel.run()
    kernel.finishes(first, "error")
    assert second.sent
    theirs = kernel.send()
    kernel.finishes(second)
    third = kernel.run()
    kernel.finishes(theirs, "error")  # a WebSocket client's failure is its own affair
    assert third.sent


async def test_the_reply_is_waited_for_since_it_may_be_a_failure(kernel: ScriptedKernel) -> None:
    first, second = kernel.run(), kernel.run()
    kernel.is_busy(first)
    kernel.is_idle(first)
    assert not second.sent
    kernel.replies(first, "error")
    assert second.state is ABORTED


async def test_one_that_the_kernel_has_forgotten_holds_nobody_up(kernel: ScriptedKernel) -> None:
    forgotten = kernel.execution(kernel.send())
    kernel.is_busy(forgotten)
    held = kernel.run()
    other = kernel.send()
    kernel.finishes(other)
    assert held.sent
    assert forgotten.state is RUNNING


async def test_only_so_many_may_wait(
    kernel: ScriptedKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.managers.executions.queue.MAX_WAITING", 3)
    running = kernel.run()
    for _ in range(3):
        kernel.run()
    with pytest.raises(TooManyExecutions, match="3 executions wait") as caught:
        kernel.run()
    assert caught.value.retry_after == 5
    kernel.finishes(running)
    kernel.run()


async def test_their_code_may_take_only_so_much_memory(
    kernel: ScriptedKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.managers.executions.queue.BACKLOG_BYTES", 2**16)
    first = kernel.run()
    held = kernel.run("x" * 2**16)
    with pytest.raises(TooManyExecutions):
        kernel.run()
    await kernel.executions.cancel(held)
    kernel.run("y" * 2**16)
    kernel.finishes(first)
    kernel.run("z" * 2**16)


async def test_execute_requests_may_be_forbidden() -> None:
    kernel = ScriptedKernel(allowed_message_types=["kernel_info_request"])
    with pytest.raises(MessageTypeNotAllowed):
        kernel.run()


# Input


async def test_a_question_is_answered_once(kernel: ScriptedKernel) -> None:
    execution = kernel.run(allow_stdin=True)
    kernel.is_busy(execution)
    with pytest.raises(NoInputRequested):
        kernel.executions.answer(execution, "early")
    kernel.says(execution, "input_request", "stdin", prompt="name?", password=True)
    asked = execution.input_request
    assert asked is not None
    assert (asked.prompt, asked.password) == ("name?", True)
    kernel.executions.answer(execution, "Ada")
    assert kernel.answers == ["Ada"]
    with pytest.raises(NoInputRequested):
        kernel.executions.answer(execution, "late")


async def test_a_question_that_overtakes_the_status_is_among_the_events(
    kernel: ScriptedKernel,
) -> None:
    """It comes over a socket of its own: whoever follows the execution waited for it in vain."""
    execution = kernel.run(allow_stdin=True)
    await turns()
    kernel.says(execution, "input_request", "stdin", prompt="name?")
    kernel.is_busy(execution)
    assert execution.state is RUNNING
    assert execution.input_request is not None
    events = follow(kernel.executions, kernel.log, execution, None, 5.0, lambda: True)
    async with asyncio.timeout(5):
        seen = [type(await anext(events)) for _ in range(3)]
    assert seen == [QueuedEvent, InputRequestEvent, StartedEvent]


async def test_a_question_that_another_client_has_answered_is_asked_no_longer(
    kernel: ScriptedKernel,
) -> None:
    execution = kernel.run(allow_stdin=True)
    kernel.is_busy(execution)
    asked = kernel.asks(execution, "name?")
    assert kernel.answer("Ada", asked)
    with pytest.raises(NoInputRequested):
        kernel.executions.answer(execution, "late")


async def test_one_that_has_ended_asks_nothing(kernel: ScriptedKernel) -> None:
    execution = kernel.run(allow_stdin=True)
    kernel.is_busy(execution)
    kernel.says(execution, "input_request", "stdin", prompt="name?")
    await kernel.die()
    with pytest.raises(NoInputRequested):
        kernel.executions.answer(execution, "late")


# Looking and waiting


async def test_pages_have_the_newest_last(kernel: ScriptedKernel) -> None:
    ids = [kernel.send() for _ in range(5)]

    def page(limit: int, before: str | None = None) -> list[str]:
        return [execution.id for execution in kernel.executions.page(limit, before)]

    assert page(10) == ids
    assert page(2) == ids[3:]
    assert page(2, ids[3]) == ids[1:3]
    assert page(2, ids[0]) == []
    with pytest.raises(ExecutionNotFound):
        page(2, "none")


async def test_the_oldest_that_have_ended_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.managers.messages.traffic.EXECUTIONS_REMEMBERED", 3)
    kernel = ScriptedKernel()
    under_way = kernel.send()
    ended = [kernel.send() for _ in range(5)]
    for execution_id in ended:
        kernel.finishes(execution_id)
    known = [execution.id for execution in kernel.executions.page(10)]
    assert known == [under_way, *ended[2:]]
    with pytest.raises(ExecutionNotFound):
        kernel.execution(ended[0])


async def test_too_many_under_way_end_the_oldest(
    kernel: ScriptedKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execution_tracker, "MAX_UNFINISHED", 3)
    sent = [kernel.execution(kernel.send()) for _ in range(4)]
    assert [execution.state for execution in sent] == [LOST, QUEUED, QUEUED, QUEUED]


async def test_the_end_is_waited_for(kernel: ScriptedKernel) -> None:
    execution = kernel.run()
    assert not await kernel.executions.ended(execution, 0.05)
    waiting = [asyncio.create_task(kernel.executions.ended(execution, 30)) for _ in range(3)]
    await turns()
    kernel.finishes(execution)
    assert await asyncio.gather(*waiting) == [True, True, True]
    assert await kernel.executions.ended(execution, 0)
    assert execution.on_end == []


async def test_who_waits_in_vain_leaves_nothing_behind(kernel: ScriptedKernel) -> None:
    execution = kernel.run()
    task = asyncio.create_task(kernel.executions.ended(execution, 30))
    await turns()
    task.cancel()
    await asyncio.wait({task})
    assert execution.on_end == []


async def test_nobody_waits_for_a_server_that_stops(kernel: ScriptedKernel) -> None:
    execution: Execution = kernel.run()
    task = asyncio.create_task(kernel.executions.ended(execution, 30))
    await turns()
    kernel.executions.close_streams()
    assert not await task
    assert not await kernel.executions.ended(execution, 30)
    with pytest.raises(ServerStopping):
        kernel.run()
