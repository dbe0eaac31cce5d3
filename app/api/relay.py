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
comes back. A request that changes nothing and has no body goes with its only event behind the
scope (``told``), which saves a round trip; all others wait until the other replica is ready. The
end of the answer is said, and then, by the replica that has asked, the end of the request
(``over``): the next one may follow. A replica of an earlier release closes the connection instead,
at whichever end it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable, MutableMapping, Sequence
from pathlib import Path
from typing import Any, Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..keeper.protocol import address_of, cut_off, is_own_peer
from ..managers.log.entries import Position
from ..protocol.messages import Buffer
from ..ws.sending import EXTENSION, FrameWriter
from ..ws.uvicorn_protocol import KernelkeepWebSocketProtocol
from .relay_frames import ENDS, Frames, event_of, plain

__all__ = ["RELAYED", "Broken", "RelayServer", "Remote"]

logger = logging.getLogger(__name__)

VERSION: Final = 1

SPOKEN: Final = (VERSION,)
"""The versions that a replica takes requests in."""

RELAYED: Final = "kernelkeep.relayed"
"""The key that marks a scope which another replica has sent. Such a request is not sent on."""

FIRST_SECONDS: Final = 10.0
"""How long the first frame of either end may take. It is sent in the next turn of a loop, so that
a replica which takes longer is stopped, or hangs."""

KEPT_SECONDS: Final = 90.0
"""How long the replica that has the kernel leaves an idle connection open for the next request. The
other end closes it earlier."""

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


class Broken(Exception):
    """The other replica is gone, or does not answer.

    ``begun`` is whether it may have done something of the request already. ``silent`` is whether it
    has not hung up, but sends nothing.
    """

    def __init__(self, why: str = "it is gone", *, begun: bool, silent: bool = False) -> None:
        super().__init__(why)
        self.begun = begun
        self.silent = silent


_NO_BODY: Final[Message] = {"type": "http.request", "body": b"", "more_body": False}
_BODY_HEADERS: Final = frozenset({b"content-length", b"transfer-encoding"})


def _is_safe_without_body(scope: Scope) -> bool:
    """Whether a request changes nothing, so that two replicas may answer it, and has no body.

    In HTTP/1.1 only these two headers tell of a body [RFC 9112, section 6.3].
    """
    return (
        scope.get("method") in ("GET", "HEAD")
        and scope["http_version"] in ("1.0", "1.1")
        and not any(name in _BODY_HEADERS for name, _ in scope["headers"])
    )


# The replica that has the request


