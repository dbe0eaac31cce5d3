"""A client that takes nothing any more is given up in the end, and holds nobody up until then."""

from __future__ import annotations

import asyncio
import time

from app.managers.executions.held import BACKLOG_BYTES
from tests.conftest import MakeServer
from tests.support.channels import JupyterChannels
from tests.support.framing import FramingName
from tests.support.kernelspecs import Spec
from tests.support.running import RunningKernel, kernels_of

COUNT = 400
FLOOD = f"flood {COUNT} 50000"  # 20 MB: more than all buffers on the way hold
PING_INTERVAL, PING_TIMEOUT = 0.5, 2.0  # no less: we answer as well, on a loaded machine


async def stall(kernel: RunningKernel, framing: FramingName = "legacy") -> JupyterChannels:
    """A client that reads nothing, and for which all buffers are full."""
    stalled = await kernel.connect(framing=framing, receive_buffer=4096, log_length=100)
    await stalled.recv()
    exchange = await kernel.channels.execute(FLOOD)
    assert len(exchange.of_type("stream")) == COUNT
    return stalled


async def test_it_is_cut_when_it_answers_no_ping_and_others_go_on(
    make_server: MakeServer, framing: FramingName
) -> None:
    server = make_server(
        *("--no-limit-rate", "--websocket-ping-interval", str(PING_INTERVAL)),
        *("--websocket-ping-timeout", str(PING_TIMEOUT), "--log-bytes", str(32 * 2**20)),
    )
    async with kernels_of(server) as start:
        kernel = await start()
        stalled = await stall(kernel, framing)
        deadline = time.monotonic() + 30
        # Whoever reads answers pings as well, so this one reads on.
        while (await kernel.model())["connections"] == 2:
            assert time.monotonic() < deadline
            await kernel.channels.execute("sleep 0.1")
        assert (await kernel.model())["connections"] == 1
        # What was cut off can come back, and goes on where it was.
        again = await kernel.connect(framing=framing, session_id=stalled.session)
        numbers: list[int] = []
        while not numbers or numbers[-1] < COUNT:
            message = await again.recv()
            if message.msg_type == "stream":
                numbers.append(int(message.content["text"].split(maxsplit=1)[0]))
        assert numbers == list(range(numbers[0], COUNT + 1))
        stalled.websocket.transport.abort()


async def test_one_that_reads_slowly_but_reads_is_not_cut(make_server: MakeServer) -> None:
    server = make_server(
        *("--no-limit-rate", "--websocket-ping-interval", str(PING_INTERVAL)),
        *("--websocket-ping-timeout", str(PING_TIMEOUT), "--log-bytes", str(32 * 2**20)),
    )
    async with kernels_of(server) as start:
        kernel = await start()
        slow = await kernel.connect(framing="legacy", receive_buffer=4096, log_length=100)
        await kernel.channels.send_execute(FLOOD)
        numbers: list[int] = []
        while not numbers or numbers[-1] < COUNT:
            message = await slow.recv()
            if message.msg_type == "stream":
                numbers.append(int(message.content["text"].split(maxsplit=1)[0]))
                # Twenty a second at first: the ping lies behind what the buffers hold.
                await asyncio.sleep(0.05 if len(numbers) < 100 else 0)
        assert numbers == list(range(1, COUNT + 1))


async def test_its_kernel_is_deleted_at_once_all_the_same(make_server: MakeServer) -> None:
    server = make_server("--no-limit-rate", "--shutdown-wait-time", "20")
    async with kernels_of(server) as start:
        kernel = await start()
        stalled = await stall(kernel)
        async with asyncio.timeout(9):
            await kernel.rest.delete(kernel.id)
        assert (await kernel.channels.closed()).code == 4404
        stalled.websocket.transport.abort()


async def test_the_server_stops_within_its_bound_all_the_same(make_server: MakeServer) -> None:
    server = make_server("--no-limit-rate")
    async with kernels_of(server) as start:
        kernel = await start()
        stalled = await stall(kernel)
        start.started.clear()
        await asyncio.to_thread(server.stop, 20)
        stalled.websocket.transport.abort()


async def test_one_that_vanishes_while_it_is_held_back_is_noticed(make_server: MakeServer) -> None:
    """Its own requests wait for a kernel that takes none, so it is not being read from."""
    server = make_server(
        *("--websocket-ping-interval", str(PING_INTERVAL)),
        *("--websocket-ping-timeout", str(PING_TIMEOUT)),
        specs={"late": Spec(flags=("--slow-start", "600"))},
    )
    async with kernels_of(server) as start:
        kernel = await start("late", ready=False)
        held_back = await kernel.connect()
        for _ in range(5):
            await held_back.send_execute("print " + BACKLOG_BYTES // 3 * "x")
        # Being held back is no reason to be cut.
        await asyncio.sleep(2 * (PING_INTERVAL + PING_TIMEOUT))
        assert (await kernel.model())["connections"] == 2
        held_back.websocket.transport.abort()
        await kernel.has_connections(1)
