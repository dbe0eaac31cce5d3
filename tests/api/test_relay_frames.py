"""The frames that replicas send each other: written together, and held up by who does not read.

What goes in them is in tests/api/test_relay.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvloop

from app.api.relay_frames import MAX_FRAME, WRITTEN_BYTES, Frames, pack
from tests.support.processes import eventually
from tests.support.streams import Stream, aborted

LOOPS = [
    pytest.param(asyncio.new_event_loop, id="asyncio"),
    pytest.param(uvloop.new_event_loop, id="uvloop"),
]


class Writes(asyncio.StreamWriter):
    """Counts what it is given to write."""

    def __init__(self, writer: asyncio.StreamWriter, reader: asyncio.StreamReader) -> None:
        protocol: Any = writer.transport.get_protocol()
        super().__init__(writer.transport, protocol, reader, asyncio.get_running_loop())
        self.sizes: list[int] = []

    def write(self, data: Any) -> None:
        self.sizes.append(len(data))
        super().write(data)


@asynccontextmanager
async def ends() -> AsyncIterator[tuple[Frames, Writes, Stream]]:
    """One end of a connection, what it writes with, and the other end."""
    ours, theirs = socket.socketpair()
    with (
        aborted(await asyncio.open_unix_connection(sock=ours)) as (reader, writer),
        aborted(await asyncio.open_unix_connection(sock=theirs)) as other,
    ):
        writes = Writes(writer, reader)
        yield Frames(reader, writes), writes, other
    for each in (writer, other[1]):
        with contextlib.suppress(OSError):
            await each.wait_closed()


def run(loop_factory: Callable[[], asyncio.AbstractEventLoop], test: Any) -> None:
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(asyncio.wait_for(test, 30))


@pytest.mark.parametrize("loop", LOOPS)
def test_what_is_said_in_one_turn_is_written_at_once_and_in_order(loop: Any) -> None:
    async def say_some() -> None:
        async with ends() as (frames, writes, other):
            there = Frames(*other)
            for number in range(5):
                frames.say("event", {"number": number})
            await frames.drain()
            for number in range(5):
                assert await there.next() == ("event", {"number": number})
            assert len(writes.sizes) == 1
            # What is much is written in the middle of a turn, and what is said before the end, too.
            frames.say("event", bytes(WRITTEN_BYTES))
            frames.say("end", None)
            assert len(writes.sizes) == 2
            frames.close()
            assert [(await there.next())[0] for _ in range(2)] == ["event", "end"]
            with pytest.raises(asyncio.IncompleteReadError):
                await there.next()

    run(loop, say_some())


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("size", [100, 2**14, 2**18])
def test_whoever_does_not_read_holds_up_whoever_says_more(loop: Any, size: int) -> None:
    """So a client that reads slowly costs neither of two replicas much memory."""

    async def say_much() -> None:
        async with ends() as (frames, writes, other):
            number = 2**25 // size
            said = 0

            async def say_all() -> None:
                nonlocal said
                for _ in range(number):
                    frames.say("event", bytes(size))
                    said += 1
                    await frames.drain()

            saying = asyncio.create_task(say_all())
            await eventually(lambda: writes.transport.get_write_buffer_size() > 0, 30)
            held_up = said
            for _ in range(10):
                await asyncio.sleep(0)
            assert said <= held_up + WRITTEN_BYTES // size + 1
            assert frames._size < WRITTEN_BYTES
            assert said * size < 2**23
            assert not saying.done()
            there = Frames(*other)
            for _ in range(number):
                kind, body = await there.next()
                assert (kind, len(body)) == ("event", size)
            await saying

    run(loop, say_much())


async def test_a_frame_that_is_too_long_is_no_frame() -> None:
    async with ends() as (frames, _, (_, writer)):
        writer.write((MAX_FRAME + 1).to_bytes(4, "big"))
        with pytest.raises(ValueError, match="too long"):
            await frames.next()
        frames.cut_off()
        with pytest.raises(ConnectionResetError):
            frames.say("event", {})
    assert frames.is_gone
    assert pack("end", None)[:4] == (len(pack("end", None)) - 4).to_bytes(4, "big")
