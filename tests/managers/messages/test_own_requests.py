"""What the answers to the server's own requests tell of a kernel."""

from __future__ import annotations

import asyncio
import time
from typing import cast

import pytest

from app.managers.messages import own_requests
from app.managers.messages.line import Line
from app.managers.messages.own_requests import OwnRequests
from app.protocol.compose import make_message
from app.protocol.messages import ClientMessage


class _Line:
    session, kernel_id, connected = "ours", "k", True

    def __init__(self) -> None:
        self.asked = 0

    def send(self, message: ClientMessage, session: str) -> bool:
        assert message.header.msg_type == "kernel_info_request"
        self.asked += 1
        return True


def answer(own: OwnRequests) -> None:
    own.on_reply(make_message("shell", "kernel_info_reply", {}, session="k"))


def came_up() -> OwnRequests:
    """The requests to a kernel that has answered, and was heard on iopub."""
    own = OwnRequests(cast(Line, _Line()))
    answer(own)
    own.on_iopub()
    return own


async def test_a_kernel_is_reached_when_it_has_answered_and_was_heard() -> None:
    own = OwnRequests(cast(Line, _Line()))
    own.on_iopub()
    assert not await own.reach(0.01)
    reaching = asyncio.create_task(own.reach(60.0))
    await asyncio.sleep(0)
    assert not reaching.done()
    answer(own)
    assert await asyncio.wait_for(reaching, 10)


async def test_a_kernel_that_answers_and_is_not_heard_is_asked_again_soon() -> None:
    line = _Line()
    own = OwnRequests(cast(Line, line))
    reaching = asyncio.create_task(own.reach(3600.0, on_control=False))
    await asyncio.sleep(0)
    answer(own)
    assert not await asyncio.wait_for(reaching, 10)
    assert line.asked == 1
    reaching = asyncio.create_task(own.reach(3600.0, on_control=False))
    await asyncio.sleep(0)
    assert line.asked == 2
    own.on_iopub()
    assert await asyncio.wait_for(reaching, 10)


async def test_one_that_is_never_heard_is_asked_ever_more_seldom(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(own_requests, "HEARD_SECONDS", 0.01)
    own = OwnRequests(cast(Line, _Line()))
    answer(own)
    began = time.monotonic()
    for _ in range(6):
        assert not await own.reach(3600.0)
    assert time.monotonic() - began >= 0.6
    assert not await asyncio.wait_for(own.reach(0.01), 10)
    own.on_launch()
    answer(own)
    assert not await asyncio.wait_for(own.reach(3600.0), 10)


@pytest.mark.parametrize("begins", ["launch", "resume"])
async def test_what_the_process_before_has_said_makes_the_next_one_not_reachable(
    begins: str,
) -> None:
    own = came_up()
    if begins == "launch":
        own.on_launch()
    else:
        own.on_resume(was_up=False)
    assert not own.answered
    assert not own.heard_iopub
    assert not await own.reach(0.01)


async def test_one_that_had_come_up_for_the_server_before_is_reachable_at_once() -> None:
    own = OwnRequests(cast(Line, _Line()))
    own.on_resume(was_up=True)
    assert await asyncio.wait_for(own.reach(60.0), 10)
