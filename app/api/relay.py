"""Requests and WebSockets that one replica takes for another, over a unix socket between them.

What goes over the socket are the events of ASGI as they are, in frames: the replica that has the
kernel runs its own application with them. Nothing is translated, so streams, refusals and close
codes are those of that replica, and so is the check who asks: the caller's own credentials go with
the request, and the socket gives nobody a right. It is in a directory of the user's own, and takes
processes of the same user alone.

A connection carries one request. Its first frame has the version of this format and the request's
scope. A WebSocket's frames to the client go as bytes that the other end writes as they stand, where
both ends have the extension (`FrameWriter`); what the client has acknowledged comes back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable, Iterable, MutableMapping, Sequence
from pathlib import Path
from struct import Struct
from typing import Any, Final

import msgspec
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..keeper.protocol import address_of, is_own_peer
from ..managers.log.entries import Position
from ..ws.sending import EXTENSION, FrameWriter
from ..ws.uvicorn_protocol import KernelkeepWebSocketProtocol

__all__ = ["RELAYED", "Broken", "RelayServer", "Remote", "connect"]

logger = logging.getLogger(__name__)

VERSION: Final = 1

RELAYED: Final = "kernelkeep.relayed"
"""The key of a scope that another replica has sent. Such a request is not sent on."""

MAX_FRAME: Final = 2**30
CONNECT_SECONDS: Final = 2.0
FIRST_SECONDS: Final = 10.0
"""How long the first frame of a connection may take."""

WAITING_EVENTS: Final = 16
"""Events of a client that may wait for the application."""

ACKNOWLEDGED_SECONDS: Final = 0.1
"""How often the other replica is told what a client has acknowledged."""

_SCOPE: Final = (
    *("type", "http_version", "method", "scheme", "path", "raw_path", "query_string", "root_path"),
    *("headers", "client", "server", "subprotocols"),
)

_LENGTH: Final = Struct("!I")
_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder().decode


class Broken(Exception):
    """The other replica is gone. ``begun``: it may have done something of the request already."""

    def __init__(self, *, begun: bool) -> None:
        super().__init__("the other replica is gone")
        self.begun = begun


def _pack(kind: str, value: object) -> bytes:
    body = _encode((kind, value))
    return _LENGTH.pack(len(body)) + body


async def _unpack(reader: asyncio.StreamReader) -> tuple[str, Any]:
    """The next frame. Raises `OSError`, `EOFError` and `ValueError`."""
    (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    if length > MAX_FRAME:
        raise ValueError("a frame is too long")
    kind, value = _decode(await reader.readexactly(length))
    return kind, value


_ENDS: Final = (OSError, EOFError, ValueError, msgspec.MsgspecError)


def _event(value: Any) -> Message:
    """An event as ASGI has it: its headers are pairs."""
    if "headers" in value:
        value["headers"] = [tuple(pair) for pair in value["headers"]]
    return dict(value)


# The replica that has the request


async def connect(path: Path) -> Remote:
    """A connection to the replica that listens there. Raises `Broken`."""
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            with address_of(path) as name:
                reader, writer = await asyncio.open_unix_connection(name)
    except (OSError, TimeoutError):
        raise Broken(begun=False) from None
    return Remote(reader, writer)


class Remote:
    """Another replica's end of one request, to which `run` sends the request."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._frames: FrameWriter | None = None
        self._told: Position | None = None
        self._begun = False  # whether the client has had something of the answer
        self._asked = False  # whether the application has got something of the client

    async def run(self, scope: Scope, receive: Receive, send: Send) -> bool:
        """Send a request, and its client what is answered; False if the kernel is not there.

        Raises `Broken` if the replica ends before the answer has begun. A client that has had a
        part of the answer is cut off then, and a WebSocket closed.
        """
        self._frames = scope.get("extensions", {}).get(EXTENSION)
        fields = {name: scope[name] for name in _SCOPE if scope.get(name) is not None}
        fields["frames"] = self._frames is not None
        tasks: list[asyncio.Task[Any]] = []
        loop = asyncio.get_running_loop()
        try:
            self._writer.write(_pack("scope", (VERSION, fields)))
            kind, _ = await self._first()
            if kind != "ready":
                return False
            tasks = [loop.create_task(self._upstream(receive))]
            if self._frames is not None:
                tasks.append(loop.create_task(self._acknowledge(self._frames)))
            await self._downstream(send, scope["type"])
            return True
        finally:
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks)
            self._writer.close()

    async def _first(self) -> tuple[str, Any]:
        try:
            async with asyncio.timeout(FIRST_SECONDS):
                await self._writer.drain()
                return await _unpack(self._reader)
        except (*_ENDS, TimeoutError):
            raise Broken(begun=False) from None

    async def _upstream(self, receive: Receive) -> None:
        with contextlib.suppress(*_ENDS):  # `_downstream` sees it, too
            while True:
                event = await receive()
                self._asked = True
                self._writer.write(_pack("event", dict(event)))
                await self._writer.drain()
                if event["type"].endswith(".disconnect"):
                    return

    async def _downstream(self, send: Send, kind_of: str) -> None:
        while True:
            try:
                kind, value = await _unpack(self._reader)
            except _ENDS:
                await self._on_end(send, kind_of)
                return
            if kind == "end":
                return
            self._begun = True
            if kind == "event":
                await send(_event(value))
            elif self._frames is not None and kind == "write":
                place, data = value
                await self._frames.write([data], None if place is None else Position(*place))
            elif self._frames is not None and kind == "abort":
                self._frames.abort()

    async def _on_end(self, send: Send, kind_of: str) -> None:
        """The replica has ended in the middle of the request."""
        if not self._begun:
            raise Broken(begun=self._asked)
        if kind_of == "websocket":
            with contextlib.suppress(Exception):  # the client may be gone as well
                await send({"type": "websocket.close", "code": 1012, "reason": "the server ended"})

    async def _acknowledge(self, frames: FrameWriter) -> None:
        """Tell what the client has acknowledged, as far as that is new."""
        with contextlib.suppress(*_ENDS):
            while True:
                await asyncio.sleep(ACKNOWLEDGED_SECONDS)
                if frames.acknowledged is not None and frames.acknowledged != self._told:
                    self._told = frames.acknowledged
                    self._writer.write(_pack("acknowledged", tuple(self._told)))


