"""Sending messages to a WebSocket: in batches where the server offers that, else one by one."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from typing import Protocol

from starlette.websockets import WebSocket

from app.protocol import legacy
from app.protocol.frames import FrameError
from app.protocol.messages import Message

__all__ = ["EXTENSION", "FrameWriter", "Sender", "sender_for"]

logger = logging.getLogger(__name__)

EXTENSION = "kernelkeep.frames"
"""The ASGI extension that `app.ws.uvicorn_protocol` offers; its value is a `FrameWriter`."""


class FrameWriter(Protocol):
    """What the extension can do that plain ASGI cannot: write many frames at once."""

    async def write(self, frames: Iterable[tuple[bytes, bool]]) -> None:
        """Write frames, each a payload and whether it is text; return when more may come."""


class Sender(Protocol):
    """Sends messages in one framing."""

    async def send(self, messages: Sequence[Message]) -> None:
        """Send messages; return when the socket takes more.

        Raises `OSError` or `WebSocketDisconnect` when the client is gone.
        """


def sender_for(websocket: WebSocket, *, is_v1: bool) -> Sender:
    """The best way to send to this WebSocket."""
    writer: FrameWriter | None = websocket.scope.get("extensions", {}).get(EXTENSION)
    if writer is not None:
        return _BatchSender(writer, is_v1)
    return _PlainSender(websocket, is_v1)


class _BatchSender:
    def __init__(self, writer: FrameWriter, is_v1: bool) -> None:
        self._writer = writer
        self._is_v1 = is_v1

    async def send(self, messages: Sequence[Message]) -> None:
        if self._is_v1:
            await self._writer.write([(message.frame, False) for message in messages])
        else:
            await self._writer.write(_legacy_frames(messages))


class _PlainSender:
    def __init__(self, websocket: WebSocket, is_v1: bool) -> None:
        self._websocket = websocket
        self._is_v1 = is_v1

    async def send(self, messages: Sequence[Message]) -> None:
        if self._is_v1:
            for message in messages:
                await self._websocket.send_bytes(message.frame)
        else:
            for frame, is_text in _legacy_frames(messages):
                if is_text:
                    await self._websocket.send_text(frame.decode())
                else:
                    await self._websocket.send_bytes(frame)
        # A send that the socket takes at once gives nobody else a turn.
        await asyncio.sleep(0)


def _legacy_frames(messages: Sequence[Message]) -> list[tuple[bytes, bool]]:
    """The legacy frames, each with whether it is text."""
    frames = []
    for message in messages:
        try:
            frame = legacy.encode(message)
        except FrameError as error:
            logger.warning("a %s cannot be sent: %s", message.msg_type, error)
            continue
        frames.append((frame, not message.buffer_count))
    return frames
