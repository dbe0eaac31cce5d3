"""Interrupts that do not show: the kernel is woken by a request whose answer nobody sees."""

from __future__ import annotations

import asyncio

import pytest

from app.managers.messages import interrupts
from app.managers.messages.interrupts import InterruptWatch
from app.protocol.compose import make_message
from tests.managers.scripted import ScriptedKernel
from tests.support.processes import eventually

SECONDS = 0.05


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupts, "UNSEEN_SECONDS", SECONDS)


class Watched:
    """A kernel of which is known what its main shell runs, and how often it was woken."""

    def __init__(self) -> None:
        self.running: int | None = 1
        self.wakes = 0
        self.watch = InterruptWatch(lambda: self.running, self._wake)

    def _wake(self) -> None:
        self.wakes += 1

    async def woken(self, count: int) -> None:
        await eventually(lambda: self.wakes == count)

    async def looked(self) -> None:
        """Returns when a look that was due has been taken."""
        await asyncio.sleep(3 * SECONDS)


async def test_a_kernel_that_stays_busy_is_woken() -> None:
    kernel = Watched()
    kernel.watch.on_interrupt()
    assert kernel.wakes == 0
    await kernel.woken(1)
    await kernel.looked()
    assert kernel.wakes == 1


async def test_an_interrupt_that_shows_is_enough() -> None:
    kernel = Watched()
    kernel.watch.on_interrupt()
    kernel.running = None
    await kernel.looked()
    assert kernel.wakes == 0


async def test_one_that_comes_during_the_watch_is_watched_too() -> None:
    kernel = Watched()
    for _ in range(5):
        kernel.watch.on_interrupt()
    await kernel.woken(2)
    await kernel.looked()
    assert kernel.wakes == 2


async def test_a_kernel_that_takes_no_notice_is_not_woken_without_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(interrupts, "MAX_WAKES", 2)
    monkeypatch.setattr(interrupts, "UNSEEN_SECONDS", 0.01)
    kernel = Watched()
    for _ in range(4):
        kernel.watch.on_interrupt()
        await asyncio.sleep(0.05)
    assert kernel.wakes == 2
    kernel.running = 2
    kernel.watch.on_interrupt()
    await kernel.woken(3)


async def test_nothing_is_sent_when_the_process_is_gone() -> None:
    kernel = Watched()
    kernel.watch.on_interrupt()
    kernel.watch.clear()
    await kernel.looked()
    assert kernel.wakes == 0


async def test_the_answer_is_shown_to_nobody() -> None:
    kernel = ScriptedKernel()
    execution = kernel.run("await forever")
    kernel.is_busy(execution)
    kernel.traffic.interrupts.after()
    (sent,) = await eventually(lambda: kernel.sent("kernel_info_request"))
    assert sent.message.channel == "shell"
    clients = [kernel.traffic.clients.attach(name) for name in ("client", execution.session)]
    for state in ("busy", "idle"):
        content = {"execution_state": state}
        answer = make_message("iopub", "status", content, session="kernel", parent=sent.header)
        kernel.hears(answer)
    content = {"status": "ok", "implementation": "scripted"}
    kernel.hears(
        make_message("shell", "kernel_info_reply", content, session="kernel", parent=sent.header)
    )
    assert [client.take().entries for client in clients] == [[], []]
    assert execution.running
