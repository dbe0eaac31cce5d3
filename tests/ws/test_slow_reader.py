"""One client stops reading while the kernel says far more than is kept: nobody else is hurt.

Each test has one of the framings: what is kept, and who is behind, has nothing to do with it.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple, Self

from tests.conftest import MakeServer
from tests.support.channels import JupyterChannels
from tests.support.framing import FramingName, Message
from tests.support.processes import resident_memory
from tests.support.running import RunningKernel, kernels_of
from tests.support.server import ServerProcess

MEGABYTE = 2**20
FLOODS = 10
COUNT = 200
SIZE = 50_000  # bytes; FLOODS times COUNT of them are 100 MB
LOG_BYTES = 24 * MEGABYTE
# Of the server's memory besides its log: what the connections have in their buffers, what the log
# drops in steps, and what an allocator gives back late or never. A queue for the one that does
# not read would take three times as much.
MARGIN = 32 * MEGABYTE
TIMEOUT = 180.0


class Gap(NamedTuple):
    """What a notice says of output that is gone."""

    messages: int
    bytes: int

    @classmethod
    def of(cls, message: Message) -> Self | None:
        """The gap that a message announces, if it does."""
        text = message.content.get("text", "") if message.msg_type == "stream" else ""
        notice = re.search(r"(\d+) messages \((\d+) bytes\).*no longer kept", text)
        return cls(int(notice[1]), int(notice[2])) if notice else None


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


async def flood(channels: JupyterChannels) -> list[Message]:
    """All that this client gets while the kernel says 100 MB, none of which may be missing.

    The kernel goes on when this client has everything so far, so that it is never far behind,
    however slow the machine.
    """
    messages: list[Message] = []
    for _ in range(FLOODS):
        msg_id = await channels.send_execute(f"flood {COUNT} {SIZE}")
        ends: set[str] = set()
        numbers = []
        while ends != {"idle", "execute_reply"}:
            message = await channels.recv(TIMEOUT)
            assert message.parent_id == msg_id
            messages.append(message)
            if message.msg_type == "stream":
                numbers.append(int(message.content["text"].split()[0]))
                message.content.clear()  # too much to be kept
            elif message.msg_type == "execute_reply" or message.state == "idle":
                ends.add(message.state or message.msg_type)
        assert numbers == list(range(1, COUNT + 1))
    return messages


async def read_until(channels: JupyterChannels, last: Message) -> list[str | Gap]:
    """The ids of the messages, and the gaps that are announced, up to this message."""
    received: list[str | Gap] = []
    async with asyncio.timeout(TIMEOUT):
        while last.msg_id not in received[-1:]:
            message = await channels.recv(TIMEOUT)
            gap = Gap.of(message)
            received.append(gap or message.msg_id)
    return received


def is_explained(received: list[str | Gap], all_messages: list[Message]) -> bool:
    """Whether everything is there, in its order, or was announced, exactly, to be gone.

    Replies to another client are not shown, but count in a gap, as they take room in the log; so
    do the requests.
    """
    numbers = {message.msg_id: number for number, message in enumerate(all_messages)}
    position = gone = 0
    for item in received:
        if isinstance(item, Gap):
            gone += item.messages
            continue
        missing = all_messages[position : numbers[item]]
        shown = [number for number, message in enumerate(missing) if message.channel == "iopub"]
        # Whether a reply at its edge was in the gap, only the server knows.
        least = shown[-1] - shown[0] + 1 if shown else 0
        if not least <= gone <= len(missing) + FLOODS:
            return False
        position, gone = numbers[item] + 1, 0
    return gone == 0


def gaps(received: list[str | Gap]) -> list[Gap]:
    return [item for item in received if isinstance(item, Gap)]


def last_status(messages: list[Message]) -> Message:
    return next(message for message in reversed(messages) if message.state == "idle")


async def goes_on(channels: JupyterChannels) -> None:
    exchange = await channels.execute("print here")
    assert exchange.text == "here\n"
    assert exchange.reply["status"] == "ok"


async def test_others_get_all_of_it_and_the_one_that_returns_is_told_what_is_gone(
    make_server: MakeServer,
) -> None:
    server = make_server("--no-limit-rate", "--log-bytes", str(LOG_BYTES))
    async with kernels_of(server) as start:
        kernel = await start()
        reading = await kernel.connect(framing="legacy", log_length=100)
        await goes_on(reading)
        stalled = await stalling(kernel, "legacy")
        await kernel.channels.close()
        async with watched_memory(server) as grown:
            messages = await flood(reading)
            await goes_on(reading)
            assert (await kernel.model())["connections"] == 2

            received = await read_until(stalled, last_status(messages))
        assert max(grown) < LOG_BYTES + MARGIN
        assert is_explained(received, messages)
        (gap,) = gaps(received)
        # Nearly all of them have so much text, and all have a header.
        assert 0.95 * SIZE < gap.bytes / gap.messages < SIZE + 1000
        assert len(received) * SIZE > LOG_BYTES / 4
        await goes_on(stalled)


async def test_with_room_on_disk_the_one_that_returns_misses_nothing(
    make_server: MakeServer,
) -> None:
    server = make_server("--no-limit-rate")
    async with kernels_of(server) as start:
        kernel = await start()
        reading = await kernel.connect(framing="v1", log_length=100)
        await goes_on(reading)
        stalled = await stalling(kernel, "v1")
        await kernel.channels.close()
        async with watched_memory(server) as grown:
            messages = await flood(reading)
            received = await read_until(stalled, last_status(messages))
        assert max(grown) < MARGIN
        assert is_explained(received, messages)
        assert not gaps(received)
        await goes_on(stalled)
