"""A connection that was closed, whose client takes nothing more."""

from __future__ import annotations

import asyncio
import socket

import pytest
import uvicorn
import uvloop
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState
from websockets.frames import Frame, Opcode

from app.ws import uvicorn_protocol
from app.ws.uvicorn_protocol import KernelkeepWebSocketProtocol
from tests.support.processes import eventually

UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


class Stuck(asyncio.Transport):
    """A connection whose peer takes nothing: it is gone only when it is cut."""

    protocol: KernelkeepWebSocketProtocol
    closing = False
    aborted = False
    queued = 1

    def write(self, data: bytes | bytearray | memoryview) -> None:
        pass

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return self.queued

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True

    def abort(self) -> None:
        self.closing = self.aborted = True
        asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    while (event := await receive())["type"] != "websocket.disconnect":
        if event["text"] == "close":
            await send({"type": "websocket.close"})


async def opened() -> tuple[KernelkeepWebSocketProtocol, Stuck]:
    config = uvicorn.Config(application, log_config=None, lifespan="off")
    config.load()
    transport = Stuck()
    transport.protocol = KernelkeepWebSocketProtocol(config, ServerState(), {})
    transport.protocol.connection_made(transport)
    transport.protocol.data_received(UPGRADE)
    await eventually(lambda: transport.protocol.handshake_complete)
    return transport.protocol, transport


def frame(opcode: Opcode, data: bytes) -> bytes:
    return Frame(opcode, data).serialize(mask=True)


async def test_the_server_stops_although_a_client_does_not_take_the_answer_to_its_close() -> None:
    protocol, transport = await opened()
    protocol.data_received(frame(Opcode.CLOSE, b"\x03\xe8"))
    assert not transport.aborted
    protocol.shutdown()
    assert transport.aborted
    await eventually(lambda: not protocol.connections)


@pytest.mark.parametrize(
    "sent",
    [
        frame(Opcode.CLOSE, b"\x03\xe8"),
        frame(Opcode.TEXT, b"close"),
        frame(Opcode.TEXT, b"\xff"),
        b"\xff\xff",
    ],
    ids=["close", "text", "no-text", "no-frame"],
)
async def test_one_that_was_closed_is_cut_in_the_end(
    monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(uvicorn_protocol, "CLOSED_SECONDS", 0.01)
    protocol, transport = await opened()
    protocol.data_received(sent)
    await eventually(lambda: transport.aborted)
    await eventually(lambda: not protocol.connections)


async def test_one_that_was_closed_is_not_cut_while_its_client_takes_something(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(uvicorn_protocol, "CLOSED_SECONDS", 0.01)
    protocol, transport = await opened()
    transport.queued = 4
    looks = []

    def take() -> int:
        looks.append(transport.queued)
        transport.queued = max(1, transport.queued - 1)
        return looks[-1]

    monkeypatch.setattr(transport, "get_write_buffer_size", take)
    protocol.data_received(frame(Opcode.CLOSE, b"\x03\xe8"))
    await eventually(lambda: transport.aborted)
    assert looks[-2:] == [1, 1]
    assert 3 in looks


async def _protocol_over(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether a connection of this loop sends what is mapped."""
    ours, theirs = socket.socketpair()
    config = uvicorn.Config(application, ws=KernelkeepWebSocketProtocol)
    config.load()
    with theirs:
        transport, protocol = await loop.create_connection(
            lambda: KernelkeepWebSocketProtocol(config, ServerState(), {}), sock=ours
        )
        transport.abort()
        return protocol.sends_mapped


async def _here() -> bool:
    return await _protocol_over(asyncio.get_running_loop())


def test_only_transports_that_do_not_read_what_is_written_send_what_is_mapped() -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(_here())
    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        assert not runner.run(_here())
    # TLS encrypts what is written, in this process. uvloop has another transport for that.
    kinds = {name for name in vars(uvloop.loop) if name.endswith("Transport")}
    assert kinds >= {*uvicorn_protocol._UNTOUCHED}
    assert not any("SSL" in name for name in uvicorn_protocol._UNTOUCHED)
