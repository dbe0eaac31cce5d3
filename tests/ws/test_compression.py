"""``--websocket-compression``: permessage-deflate for clients that offer it, off by default."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conftest import MakeServer, servers
from tests.support.channels import JupyterChannels
from tests.support.framing import FramingName
from tests.support.processes import resident_memory
from tests.support.running import KernelStarter, kernels_of
from tests.support.server import ServerProcess

MEGABYTE = 2**20
LARGEST = 8 * MEGABYTE  # bytes of a client's frame


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest) -> Iterator[ServerProcess]:
    with servers(request.config) as make_server:
        size = ("--websocket-max-message-size", str(LARGEST))
        yield make_server("--websocket-compression", "--no-limit-rate", *size)


def extensions(channels: JupyterChannels) -> str:
    response = channels.websocket.response
    assert response is not None
    return response.headers.get("Sec-WebSocket-Extensions", "")


async def test_a_client_that_offers_it_gets_it(start: KernelStarter, framing: FramingName) -> None:
    kernel = await start()
    with_it = await kernel.connect(framing=framing, compression=True)
    without = await kernel.connect(framing=framing)
    assert extensions(with_it).startswith("permessage-deflate")
    assert extensions(without) == ""
    for channels in (with_it, without):
        exchange = await channels.execute("print here\nbuffers 2 1000\nresult r")
        assert exchange.text == "here\n"
        assert exchange.result == "r"
        (shown,) = exchange.of_type("display_data")
        assert shown.buffers == [b"\0" * 1000, b"\1" * 1000]


async def test_by_default_nobody_gets_it(make_server: MakeServer) -> None:
    async with kernels_of(make_server()) as start:
        kernel = await start()
        channels = await kernel.connect(compression=True)
        assert extensions(channels) == ""
        assert (await channels.execute("print here")).text == "here\n"


async def test_large_frames_both_ways(start: KernelStarter, framing: FramingName) -> None:
    kernel = await start()
    channels = await kernel.connect(framing=framing, compression=True)
    exchange = await channels.execute(f"huge {5 * MEGABYTE}\nbuffers 3 {MEGABYTE}")
    assert len(exchange.text) == 5 * MEGABYTE
    assert set(exchange.text) == {"x"}
    (shown,) = exchange.of_type("display_data")
    assert shown.buffers == [bytes([number]) * MEGABYTE for number in range(3)]
    await channels.request("comm_open", {"comm_id": "c", "target_name": "t"}, replies=False)
    content = {"comm_id": "c", "data": {"text": "y" * MEGABYTE}}
    buffers = [b"\x07" * (2 * MEGABYTE), b""]
    echo = await channels.request("comm_msg", content, buffers=buffers, replies=False)
    (echoed,) = echo.of_type("comm_msg")
    assert echoed.content == content
    assert echoed.buffers == buffers


async def test_many_small_frames_arrive_in_order(
    start: KernelStarter, framing: FramingName
) -> None:
    kernel = await start()
    channels = await kernel.connect(framing=framing, compression=True)
    exchange = await channels.execute("flood 2000 100")
    numbers = [int(m.content["text"].split()[0]) for m in exchange.of_type("stream")]
    assert numbers == list(range(1, 2001))


async def test_a_frame_that_is_only_small_while_it_is_compressed_is_refused(
    server: ServerProcess, start: KernelStarter
) -> None:
    """A hundred megabytes of nothing are a hundred kilobytes on the wire."""
    kernel = await start()
    channels = await kernel.connect(compression=True)
    before = resident_memory(server.pid)
    await channels.send_frame(b"\0" * (100 * MEGABYTE))
    assert (await channels.closed()).code == 1009
    assert resident_memory(server.pid) - before < 50 * MEGABYTE
    assert (await kernel.channels.execute("print here")).text == "here\n"
