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
from collections.abc import Callable, Iterable, MutableMapping, Sequence
from pathlib import Path
from typing import Any, Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..keeper.protocol import address_of, cut_off, is_own_peer
from ..managers.log.entries import Position
from ..ws.sending import EXTENSION, FrameWriter
from ..ws.uvicorn_protocol import KernelkeepWebSocketProtocol
from .relay_frames import ENDS, Frames, event_of, plain

__all__ = ["RELAYED", "Broken", "RelayServer", "Remote"]

logger = logging.getLogger(__name__)

VERSION: Final = 1

SPOKEN: Final = (VERSION,)
"""The versions that a replica takes requests in."""

RELAYED: Final = "kernelkeep.relayed"
"""The key of a scope that another replica has sent. Such a request is not sent on."""

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


class Broken(Exception):
    """The other replica is gone. ``begun``: it may have done something of the request already.

    ``silent``: it has not hung up, and says nothing.
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
        return self._link.is_gone

    def close(self) -> None:
        """Hang up, once the other replica has taken what waits to be sent."""
        self._link.close()

    def cut_off(self) -> None:
        """Hang up at once. A replica that is stopped would never take what waits to be sent."""
        self._link.cut_off()

    async def run(self, scope: Scope, receive: Receive, send: Send) -> bool:
        """Send a request, and its client what is answered; False if the kernel is not there.

        Raises `Broken` if the replica ends before the answer has begun. A client that has had a
        part of the answer is cut off then, and a WebSocket closed. The connection is closed, unless
        it `is_kept`.
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
                # Behind an event that nobody has read, no other request could follow. A replica of
                # an earlier release does not read one that was sent along.
                self.is_kept = kind == "elsewhere" and (told is None or value == "read")
                return False
            # Only now is anything received of the client. So whoever was refused until here can be
            # sent to another replica with the whole of its request.
            tasks = [loop.create_task(self._upstream(receive, told))]
            if self._frames is not None:
                tasks.append(loop.create_task(self._acknowledge(self._frames)))
            self.is_kept = await self._downstream(send, scope["type"])
            return True
        finally:
            for task in tasks:
                task.cancel()
            if tasks:
                # A task that is cancelled leaves no half of a frame behind: `say` takes a whole
                # one without awaiting.
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
        """Send what the client says; ``told`` is the first event, if that is sent already."""
        with contextlib.suppress(*ENDS):  # `_downstream` sees it, too
            while True:
                event = await receive()
                # Before it is sent: the connection may take it, and break, before this goes on.
                self._asked = True
                if event == told:
                    told = None
                    continue
                self._link.say("event", dict(event))
                await self._link.drain()
                if event["type"].endswith(".disconnect"):
                    return

    async def _downstream(self, send: Send, kind_of: str) -> bool:
        """Send the client what is answered; whether the answer has come to its end."""
        while True:
            try:
                kind, value = await self._link.next()
            except ENDS:
                await self._on_end(send, kind_of)
                return False
            if kind == "end":
                return True
            # Before the client gets it: if the connection breaks meanwhile, the answer has begun.
            self._begun = True
            if kind == "event":
                await send(event_of(value))
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
        with contextlib.suppress(*ENDS):
            while True:
                await asyncio.sleep(ACKNOWLEDGED_SECONDS)
                if frames.acknowledged is not None and frames.acknowledged != self._told:
                    self._told = frames.acknowledged
                    self._link.say("acknowledged", tuple(self._told))


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
        """Take a request, which has so many seconds to come; whether another may follow."""
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
            # Until it has sent an event, the other replica may give this one up as silent, and send
            # the request elsewhere, or once more. So nothing is done of a request before that: if
            # this process was stopped meanwhile, it finds that the other end has hung up. What has
            # its event with it may be answered twice: it changes nothing (`_is_safe_without_body`).
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
        """Take what the other replica says; whether it has said that the request is over."""
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
        """The next event of the client; the last one again and again."""
        # What came before the end is received first.
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

    @staticmethod
    def join(frames: Iterable[tuple[bytes, bool]]) -> list[bytes]:
        """As `FrameWriter.join`: the bytes are the same for every connection."""
        return KernelkeepWebSocketProtocol.join(frames)

    async def write(self, chunks: Sequence[bytes], place: Position | None = None) -> None:
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
