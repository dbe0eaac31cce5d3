"""Frames that cost their sender nothing: pings, fragments, and what is ignored."""

from __future__ import annotations

import asyncio
import json
import struct
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.conftest import MakeServer
from tests.support.channels import JupyterChannels
from tests.support.processes import eventually, resident_memory
from tests.support.running import RunningKernel, kernels_of
from tests.support.server import ServerProcess
from tests.support.streams import Stream, aborted

UPGRADE = (
    b"Host: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
EMPTY_MASK = b"\0\0\0\0"


def frame(first: int, payload: bytes = b"") -> bytes:
    """A frame whose mask changes nothing."""
    assert len(payload) < 126
    return struct.pack("!BB", first, 0x80 | len(payload)) + EMPTY_MASK + payload


@asynccontextmanager
async def opened(server: ServerProcess, kernel_id: str) -> AsyncIterator[Stream]:
    with aborted(await asyncio.open_connection("127.0.0.1", server.port)) as (reader, writer):
        path = f"/api/kernels/{kernel_id}/channels?token={server.token}"
        writer.write(f"GET {path} HTTP/1.1\r\n".encode() + UPGRADE)
        assert b" 101 " in await reader.readuntil(b"\r\n\r\n")
        yield reader, writer


async def test_pings_of_a_client_that_reads_nothing_cost_nothing(
    server: ServerProcess, kernel: RunningKernel
) -> None:
    async with opened(server, kernel.id) as (_, writer):
        before = resident_memory(server.pid)
        pings = frame(0x89, b"p" * 125) * 1000
        ends = time.monotonic() + 3
        try:
            async with asyncio.timeout(3):
                while time.monotonic() < ends:
                    writer.write(pings)
                    await writer.drain()
        except TimeoutError:
            pass  # the server does not read them all
        assert resident_memory(server.pid) < before + 20 * 2**20
        assert (await kernel.channels.execute("print still here")).text == "still here\n"
    await kernel.has_connections(1)


async def test_pings_are_answered(server: ServerProcess, kernel: RunningKernel) -> None:
    async with opened(server, kernel.id) as (reader, writer), asyncio.timeout(30):
        writer.write(b"".join(frame(0x89, b"%d" % number) for number in range(350)))
        received = b""
        while b"349" not in received:
            received += await reader.read(65536)


async def test_a_message_has_a_bound_of_fragments(
    server: ServerProcess, kernel: RunningKernel
) -> None:
    async with opened(server, kernel.id) as (reader, writer), asyncio.timeout(30):
        writer.write(frame(0x02) + frame(0x00) * 20_000)
        received = await reader.read(-1)
    assert struct.pack("!H", 1009) in received
    assert (await kernel.channels.execute("print still here")).text == "still here\n"


async def test_ignored_frames_make_few_lines(server: ServerProcess, kernel: RunningKernel) -> None:
    channels: JupyterChannels = await kernel.connect(framing="legacy")
    header = {"msg_id": "m", "msg_type": "x", "session": "s"}
    mark = server.mark()
    began = time.monotonic()
    for _ in range(500):
        await channels.send_frame(json.dumps({"header": header, "channel": "none-such"}))
    assert (await channels.execute("print heard")).text == "heard\n"
    await eventually(lambda: "ignored" in server.output(mark))
    assert server.output(mark).count("ignored") <= time.monotonic() - began + 2


async def test_a_type_that_is_not_allowed_makes_few_lines(make_server: MakeServer) -> None:
    server = make_server("--allowed-message-types", "kernel_info_request,execute_request")
    async with kernels_of(server) as start:
        kernel = await start("fake")
        mark, began = server.mark(), time.monotonic()
        for _ in range(300):
            await kernel.channels.send("comm_info_request", {})
        assert (await kernel.channels.execute("print heard")).text == "heard\n"
        assert server.output(mark).count("not allowed") <= time.monotonic() - began + 2


@pytest.mark.parametrize("behind", [b"", frame(0x88)], ids=["alone", "close"])
async def test_text_that_is_not_utf8_ends_the_connection_alone(
    server: ServerProcess, kernel: RunningKernel, behind: bytes
) -> None:
    """The log has no traceback of it, whatever comes with it."""
    mark = server.mark()
    async with opened(server, kernel.id) as (reader, writer), asyncio.timeout(30):
        writer.write(frame(0x01, b"\xc8") + frame(0x80, b"\xff") + behind)
        received = await reader.read(-1)
    assert (b"\x88\x00" if behind else struct.pack("!H", 1007)) in received
    await kernel.has_connections(1)
    assert (await kernel.channels.execute("print still here")).text == "still here\n"
    assert "Traceback" not in server.output(mark)
