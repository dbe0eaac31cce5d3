"""Requests that a kernel drops, or goes idle for without a reply: each gets an end.

These are the tests of `app.managers.messages.request_ends`.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from app.managers.executions import unanswered
from app.managers.executions.execution import NO_REPLY, Execution
from app.managers.log.message_log import Reader
from app.protocol.compose import make_message
from app.protocol.messages import ClientMessage, Header
from tests.managers.scripted import ScriptedKernel
from tests.support.processes import eventually


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bounds are seconds; nothing here needs them."""
    monkeypatch.setattr(unanswered, "REPLY_SECONDS", 0.05)
    monkeypatch.setattr(unanswered.Overdue, "pauses", (0.05, 0.1))
    monkeypatch.setattr(unanswered.Subshells, "pauses", (0.05, 0.1))


@pytest.fixture
def patient(soon: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server waits for an answer that a test gives, however slow the machine is."""
    monkeypatch.setattr(unanswered, "REPLY_SECONDS", 60.0)


def submit(
    kernel: ScriptedKernel, msg_type: str, channel: str = "shell", subshell: str | None = None
) -> bytes:
    """A request of a client's; its header."""
    fields = {"msg_id": f"{msg_type} {subshell}", "msg_type": msg_type, "session": "client"}
    header = json.dumps({**fields, "subshell_id": subshell}).encode()
    parts = [header, b"{}", b"{}", b'{"code": ""}']
    known = Header(fields["msg_id"], msg_type, "client", subshell)
    kernel.traffic.submit(ClientMessage(channel, known, parts), "client")
    return header


def says(kernel: ScriptedKernel, header: bytes, state: str) -> None:
    content = {"execution_state": state}
    kernel.hears(make_message("iopub", "status", content, session="kernel", parent=header))


def replies(reader: Reader, msg_type: str) -> list[dict[str, Any]]:
    found = []
    while entries := reader.take().entries:
        found += [e.message for e in entries if e.message.msg_type == msg_type]
    return [json.loads(bytes(message.part(3))) for message in found]


async def first_reply(reader: Reader, msg_type: str) -> dict[str, Any]:
    def found() -> list[dict[str, Any]]:
        seen.extend(replies(reader, msg_type))
        return seen

    seen: list[dict[str, Any]] = []
    (content,) = await eventually(found)
    return content


@pytest.mark.parametrize("channel", ["shell", "control"])
@pytest.mark.parametrize(
    "kind", ["complete", "history", "inspect", "is_complete", "comm_info", "some_unknown"]
)
async def test_a_request_without_a_reply_gets_one(kind: str, channel: str) -> None:
    kernel = ScriptedKernel()
    reader = kernel.traffic.clients.attach("client")
    header = submit(kernel, f"{kind}_request", channel)
    says(kernel, header, "busy")
    says(kernel, header, "idle")
    content = await first_reply(reader, f"{kind}_reply")
    assert (content["status"], content["ename"]) == ("error", "NoReply")


async def test_a_reply_that_comes_a_little_later_is_the_only_one() -> None:
    kernel = ScriptedKernel()
    reader = kernel.traffic.clients.attach("client")
    first, second = submit(kernel, "complete_request"), submit(kernel, "inspect_request")
    for header in (first, second):
        says(kernel, header, "busy")
        says(kernel, header, "idle")
    kernel.hears(
        make_message("shell", "complete_reply", {"status": "ok"}, session="kernel", parent=first)
    )
    found: list[dict[str, Any]] = []

    def other_has_come() -> bool:
        while entries := reader.take().entries:
            found.extend(
                {"type": e.message.msg_type, **json.loads(bytes(e.message.part(3)))}
                for e in entries
                if e.message.msg_type.endswith("_reply")
            )
        return any(reply["type"] == "inspect_reply" for reply in found)

    await eventually(other_has_come)
    assert [(reply["type"], reply["status"]) for reply in found] == [
        ("complete_reply", "ok"),
        ("inspect_reply", "error"),
    ]


async def test_one_that_is_at_work_is_waited_for() -> None:
    kernel = ScriptedKernel()
    reader = kernel.traffic.clients.attach("client")
    says(kernel, submit(kernel, "complete_request"), "busy")
    header = submit(kernel, "inspect_request")
    says(kernel, header, "busy")
    says(kernel, header, "idle")
    await first_reply(reader, "inspect_reply")
    assert replies(kernel.traffic.clients.attach("client", reader.position), "complete_reply") == []


# Executions


async def answers_something_else(kernel: ScriptedKernel, number: int = 0) -> None:
    """The main shell answers a later question of the server's."""
    await eventually(lambda: len(kernel.probes) > number, interval=0.005)
    kernel.hears(
        make_message(
            *("shell", "kernel_info_reply", {"status": "ok"}),
            session="kernel",
            parent=kernel.probes[number].header,
        )
    )


@pytest.mark.usefixtures("patient")
async def test_an_execution_ends_when_it_is_clear_that_no_reply_will_come() -> None:
    kernel = ScriptedKernel()
    reader = kernel.traffic.clients.attach("client")
    first, held = kernel.execution(kernel.send()), kernel.run()
    kernel.is_busy(first)
    kernel.says(first, "execute_input", code="1", execution_count=7)
    kernel.is_idle(first)
    assert not first.ended
    await answers_something_else(kernel)
    await eventually(lambda: first.ended)
    assert (first.state, first.reason, first.execution_count) == ("lost", NO_REPLY, 7)
    assert held.sent
    (reply,) = replies(reader, "execute_reply")
    assert reply == {"status": "aborted"}


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("cancelled", [False, True])
async def test_an_error_that_was_published_is_known_without_the_reply(cancelled: bool) -> None:
    kernel = ScriptedKernel()
    execution, behind = kernel.run(), kernel.run()
    kernel.is_busy(execution)
    if cancelled:
        await kernel.executions.cancel(execution)
    kernel.says(execution, "execute_input", code="1", execution_count=7)
    kernel.says(execution, "error", ename="KeyboardInterrupt", evalue="", traceback=[])
    kernel.is_idle(execution)
    await answers_something_else(kernel)
    await eventually(lambda: execution.ended)
    assert execution.state == ("cancelled" if cancelled else "error")
    assert execution.execution_count == 7
    assert behind.state == ("queued" if cancelled else "aborted")


@pytest.mark.usefixtures("patient")
async def test_the_reply_in_its_place_has_the_error_that_was_published_of_it() -> None:
    kernel = ScriptedKernel()
    reader = kernel.traffic.clients.attach("client")
    execution = kernel.execution(kernel.send())
    other = submit(kernel, "complete_request")
    kernel.is_busy(execution)
    kernel.says(execution, "execute_input", code="1", execution_count=7)
    error = {"ename": "ValueError", "evalue": "other", "traceback": []}
    kernel.hears(make_message("iopub", "error", error, session="kernel", parent=other))
    lies: dict[str, Any] = {**error, "evalue": "own", "status": "ok", "execution_count": "many"}
    kernel.says(execution, "error", **lies)
    kernel.is_idle(execution)
    await answers_something_else(kernel)
    await eventually(lambda: execution.ended)
    assert (execution.state, execution.execution_count) == ("error", 7)
    (reply,) = replies(reader, "execute_reply")
    assert reply == {**error, "evalue": "own", "status": "error", "execution_count": 7}


@pytest.mark.usefixtures("patient")
async def test_a_reply_that_comes_first_is_what_counts() -> None:
    kernel = ScriptedKernel()
    execution = kernel.run()
    kernel.is_busy(execution)
    kernel.is_idle(execution)
    await eventually(lambda: kernel.probes)
    kernel.replies(execution)
    assert execution.state == "ok"
    await answers_something_else(kernel)
    await eventually(lambda: not _looking("overdue"))
    assert execution.state == "ok"


async def test_a_kernel_that_answers_nothing_may_still_reply() -> None:
    kernel = ScriptedKernel()
    execution = kernel.run()
    kernel.is_busy(execution)
    kernel.is_idle(execution)
    await eventually(lambda: kernel.probes and not _looking("overdue"))
    assert not execution.ended
    kernel.replies(execution)
    assert execution.state == "ok"


def _looking(name: str) -> bool:
    return any(task.get_name() == name for task in asyncio.all_tasks())


# Subshells


def asked(kernel: ScriptedKernel) -> list[bytes]:
    """The headers of the questions which subshells there are."""
    return [
        sent.header
        for sent in kernel._sockets.sent
        if sent.message.header.msg_type == "list_subshell_request"
    ]


async def answer(kernel: ScriptedKernel, content: dict[str, Any], number: int = 0) -> None:
    await eventually(lambda: len(asked(kernel)) > number)
    kernel.hears(
        make_message(
            *("control", "list_subshell_reply", content),
            session="kernel",
            parent=asked(kernel)[number],
        )
    )


@pytest.mark.parametrize("cancelled", [False, True])
async def test_an_execution_in_a_subshell_that_is_gone_ends(cancelled: bool) -> None:
    kernel = ScriptedKernel()
    reader = kernel.traffic.clients.attach("client")
    submit(kernel, "execute_request", subshell="gone")
    execution = kernel.execution("execute_request gone")
    if cancelled:
        await kernel.executions.cancel(execution, kill_after=0.1)
    await answer(kernel, {"status": "ok", "subshell_id": ["another"]})
    await eventually(lambda: execution.ended)
    assert execution.state == ("cancelled" if cancelled else "lost")
    assert execution.reason == "The kernel has no subshell 'gone'"
    (reply,) = replies(reader, "execute_reply")
    assert (reply["ename"], reply["evalue"]) == ("NoSubshell", execution.reason)
    assert kernel.kills == 0


async def test_one_in_a_subshell_that_is_there_waits_for_its_turn() -> None:
    kernel = ScriptedKernel()
    submit(kernel, "execute_request", subshell="there")
    execution = kernel.execution("execute_request there")
    await answer(kernel, {"status": "ok", "subshell_id": ["there"]})
    await answer(kernel, {"status": "ok", "subshell_id": []}, 1)
    await eventually(lambda: execution.ended)  # it was deleted before it began


@pytest.mark.parametrize("content", [{"status": "error"}, {}, {"subshell_id": 7}])
async def test_a_kernel_that_tells_of_no_subshells_may_run_it(content: dict[str, Any]) -> None:
    kernel = ScriptedKernel()
    header = submit(kernel, "execute_request", subshell="x")
    execution = kernel.execution("execute_request x")
    await answer(kernel, content)
    await answer(kernel, content, 1)
    assert not execution.ended
    says(kernel, header, "busy")
    assert execution.running
    await asyncio.sleep(0)


# Requests that a kernel drops


@pytest.fixture
def looked_for_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unanswered.Dropped, "pauses", (0.05, 0.1))


