"""Several clients of one kernel: the same output for all, replies for each."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.support.channels import JupyterChannels
from tests.support.framing import FramingName
from tests.support.running import KernelStarter, RunningKernel


async def _up_to_idle(client: JupyterChannels, msg_id: str, session: str) -> None:
    await client.seen(
        lambda m: (
            m.state == "idle"
            and m.parent_id == msg_id
            and m.parent_header.get("session") == session
        )
    )


async def test_all_see_the_same_output_in_the_same_order(
    start: KernelStarter, framing: FramingName
) -> None:
    kernel = await start("fake")
    clients = [await kernel.connect(framing=framing) for _ in range(3)]
    sent = [await client.send_execute("flood 50 100\nresult r") for client in clients]
    for client in clients:
        for msg_id in sent:
            await client.exchange(msg_id, replies=False)
    first, *others = [[m for m in client.log if m.channel == "iopub"][1:] for client in clients]
    assert len(first) == 3 * (50 + 4)
    for other in others:
        assert [vars(message) for message in other] == [vars(message) for message in first]


async def test_each_gets_its_own_replies_only(start: KernelStarter) -> None:
    kernel = await start("fake")
    framings: list[FramingName] = ["legacy", "v1", "legacy", "v1"]
    clients = [await kernel.connect(framing=framing) for framing in framings]
    sent = {
        client: [await client.send_execute(f"print {n}") for n in range(10)] for client in clients
    }
    for client, own in sent.items():
        for msg_id in own:
            assert (await client.exchange(msg_id)).reply["status"] == "ok"
        assert [m.parent_id for m in client.log if m.channel == "shell"] == own


async def test_the_same_msg_id_of_two_clients(start: KernelStarter, framing: FramingName) -> None:
    kernel = await start("fake")
    one, two = await kernel.connect(framing=framing), await kernel.connect(framing=framing)
    running = await kernel.busy("sleep 0.3")
    same: dict[str, Any] = {"msg_id": "the-same"}
    # Which of the two comes first is the network's choice: neither may abort the other.
    code = {"silent": False, "allow_stdin": False, "stop_on_error": False}
    await one.send("execute_request", {"code": "print one", **code}, **same)
    await two.send("execute_request", {"code": "error Two two", **code}, **same)
    for client, status in ((one, "ok"), (two, "error")):
        for session in (one.session, two.session):
            await _up_to_idle(client, "the-same", session)
        await client.seen(lambda m: m.channel == "shell")  # may come just after the idle status
        (reply,) = [m for m in client.log if m.channel == "shell"]
        assert reply.content["status"] == status
        assert reply.parent_header["session"] == client.session
    await kernel.channels.exchange(running)


async def test_the_same_msg_id_on_two_channels(start: KernelStarter, framing: FramingName) -> None:
    """The later one is answered first: its kernel's control is free, its shell is not."""
    kernel = await start("fake")
    one, two = await kernel.connect(framing=framing), await kernel.connect(framing=framing)
    await kernel.busy("sleep 60")
    same: dict[str, Any] = {"msg_id": "the-same"}
    await one.send("execute_request", {"code": "print one"}, **same)
    await two.send("comm_info_request", {}, "control", **same)
    reply = await two.seen(lambda m: m.channel == "control")
    assert (reply.msg_type, reply.parent_id) == ("comm_info_reply", "the-same")
    await kernel.rest.interrupt(kernel.id)
    reply = await one.seen(lambda m: m.channel == "shell")
    assert (reply.msg_type, reply.parent_id) == ("execute_reply", "the-same")
    assert [m.channel for m in one.log if m.channel == "control"] == []


async def test_one_that_leaves_in_the_middle_does_not_matter(
    start: KernelStarter, framing: FramingName
) -> None:
    kernel = await start("fake")
    leaving = await kernel.connect(framing=framing)
    staying = await kernel.connect(framing=framing)
    running = await staying.send_execute("flood 500 1000 1000\nprint end")
    await leaving.seen(lambda m: m.msg_type == "stream")
    leaving.websocket.transport.abort()
    exchange = await staying.exchange(running)
    assert len(exchange.of_type("stream")) == 501
    assert (await kernel.channels.exchange(running, replies=False)).text == exchange.text


async def test_many_clients_come_and_go_while_one_works(kernel: RunningKernel) -> None:
    async def visit(number: int) -> str:
        framing: FramingName = "v1" if number % 2 else "legacy"
        async with await kernel.connect(framing=framing) as visitor:
            return (await visitor.execute(f"print {number}")).text

    running = await kernel.channels.send_execute("print begun")
    texts = await asyncio.gather(*(visit(number) for number in range(30)))
    assert texts == [f"{number}\n" for number in range(30)]
    assert (await kernel.channels.exchange(running)).text == "begun\n"
    replies = [m.parent_id for m in kernel.channels.log if m.channel == "shell"]
    assert replies == [running]
