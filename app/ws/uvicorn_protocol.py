"""uvicorn's WebSocket protocol, with what plain ASGI cannot say.

The ``kernelkeep`` command chooses this class. It writes many frames at once (`FrameWriter`, in
``scope["extensions"]``), and it *aborts* a connection whose peer takes nothing: uvicorn's own way
out, a close, waits for the flush and so for ever.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable
from struct import pack
from typing import Final, cast

from uvicorn._types import ASGISendEvent
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.http11 import Request
from websockets.protocol import OPEN

from app.ws.sending import EXTENSION

__all__ = ["KernelkeepWebSocketProtocol"]

HIGH_WATER_BYTES: Final = 2**20
"""What may wait in the transport for a client before its reader is held back."""

JOIN_BYTES: Final = 65536
"""Frames up to this size are joined before they are written; larger ones are not copied."""

_TEXT: Final = 0x81  # FIN, opcode 1 [RFC 6455, section 5.2]
_BINARY: Final = 0x82


class KernelkeepWebSocketProtocol(WebSocketsSansIOProtocol):
    """One WebSocket connection."""

    _written = 0  # bytes handed to the transport by write()
    _taken = 0  # of those, how many had left it when last looked at

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.transport.set_write_buffer_limits(high=HIGH_WATER_BYTES)
        connection: socket.socket | None = transport.get_extra_info("socket")
        if connection is not None and connection.family in (socket.AF_INET, socket.AF_INET6):
            # A peer that vanished while reading is paused would never be noticed otherwise.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def handle_connect(self, event: Request) -> None:
        super().handle_connect(event)
        if self.response.status_code == 101 and not self.conn.extensions:
            # The application's task has been made but has not run yet.
            cast(dict[str, object], self.scope["extensions"])[EXTENSION] = self

    async def send(self, message: ASGISendEvent) -> None:
        """What plain ASGI can say."""
        await super().send(message)
        if message["type"] == "websocket.http.response.body" and self.close_sent:
            # The refusal is out; uvicorn would log an error about a handshake that never came.
            self.handshake_complete = True

    async def write(self, frames: Iterable[tuple[bytes, bool]]) -> None:
        """Write frames, each a payload and whether it is text (`app.ws.sending.FrameWriter`).

        Raises `ClientDisconnected` when the connection is closed or closing.
        """
        if self.disconnected or self.close_sent or self.conn.state is not OPEN:
            raise ClientDisconnected()
        small: list[bytes] = []
        for payload, is_text in frames:
            small.append(_frame_header(_TEXT if is_text else _BINARY, len(payload)))
            if len(payload) > JOIN_BYTES:
                self._hand_over(b"".join(small))
                self._hand_over(payload)
                small.clear()
            else:
                small.append(payload)
        if small:
            self._hand_over(b"".join(small))
        # Everybody else gets a turn, even when the socket has taken all of it at once.
        await asyncio.sleep(0)
        await self.writable.wait()
        if self.disconnected:
            raise ClientDisconnected()

    def _hand_over(self, data: bytes) -> None:
        self._written += len(data)
        self.transport.write(data)

    def keepalive_timeout(self) -> None:
        """No pong has come in time: give up the connection, unless that is our own doing.

        A pong is late for honest reasons when the ping waits behind output that the peer is still
        taking, and when we are not reading because the kernel takes no more requests.
        """
        taken = self._written - self.transport.get_write_buffer_size()
        progress = taken > self._taken
        self._taken = taken
        if progress or self.read_paused:
            assert self.ping_timeout is not None
            self.pong_timer = self.loop.call_later(self.ping_timeout, self.keepalive_timeout)
            return
        super().keepalive_timeout()
        if self.transport.get_write_buffer_size():
            self.transport.abort()


def _frame_header(first: int, length: int) -> bytes:
    """The header of an unfragmented, unmasked frame [RFC 6455, section 5.2]."""
    if length < 126:
        return bytes((first, length))
    if length < 65536:
        return pack("!BBH", first, 126, length)
    return pack("!BBQ", first, 127, length)