# The replica that has the kernel


class RelayServer:
    """Takes requests of other replicas. ``is_here`` tells whether a request is this one's to do.

    ``state`` is that of the application's lifespan.
    """

    def __init__(
        self,
        app: ASGIApp,
        state: MutableMapping[str, Any],
        path: Path,
        is_here: Callable[[Scope], bool],
    ) -> None:
        self._app = app
        self._state = state
        self._path = path
        self._is_here = is_here
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    async def open(self) -> None:
        """Listen. Raises `OSError`."""
        self._path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX)
        with address_of(self._path) as name:
            listener.bind(name)
            os.chmod(name, 0o600)
        self._server = await asyncio.start_unix_server(self._serve, sock=listener, backlog=1024)

    async def close(self) -> None:
        """Listen no longer, and end what is under way."""
        if self._server is not None:
            self._server.close()
            self._path.unlink(missing_ok=True)
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            if is_own_peer(writer.get_extra_info("socket")):
                await self._serve_one(reader, writer)
            else:
                logger.warning("a process of another user was refused at the replicas' socket")
        except (*_ENDS, TimeoutError) as error:
            logger.debug("a request of another replica was broken off: %s", error)
        except asyncio.CancelledError:
            pass  # the server ends
        except Exception:
            logger.exception("a request of another replica has failed")
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(FIRST_SECONDS):
            kind, (version, fields) = await _unpack(reader)
        if kind != "scope" or version != VERSION:
            return
        scope = self._scope(fields)
        if not self._is_here(scope):
            writer.write(_pack("elsewhere", None))
            await writer.drain()
            return
        writer.write(_pack("ready", None))
        served = _Served(reader, writer, scope)
        if fields.get("frames"):
            scope["extensions"] = {**scope["extensions"], EXTENSION: served}
        try:
            await self._app(scope, served.receive, served.send)
            writer.write(_pack("end", None))
            await writer.drain()
        finally:
            await served.close()

    def _scope(self, fields: dict[str, Any]) -> Scope:
        scope: Scope = {name: fields[name] for name in _SCOPE if name in fields}
        scope["headers"] = [tuple(pair) for pair in fields["headers"]]
        for name in ("client", "server"):
            if fields.get(name) is not None:
                scope[name] = tuple(fields[name])
        scope["asgi"] = {"version": "3.0", "spec_version": "2.4"}
        scope["extensions"] = {"websocket.http.response": {}} if _is_websocket(scope) else {}
        scope["state"] = dict(self._state)
        scope[RELAYED] = True
        return scope