class Remote:
    """Another replica's end of a connection, to which `run` sends one request after another."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._link = Frames(reader, writer)
        self.is_kept = False
        """Whether the last request has ended as it should, so that another may follow."""
        self.is_heard = False
        """Whether the replica has sent any frame about the present request."""
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
        return self._link.is_gone

    def close(self) -> None:
        """Hang up, once the other replica has taken what waits to be sent."""
        self._link.close()

    def cut_off(self) -> None:
        """Hang up at once. A replica that is stopped would never take what waits to be sent."""
        self._link.cut_off()

    async def run(self, scope: Scope, receive: Receive, send: Send) -> bool:
        """Send a request to the replica, and its answer to the client.

        Returns False if the replica does not have the kernel. Raises `Broken` if the replica ends
        before the answer has begun. If it ends later, the client is cut off within the answer, or
        its WebSocket is closed. Afterwards the connection is closed, unless it `is_kept`.
        """
        self._reset(scope.get("extensions", {}).get(EXTENSION))
        fields = {name: scope[name] for name in _SCOPE if scope.get(name) is not None}
        fields["frames"] = self._frames is not None
        told = _NO_BODY if _is_safe_without_body(scope) else None
        fields["told"] = told is not None
        tasks: list[asyncio.Task[Any]] = []
        loop = asyncio.get_running_loop()
        try:
            kind, value = await self._first(fields, told)
            self.is_heard = True
            if kind == "version":
                raise Broken(f"it speaks version {value}, and this replica {VERSION}", begun=False)
            if kind != "ready":
                # The event that was sent along (``told``) lies in the connection. If the replica
                # does not read it, as one of an earlier release, no other request can follow.
                self.is_kept = kind == "elsewhere" and (told is None or value == "read")
                return False
            # Only from here on is anything received from the client. So a request that ended
            # earlier can still be sent to another replica, as a whole.
            tasks = [loop.create_task(self._upstream(receive, told))]
            if self._frames is not None:
                tasks.append(loop.create_task(self._acknowledge(self._frames)))
            self.is_kept = await self._downstream(send, scope["type"])
            return True
        finally:
            for task in tasks:
                task.cancel()
            if tasks:
                # A task that is cancelled leaves no half of a frame in the connection: `say` takes
                # a whole frame, without an await.
                await asyncio.wait(tasks)
                with contextlib.suppress(OSError):
                    self._link.say("over", None)
            if not self.is_kept:
                self.close()

    async def _first(self, fields: dict[str, Any], told: Message | None) -> tuple[str, Any]:
        try:
            async with asyncio.timeout(FIRST_SECONDS):
                self._link.say("scope", (VERSION, fields))
                if told is not None:
                    self._link.say("event", told)
                await self._link.drain()
                return await self._link.next()
        except TimeoutError:
            raise Broken("it does not answer", begun=False, silent=True) from None
        except EOFError:
            raise Broken("it has hung up", begun=False) from None
        except ENDS as error:
            raise Broken(str(error), begun=False) from None

    async def _upstream(self, receive: Receive, told: Message | None) -> None:
        """Send the client's events; ``told`` is the first of them, if it was sent already."""
        with contextlib.suppress(*ENDS):  # `_downstream` sees it, too
            while True:
                event = await receive()
                # Set before the event is sent: the connection may take the event, and break, before
                # this task goes on.
                self._asked = True
                if event == told:
                    told = None
                    continue
                self._link.say("event", dict(event))
                await self._link.drain()
                if event["type"].endswith(".disconnect"):
                    return

    async def _downstream(self, send: Send, kind_of: str) -> bool:
        """Send the answer to the client; returns whether the answer has come to its end."""
        while True:
            try:
                kind, value = await self._link.next()
            except ENDS:
                await self._on_end(send, kind_of)
                return False
            if kind == "end":
                return True
            # Set before the client gets the frame: if the connection breaks meanwhile, the answer
            # counts as begun.
            self._begun = True
            if kind == "event":
                await send(event_of(value))
            elif self._frames is not None and kind == "write":
                place, data = value
                await self._frames.write([data], None if place is None else Position(*place))
            elif self._frames is not None and kind == "abort":
                self._frames.abort()

    async def _on_end(self, send: Send, kind_of: str) -> None:
        """End the client's request, as the replica has ended in the middle of it.

        Raises `Broken` if the answer has not begun.
        """
        if not self._begun:
            raise Broken(begun=self._asked)
        if kind_of == "websocket":
            with contextlib.suppress(Exception):  # the client may be gone as well
                await send({"type": "websocket.close", "code": 1012, "reason": "the server ended"})

    async def _acknowledge(self, frames: FrameWriter) -> None:
        """Tell the replica which place in the log the client has acknowledged, as that changes."""
        with contextlib.suppress(*ENDS):
            while True:
                await asyncio.sleep(ACKNOWLEDGED_SECONDS)
                if frames.acknowledged is not None and frames.acknowledged != self._told:
                    self._told = frames.acknowledged
                    self._link.say("acknowledged", tuple(self._told))


# The replica that has the kernel