@pytest.mark.usefixtures("looked_for_soon", "patient")
async def test_an_execution_that_the_kernel_drops_ends_and_those_behind_it_run() -> None:
    kernel = ScriptedKernel()
    reader = kernel.traffic.clients.attach("client")
    dropped, held = kernel.execution(kernel.send()), kernel.run()
    await answers_something_else(kernel)
    await eventually(lambda: dropped.ended)
    reason = "The kernel has dropped the request: it has answered a later one"
    assert (dropped.state, dropped.reason) == ("aborted", reason)
    assert held.sent
    (reply,) = replies(reader, "execute_reply")
    assert reply == {"status": "aborted"}


@pytest.mark.usefixtures("looked_for_soon", "patient")
async def test_one_that_begins_while_the_kernel_is_asked_goes_on() -> None:
    kernel = ScriptedKernel()
    execution = kernel.execution(kernel.send())
    await eventually(lambda: kernel.probes)
    kernel.is_busy(execution)
    await answers_something_else(kernel)
    kernel.is_idle(execution)
    kernel.replies(execution)
    assert execution.state == "ok"
    await eventually(lambda: not _looking("dropped"))


@pytest.mark.usefixtures("looked_for_soon")
async def test_a_kernel_that_answers_nothing_may_begin_yet() -> None:
    kernel = ScriptedKernel()
    execution = kernel.execution(kernel.send())
    await eventually(lambda: len(kernel.probes) > 1)
    assert not execution.ended
    kernel.is_busy(execution)
    assert execution.running


