"""uvicorn's WebSocket protocol, with an extension for what plain ASGI does not offer.

The ``kernelkeep`` command chooses this class. It writes many frames at once (`FrameWriter`, in
``scope["extensions"]``), and asks with pings how much of them has arrived. It *aborts* a connection
whose peer takes nothing. uvicorn would close it, and a close waits until all is sent: for ever.
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
from ..protocol.messages import Buffer
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
"""Bytes that may wait in the transport for a client before its reader is held back."""

SLICE_BYTES: Final = 4096
"""Bytes that are parsed at a time. Between two slices a client that floods is noticed: a slice has
many frames, for the smallest are six bytes."""

MAX_CONTROL_FRAMES: Final = 100
"""Pings and unsolicited pongs that a client may send in a second. After more the client is not read
for the rest of that second."""

CLOSED_SECONDS: Final = 20.0
"""How long the client may take nothing when the connection was closed. uvicorn gives it half of
that for a close frame, and then waits, for ever, until all output is taken."""

MAX_UNREAD_BYTES: Final = 2**20
"""Unparsed bytes that a client which is not read may have; an event loop reads less at once."""

MAX_FRAGMENTS: Final = 16_384
"""Fragments that a message may have: 64 MiB in pieces of 4 KiB."""

JOIN_BYTES: Final = 4096
"""Frames up to this size are joined before they are written; larger ones are not copied."""

_TOO_LARGE: Final = b"HTTP/1.1 431 \r\nContent-Length: 0\r\nConnection: close\r\n\r\n"

_access_logger: Final = logging.getLogger("uvicorn.access")

_UNTOUCHED: Final = ("TCPTransport", "UnixTransport")
"""uvloop's transports that hand to the system what is written, as it is."""

_TEXT: Final = 0x81  # FIN, opcode 1 [RFC 6455, section 5.2]
_BINARY: Final = 0x82
_PING: Final = 0x89

_pack_medium: Final = Struct("!BBH").pack


