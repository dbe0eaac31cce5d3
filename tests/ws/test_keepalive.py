"""``--websocket-ping-interval`` and ``--websocket-ping-timeout``: who is there, though silent,
stays connected; who is gone is noticed."""

from __future__ import annotations

import asyncio
import base64
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.conftest import MakeServer
from tests.support.processes import eventually
from tests.support.running import kernels_of
from tests.support.server import ServerProcess
from tests.support.streams import aborted

PING, CLOSE = 0x9, 0x8  # opcodes [RFC 6455, section 5.2]
INTERVAL, TIMEOUT = 0.5, 3.0


class RawClient:
    """A WebSocket that takes whatever comes, and never says a word: no pong, no close."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader
        self.opcodes: list[int] = []
        self.ended_at: float | None = None

    async def read(self) -> None:
        """Takes frames until the connection ends."""
        try:
            while True:
                first, length = await self._reader.readexactly(2)
                if length >= 126:
                    size = 2 if length == 126 else 8
                    length = int.from_bytes(await self._reader.readexactly(size), "big")
                await self._reader.readexactly(length)
                self.opcodes.append(first & 0xF)
        except (asyncio.IncompleteReadError, ConnectionError):
            self.ended_at = time.monotonic()


@asynccontextmanager
async def raw_client(server: ServerProcess, kernel_id: str) -> AsyncIterator[RawClient]:
    with aborted(await asyncio.open_connection("127.0.0.1", server.port)) as (reader, writer):
        writer.write(
            f"GET /api/kernels/{kernel_id}/channels HTTP/1.1\r\n"
            f"Host: 127.0.0.1:{server.port}\r\n"
            f"Authorization: token {server.token}\r\n"
            "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}\r\n\r\n".encode()
        )
        async with asyncio.timeout(30):
            response = await reader.readuntil(b"\r\n\r\n")
        assert response.startswith(b"HTTP/1.1 101 ")
        client = RawClient(reader)
        reading = asyncio.create_task(client.read())
        try:
            yield client
        finally:
            reading.cancel()
            await asyncio.wait({reading}, timeout=10)


async def test_one_that_answers_no_ping_is_cut_and_one_that_is_only_silent_is_not(
    make_server: MakeServer,
) -> None:
    server = make_server(
        *("--websocket-ping-interval", str(INTERVAL), "--websocket-ping-timeout", str(TIMEOUT))
    )
    async with kernels_of(server) as start:
        kernel = await start()
        silent = await kernel.connect(framing="v1")
        began = time.monotonic()
        async with raw_client(server, kernel.id) as dead:
            await kernel.has_connections(3)
            await kernel.has_connections(2)
            assert time.monotonic() - began >= TIMEOUT
            # It was asked whether it is there, and told that it was given up.
            assert PING in dead.opcodes
            await eventually(lambda: dead.ended_at is not None or CLOSE in dead.opcodes, 10)
        # Meanwhile nobody has said a word here.
        for channels in (silent, kernel.channels):
            assert (await channels.execute("print here")).text == "here\n"


async def test_without_pings_nobody_is_cut_for_being_silent(make_server: MakeServer) -> None:
    server = make_server("--websocket-ping-interval", "0", "--websocket-ping-timeout", "0.2")
    async with kernels_of(server) as start:
        kernel = await start()
        async with raw_client(server, kernel.id) as dead:
            await kernel.channels.execute("sleep 3")
            assert dead.ended_at is None
            assert CLOSE not in dead.opcodes
            await kernel.has_connections(2)


@pytest.mark.parametrize("timeout", ["1", "30"])
async def test_the_timeout_decides_for_how_long_it_may_be_quiet(
    make_server: MakeServer, timeout: str
) -> None:
    server = make_server("--websocket-ping-interval", "0.2", "--websocket-ping-timeout", timeout)
    async with kernels_of(server) as start:
        kernel = await start()
        await kernel.channels.close()
        async with raw_client(server, kernel.id) as dead:
            await eventually(lambda: PING in dead.opcodes, 30)
            if timeout == "1":
                await kernel.has_connections(0)
            else:
                await asyncio.sleep(3)  # nothing happens, so there is nothing to wait for
                await kernel.has_connections(1)
