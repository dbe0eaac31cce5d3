"""What `app.uvicorn_internals` declares is what uvicorn has, does, and all that is used of it."""

from __future__ import annotations

import ast
import asyncio
import inspect
import signal
import textwrap
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket
from uvicorn.server import ServerState
from websockets.frames import Frame, Opcode

import app
from app import uvicorn_internals
from app.api.uvicorn_protocol import KernelkeepHTTPProtocol
from app.serving import _Server
from app.uvicorn_internals import HTTPProtocol, Server, WebSocketProtocol
from app.ws.uvicorn_protocol import KernelkeepWebSocketProtocol

type_of = pytest.mark.parametrize(
    ("ours", "between"),
    [
        (KernelkeepHTTPProtocol, HTTPProtocol),
        (KernelkeepWebSocketProtocol, WebSocketProtocol),
        (_Server, Server),
    ],
)


class Transport(asyncio.Transport):
    """A connection whose peer is this test."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.is_read = True
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += bytes(data)

    def pause_reading(self) -> None:
        self.is_read = False

    def resume_reading(self) -> None:
        self.is_read = True

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol


@asynccontextmanager
async def lifespan(_: Starlette) -> AsyncIterator[dict[str, str]]:
    yield {"found": "here"}


async def hello(request: Request) -> PlainTextResponse:
    await request.body()
    return PlainTextResponse("hello")


async def echo(websocket: WebSocket) -> None:
    await websocket.accept()
    async for text in websocket.iter_text():
        await websocket.send_text(text)


def config(**options: Any) -> uvicorn.Config:
    routes = [Route("/", hello, methods=["GET", "POST"]), WebSocketRoute("/ws", echo)]
    application = Starlette(routes=routes, lifespan=lifespan)
    config = uvicorn.Config(application, log_config=None, lifespan="on", **options)
    config.load()
    return config


def live(kind: Any) -> Any:
    """An object of one of the three classes, as uvicorn makes it."""
    if issubclass(kind, uvicorn.Server):
        return kind(config())
    protocol = kind(config(ws=WebSocketProtocol), ServerState(), {})
    protocol.connection_made(Transport())
    return protocol


def tree(kind: type) -> ast.Module:
    return ast.parse(textwrap.dedent(inspect.getsource(kind)))


def own_names(kind: type) -> set[str]:
    """What a class defines itself, and sets on its objects."""
    stored = {
        node.attr
        for node in ast.walk(tree(kind))
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and node.attr.startswith("_")
    }
    return {*vars(kind), *inspect.get_annotations(kind), *stored}


def of_uvicorn(between: type) -> type:
    (base,) = between.__bases__
    assert base.__module__.partition(".")[0] == "uvicorn"
    return base


@type_of
def test_the_hooks_are_uvicorns_methods(ours: type, between: Any) -> None:
    base = of_uvicorn(between)
    for name in between.hooks:
        theirs = inspect.signature(getattr(base, name)).parameters
        assert [*inspect.signature(getattr(ours, name)).parameters] == [*theirs], name


@type_of
def test_nothing_else_is_overridden(ours: type, between: Any) -> None:
    base = of_uvicorn(between)
    overridden = {name for name in vars(ours) if hasattr(base, name) and name[:2] != "__"}
    assert overridden == {*between.hooks}
    added = {name for name in vars(between) if hasattr(base, name) and name[:2] != "__"}
    assert not added, "what stands between hides something of uvicorn's"


@type_of
async def test_what_is_declared_is_there(ours: type, between: Any) -> None:
    found = live(between)
    if isinstance(found, WebSocketProtocol):
        found.data_received(upgrade())
    elif isinstance(found, HTTPProtocol):
        found.data_received(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    elif isinstance(found, Server):
        found.lifespan = found.config.lifespan_class(found.config)
    for name, wanted in inspect.get_annotations(between).items():
        if "ClassVar" not in str(wanted):
            assert hasattr(found, name), name


@type_of
def test_nothing_else_is_used(ours: type, between: Any) -> None:
    allowed = own_names(ours) | own_names(between) | {*between.hooks} | {*dir(asyncio.Protocol)}
    used = {
        node.attr
        for node in ast.walk(tree(ours))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    }
    assert used <= allowed, used - allowed


def test_nobody_else_imports_what_is_not_documented() -> None:
    root = Path(app.__file__).parent
    found = {
        str(path.relative_to(root))
        for path in root.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("uvicorn.")
    }
    assert found == {Path(uvicorn_internals.__file__).name}


# What uvicorn does


def upgrade() -> bytes:
    lines = (
        *("GET /ws HTTP/1.1", "Host: localhost", "Connection: Upgrade", "Upgrade: websocket"),
        *("Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="),
    )
    return "\r\n".join([*lines, "", ""]).encode()


async def until(condition: Any) -> None:
    """Give the application's task its turns."""
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("the application has not come so far")