class RelayServer:
    """Serves the requests of other replicas.

    ``is_here`` tells whether this replica has the kernel that a scope is about. ``state`` is that
    of the application's lifespan.
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
        """Close the listening socket, and cancel the requests that are under way."""
        # The listener is closed first: no connection is accepted while the tasks are awaited.
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
        link, seconds = Frames(reader, writer), FIRST_SECONDS
        try:
            while await self._serve_one(link, seconds):
                seconds = KEPT_SECONDS
        except (*ENDS, TimeoutError) as error:
            logger.debug("a request of another replica was broken off: %s", error)
        except asyncio.CancelledError:
            pass  # the server ends
        except Exception:
            logger.exception("a request of another replica has failed")
        finally:
            self._tasks.discard(task)
            link.close()

    async def _serve_one(self, link: Frames, seconds: float) -> bool:
        """Serve a request that comes within so many seconds; returns whether another may follow."""
        async with asyncio.timeout(seconds):
            kind, (version, fields) = await link.next()
        if kind != "scope" or version not in SPOKEN:
            link.say("version", SPOKEN)
            await link.drain()
            return False
        scope = self._scope(fields)
        if not self._is_here(scope):
            is_told = bool(fields.get("told"))
            link.say("elsewhere", "read" if is_told else None)
            await link.drain()
            if is_told:  # the event that was sent along, behind which the next request lies
                async with asyncio.timeout(FIRST_SECONDS):
                    await link.next()
            return True
        link.say("ready", None)
        served = _Served(link, scope)
        if fields.get("frames"):
            scope["extensions"] = {**scope["extensions"], EXTENSION: served}
        try:
            # The race: this process may be stopped just now. Until the other replica has sent an
            # event, it may give this one up as silent, hang up, and send the request elsewhere. So
            # the application does not run before an event has come: if this process goes on later,
            # it finds the hang-up. A request whose event comes with its scope may be answered
            # twice, which is safe (`_is_safe_without_body`).
            if not await served.begun():
                return False
            await self._app(scope, served.receive, served.send)
            link.say("end", None)
            await link.drain()
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

    def __init__(self, link: Frames, scope: Scope) -> None:
        self.acknowledged: Position | None = None
        self._link = link
        self._gone: Message = {"type": "http.disconnect"}
        if _is_websocket(scope):
            self._gone = {"type": "websocket.disconnect", "code": 1006, "reason": None}
        self._events: asyncio.Queue[Message] = asyncio.Queue(WAITING_EVENTS)
        self._begun: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._lost = asyncio.Event()
        self._is_over = False  # whether the application has ended
        self._reading = asyncio.get_running_loop().create_task(self._read())

    async def _read(self) -> bool:
        """Take the other replica's frames; returns whether it has told that the request is over."""
        is_told = False
        try:
            while not is_told:
                kind, value = await self._link.next()
                is_told = kind == "over"
                # When `WAITING_EVENTS` wait, this reads no further, and the socket's own
                # back-pressure holds the client up. Neither an acknowledgement nor the end of the
                # connection is seen then, as with a client's own socket that is not read.
                if kind == "event" and not self._is_over:
                    self._tell_begun(True)
                    await self._events.put(event_of(value))
                elif kind == "acknowledged":
                    self.acknowledged = Position(*value)
        except ENDS:
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
        """The next event of the client. After the last one, each call returns the disconnection."""
        # Events that came before the end of the connection are received first.
        if self._lost.is_set() and self._events.empty():
            return dict(self._gone)
        return await self._events.get()

    async def send(self, message: Message) -> None:
        """Send an event to the client."""
        if self._lost.is_set():
            raise OSError("the other replica, or its client, is gone")
        self._link.say("event", plain(message))
        await self._link.drain()

    # FrameWriter

    sends_mapped = False  # chunks are joined into a frame of the wire between replicas
    join = staticmethod(KernelkeepWebSocketProtocol.join)
    binary = staticmethod(KernelkeepWebSocketProtocol.binary)

    async def write(self, chunks: Sequence[Buffer], place: Position | None = None) -> None:
        """As `FrameWriter.write`."""
        if self._lost.is_set():
            raise OSError("the other replica, or its client, is gone")
        where = None if place is None else tuple(place)
        self._link.say("write", (where, b"".join(chunks)))
        await self._link.drain()

    async def lost(self) -> None:
        """As `FrameWriter.lost`."""
        await self._lost.wait()

    def abort(self) -> None:
        """As `FrameWriter.abort`."""
        with contextlib.suppress(OSError):
            self._link.say("abort", None)

    async def over(self) -> bool:
        """Note that the application has ended, and wait for the end of the request.

        Returns whether that has come within `OVER_SECONDS`, so that another request may follow.
        """
        # Events that the client still sends are read and thrown away, for "over" lies behind them.
        # `_read` may be waiting for a place in the queue: it gets one, and puts nothing more there.
        self._is_over = True
        while not self._events.empty():
            self._events.get_nowait()
        done, _ = await asyncio.wait({self._reading}, timeout=OVER_SECONDS)
        return bool(done) and self._reading.result()

    async def close(self) -> None:
        """Stop reading the frames of the request."""
        self._reading.cancel()
        await asyncio.wait({self._reading})
