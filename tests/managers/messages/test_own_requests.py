"""What the answers to the server's own requests tell of a kernel."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from app.managers.messages.line import Line
from app.managers.messages.own_requests import OwnRequests
from app.protocol.compose import make_message


class _Line:
    session, kernel_id, connected = "ours", "k", True


def came_up() -> OwnRequests:
    """The requests to a kernel that has answered, and was heard on iopub."""
    own = OwnRequests(cast(Line, _Line()))
    own.on_reply(make_message("shell", "kernel_info_reply", {}, session="k"))
    own.on_iopub()
    return own


async def test_a_kernel_is_reachable_when_it_has_answered_and_was_heard() -> None:
    own = OwnRequests(cast(Line, _Line()))
    own.on_iopub()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(own.reachable(), 0.01)
    own.on_reply(make_message("shell", "kernel_info_reply", {}, session="k"))
    await asyncio.wait_for(own.reachable(), 10)


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
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(own.reachable(), 0.01)


async def test_one_that_had_come_up_for_the_server_before_is_reachable_at_once() -> None:
    own = OwnRequests(cast(Line, _Line()))
    own.on_resume(was_up=True)
    await asyncio.wait_for(own.reachable(), 10)
