"""What a WebSocket must do under every server: the ``kernelkeep`` command and plain uvicorn.

These are the tests of `app.ws.channels` and `app.managers.messages.submissions`.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from tests.conftest import MakeServer, servers
from tests.support.channels import Close
from tests.support.framing import FramingName
from tests.support.running import KernelStarter, RunningKernel, kernels_of
from tests.support.server import ServerProcess, UvicornServer

KINDS = {"kernelkeep": ServerProcess, "uvicorn": UvicornServer}


@pytest.fixture(scope="module", params=KINDS)
def server(request: pytest.FixtureRequest) -> Iterator[ServerProcess]:
    with servers(request.config) as make_server:
        yield make_server(kind=KINDS[request.param])


async def test_an_execution(kernel: RunningKernel, framing: FramingName) -> None:
    channels = await kernel.connect(framing=framing)
    exchange = await channels.execute("print some text\nstderr a warning\nresult 42")
    kinds = [message.msg_type for message in exchange.messages if message.channel == "iopub"]
    assert kinds == ["status", "execute_input", "stream", "stream", "execute_result", "status"]
    assert exchange.states == ["busy", "idle"]
    assert (exchange.text, exchange.stream("stderr")) == ("some text\n", "a warning\n")
    assert exchange.result == "42"
    assert exchange.reply["status"] == "ok"
    assert [reply.channel for reply in exchange.replies] == ["shell"]


async def test_buffers_both_ways(kernel: RunningKernel, framing: FramingName) -> None:
    channels = await kernel.connect(framing=framing)
    (display,) = (await channels.execute("buffers 3 100000")).of_type("display_data")
    assert display.buffers == [bytes([number]) * 100_000 for number in range(3)]
    sent = [b"", bytes(range(256)) * 1000, b"\x00\xff"]
    content = {"comm_id": "c", "data": {"n": 1}}
    exchange = await channels.request("comm_msg", content, buffers=sent, replies=False)
    (echo,) = exchange.of_type("comm_msg")
    assert (echo.content, echo.buffers) == (content, sent)


async def test_large_messages_both_ways(kernel: RunningKernel, framing: FramingName) -> None:
    channels = await kernel.connect(framing=framing)
    (huge,) = (await channels.execute("huge 2000000")).of_type("stream")
    assert huge.content["text"] == "x" * 2_000_000
    text = "é" * 50_000
    assert (await channels.execute(f"print {text}")).text == f"{text}\n"


async def test_much_output_is_complete_and_in_order(
    kernel: RunningKernel, framing: FramingName
) -> None:
    channels = await kernel.connect(framing=framing)
    exchange = await channels.execute("flood 2000 500")
    texts = [message.content["text"] for message in exchange.of_type("stream")]
    assert [int(text.split()[0]) for text in texts] == list(range(1, 2001))
    assert {len(text) for text in texts} == {500}


async def test_who_stops_at_the_reply_has_all_the_output(
    kernel: RunningKernel, framing: FramingName
) -> None:
    channels = await kernel.connect(framing=framing)
    for cell in range(125):  # 500 with both framings and servers
        request = await channels.send_execute(f"print {cell}\nflood 20 100\nprint end")
        messages = await channels.collect_until(lambda m: m.msg_type == "execute_reply")
        assert messages[-1].parent_id == request
        texts = [m.content["text"] for m in messages if m.msg_type == "stream"]
        assert (len(texts), texts[0], texts[-1]) == (22, f"{cell}\n", "end\n")


async def test_an_input_request_and_its_answer(kernel: RunningKernel, framing: FramingName) -> None:
    channels = await kernel.connect(framing=framing)
    exchange = await channels.execute("input name?", answers=["Ada é"])
    (request,) = exchange.of_type("input_request")
    assert (request.channel, request.content["prompt"]) == ("stdin", "name?")
    assert exchange.text == "Ada é\n"


async def test_two_clients_share_output_but_not_replies(
    start: KernelStarter, framing: FramingName
) -> None:
    kernel = await start("fake")
    one, two = await kernel.connect(framing=framing), await kernel.connect()
    first, second = await one.execute("print one"), await two.execute("print two")
    seen = {}
    for client in (one, two):
        await client.seen(lambda m: m.parent_id == second.msg_id and m.state == "idle")
        seen[client] = [m.msg_id for m in client.log if m.channel == "iopub" and m.parent_id]
    assert seen[one] == seen[two]
    for client, asked in ((one, first), (two, second)):
        replies = [m.parent_id for m in client.log if m.channel == "shell"]
        assert replies == [asked.msg_id]


async def test_a_session_that_returns_gets_what_it_missed(
    kernel: RunningKernel, framing: FramingName
) -> None:
    channels = await kernel.connect(framing=framing)
    await channels.execute("print before")
    await channels.close()
    await kernel.has_connections(1)
    missed = await kernel.channels.execute("flood 100 100")
    back = await kernel.connect(framing=framing, session_id=channels.session)
    await back.seen(lambda m: m.parent_id == missed.msg_id and m.state == "idle")
    expected = [m.msg_id for m in missed.messages if m.channel == "iopub"]
    assert [m.msg_id for m in back.log][1:] == expected


async def test_a_wrong_frame_ends_only_its_own_connection(
    kernel: RunningKernel, framing: FramingName
) -> None:
    channels = await kernel.connect(framing=framing)
    await channels.send_frame(b"\xff" * 100)
    close = await channels.closed()
    assert close.code == 1007
    assert close.reason
    assert (await kernel.channels.execute("print a")).text == "a\n"


async def test_after_a_delete_clients_know_that_the_kernel_is_gone(
    start: KernelStarter, framing: FramingName
) -> None:
    kernel = await start("fake")
    channels = await kernel.connect(framing=framing)
    await channels.execute("print a")
    await start.rest.delete(kernel.id)
    assert await channels.closed() == Close(4404, "the kernel was shut down")
    assert channels.log[-1].state == "dead"


@pytest.mark.parametrize("kind", KINDS)
async def test_a_server_that_ends_says_that_it_may_be_back(
    make_server: MakeServer, framing: FramingName, kind: str
) -> None:
    server = make_server(kind=KINDS[kind])
    async with kernels_of(server) as start:
        kernel = await start("fake")
        busy = await kernel.connect(framing=framing)
        await kernel.busy("sleep 60")
        starting = (await start("fake-slow", ready=False)).channels
        start.started.clear()  # there will be nobody to delete them
        server.send_signal(signal.SIGTERM)
        for channels in (busy, starting, kernel.channels):
            assert (await channels.closed()).code == 1012
    assert server.wait() in (0, -signal.SIGTERM)
