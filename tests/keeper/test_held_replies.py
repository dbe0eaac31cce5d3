"""Replies that wait for the output before them, by a clock that the test turns."""

from __future__ import annotations

import asyncio

import pytest

from app.keeper import held_replies
from app.keeper.held_replies import HeldReplies
from app.keeper.requests import Request
from app.protocol.compose import make_parts
from app.protocol.messages import ClientMessage
from tests.support.messages import said
from tests.support.processes import eventually

REPLY = said("execute_reply", {"status": "ok"}, channel="shell")


def request(name: str) -> Request:
    header, parts = make_parts("execute_request", {"code": name}, "me")
    return Request(ClientMessage("shell", header, parts), "me")


class Replies:
    """Held replies, those that were let go, and whether output is still unread."""

    def __init__(self) -> None:
        self.gone: list[Request] = []
        self.is_behind = False
        self.held = HeldReplies(self.release, lambda: self.is_behind)

    def release(self, request: Request) -> None:
        if request.held is not None:
            request.held = None
            self.gone.append(request)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_replies, "HOLD_SECONDS", 0.01)
    monkeypatch.setattr(held_replies, "MAX_HOLD_SECONDS", 0.1)


@pytest.mark.usefixtures("quick")
async def test_those_of_a_kernel_that_never_goes_idle_go_in_order() -> None:
    replies, asked = Replies(), [request("a"), request("b")]
    for one in asked:
        replies.held.hold(one, REPLY)
    await eventually(lambda: len(replies.gone) == 2, interval=0.001)
    assert replies.gone == asked


@pytest.mark.usefixtures("quick")
async def test_one_that_the_idle_status_lets_go_is_passed_over() -> None:
    replies, first, second = Replies(), request("a"), request("b")
    replies.held.hold(first, REPLY)
    replies.held.hold(second, REPLY)
    replies.release(first)
    await eventually(lambda: len(replies.gone) == 2, interval=0.001)
    assert replies.gone == [first, second]


@pytest.mark.usefixtures("quick")
async def test_while_output_is_unread_they_wait_longer_but_not_for_ever() -> None:
    replies, asked, loop = Replies(), request("a"), asyncio.get_running_loop()
    replies.is_behind = True
    began = loop.time()
    replies.held.hold(asked, REPLY)
    await eventually(lambda: replies.gone, interval=0.001)
    assert loop.time() - began >= 0.1


@pytest.mark.usefixtures("quick")
async def test_those_that_are_forgotten_do_not_go() -> None:
    replies = Replies()
    replies.held.hold(request("a"), REPLY)
    for _ in range(2):
        replies.held.clear()
    later = request("b")
    replies.held.hold(later, REPLY)
    await eventually(lambda: replies.gone, interval=0.001)
    assert replies.gone == [later]