class Wrapped:
    """What a response is written to in the place of the transport."""

    def __init__(self, answer: uvicorn_internals.RequestResponseCycle) -> None:
        self.writes: list[bytes] = []
        self.method = answer.scope["method"]
        self.was_started = answer.response_started

    def write(self, data: bytes) -> None:
        self.writes.append(data)

    def is_closing(self) -> bool:
        return False


class Wrapping(HTTPProtocol):
    wrapped: Wrapped | None = None

    def _wrap(self, answer: uvicorn_internals.RequestResponseCycle) -> Wrapped:
        self.wrapped = Wrapped(answer)
        return self.wrapped

    def on_headers_complete(self) -> None:
        self.begin_answer(self._wrap)


async def test_a_response_is_written_to_what_stands_in_for_the_transport() -> None:
    protocol = live(Wrapping)
    assert protocol.is_idle
    protocol.data_received(b"POST /?a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\n")
    assert (protocol.url, protocol.http_version) == (b"/?a", "1.1")
    assert (b"host", b"localhost") in protocol.headers
    assert not protocol.is_idle
    assert (protocol.wrapped.method, protocol.wrapped.was_started) == ("POST", False)
    protocol.data_received(b"x")
    await until(lambda: protocol.is_idle)
    head, *body = protocol.wrapped.writes
    assert head.startswith(b"HTTP/1.1 200 ")
    assert b"".join(body) == b"hello"
    assert not protocol.transport.written
    assert protocol.is_timed
    protocol.data_received(b"\r\n")
    assert not protocol.is_timed
    assert protocol in protocol.others


async def test_a_client_that_waits_for_its_go_ahead_is_known() -> None:
    protocol = live(HTTPProtocol)
    head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nExpect: 100-continue\r\n\r\n"
    protocol.data_received(head)
    assert protocol.waits_for_application
    await until(lambda: b"100 Continue" in protocol.transport.written)
    assert not protocol.waits_for_application
    protocol.data_received(b"x")
    await until(lambda: protocol.is_idle)


@pytest.mark.parametrize("sent", [b"nonsense\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"])
async def test_what_is_refused_is_answered_by_the_hook(sent: bytes) -> None:
    class Refusing(HTTPProtocol):
        refused = 0

        def on_headers_complete(self) -> None:
            raise ValueError("not this one")

        def send_400_response(self, msg: str) -> None:
            self.refused += 1

    protocol = live(Refusing)
    protocol.data_received(sent)
    assert protocol.refused == 1
    assert protocol.answer is None


async def test_a_websocket_is_no_response() -> None:
    protocol = live(Wrapping)
    protocol.data_received(upgrade())
    assert protocol.answer is None
    assert isinstance(protocol.transport.protocol, WebSocketProtocol)
    await until(lambda: protocol.transport.written.startswith(b"HTTP/1.1 101 "))


def frame(opcode: Opcode, data: bytes, *, fin: bool = True) -> bytes:
    return Frame(opcode, data, fin).serialize(mask=True)


async def opened(kind: type[WebSocketProtocol] = WebSocketProtocol) -> Any:
    protocol = live(kind)
    assert not protocol.handshake_initiated
    protocol.data_received(upgrade())
    assert (protocol.handshake_initiated, protocol.handshake_complete) == (True, False)
    assert protocol.response.status_code == 101
    assert "websocket.http.response" in protocol.extensions, "before the application has run"
    assert protocol.request_line[1] == "/ws"
    await until(lambda: protocol.handshake_complete)
    return protocol


