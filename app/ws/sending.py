"""Sends messages to a WebSocket: in batches if the ASGI server offers that, else one by one."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Protocol
from weakref import WeakKeyDictionary

from starlette.websockets import WebSocket

from ..managers.log.entries import Position
from ..managers.log.large_frames import Large
from ..managers.log.message_log import MessageLog
from ..protocol import legacy, v1
from ..protocol.frames import FrameError
from ..protocol.messages import Buffer, Message

__all__ = [
    "CLOSE_SECONDS",
    "CREDENTIAL_ENDED",
    "EXTENSION",
    "SERVICE_RESTART",
    "FrameWriter",
    "Sender",
    "sender_for",
]

logger = logging.getLogger(__name__)

EXTENSION = "kernelkeep.frames"
"""The ASGI extension that `app.ws.uvicorn_protocol` offers; its value is a `FrameWriter`."""


SERVICE_RESTART = 1012
"""Close code of every WebSocket when the server stops: the client should reconnect soon."""

CREDENTIAL_ENDED = 4401
"""Close code of a WebSocket whose token has expired or was revoked: a new one is needed."""


CLOSE_SECONDS: Final = 0.4
"""How long a close frame may wait behind output that the client does not take."""


class FrameWriter(Protocol):
    """The ASGI extension: it writes many frames at once and tells what has arrived."""

    @property
    def acknowledged(self) -> Position | None:
        """The place in the log up to which the client is known to have everything."""

    @property
    def sends_mapped(self) -> bool:
        """Whether `write` hands chunks to the system as they are, and reads none of their bytes."""

    def join(self, frames: Iterable[tuple[bytes, bool]]) -> list[Buffer]:
        """Frame payloads, each given with whether it is text; returns the bytes to `write`.

        The bytes are the same for every connection.
        """

    def binary(self, payload: bytes, rest: Sequence[Buffer]) -> list[Buffer]:
        """Frame a binary payload that goes on in ``rest``, which is not read."""

    async def write(self, chunks: Sequence[Buffer], place: Position | None = None) -> None:
        """Write chunks that `join` has made; return when the connection has room for more.

        With these chunks the client will have everything before ``place`` in the log. Raises
        `OSError` when the connection is closed.
        """

    async def lost(self) -> None:
        """Return when the connection is lost; works also while nothing is received from it."""

    def abort(self) -> None:
        """Cut the connection at once, and throw away what waits to be sent."""


KEPT_BYTES: Final = 2**20
"""The largest batch, in bytes, whose frames are reused; a larger one is framed again for each
reader. Up to so many bytes stay in memory for each kernel: as much as a reader takes at once."""


Encode = Callable[[Sequence[Message]], list[tuple[bytes, bool]]]


class Sender(Protocol):
    """Sends messages to one WebSocket, in one framing."""

    @property
    def large(self) -> Large:
        """How this sender needs the frames of large messages."""

    async def send(self, messages: Sequence[Message], place: Position) -> None:
        """Send messages, all that the client needs before ``place``; return when there is room.

        Raises `OSError` or `WebSocketDisconnect` when the client is gone.
        """

    def arrived(self, place: Position) -> Position:
        """The place in the log up to which the client is known to have everything.

        ``place`` is that of the client's reader. The result never lies behind what was sent.
        """

    async def lost(self) -> None:
        """Return when the connection is lost, or never if the ASGI server cannot tell."""


def sender_for(
    websocket: WebSocket, log: MessageLog, start: Position, *, is_v1: bool, numbered: bool
) -> Sender:
    """A sender of messages from ``log`` to a WebSocket, whose client has all before ``start``.

    It sends in batches if the ASGI server can. ``numbered`` messages carry their number in the log.
    """
    encode: Encode = _v1_frames if is_v1 else _legacy_frames
    if numbered:
        encode = _numbered_v1_frames if is_v1 else _numbered_legacy_frames
    writer: FrameWriter | None = websocket.scope.get("extensions", {}).get(EXTENSION)
    if writer is not None:
        return _BatchSender(writer, encode, log, start)
    return _PlainSender(websocket, encode, start)


class _LastBatch:
    """The batch that was framed last: readers at the same place are sent the same bytes."""

    __slots__ = ("chunks", "encode", "messages")

    def __init__(self) -> None:
        self.encode: Encode | None = None
        self.messages: Sequence[Message] = ()
        self.chunks: list[Buffer] = []


# The last batch of each kernel, shared by its connections: they are woken one after the other, so
# most of them find the batch that they need. It is forgotten with the kernel's log.
_last_batches: WeakKeyDictionary[MessageLog, _LastBatch] = WeakKeyDictionary()


class _BatchSender:
    def __init__(
        self, writer: FrameWriter, encode: Encode, log: MessageLog, start: Position
    ) -> None:
        self._last = _last_batches.setdefault(log, _LastBatch())
        self._writer = writer
        self._encode = encode
        self._start = start
        # The frame of a message is the v1 frame. Every other framing is made from its bytes.
        is_as_it_is = encode is _v1_frames and writer.sends_mapped
        self.large = Large.MAPPED if is_as_it_is else Large.WHOLE

    async def send(self, messages: Sequence[Message], place: Position) -> None:
        last = self._last
        # Messages are equal only if they are the same object, so two batches differ at their first
        # message. No other connection can change `last` before the write: nothing awaits there.
        if last.encode is self._encode and last.messages == messages:
            chunks = last.chunks
        else:
            chunks = self._framed(messages)
            if sum(map(len, chunks)) <= KEPT_BYTES:
                last.encode, last.messages, last.chunks = self._encode, messages, chunks
        await self._writer.write(chunks, place)

    def _framed(self, messages: Sequence[Message]) -> list[Buffer]:
        writer, encode = self._writer, self._encode
        if self.large is Large.WHOLE or not any(one.rest for one in messages):
            return writer.join(encode(messages))
        chunks: list[Buffer] = []
        for message in messages:
            if message.rest:
                chunks += writer.binary(message.frame, message.rest)
            else:
                chunks += writer.join(encode([message]))
        return chunks

    def arrived(self, place: Position) -> Position:  # noqa: ARG002
        # Before the first pong nothing is known to have arrived: a client that comes back is sent
        # all of it again.
        return self._writer.acknowledged or self._start

    async def lost(self) -> None:
        await self._writer.lost()


class _PlainSender:
    large = Large.WHOLE

    def __init__(self, websocket: WebSocket, encode: Encode, start: Position) -> None:
        self._websocket = websocket
        self._encode = encode
        self._written_to = start

    async def send(self, messages: Sequence[Message], place: Position) -> None:
        for frame, is_text in self._encode(messages):
            if is_text:
                await self._websocket.send_text(frame.decode())
            else:
                await self._websocket.send_bytes(frame)
        self._written_to = place

    def arrived(self, place: Position) -> Position:  # noqa: ARG002
        """The place itself: plain ASGI has no acknowledgements, so written counts as arrived."""
        return self._written_to

    async def lost(self) -> None:
        """Plain ASGI cannot report a lost connection, so this never returns."""
        await asyncio.Event().wait()


def _v1_frames(messages: Sequence[Message]) -> list[tuple[bytes, bool]]:
    return [(message.frame, False) for message in messages]


def _numbered_v1_frames(messages: Sequence[Message]) -> list[tuple[bytes, bool]]:
    return [(v1.encode_numbered(message), False) for message in messages]


def _numbered_legacy_frames(messages: Sequence[Message]) -> list[tuple[bytes, bool]]:
    return [(legacy.encode_numbered(message), not message.buffer_count) for message in messages]


def _legacy_frames(messages: Sequence[Message]) -> list[tuple[bytes, bool]]:
    """The legacy frames, each with whether it is text."""
    frames = []
    for message in messages:
        try:
            frame = legacy.encode(message)
        except FrameError as error:
            # The frame would pass 4 GiB. The message is left out: otherwise the connection would
            # break at this message whenever the client comes back to it.
            logger.warning("a %s cannot be sent: %s", message.msg_type, error)
            continue
        frames.append((frame, not message.buffer_count))
    return frames