def _is_websocket(scope: Scope) -> bool:
    return bool(scope["type"] == "websocket")


class _Served:
    """One request of another replica; it is the `FrameWriter` of a WebSocket's connection."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, scope: Scope
    ) -> None:
        self.acknowledged: Position | None = None
        self._reader = reader
        self._writer = writer
        self._gone: Message = {"type": "http.disconnect"}
        if _is_websocket(scope):
            self._gone = {"type": "websocket.disconnect", "code": 1006, "reason": None}
        self._events: asyncio.Queue[Message] = asyncio.Queue(WAITING_EVENTS)
        self._lost = asyncio.Event()
        self._reading = asyncio.get_running_loop().create_task(self._read())

    async def _read(self) -> None:
        try:
            while True:
                kind, value = await _unpack(self._reader)
                if kind == "event":
                    await self._events.put(_event(value))
                elif kind == "acknowledged":
                    self.acknowledged = Position(*value)
        except _ENDS:
            self._lost.set()
            await self._events.put(self._gone)

    async def receive(self) -> Message:
        """The next event of the client; the last one again and again."""
        if self._lost.is_set() and self._events.empty():
            return dict(self._gone)
        return await self._events.get()

    async def send(self, message: Message) -> None:
        """Send an event to the client."""
        if self._lost.is_set():
            raise OSError("the other replica, or its client, is gone")
        self._writer.write(_pack("event", _plain(message)))
        await self._writer.drain()

    # FrameWriter

    @staticmethod
    def join(frames: Iterable[tuple[bytes, bool]]) -> list[bytes]:
        """As `FrameWriter.join`: the bytes are the same for every connection."""
        return KernelkeepWebSocketProtocol.join(frames)

    async def write(self, chunks: Sequence[bytes], place: Position | None = None) -> None:
        """As `FrameWriter.write`."""
        if self._lost.is_set():
            raise OSError("the other replica, or its client, is gone")
        where = None if place is None else tuple(place)
        self._writer.write(_pack("write", (where, b"".join(chunks))))
        await self._writer.drain()

    async def lost(self) -> None:
        """As `FrameWriter.lost`."""
        await self._lost.wait()

    def abort(self) -> None:
        """As `FrameWriter.abort`."""
        self._writer.write(_pack("abort", None))

    async def close(self) -> None:
        """The application has ended."""
        self._reading.cancel()
        await asyncio.wait({self._reading})


def _plain(message: Message) -> dict[str, Any]:
    """An event without what only servers of this process understand."""
    fields = dict(message)
    if "headers" in fields:
        fields["headers"] = [(bytes(name), bytes(value)) for name, value in fields["headers"]]
    if isinstance(fields.get("body"), memoryview):
        fields["body"] = bytes(fields["body"])
    return fields