async def test_each_frame_is_given_to_its_hook() -> None:
    heard: list[str] = []

    class Hearing(WebSocketProtocol):
        def handle_cont(self, event: Frame) -> None:
            heard.append("cont")
            super().handle_cont(event)

        def handle_ping(self) -> None:
            heard.append("ping")
            super().handle_ping()

        def handle_pong(self, event: Frame) -> None:
            heard.append(f"pong {bytes(event.data).decode()}")
            super().handle_pong(event)

        def handle_close(self, event: Frame) -> None:
            heard.append("close")
            super().handle_close(event)

        def send_receive_event_to_app(self) -> None:
            heard.append(f"message {b''.join(self.frames).decode()} {self.is_text}")
            super().send_receive_event_to_app()

    protocol = await opened(Hearing)
    protocol.data_received(frame(Opcode.TEXT, b"a", fin=False) + frame(Opcode.CONT, b"b"))
    assert not protocol.transport.is_read
    assert protocol.read_paused
    await until(lambda: protocol.transport.written.endswith(b"\x81\x02ab"))
    assert protocol.transport.is_read
    protocol.data_received(frame(Opcode.PING, b"p") + frame(Opcode.PONG, b"q"))
    assert protocol.transport.written.endswith(b"\x8a\x01p")
    protocol.data_received(frame(Opcode.CLOSE, b"\x03\xe8"))
    assert heard == ["cont", "message ab True", "ping", "pong q", "close"]
    assert protocol.transport.closed


async def test_a_full_transport_is_not_writable() -> None:
    protocol = await opened()
    protocol.pause_writing()
    assert not protocol.writable.is_set()
    protocol.resume_writing()
    assert protocol.writable.is_set()


async def test_a_connection_that_fails_is_closed() -> None:
    protocol = await opened()
    protocol.conn.fail(1007, "nonsense")
    protocol.fail()
    assert (protocol.close_sent, protocol.transport.closed) == (True, True)
    assert protocol.transport.written.endswith(b"\x03\xefnonsense")


async def test_the_keepalive_waits_for_a_pong() -> None:
    protocol = await opened()
    protocol.ping_for_keepalive()
    ping = protocol.transport.written[-6:]
    assert ping[:2] == b"\x89\x04"
    assert protocol.pong_timer is not None
    protocol.data_received(frame(Opcode.PONG, ping[2:]))
    assert protocol.pong_timer is None
    protocol.ping_for_keepalive()
    protocol.keepalive_timeout()
    assert protocol.transport.closed


async def test_a_lost_connection_tells_the_application() -> None:
    protocol = await opened()
    protocol.connection_lost(None)
    assert protocol.disconnected
    assert protocol.writable.is_set()
    with pytest.raises(uvicorn_internals.ClientDisconnected):
        await protocol.send({"type": "websocket.send", "text": "too late"})


async def test_the_server_calls_its_hooks_in_order() -> None:
    steps: list[str] = []

    class Stepping(Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            steps.append(f"started {self.started} {self.lifespan_state['found']}")

        async def main_loop(self) -> None:
            assert not await self.is_to_end()
            steps.append("Date" if self.server_state.default_headers[0][0] == b"date" else "none")
            assert self.connections == set()
            self.handle_exit(signal.SIGINT, None)
            self._captured_signals.clear()  # or they would be raised once more
            assert await self.is_to_end()
            self.handle_exit(signal.SIGINT, None)
            self._captured_signals.clear()
            steps.append(f"force {self.force_exit}")
            self.force_exit = False

        async def shutdown(self, sockets: Any = None) -> None:
            await super().shutdown(sockets)
            steps.append("shut down")

    await Stepping(config(host="127.0.0.1", port=0)).serve()
    assert steps == ["started True here", "Date", "force True", "shut down"]


def test_what_is_declared_can_be_resolved() -> None:
    for between in (HTTPProtocol, WebSocketProtocol, Server):
        assert get_type_hints(between, vars(uvicorn_internals))
