"""Requests and WebSockets that one replica takes for another, over a connection between them.

What goes over the connection are the events of ASGI as they are, in frames: the replica that has
the kernel runs its own application with them. Nothing is translated, so streams, refusals and close
codes are those of that replica, and so is the check who asks: the caller's own credentials go with
the request, and the connection gives nobody a right. Between replicas of a host it is a unix
socket, in a directory of the user's own, which takes processes of the same user alone; between
hosts it is TLS (`relay_links.py`).

A connection carries one request at a time. The first frame of each has the version of this format
and the request's scope. A WebSocket's frames to the client go as bytes that the other end writes as
they stand, where both ends have the extension (`FrameWriter`); what the client has acknowledged
comes back. The end of the answer is said, and then, by the replica that has asked, the end of the
request (``over``): the next one may follow. A replica of an earlier release closes the connection
instead, at whichever end it is.
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

from ..keeper.protocol import address_of, cut_off, is_own_peer
from ..managers.log.entries import Position
from ..ws.sending import EXTENSION, FrameWriter
from ..ws.uvicorn_protocol import KernelkeepWebSocketProtocol

__all__ = ["RELAYED", "Broken", "RelayServer", "Remote"]

logger = logging.getLogger(__name__)

VERSION: Final = 1

SPOKEN: Final = (VERSION,)
"""The versions that a replica takes requests in."""

RELAYED: Final = "kernelkeep.relayed"
"""The key of a scope that another replica has sent. Such a request is not sent on."""

MAX_FRAME: Final = 2**30
FIRST_SECONDS: Final = 10.0
"""How long the first frame of either end may take. It is sent in the next turn of a loop, so that
a replica which takes longer is stopped, or hangs."""

KEPT_SECONDS: Final = 90.0
"""How long a connection is kept for the next request: longer than its other end keeps it."""

OVER_SECONDS: Final = 10.0
"""How long the end of a request may take to come when its answer has ended: its client may take the
last part slowly. After that the connection is closed, and the next request needs a new one."""

WAITING_EVENTS: Final = 16
"""Events of a client that may wait for the application."""

ACKNOWLEDGED_SECONDS: Final = 0.1
"""How often the other replica is told what a client has acknowledged: as often as the client is
asked (`PING_SECONDS`)."""

_SCOPE: Final = (
    *("type", "http_version", "method", "scheme", "path", "raw_path", "query_string", "root_path"),
    *("headers", "client", "server", "subprotocols"),
)

_LENGTH: Final = Struct("!I")
_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder().decode


class Broken(Exception):
    """The other replica is gone. ``begun``: it may have done something of the request already.

    ``silent``: it has not hung up, and says nothing.
    """

    def __init__(self, why: str = "it is gone", *, begun: bool, silent: bool = False) -> None:
        super().__init__(why)
        self.begun = begun
        self.silent = silent


def _pack(kind: str, value: object) -> bytes:
    body = _encode((kind, value))
    return _LENGTH.pack(len(body)) + body


def _say(writer: asyncio.StreamWriter, kind: str, value: object) -> None:
    """Send a frame. Raises `ConnectionResetError` if the other end is gone.

    uvloop has a `RuntimeError` for that, which says nothing else than that.
    """
    if writer.is_closing():
        raise ConnectionResetError("the other replica has hung up")
    writer.write(_pack(kind, value))


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


class Remote:
    """Another replica's end of a connection, to which `run` sends one request after another."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.is_kept = False
        """Whether the last request has ended as it should, so that another may follow."""
        self.is_heard = False
        """Whether the replica has said anything of the present request."""
        self._reset(None)

    def _reset(self, frames: FrameWriter | None) -> None:
        self.is_kept = self.is_heard = False
        self._frames = frames
        self._told: Position | None = None
        self._begun = False  # whether the client has had something of the answer
        self._asked = False  # whether the application has got something of the client

    @property
    def is_gone(self) -> bool:
        """Whether the other replica has hung up."""
        return self._writer.transport.is_closing() or self._reader.at_eof()

    def close(self) -> None:
        """Hang up, once the other replica has taken what waits to be sent."""
        self._writer.close()

    def cut_off(self) -> None:
        """Hang up at once. A replica that is stopped would never take what waits to be sent."""
        cut_off(self._writer.transport)

    async def run(self, scope: Scope, receive: Receive, send: Send) -> bool:
        """Send a request, and its client what is answered; False if the kernel is not there.

        Raises `Broken` if the replica ends before the answer has begun. A client that has had a
        part of the answer is cut off then, and a WebSocket closed. The connection is closed, unless
        it `is_kept`.
        """
        self._reset(scope.get("extensions", {}).get(EXTENSION))
        fields = {name: scope[name] for name in _SCOPE if scope.get(name) is not None}
        fields["frames"] = self._frames is not None
        tasks: list[asyncio.Task[Any]] = []
        loop = asyncio.get_running_loop()
        try:
            kind, value = await self._first(fields)
            self.is_heard = True
            if kind == "version":
                raise Broken(f"it speaks version {value}, and this replica {VERSION}", begun=False)
            if kind != "ready":
                self.is_kept = kind == "elsewhere"
                return False
            # Only now is anything received of the client. So whoever was refused until here can be
            # sent to another replica with the whole of its request.
            tasks = [loop.create_task(self._upstream(receive))]
            if self._frames is not None:
                tasks.append(loop.create_task(self._acknowledge(self._frames)))
            self.is_kept = await self._downstream(send, scope["type"])
            return True
        finally:
            for task in tasks:
                task.cancel()
            if tasks:
                # A task that is cancelled leaves no half of a frame behind: `_say` writes a whole
                # one without awaiting.
                await asyncio.wait(tasks)
                with contextlib.suppress(OSError):
                    _say(self._writer, "over", None)
            if not self.is_kept:
                self.close()

    async def _first(self, fields: dict[str, Any]) -> tuple[str, Any]:
        try:
            async with asyncio.timeout(FIRST_SECONDS):
                _say(self._writer, "scope", (VERSION, fields))
                await self._writer.drain()
                return await _unpack(self._reader)
        except TimeoutError:
            raise Broken("it does not answer", begun=False, silent=True) from None
        except EOFError:
            raise Broken("it has hung up", begun=False) from None
        except _ENDS as error:
            raise Broken(str(error), begun=False) from None

    async def _upstream(self, receive: Receive) -> None:
        with contextlib.suppress(*_ENDS):  # `_downstream` sees it, too
            while True:
                event = await receive()
                # Before it is sent: the connection may take it, and break, before this goes on.
                self._asked = True
                _say(self._writer, "event", dict(event))
                await self._writer.drain()
                if event["type"].endswith(".disconnect"):
                    return

    async def _downstream(self, send: Send, kind_of: str) -> bool:
        """Send the client what is answered; whether the answer has come to its end."""
        while True:
            try:
                kind, value = await _unpack(self._reader)
            except _ENDS:
                await self._on_end(send, kind_of)
                return False
            if kind == "end":
                return True
            # Before the client gets it: if the connection breaks meanwhile, the answer has begun.
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
                    _say(self._writer, "acknowledged", tuple(self._told))


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
        self._server = await asyncio.start_unix_server(self._serve_own, sock=listener, backlog=1024)

    async def close(self) -> None:
        """Listen no longer, and end what is under way."""
        # First: no further connection is accepted while these are awaited.
        if self._server is not None:
            self._server.close()
            self._path.unlink(missing_ok=True)
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _serve_own(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if is_own_peer(writer.get_extra_info("socket")):
            await self.serve(reader, writer)
        else:
            logger.warning("a process of another user was refused at the replicas' socket")
            cut_off(writer.transport)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Take the requests of another replica, which has shown that it is one."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        seconds = FIRST_SECONDS
        try:
            while await self._serve_one(reader, writer, seconds):
                seconds = KEPT_SECONDS
        except (*_ENDS, TimeoutError) as error:
            logger.debug("a request of another replica was broken off: %s", error)
        except asyncio.CancelledError:
            pass  # the server ends
        except Exception:
            logger.exception("a request of another replica has failed")
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _serve_one(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seconds: float
    ) -> bool:
        """Take a request, which has so many seconds to come; whether another may follow."""
        async with asyncio.timeout(seconds):
            kind, (version, fields) = await _unpack(reader)
        if kind != "scope" or version not in SPOKEN:
            _say(writer, "version", SPOKEN)
            await writer.drain()
            return False
        scope = self._scope(fields)
        if not self._is_here(scope):
            _say(writer, "elsewhere", None)
            await writer.drain()
            return True
        _say(writer, "ready", None)
        served = _Served(reader, writer, scope)
        if fields.get("frames"):
            scope["extensions"] = {**scope["extensions"], EXTENSION: served}
        try:
            # Until it has sent an event, the other replica may give this one up as silent, and send
            # the request elsewhere, or once more. So nothing is done of a request before that: if
            # this process was stopped meanwhile, it finds that the other end has hung up.
            if not await served.begun():
                return False
            await self._app(scope, served.receive, served.send)
            _say(writer, "end", None)
            await writer.drain()
            return await served.over()
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
        self._begun: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._lost = asyncio.Event()
        self._is_over = False  # whether the application has ended
        self._reading = asyncio.get_running_loop().create_task(self._read())

    async def _read(self) -> bool:
        """Take what the other replica says; whether it has said that the request is over."""
        is_told = False
        try:
            while not is_told:
                kind, value = await _unpack(self._reader)
                is_told = kind == "over"
                # When `WAITING_EVENTS` wait, this reads no further, and the socket's own
                # back-pressure holds the client up. Neither an acknowledgement nor the end of the
                # connection is seen then, as with a client's own socket that is not read.
                if kind == "event" and not self._is_over:
                    self._tell_begun(True)
                    await self._events.put(_event(value))
                elif kind == "acknowledged":
                    self.acknowledged = Position(*value)
        except _ENDS:
            pass
        self._tell_begun(False)
        self._lost.set()
        if not self._is_over:
            await self._events.put(self._gone)
        return is_told

    def _tell_begun(self, begun: bool) -> None:
        if not self._begun.done():
            self._begun.set_result(begun)

    async def begun(self) -> bool:
        """Whether an event of the client comes, before the other replica hangs up."""
        return await self._begun

    async def receive(self) -> Message:
        """The next event of the client; the last one again and again."""
        # What came before the end is received first.
        if self._lost.is_set() and self._events.empty():
            return dict(self._gone)
        return await self._events.get()

    async def send(self, message: Message) -> None:
        """Send an event to the client."""
        if self._lost.is_set():
            raise OSError("the other replica, or its client, is gone")
        _say(self._writer, "event", _plain(message))
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
        _say(self._writer, "write", (where, b"".join(chunks)))
        await self._writer.drain()

    async def lost(self) -> None:
        """As `FrameWriter.lost`."""
        await self._lost.wait()

    def abort(self) -> None:
        """As `FrameWriter.abort`."""
        with contextlib.suppress(OSError):
            _say(self._writer, "abort", None)

    async def over(self) -> bool:
        """The application has ended; whether the request has, too, so that another may follow."""
        # What the client still says is read, for "over" lies behind it, and is thrown away. `_read`
        # may be waiting for a place in the queue: it gets one, and puts nothing more there.
        self._is_over = True
        while not self._events.empty():
            self._events.get_nowait()
        done, _ = await asyncio.wait({self._reading}, timeout=OVER_SECONDS)
        return bool(done) and self._reading.result()

    async def close(self) -> None:
        """Take nothing more of the request."""
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
