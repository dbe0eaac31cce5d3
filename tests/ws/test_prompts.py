"""A client that comes back, or another in its place, is shown the prompt that is still open."""

from __future__ import annotations

import pytest

from tests.support.channels import JupyterChannels
from tests.support.framing import FramingName, Message
from tests.support.running import KernelStarter, RunningKernel


async def _ask(channels: JupyterChannels) -> Message:
    await channels.send_execute("input name?", allow_stdin=True)
    return await channels.seen(lambda m: m.msg_type == "input_request")


async def _greeted(kernel: RunningKernel, channels: JupyterChannels) -> list[str]:
    """What a new connection is told before it is told anything of its own."""
    msg_id = await channels.send("kernel_info_request", channel="control")
    await channels.exchange(msg_id)
    return [m.msg_type for m in channels.log if m.parent_id != msg_id]


@pytest.mark.parametrize("session", ["mine", "other"])
async def test_a_page_that_is_reloaded_is_shown_the_prompt_again(
    start: KernelStarter, framing: FramingName, session: str
) -> None:
    kernel = await start("fake")
    channels = await kernel.connect(framing=framing, session_id="mine")
    question = await _ask(channels)
    await channels.close()
    await kernel.has_connections(1)
    back = await kernel.connect(framing=framing, session_id=session)
    status, again = await back.recv(), await back.recv()
    assert (status.state, status.parent_header) == ("busy", {})
    assert vars(again) == vars(question)
    await back.answer(again, "Ada")
    await back.seen(lambda m: m.content.get("text") == "Ada\n")
    await back.close()
    await kernel.has_connections(1)
    late = await kernel.connect(session_id="late")
    assert "input_request" not in await _greeted(kernel, late)


async def test_with_numbers_it_is_shown_before_all_that_has_one(
    start: KernelStarter, framing: FramingName
) -> None:
    kernel = await start("fake")
    channels = await kernel.connect(session_id="mine")
    question = await _ask(channels)
    await channels.close()
    await kernel.has_connections(1)
    back = await kernel.connect(framing=framing, session_id="other", query={"after": "0"})
    again = await back.seen(lambda m: m.msg_type == "input_request")
    assert again.msg_id == question.msg_id
    assert [m.msg_type for m in back.log] == ["status", "input_request"]


async def test_a_connection_that_was_cut_goes_on_without_a_second_prompt(
    start: KernelStarter, framing: FramingName
) -> None:
    kernel = await start("fake")
    channels = await kernel.connect(framing=framing, session_id="mine")
    question = await _ask(channels)
    # A pong tells that the client has it.
    await (await channels.websocket.ping())
    channels.websocket.transport.abort()
    await kernel.has_connections(1)
    back = await kernel.connect(framing=framing, session_id="mine")
    msg_id = await back.send("kernel_info_request", channel="control")
    await back.exchange(msg_id)
    asked = [m.msg_id for m in back.log if m.msg_type == "input_request"]
    # The server may not know yet that it has arrived; it is told once then.
    assert asked in ([], [question.msg_id])
    await back.answer(question, "Ada")
    await back.seen(lambda m: m.content.get("text") == "Ada\n")


async def test_it_is_nobody_elses_as_long_as_its_own_client_is_there(start: KernelStarter) -> None:
    kernel = await start("fake")
    await _ask(kernel.channels)
    other = await kernel.connect(session_id="other")
    assert "input_request" not in await _greeted(kernel, other)


async def test_what_is_asked_over_http_is_not_shown_to_pages(start: KernelStarter) -> None:
    kernel = await start("fake")
    path = f"/api/kernels/{kernel.id}/executions"
    await kernel.rest.http.post(path, json={"code": "input name?", "allow_stdin": True})
    await kernel.channels.seen(lambda m: m.msg_type == "execute_input")
    other = await kernel.connect(session_id="other")
    assert "input_request" not in await _greeted(kernel, other)


async def test_a_late_answer_never_becomes_the_answer_to_the_next(
    start: KernelStarter, framing: FramingName
) -> None:
    kernel = await start("python3")
    channels = await kernel.connect(framing=framing)
    code = "a = input('a? '); b = input('b? '); print([a, b])"
    running = await channels.send_execute(code, allow_stdin=True)
    first = await channels.seen(lambda m: m.msg_type == "input_request")
    await channels.answer(first, "once")
    second = await channels.seen(
        lambda m: m.msg_type == "input_request" and m.msg_id != first.msg_id
    )
    await channels.answer(first, "twice")
    await channels.answer(second, "other")
    exchange = await channels.exchange(running)
    assert exchange.text.endswith("['once', 'other']\n")
    await channels.send("input_reply", {"value": "early"}, "stdin")
    exchange = await channels.execute("print(input('c? '))", answers=["in time"])
    assert exchange.text.endswith("in time\n")
