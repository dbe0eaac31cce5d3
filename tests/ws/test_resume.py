"""A session that comes back gets what it has missed, however its connection broke."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import time

import pytest
from websockets.exceptions import ConnectionClosed

from tests.conftest import MakeServer
from tests.support.channels import JupyterChannels
from tests.support.framing import FramingName, Message
from tests.support.rest import RestClient
from tests.support.server import ServerProcess

COUNT = 6000
RATE = 1000  # a second


def reset(channels: JupyterChannels) -> None:
    """Break the connection as a network does: by a TCP reset, without a word."""
    transport = channels.websocket.transport
    connection: socket.socket = transport.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


def number_of(message: Message) -> int | None:
    """The number in a line of the fake kernel's flood."""
    if message.msg_type != "stream" or message.content["name"] != "stdout":
        return None
    return int(message.content["text"].split(maxsplit=1)[0])


class Returning:
    """A client with one session, whose connection is cut again and again."""

    def __init__(self, server: ServerProcess, kernel_id: str, framing: FramingName) -> None:
        self._server = server
        self._kernel_id = kernel_id
        self._framing = framing
        self.session = f"returning-{random.random()}"
        self.numbers: list[int] = []
        self.cuts = 0

    async def connect(self) -> JupyterChannels:
        return await JupyterChannels.connect(
            self._server.ws_url,
            self._kernel_id,
            self._server.token,
            framing=self._framing,
            session_id=self.session,
        )

    async def read_all(self, cuts: int, bytes_per_second: float | None = None) -> None:
        """Read until the last number, with so many cuts on the way."""
        while True:
            channels = await self.connect()
            until = time.monotonic() + random.uniform(0.0, 0.1)
            cut = False
            while True:
                try:
                    number = number_of(await channels.recv(20))
                except ConnectionClosed:
                    break
                if number is not None:
                    self.numbers.append(number)
                    if number == COUNT:
                        await channels.close()
                        return
                if bytes_per_second:
                    await asyncio.sleep(400 / bytes_per_second)
                # What the client's library has taken from the network is still read after a cut.
                if not cut and self.cuts < cuts and time.monotonic() > until:
                    cut = True
                    self.cuts += 1
                    reset(channels)

    def check(self) -> None:
        """Every number, in order; what came again, came again after a cut and in order too."""
        assert sorted(set(self.numbers)) == list(range(1, COUNT + 1))
        highest, steps_back = 0, 0
        for before, number in zip([0, *self.numbers], self.numbers, strict=False):
            if number <= before:
                steps_back += 1
                # What is sent again was written between two pings, or answered too late.
                assert highest - number < RATE * 2
            else:
                assert number == before + 1
            highest = max(highest, number)
        assert steps_back <= self.cuts


async def flood(server: ServerProcess, kernel_id: str) -> JupyterChannels:
    """A client that starts the counter and reads all the time."""
    channels = await JupyterChannels.connect(server.ws_url, kernel_id, server.token)
    await channels.send_execute(f"flood {COUNT} 20 {RATE}")
    return channels


@pytest.mark.timeout(300)
async def test_every_number_arrives_through_a_hundred_cuts(
    make_server: MakeServer, framing: FramingName
) -> None:
    server = make_server("--no-limit-rate")
    async with RestClient(server.url, server.token) as rest:
        kernel = await rest.start_kernel("fake")
        client = Returning(server, kernel["id"], framing)
        channels = await client.connect()  # its session has a place from here on
        await channels.close()
        starter = await flood(server, kernel["id"])
        await client.read_all(cuts=100)
        assert client.cuts >= 10  # more on a machine with nothing else to do
        client.check()
        await starter.close()


@pytest.mark.timeout(300)
async def test_three_clients_are_each_cut_on_their_own(make_server: MakeServer) -> None:
    server = make_server("--no-limit-rate")
    async with RestClient(server.url, server.token) as rest:
        kernel = await rest.start_kernel("fake")
        framings: tuple[FramingName, ...] = ("v1", "legacy", "v1")
        clients = [Returning(server, kernel["id"], framing) for framing in framings]
        for client in clients:
            await (await client.connect()).close()
        starter = await flood(server, kernel["id"])
        await asyncio.gather(
            clients[0].read_all(cuts=40),
            clients[1].read_all(cuts=40),
            clients[2].read_all(cuts=5, bytes_per_second=400_000),
        )
        for client in clients:
            client.check()
        await starter.close()


async def test_three_sessions_return_one_after_the_other_and_each_has_all(
    make_server: MakeServer,
) -> None:
    server = make_server()
    async with RestClient(server.url, server.token) as rest:
        kernel = await rest.start_kernel("fake")
        clients = [Returning(server, kernel["id"], framing) for framing in ("v1", "legacy", "v1")]
        for client in clients:
            await (await client.connect()).close()
        channels = await flood_at_once(server, kernel["id"], 10_000)
        await channels.close()
        await rest.wait_for_state(kernel["id"], "idle")
        for client in clients:
            returned = await client.connect()
            numbers: list[int] = []
            while not numbers or numbers[-1] < 10_000:
                number = number_of(await returned.recv(20))
                if number is not None:
                    numbers.append(number)
            assert numbers == list(range(1, 10_001))
            await returned.close()


async def flood_at_once(server: ServerProcess, kernel_id: str, count: int) -> JupyterChannels:
    channels = await JupyterChannels.connect(server.ws_url, kernel_id, server.token)
    await channels.send_execute(f"flood {count} 20")
    await channels.collect_until(lambda m: m.state == "busy" and bool(m.parent_header), 20)
    return channels