async def test_what_waits_behind_code_or_for_the_kernel_is_not_suspected() -> None:
    kernel = ScriptedKernel()
    suspects = kernel.traffic.ends._suspects
    assert suspects() is None
    first = kernel.execution(kernel.send())
    await eventually(lambda: suspects() == [first])
    kernel.is_busy(first)
    second = kernel.execution(kernel.send())
    assert suspects() == []
    kernel.is_idle(first)
    kernel.replies(first)
    await eventually(lambda: suspects() == [second])
    kernel.begin_restart()
    waiting = kernel.execution(kernel.send())
    assert waiting not in (suspects() or ())


async def test_one_behind_long_code_is_looked_for_as_soon_as_any_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Twenty pauses would be hours if each were twice the one before.
    monkeypatch.setattr(unanswered.Dropped, "pauses", (0.01, 10_000.0))
    kernel = ScriptedKernel()
    looks = 0

    def suspects() -> list[Execution]:
        nonlocal looks
        looks += 1
        return [] if looks < 20 else [dropped]

    ended: list[Execution] = []
    dropped = kernel.execution(kernel.send())
    watch = unanswered.Dropped(suspects, _answers, ended.append)
    watch.watch()
    await eventually(lambda: ended)
    watch.clear()
    assert ended[0] is dropped


