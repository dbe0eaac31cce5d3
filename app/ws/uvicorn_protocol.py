"""uvicorn's WebSocket protocol, with what plain ASGI cannot say.

The ``kernelkeep`` command chooses this class. It writes many frames at once (`FrameWriter`, in
``scope["extensions"]``), it asks with pings how much of that has arrived, and it *aborts* a
connection whose peer takes nothing: uvicorn's own way out, a close, waits for the flush and so for
ever.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Iterable, Sequence
from struct import Struct, pack, unpack
from typing import Final

from websockets.frames import CloseCode, Frame
from websockets.http11 import Request
from websockets.protocol import OPEN

from ..managers.log.entries import Position
from ..uvicorn_internals import (
    ASGIReceiveEvent,
    ASGISendEvent,
    ClientDisconnected,
    WebSocketProtocol,
)
from .acknowledgements import PING_BYTES, PING_SECONDS, Acknowledgements
from .sending import EXTENSION

try:
    import fcntl
    import termios
except ImportError:  # Windows: only pongs tell what has arrived
    fcntl = None  # type: ignore[assignment]

__all__ = ["KernelkeepWebSocketProtocol"]

HIGH_WATER_BYTES: Final = 2**20
"""What may wait in the transport for a client before its reader is held back."""

SLICE_BYTES: Final = 4096
"""What is parsed at a time of what has come: the smallest frames are six bytes."""

MAX_CONTROL_FRAMES: Final = 100
"""Pings, and pongs that were not asked for, of a client in a second; then it is not read for it."""

MAX_UNREAD_BYTES: Final = 2**20
"""What may have come of a client that is not read: more than a loop reads at once."""

MAX_FRAGMENTS: Final = 16_384
"""Of one message: 64 MiB in pieces of 4 KiB."""

JOIN_BYTES: Final = 4096
"""Frames up to this size are joined before they are written; larger ones are not copied."""

_TOO_LARGE: Final = b"HTTP/1.1 431 \r\nContent-Length: 0\r\nConnection: close\r\n\r\n"

_access_logger: Final = logging.getLogger("uvicorn.access")

_TEXT: Final = 0x81  # FIN, opcode 1 [RFC 6455, section 5.2]
_BINARY: Final = 0x82
_PING: Final = 0x89

_pack_medium: Final = Struct("!BBH").pack


class KernelkeepWebSocketProtocol(WebSocketProtocol):
    """One WebSocket connection."""

    _written = 0  # bytes handed to the transport by write()
    _taken = 0  # of those, how many the peer had taken when last looked at

    _ping_plan: asyncio.TimerHandle | None = None
    _next_ping = 0.0  # by the loop's clock
    _asked = 0  # bytes written at the last ping

    _pong = b""  # the answer to the last ping, which waits for room in the transport
    _control_frames = 0  # since the second began at _second
    _second = 0.0
    _rests: asyncio.TimerHandle | None = None  # while a client that floods is not read

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._acknowledgements = Acknowledgements()
        self._lost = asyncio.Event()
        self._unread = bytearray()
        self.transport.set_write_buffer_limits(high=HIGH_WATER_BYTES)
        connection: socket.socket | None = transport.get_extra_info("socket")
        if connection is not None and connection.family in (socket.AF_INET, socket.AF_INET6):
            # A peer that vanished while reading is paused would never be noticed otherwise.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def data_received(self, data: bytes) -> None:
        if self.handshake_initiated and not self.handshake_complete:
            # A client waits for the answer [RFC 6455, section 4.1]; what it sends before that would
            # be answered before it, too.
            self.disconnected = True
            self.transport.close()
            return
        if not self.handshake_initiated or (self._rests is None and len(data) <= SLICE_BYTES):
            self._parse(data)
            return
        self._unread += data
        if len(self._unread) > MAX_UNREAD_BYTES and self._rests is not None:
            self.transport.abort()
        self._parse_unread()

    def _parse_unread(self) -> None:
        """Parse slice after slice, until all is parsed or the client is found to flood."""
        unread, self._unread = memoryview(self._unread), bytearray()
        done = 0
        while done < len(unread) and self._rests is None and not self.disconnected:
            self._parse(bytes(unread[done : done + SLICE_BYTES]))
            done += SLICE_BYTES
        self._unread += unread[done:]

    def _count_control_frame(self) -> None:
        """Rest from reading a client that sends nothing but work, for what is left of a second."""
        now = self.loop.time()
        if now - self._second >= 1.0:
            self._second, self._control_frames = now, 0
        self._control_frames += 1
        if self._control_frames > MAX_CONTROL_FRAMES and self._rests is None:
            self.transport.pause_reading()
            self._rests = self.loop.call_at(self._second + 1.0, self._read_on)

    def _read_on(self) -> None:
        self._rests = None
        self._parse_unread()
        self._resume_reading()

    def _resume_reading(self) -> None:
        """Read on if nothing is left that speaks against it."""
        if self._rests is None and not self.read_paused and not self.transport.is_closing():
            self.transport.resume_reading()

    async def receive(self) -> ASGIReceiveEvent:
        """The next message; with the last one taken, reading goes on."""
        message = await self.queue.get()
        if self.read_paused and self.queue.empty():
            self.read_paused = False
            self._resume_reading()
        return message

    def _parse(self, data: bytes) -> None:
        super().data_received(data)
        if not self.handshake_initiated and self.conn.handshake_exc is not None:
            # Too many headers, or too long ones; uvicorn would leave the client waiting.
            self.transport.write(b"".join(self.conn.data_to_send()) or _TOO_LARGE)
            self.logger.warning("WebSocket refused: %s", self.conn.handshake_exc)
            self.transport.close()

    def handle_connect(self, event: Request) -> None:
        super().handle_connect(event)
        if self.response.status_code != 101:
            client = ":".join(map(str, self.client or ()))
            self._log_access(client, event.path, self.response.status_code)
        elif not self.conn.extensions:
            self.extensions[EXTENSION] = self

    async def send(self, message: ASGISendEvent) -> None:
        """What plain ASGI can say."""
        if message["type"] == "websocket.accept":
            self._log_answer(101)
        elif message["type"] == "websocket.http.response.start":
            self._log_answer(message["status"])
        await super().send(message)
        if message["type"] == "websocket.http.response.body" and self.close_sent:
            # The refusal is out; uvicorn would log an error about a handshake that never came.
            self.handshake_complete = True

    def _log_answer(self, status: int) -> None:
        self._log_access(*self.request_line, status)

    def _log_access(self, client: str, path: str, status: int) -> None:
        """A line as of any other request; uvicorn has none for WebSockets."""
        _access_logger.info('%s - "%s %s HTTP/%s" %d', client, "GET", path, "1.1", status)

    @property
    def acknowledged(self) -> Position | None:
        """The place in the log up to which the client is known to have everything."""
        return self._acknowledgements.acknowledged

    @staticmethod
    def join(frames: Iterable[tuple[bytes, bool]]) -> list[bytes]:
        """What to write for frames, each a payload and whether it is text.

        The small ones are joined, the large ones not copied.
        """
        chunks: list[bytes] = []
        small: list[bytes] = []
        for payload, is_text in frames:
            length = len(payload)
            if 126 <= length < 65536:  # nearly all: without a call
                small.append(_pack_medium(_TEXT if is_text else _BINARY, 126, length))
            else:
                small.append(_frame_header(_TEXT if is_text else _BINARY, length))
            if length > JOIN_BYTES:
                chunks += b"".join(small), payload
                small.clear()
            else:
                small.append(payload)
        if small:
            chunks.append(b"".join(small))
        return chunks

    async def write(self, chunks: Sequence[bytes], place: Position | None = None) -> None:
        """Write what `join` made (`app.ws.sending.FrameWriter`).

        It brings the client to ``place`` in the log.
        Raises `ClientDisconnected` when the connection is closed or closing.
        """
        if self.disconnected or self.close_sent or self.conn.state is not OPEN:
            raise ClientDisconnected()
        parts = [*chunks]
        self._written += sum(map(len, parts))
        if place is not None:
            self._acknowledgements.sent(place)
            # In the same write where it may: a client that has read what is before the ping has
            # answered it, however soon its connection breaks then.
            # A little early rather than by itself a little later.
            soon = self._next_ping - PING_SECONDS / 2
            if self._written - self._asked >= PING_BYTES or self.loop.time() >= soon:
                parts.append(self._ping())
            self._plan_ping()
        self.transport.writelines(parts)
        await self.writable.wait()
        if self.disconnected:
            raise ClientDisconnected()

    def _plan_ping(self) -> None:
        """Ask soon whether what was written has arrived, unless that is planned already."""
        if self._ping_plan is None and self._acknowledgements.ping_is_due:
            self._ping_plan = self.loop.call_at(self._next_ping, self._ask)

    def _ask(self) -> None:
        self._ping_plan = None
        if self.disconnected or self.close_sent or self.conn.state is not OPEN:
            return
        if self.loop.time() < self._next_ping:  # a ping has gone out with something else
            self._plan_ping()
        else:
            self.transport.write(self._ping())

    def _ping(self) -> bytes:
        """A ping for what is not acknowledged; empty if it is, or has been asked about."""
        payload = self._acknowledgements.ping()
        if payload is None:
            return b""
        self._next_ping = self.loop.time() + PING_SECONDS
        self._asked = self._written
        return _frame_header(_PING, len(payload)) + payload

    def send_receive_event_to_app(self) -> None:
        data = b"".join(self.frames)
        self.frames = []
        if self.close_sent:
            return
        event: ASGIReceiveEvent = {"type": "websocket.receive", "bytes": data}
        if self.is_text:
            try:
                event = {"type": "websocket.receive", "text": data.decode()}
            except UnicodeDecodeError:
                self._fail(CloseCode.INVALID_DATA, "text that is not UTF-8")
                return
        # uvicorn stops reading at each message and goes on when the application has taken it: four
        # system calls. One message may as well wait unread by the application.
        is_only = self.queue.empty()
        self.queue.put_nowait(event)
        if not is_only and not self.read_paused:
            self.read_paused = True
            self.transport.pause_reading()

    def _fail(self, code: CloseCode, reason: str) -> None:
        """Close for what the client has done, unless its own close has come with it."""
        if self.conn.state is OPEN:
            self.conn.fail(code, reason)
            self.fail()

    def handle_cont(self, event: Frame) -> None:
        if len(self.frames) >= MAX_FRAGMENTS:
            self._fail(CloseCode.MESSAGE_TOO_BIG, "too many fragments")
            return
        super().handle_cont(event)

    def handle_ping(self) -> None:
        self._count_control_frame()
        output = self.conn.data_to_send()
        if self.writable.is_set():
            self.transport.write(b"".join(output))
        elif output:
            # Of a client that reads nothing, only the last is answered [RFC 6455, section 5.5.3].
            self._pong = output[-1]

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._pong and self.conn.state is OPEN:
            self.transport.write(self._pong)
        self._pong = b""

    def handle_pong(self, event: Frame) -> None:
        if self._acknowledgements.pong(bytes(event.data)):
            self._plan_ping()
        else:
            self._count_control_frame()
            super().handle_pong(event)

    def handle_close(self, event: Frame) -> None:
        # A client that closes has all that its machine has confirmed, whatever pong is missing.
        if not self.transport.get_write_buffer_size() and self._unconfirmed_bytes() == 0:
            self._acknowledgements.all_arrived()
        super().handle_close(event)

    def _unconfirmed_bytes(self) -> int | None:
        """How much the socket holds that the peer's TCP has not acknowledged; None: unknown."""
        connection: socket.socket | None = self.transport.get_extra_info("socket")
        if connection is None or fcntl is None:
            return None
        try:
            unconfirmed = fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, bytes(4))
        except OSError:
            return None
        count: int = unpack("=i", unconfirmed)[0]
        return count

    async def lost(self) -> None:
        """Return when the connection is lost (`app.ws.sending.FrameWriter`)."""
        await self._lost.wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost.set()
        if self._ping_plan is not None:
            self._ping_plan.cancel()
            self._ping_plan = None
        if self._rests is not None:
            self._rests.cancel()
            self._rests = None
        if self.handshake_complete and self.conn.close_rcvd is None:
            # RFC 6455, section 7.1.5: no close frame has come. Uvicorn says 1005, as for an empty
            # one; of two such events the first counts.
            self.queue.put_nowait({"type": "websocket.disconnect", "code": 1006})
        super().connection_lost(exc)

    def keepalive_timeout(self) -> None:
        """No pong has come in time: give up the connection, unless that is our own doing.

        A pong is late for honest reasons when the ping waits behind output that the peer is still
        taking, and when we are not reading because the kernel takes no more requests.
        """
        # A socket reports that it is writable only when a third of its megabytes is free: of one
        # that reads slowly its own queue tells sooner.
        queued = self.transport.get_write_buffer_size() + (self._unconfirmed_bytes() or 0)
        taken = self._written - queued
        progress = taken > self._taken
        self._taken = taken
        if self.read_paused or self._rests is not None:
            # The pong may lie behind what we do not read. If the peer is gone, a write will tell.
            self.ping_for_keepalive()
            return
        if progress:
            assert self.ping_timeout is not None
            self.pong_timer = self.loop.call_later(self.ping_timeout, self.keepalive_timeout)
            return
        super().keepalive_timeout()
        if self.transport.get_write_buffer_size():
            self.transport.abort()


def _frame_header(first: int, length: int) -> bytes:
    """The header of an unfragmented, unmasked frame [RFC 6455, section 5.2]."""
    if 126 <= length < 65536:
        return _pack_medium(first, 126, length)
    if length < 126:
        return bytes((first, length))
    return pack("!BBQ", first, 127, length)
