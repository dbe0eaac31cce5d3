"""Code that is sent after an interrupt waits for the end of what is interrupted, and runs."""

from __future__ import annotations

import json

import pytest

from app.managers.executions import tracker as execution_tracker
from app.managers.executions.execution import Execution, ExecutionState
from app.managers.messages import outbox
from app.protocol.messages import ClientMessage, Header
from tests.managers.scripted import ScriptedKernel
from tests.support.processes import eventually

QUEUED, RUNNING, OK, ERROR, ABORTED, CANCELLED, LOST = ExecutionState


@pytest.fixture
async def kernel(monkeypatch: pytest.MonkeyPatch) -> ScriptedKernel:
    monkeypatch.setattr(outbox, "FAILED_SECONDS", 0.05)
    return ScriptedKernel()


def interrupt(kernel: ScriptedKernel) -> None:
    kernel.traffic.interrupts.before()
    kernel.traffic.interrupts.after()


def running(kernel: ScriptedKernel) -> Execution:
    """A WebSocket client's."""
    execution = kernel.execution(kernel.send())
    kernel.is_busy(execution)
    return execution


def submit(kernel: ScriptedKernel, msg_type: str, subshell: str | None = None) -> str:
    fields = {"msg_id": f"{msg_type} {subshell}", "msg_type": msg_type, "session": "client"}
    header = json.dumps({**fields, "subshell_id": subshell}).encode()
    known = Header(fields["msg_id"], msg_type, "client", subshell)
    message = ClientMessage("shell", known, [header, b"{}", b"{}", b'{"code": ""}'])
    kernel.traffic.submit(message, "client")
    return fields["msg_id"]


def has(kernel: ScriptedKernel, msg_id: str, msg_type: str = "execute_request") -> bool:
    return msg_id in [sent.id for sent in kernel.sent(msg_type)]


async def test_code_waits_for_the_end_of_what_is_interrupted(kernel: ScriptedKernel) -> None:
    execution = running(kernel)
    before = kernel.send()
    interrupt(kernel)
    after = [kernel.send() for _ in range(3)]
    assert [sent.id for sent in kernel.requests] == [execution.id, before]
    kernel.says(execution, "error", ename="KeyboardInterrupt", evalue="", traceback=[])
    kernel.replies(execution, "error")
    kernel.is_idle(execution)
    assert not has(kernel, after[0])  # the kernel aborts what is in its queue
    await eventually(lambda: has(kernel, after[-1]))
    assert [sent.id for sent in kernel.requests] == [execution.id, before, *after]


async def test_it_waits_as_long_as_what_is_interrupted_goes_on(kernel: ScriptedKernel) -> None:
    looks = iter([True, True, True, False])
    execution_id, after = kernel.send(), kernel.send()
    interrupted, message = (sent.message for sent in kernel.requests)
    sent: list[ClientMessage] = []

    def transmit(message: ClientMessage, owner: str) -> bool:
        sent.append(message)
        return True

    box = outbox.Outbox(2**20)
    box.open(transmit)
    assert box.send(interrupted, "client")
    box.on_interrupt(execution_id, lambda: next(looks))
    assert not box.send(message, "client")
    assert box.has(after)
    await eventually(lambda: len(sent) == 2)
    assert next(looks, None) is None
    assert not box.has(after)


async def test_what_the_kernel_does_not_abort_does_not_wait(kernel: ScriptedKernel) -> None:
    running(kernel)
    interrupt(kernel)
    assert has(kernel, submit(kernel, "comm_msg"), "comm_msg")
    assert has(kernel, submit(kernel, "complete_request"), "complete_request")
    after = kernel.send()
    behind = submit(kernel, "comm_close")
    assert not has(kernel, after)
    assert not has(kernel, behind, "comm_close")  # on the main shell all is in order
    assert has(kernel, submit(kernel, "execute_request", "some subshell"))


async def test_an_interrupt_request_that_is_itself_in_the_queue_interrupts_nothing(
    kernel: ScriptedKernel,
) -> None:
    running(kernel)
    submit(kernel, "interrupt_request")
    assert has(kernel, kernel.send())


async def test_an_interrupt_of_nothing_holds_nothing_up(kernel: ScriptedKernel) -> None:
    interrupt(kernel)
    assert has(kernel, kernel.send())


async def test_another_interrupt_does_not_make_code_wait_for_itself(
    kernel: ScriptedKernel,
) -> None:
    execution = running(kernel)
    interrupt(kernel)
    after = kernel.send()
    interrupt(kernel)
    kernel.finishes(execution, "error")
    interrupt(kernel)  # when only what waits is left
    await eventually(lambda: has(kernel, after))


async def test_one_that_the_kernel_has_forgotten_is_not_waited_for(kernel: ScriptedKernel) -> None:
    execution = running(kernel)
    kernel.finishes(kernel.send())  # so the first is not at work any more
    interrupt(kernel)
    after = kernel.send()
    await eventually(lambda: has(kernel, after))
    assert execution.state is RUNNING


async def test_one_that_ends_without_an_idle_status_is_not_waited_for_any_longer(
    kernel: ScriptedKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execution_tracker, "IDLE_SECONDS", 0.05)
    execution = running(kernel)
    interrupt(kernel)
    after = kernel.send()
    kernel.replies(execution, "error")
    (probe,) = await eventually(lambda: kernel.probes_on_control)
    kernel.answers_probe(probe)
    await eventually(lambda: has(kernel, after))
    assert execution.state is ERROR


async def test_what_waits_ends_with_the_kernel(kernel: ScriptedKernel) -> None:
    execution = running(kernel)
    interrupt(kernel)
    after = kernel.execution(kernel.send())
    await kernel.die()
    assert [execution.state, after.state] == [LOST, ABORTED]
    kernel.launch()
    kernel.be_ready()
    assert has(kernel, kernel.send())


# Asked for over HTTP


async def test_what_is_asked_for_after_an_interrupt_is_not_aborted_by_its_error(
    kernel: ScriptedKernel,
) -> None:
    interrupted, before = kernel.run(), kernel.run()
    kernel.is_busy(interrupted)
    interrupt(kernel)
    after = kernel.run()
    interrupt(kernel)
    kernel.replies(interrupted, "error")
    kernel.is_idle(interrupted)
    assert [one.state for one in (interrupted, before, after)] == [ERROR, ABORTED, QUEUED]
    await eventually(lambda: has(kernel, after.id))


async def test_the_error_of_another_aborts_it(kernel: ScriptedKernel) -> None:
    interrupted = kernel.run()
    kernel.is_busy(interrupted)
    interrupt(kernel)
    after, behind = kernel.run(), kernel.run()
    kernel.finishes(interrupted, "error")
    await eventually(lambda: has(kernel, after.id))
    kernel.finishes(after, "error")
    assert behind.state is ABORTED
