"""How many bytes of requests wait for one kernel (`app.managers.messages.outbox`)."""

from __future__ import annotations

import pytest

from app.managers.executions.held import BACKLOG_BYTES
from app.protocol.messages import Message
from tests.managers.scripted import ScriptedKernel


async def test_what_comes_while_a_process_ends_counts_until_the_next_process_takes_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kernel = ScriptedKernel()
    code = "x" * (BACKLOG_BYTES + 1)

    async def meanwhile(_: Message | None) -> None:
        kernel.send(code)

    monkeypatch.setattr(kernel.traffic.voice, "wait_until_said", meanwhile)
    await kernel.die()
    assert not kernel.traffic.has_room
    kernel.launch()
    kernel.be_ready()
    assert kernel.traffic.has_room
    assert [sent.content["code"] for sent in kernel.requests] == [code]


async def test_what_is_held_for_the_next_process_counts_when_that_does_not_come() -> None:
    kernel = ScriptedKernel()
    kernel.begin_restart()
    kernel.send("x" * (BACKLOG_BYTES + 1))
    assert not kernel.traffic.has_room
    kernel.traffic.retain_process()
    assert kernel.traffic.has_room
