"""What real clients leave out or get wrong, and what must work all the same."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.framing import FramingName, encode_v1
from tests.support.framing import Message as Frame
from tests.support.running import RunningKernel

HEADER_FIELDS = ["date", "session", "username", "version"]
EVERYTHING = [*HEADER_FIELDS, "session_id", "channel", "buffers", "metadata", "parent_header"]


@pytest.mark.parametrize("omit", [*([name] for name in HEADER_FIELDS), HEADER_FIELDS])
async def test_header_fields_may_be_missing(
    kernel: RunningKernel, framing: FramingName, omit: list[str]
) -> None:
    channels = await kernel.connect(framing=framing, omit=omit)
    exchange = await channels.execute("print a\ninput b", answers=["c"])
    assert exchange.text == "a\nc\n"
    assert exchange.reply["status"] == "ok"


@pytest.mark.parametrize("name", HEADER_FIELDS)
@pytest.mark.parametrize("value", ["", None])
async def test_header_fields_may_be_empty(
    kernel: RunningKernel, framing: FramingName, name: str, value: str | None
) -> None:
    channels = await kernel.connect(framing=framing)
    field: dict[str, Any] = {name: value}
    exchange = await channels.request("kernel_info_request", **field)
    assert exchange.reply["implementation"] == "fake"


@pytest.mark.parametrize("omit", [*([name] for name in EVERYTHING), EVERYTHING])
async def test_a_legacy_message_may_be_little_more_than_its_header(
    kernel: RunningKernel, omit: list[str]
) -> None:
    channels = await kernel.connect(framing="legacy", omit=omit)
    assert (await channels.execute("print a")).text == "a\n"
    if "channel" not in omit:  # without it everything is for shell, answers too
        assert (await channels.execute("input b", answers=["c"])).text == "c\n"


@pytest.mark.parametrize("buffers", [{}, [], None])
async def test_no_buffers_may_be_written_in_any_way(kernel: RunningKernel, buffers: object) -> None:
    channels = await kernel.connect(framing="legacy")
    await channels.recv()
    message = {"header": channels.header("kernel_info_request"), "buffers": buffers}
    await channels.send_frame(json.dumps(message))
    assert (await channels.seen(lambda m: m.msg_type == "kernel_info_reply")).content


@pytest.mark.parametrize(
    "more",
    [
        {"parent_header": None, "metadata": None, "content": None},
        {"channel": None},
        {"msg_id": "other", "msg_type": "other", "unknown": [1, 2]},
        {"content": {}, "msg_id": None},
    ],
)
async def test_a_legacy_message_with_odd_parts(kernel: RunningKernel, more: dict[str, Any]) -> None:
    channels = await kernel.connect(framing="legacy")
    header = channels.header("kernel_info_request")
    await channels.send_frame(json.dumps({"header": header, **more}))
    reply = await channels.seen(lambda m: m.msg_type == "kernel_info_reply")
    assert reply.parent_id == header["msg_id"]


async def test_a_message_without_an_id_is_answered(
    kernel: RunningKernel, framing: FramingName
) -> None:
    channels = await kernel.connect(framing=framing)
    header = {"msg_type": "kernel_info_request"}
    if framing == "v1":
        await channels.send_frame(encode_v1(Frame("shell", header)))
    else:
        await channels.send_frame(json.dumps({"header": header}))
    reply = await channels.seen(lambda m: m.msg_type == "kernel_info_reply")
    assert reply.parent_id
    assert reply.parent_header["session"] == channels.session


async def test_a_session_in_the_header_other_than_the_connection_s(
    kernel: RunningKernel, framing: FramingName
) -> None:
    one = await kernel.connect(framing=framing)
    two = await kernel.connect(framing=framing)
    exchange = await one.request("kernel_info_request", session=two.session)
    assert exchange.reply["implementation"] == "fake"
    await two.execute("print a")
    assert exchange.msg_id not in {m.parent_id for m in two.log if m.channel == "shell"}


async def test_two_connections_without_a_session_id_are_two_clients(
    kernel: RunningKernel, framing: FramingName
) -> None:
    omit = ["session_id", "session"]
    one = await kernel.connect(framing=framing, omit=omit)
    two = await kernel.connect(framing=framing, omit=omit)
    first, second = await one.execute("print one"), await two.execute("print two")
    for client, own in ((one, first), (two, second)):
        await client.seen(lambda m: m.parent_id == second.msg_id and m.state == "idle")
        assert {m.parent_id for m in client.log if m.channel == "shell"} == {own.msg_id}


async def test_unknown_fields_reach_the_kernel_and_come_back(
    kernel: RunningKernel, framing: FramingName
) -> None:
    channels = await kernel.connect(framing=framing)
    exchange = await channels.request("kernel_info_request", subshell="é", extra={"a": [1.5]})
    for message in exchange.messages:
        assert message.parent_header["extra"] == {"a": [1.5]}
        assert message.parent_header["subshell"] == "é"
