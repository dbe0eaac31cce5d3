"""One client stops reading while the kernel says far more than is kept: nobody else is hurt."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

import pytest

from tests.conftest import MakeServer
from tests.support.channels import JupyterChannels
from tests.support.framing import FramingName
from tests.support.processes import resident_memory
from tests.support.running import RunningKernel, kernels_of
from tests.support.server import ServerProcess

pytestmark = pytest.mark.timeout(240)

MEGABYTE = 2**20
COUNT = 4000
SIZE = 50_000  # bytes; with COUNT 200 MB
RATE = 400  # messages a second: slow enough for a client that reads, on a loaded machine too
LOG_BYTES = 48 * MEGABYTE
# Of the server's memory besides its log: what the two connections have in their buffers, what the
# log drops in steps, and what an allocator gives back late or never. A queue for the one that
# does not read would have taken four times as much.
MARGIN = 48 * MEGABYTE
FLOOD = f"flood {COUNT} {SIZE} {RATE}"
TIMEOUT = 180.0


class Gap(NamedTuple):
    """What a notice says of output that is gone."""

    messages: int
    bytes: int


@asynccontextmanager
async def watched_memory(server: ServerProcess) -> AsyncIterator[list[int]]:
    """The bytes by which the server's memory has grown, looked at again and again."""
    before, grown = resident_memory(server.pid), [0]

    async def watch() -> None:
        while True:
            grown.append(resident_memory(server.pid) - before)
            await asyncio.sleep(0.1)

    task = asyncio.create_task(watch())
    try:
        yield grown
    finally:
        task.cancel()
        await asyncio.wait({task})


async def stalling(kernel: RunningKernel, framing: FramingName) -> JupyterChannels:
    """A client that reads nothing after its greeting."""
    channels = await kernel.connect(framing=framing, receive_buffer=4096, log_length=100)
    await channels.recv()
    return channels


async def read_all(channels: JupyterChannels, msg_id: str) -> list[int | Gap]:
    """The numbers of the output of a flood, and the gaps that are announced, to its end."""
    received: list[int | Gap] = []
    async with asyncio.timeout(TIMEOUT):
        while True:
            message = await channels.recv(TIMEOUT)
            if message.state == "idle" and message.parent_id == msg_id:
                return received
            if message.msg_type != "stream":
                continue
            text = message.content["text"]
            notice = re.search(r"(\d+) messages \((\d+) bytes\).*no longer kept", text)
            received.append(Gap(int(notice[1]), int(notice[2])) if notice else int(text.split()[0]))


def is_complete(received: list[int | Gap]) -> bool:
    """Whether each number is there in its order, or was announced to be gone."""
    position = 0
    for item in received:
        position += item.messages if isinstance(item, Gap) else 1
        if not isinstance(item, Gap) and item != position:
            return False
    return position == COUNT


async def goes_on(channels: JupyterChannels) -> None:
    exchange = await channels.execute("print here")
    assert exchange.text == "here\n"
    assert exchange.reply["status"] == "ok"


async def test_others_get_all_of_it_and_the_one_that_returns_is_told_what_is_gone(
    make_server: MakeServer, framing: FramingName
) -> None:
    server = make_server(
        *("--no-limit-rate", "--log-disk-bytes", "0", "--log-bytes", str(LOG_BYTES))
    )
    async with kernels_of(server) as start:
        kernel = await start()
        reading = await kernel.connect(framing=framing, log_length=100)
        await goes_on(reading)
        stalled = await stalling(kernel, framing)
        await kernel.channels.close()
        async with watched_memory(server) as grown:
            flood = await reading.send_execute(FLOOD)
            assert await read_all(reading, flood) == list(range(1, COUNT + 1))
            await goes_on(reading)
            assert (await kernel.model())["connections"] == 2

            received = await read_all(stalled, flood)
        assert max(grown) < LOG_BYTES + MARGIN
        assert is_complete(received)
        (gap,) = (item for item in received if isinstance(item, Gap))
        # As many bytes of messages, each with a header besides its text.
        assert SIZE < gap.bytes / gap.messages < SIZE + 1000
        assert len(received) * SIZE > LOG_BYTES / 4
        await goes_on(stalled)


async def test_with_room_on_disk_the_one_that_returns_misses_nothing(
    make_server: MakeServer, framing: FramingName
) -> None:
    server = make_server("--no-limit-rate", "--log-bytes", str(4 * MEGABYTE))
    async with kernels_of(server) as start:
        kernel = await start()
        reading = await kernel.connect(framing=framing, log_length=100)
        await goes_on(reading)
        stalled = await stalling(kernel, framing)
        await kernel.channels.close()
        async with watched_memory(server) as grown:
            flood = await reading.send_execute(FLOOD)
            assert await read_all(reading, flood) == list(range(1, COUNT + 1))
            received = await read_all(stalled, flood)
        assert max(grown) < 4 * MEGABYTE + MARGIN
        assert is_complete(received)
        # A disk that is far too slow may lose some, which the server then says.
        assert len(received) == COUNT or "not kept on disk" in server.output()
        await goes_on(stalled)