async def test_a_kernel_that_does_not_answer_is_asked_more_and_more_rarely() -> None:
    pauses: list[float] = []

    async def no_answer(_: float) -> bool:
        return False

    dropped = ScriptedKernel().run()
    watch = unanswered.Dropped(lambda: [dropped], no_answer, lambda _: None)
    pause: float | None = watch.pauses[0]
    while pause is not None and pause not in pauses:
        pauses.append(pause)
        pause = await watch._look(pause)
    assert (pauses, pause) == ([5.0], 5.0)  # it is a suspect at the second look
    pauses = []
    while pause is not None and pause not in pauses:
        pauses.append(pause)
        pause = await watch._look(pause)
    assert pauses == [5.0, 10.0, 20.0, 40.0, 60.0]


# Looks that fail


async def _answers(_: float) -> bool:
    return True


async def test_a_look_that_fails_is_told_and_the_next_one_follows(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ended: list[Execution] = []
    fails = True

    def fail_once(execution: Execution) -> None:
        nonlocal fails
        if fails:
            fails = False
            raise RuntimeError("a fault")
        ended.append(execution)

    kernel = ScriptedKernel()
    execution = kernel.run()
    monkeypatch.setattr(unanswered.Dropped, "pauses", (0.01, 0.02))

    async def none(_: float = 0.0) -> list[str]:
        return []

    overdue = unanswered.Overdue(_answers, fail_once)
    overdue.add(execution)
    await eventually(lambda: ended and not _looking("overdue"))
    dropped = unanswered.Dropped(lambda: [execution], _answers, fail_once)
    subshells = unanswered.Subshells(none, lambda one, _: fail_once(one))
    fails = True
    dropped.watch()
    await eventually(lambda: len(ended) > 1)
    dropped.clear()
    fails = True
    subshells.add(kernel.run(), "x")
    await eventually(lambda: not _looking("subshells"))
    assert all(f"({name}) failed" in caplog.text for name in ("overdue", "dropped", "subshells"))
    assert caplog.text.count("RuntimeError: a fault") == 3


async def test_the_end_of_a_task_forgets_no_newer_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unanswered.Overdue, "pauses", (10_000.0, 10_000.0))
    execution = ScriptedKernel().run()
    overdue = unanswered.Overdue(_answers, lambda _: None)
    overdue.add(execution)
    older = overdue._task
    assert older is not None
    await asyncio.sleep(0)  # it has begun
    overdue.clear()
    overdue.add(execution)
    newer = overdue._task
    await asyncio.wait({older})
    assert overdue._task is newer is not None
    overdue.clear()


async def test_nothing_is_left_of_a_process_that_is_gone() -> None:
    kernel = ScriptedKernel()
    header = submit(kernel, "complete_request")
    says(kernel, header, "idle")
    submit(kernel, "execute_request", subshell="x")
    execution = kernel.run()
    kernel.is_busy(execution)
    kernel.is_idle(execution)
    assert _looking("overdue")
    await kernel.be_buried()
    names = ("subshells", "overdue", "dropped")
    await eventually(lambda: not any(map(_looking, names)))


async def test_all_that_one_turn_can_end_is_said(caplog: pytest.LogCaptureFixture) -> None:
    kernel = ScriptedKernel()
    with kernel.together():
        for _ in range(2500):
            kernel.send()
        kernel.traffic.ends.finish_all("The kernel died")
        assert len(kernel.traffic.voice._unsaid) > 5000
    assert not kernel.traffic.voice._unsaid
    assert caplog.text == ""