class KernelkeepWebSocketProtocol(WebSocketProtocol):
    """One WebSocket connection; it is the `FrameWriter` of that connection."""

    _written = 0  # bytes handed to the transport by write()
    _taken = 0  # how many of those the peer had taken at the last keepalive timeout

    _ping_plan: asyncio.TimerHandle | None = None
    _next_ping = 0.0  # the earliest time of the next ping, by the loop's clock
    _asked = 0  # the value of _written at the last ping

    _pong = b""  # the answer to the client's last ping, which waits for room in the transport
    _control_frames = 0  # counted in the second that began at _second, by the loop's clock
    _second = 0.0
    _rests: asyncio.TimerHandle | None = None  # set while a client that floods is not read
    _cut: asyncio.TimerHandle | None = None  # set when either side has closed

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._acknowledgements = Acknowledgements()
        self._lost = asyncio.Event()
        self._unread = bytearray()
        self.transport.set_write_buffer_limits(high=HIGH_WATER_BYTES)
        connection: socket.socket | None = transport.get_extra_info("socket")
        if connection is not None and connection.family in (socket.AF_INET, socket.AF_INET6):
            # While reading is paused, only TCP's keepalive notices a peer that has vanished.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def data_received(self, data: bytes) -> None:
        if self.handshake_initiated and not self.handshake_complete:
            # A client must wait for the answer to its handshake [RFC 6455, section 4.1]. Otherwise
            # the answer to its frame would go out before the answer to its handshake.
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
        """Count a ping or pong; after too many stop reading the client until the second is over."""
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
        """Resume reading, unless the client rests, the application is behind, or all is closed."""
        if self._rests is None and not self.read_paused and not self.transport.is_closing():
            self.transport.resume_reading()

    async def receive(self) -> ASGIReceiveEvent:
        """The next event for the application. When it has taken the last one, reading resumes."""
        message = await self.queue.get()
        if self.read_paused and self.queue.empty():
            self.read_paused = False
            self._resume_reading()
        return message

    def _parse(self, data: bytes) -> None:
        super().data_received(data)
        if not self.handshake_initiated and self.conn.handshake_exc is not None:
            # The request has too many or too long headers. uvicorn would leave it unanswered.
            self.transport.write(b"".join(self.conn.data_to_send()) or _TOO_LARGE)
            self.logger.warning("WebSocket refused: %s", self.conn.handshake_exc)
            self.transport.close()
        elif self.handshake_complete and self.conn.state is not OPEN:
            # The client has closed, or has sent what is no frame; or its handshake was refused.
            self._cut_later()

    def handle_connect(self, event: Request) -> None:
        super().handle_connect(event)
        if self.response.status_code != 101:
            client = ":".join(map(str, self.client or ()))
            self._log_access(client, event.path, self.response.status_code)
        elif not self.conn.extensions:
            self.extensions[EXTENSION] = self

    async def send(self, message: ASGISendEvent) -> None:
        """Send an ASGI event, as uvicorn does; the answer to a handshake is logged."""
        if message["type"] == "websocket.accept":
            self._log_answer(101)
        elif message["type"] == "websocket.http.response.start":
            self._log_answer(message["status"])
        await super().send(message)
        if message["type"] == "websocket.http.response.body" and self.close_sent:
            # The handshake was refused. uvicorn would log an error that it was never completed.
            self.handshake_complete = True
        if message["type"] == "websocket.close":
            self._cut_later()

    def _cut_later(self) -> None:
        if self._cut is None and not self.disconnected:
            self._plan_cut()

    def _plan_cut(self) -> None:
        self._cut = self.loop.call_later(CLOSED_SECONDS, self._cut_if_stuck, self._queued_bytes())

    def _cut_if_stuck(self, before: int) -> None:
        """Cut the connection, unless its client still takes what was sent before the close."""
        if self._queued_bytes() < before:
            self._plan_cut()
        else:
            self.transport.abort()

    def shutdown(self) -> None:
        """Close the connection, as the server stops."""
        # A client that has closed may not take what lies before the answer to its close frame. Then
        # the connection is there still, and uvicorn would fail to close it a second time; with that
        # error the end of the lifespan would be skipped.
        if self.handshake_complete and not self.close_sent and self.conn.state is not OPEN:
            self.transport.abort()
        else:
            super().shutdown()

    def _log_answer(self, status: int) -> None:
        self._log_access(*self.request_line, status)

    def _log_access(self, client: str, path: str, status: int) -> None:
        """Log a line as for any other request; uvicorn logs none for WebSockets."""
        _access_logger.info('%s - "%s %s HTTP/%s" %d', client, "GET", path, "1.1", status)

    @property
    def acknowledged(self) -> Position | None:
        """The place in the log up to which the client is known to have everything."""
        return self._acknowledgements.acknowledged

    @property
    def sends_mapped(self) -> bool:
        """Whether nothing but the system call reads what is written (`FrameWriter`)."""
        # uvloop keeps chunks as they are. TLS encrypts them in this process, and asyncio's own
        # transports may join them.
        kind = type(self.transport)
        return kind.__module__ == "uvloop.loop" and kind.__name__ in _UNTOUCHED

    @staticmethod
    def join(frames: Iterable[tuple[bytes, bool]]) -> list[Buffer]:
        """Frame payloads, each given with whether it is text; returns the bytes to `write`.

        Small frames are joined; the payload of a large one becomes a chunk without a copy.
        """
        chunks: list[Buffer] = []
        small: list[bytes] = []
        for payload, is_text in frames:
            length = len(payload)
            if 126 <= length < 65536:  # nearly all frames are, so this one costs no call
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

    @staticmethod
    def binary(payload: bytes, rest: Sequence[Buffer]) -> list[Buffer]:
        """Frame a binary payload that goes on in ``rest``; none of it is copied but its beginning.

        As `FrameWriter.binary`.
        """
        length = len(payload) + sum(map(len, rest))
        return [_frame_header(_BINARY, length) + payload, *rest]

    async def write(self, chunks: Sequence[Buffer], place: Position | None = None) -> None:
        """Write chunks that `join` has made; return when the transport has room for more.

        With these chunks the client will have all messages before ``place`` in the log. Raises
        `ClientDisconnected` when the connection is closed or closing.
        """
        if self.disconnected or self.close_sent or self.conn.state is not OPEN:
            raise ClientDisconnected()
        parts = [*chunks]
        self._written += sum(map(len, parts))
        if place is not None:
            self._acknowledgements.sent(place)
            # A ping that is due, or nearly, goes in the same write as the frames. If the connection
            # breaks soon after, a client that has read the frames has read the ping, too, and has
            # answered it.
            soon = self._next_ping - PING_SECONDS / 2
            if self._written - self._asked >= PING_BYTES or self.loop.time() >= soon:
                parts.append(self._ping())
            self._plan_ping()
        self.transport.writelines(parts)
        await self.writable.wait()
        if self.disconnected:
            raise ClientDisconnected()

    def _plan_ping(self) -> None:
        """Plan a ping for what was written, unless none is due or one is planned already."""
        if self._ping_plan is None and self._acknowledgements.ping_is_due:
            self._ping_plan = self.loop.call_at(self._next_ping, self._ask)

    def _ask(self) -> None:
        self._ping_plan = None
        if self.disconnected or self.close_sent or self.conn.state is not OPEN:
            return
        # A ping may have gone out with a write since this one was planned. Then the next one is not
        # due yet.
        if self.loop.time() < self._next_ping:
            self._plan_ping()
        else:
            self.transport.write(self._ping())

    def _ping(self) -> bytes:
        """The frame of a ping for the last messages; empty if the last ping was behind them."""
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
        # uvicorn pauses reading at each message, and resumes when the application has taken it:
        # four system calls. Here one message may wait for the application without a pause.
        is_only = self.queue.empty()
        self.queue.put_nowait(event)
        if not is_only and not self.read_paused:
            self.read_paused = True
            self.transport.pause_reading()

    def _fail(self, code: CloseCode, reason: str) -> None:
        """Close the connection for a fault of the client, unless the client has closed it."""
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
            # If the client does not read, only its last ping is answered: that is allowed
            # [RFC 6455, section 5.5.3], and bounds what waits here.
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
        # If the TCP of the client's machine had acknowledged every byte when the close frame came,
        # the client counts as having received all of them, even if pongs are missing.
        if not self.transport.get_write_buffer_size() and self._unconfirmed_bytes() == 0:
            self._acknowledgements.all_arrived()
        super().handle_close(event)

    def _queued_bytes(self) -> int:
        """Bytes that the peer has not taken."""
        # The transport's buffer alone tells too late that a slow peer takes something: the system
        # reports a socket as writable only when a third of its megabytes is free. So the bytes in
        # the socket's own queue count, too.
        return self.transport.get_write_buffer_size() + (self._unconfirmed_bytes() or 0)

    def _unconfirmed_bytes(self) -> int | None:
        """Bytes in the socket that the peer's TCP has not acknowledged; None if not known."""
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

    def abort(self) -> None:
        """Cut the connection at once (`app.ws.sending.FrameWriter`)."""
        self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost.set()
        for plan in (self._ping_plan, self._rests, self._cut):
            if plan is not None:
                plan.cancel()
        self._ping_plan = self._rests = self._cut = None
        if self.handshake_complete and self.conn.close_rcvd is None:
            # No close frame has come, so the code is 1006 [RFC 6455, section 7.1.5]. uvicorn queues
            # an event with 1005, as for an empty close frame; the application sees the first one.
            self.queue.put_nowait({"type": "websocket.disconnect", "code": 1006})
        super().connection_lost(exc)

    def keepalive_timeout(self) -> None:
        """Give up the connection because no pong has come in time, unless the peer is not at fault.

        The peer is not at fault when the ping waits behind output that the peer is still taking, or
        when the server does not read because the kernel takes no more requests.
        """
        taken = self._written - self._queued_bytes()
        progress = taken > self._taken
        self._taken = taken
        if self.read_paused or self._rests is not None:
            # The pong may lie behind bytes that are not read now. If the peer is gone, this write
            # fails sooner or later.
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
