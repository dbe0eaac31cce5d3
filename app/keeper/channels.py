"""A kernel's sockets: one set for the life of its process, driven by the event loop.

Raw pyzmq sockets are read when their descriptor says so, without a task or a future per message
(`zmq.asyncio` costs several times more). A turn reads a bounded number of messages, so that one
busy kernel does not starve the others.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final, Protocol

import zmq

from ..protocol import wire
from ..protocol.messages import Buffer, ClientMessage, MalformedMessage, Message
from ..protocol.signing import Signer
from .sockets import ConnectionInfo, endpoint, read_frames
from .turns import MESSAGES_ALONE, Turns

__all__ = ["Channels", "Listener"]

logger = logging.getLogger(__name__)

BYTES_PER_TURN: Final = 512 * 1024
"""What is read from one socket in one turn of the loop; how many messages `Turns` tells."""

# With enums each call costs a conversion, and each `&` makes an object in Python.
_NOBLOCK: Final = int(zmq.NOBLOCK)
_EVENTS: Final = int(zmq.EVENTS)
_POLLIN: Final = int(zmq.POLLIN)
_POLLOUT: Final = int(zmq.POLLOUT)

_SOCKETS: Final = {
    "iopub": zmq.SUB,
    "shell": zmq.DEALER,
    "control": zmq.DEALER,
    "stdin": zmq.DEALER,
}


class Listener(Protocol):
    """Who hears what comes from the sockets.

    Its methods must not block and must not raise: what was read together would be lost.
    """

    def on_message(self, message: Message) -> None:
        """A valid message has come."""

    def on_malformed(self, channel: str, error: MalformedMessage) -> None:
        """Something came that is no message, or whose signature is wrong; it was dropped."""

    def on_writable(self) -> None:
        """A socket that refused a message takes messages again."""


class Channels:
    """The four sockets to one kernel process.

    All requests leave over one shell socket, so replies come back here and are routed by the
    request that they answer. ``stdin`` has the identity of ``shell``: that is where a kernel sends
    its input requests. With the ``identity`` of other sockets that are no more, replies come here
    that were meant for those.
    """

    def __init__(
        self,
        context: zmq.Context[Any],
        info: ConnectionInfo,
        listener: Listener,
        turns: Turns,
        identity: bytes,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.listener = listener
        self._turns = turns
        self._signer = Signer(
            _bytes(info.get("key")), info.get("signature_scheme") or "hmac-sha256"
        )
        self._curve_key = _bytes(info.get("curve_publickey"))
        self._curve_secret = _bytes(info.get("curve_secretkey"))
        self._sockets: dict[str, zmq.Socket[bytes]] = {}
        self._readers: dict[int, Callable[[], None]] = {}
        self._scheduled: dict[str, asyncio.Handle] = {}
        self._blocked: set[str] = set()
        self.identity = identity
        try:
            for channel, kind in _SOCKETS.items():
                self._open(context, channel, kind, self.identity, endpoint(info, channel))
        except BaseException:
            self.close()
            raise

    def _open(
        self, context: zmq.Context[Any], channel: str, kind: int, identity: bytes, address: str
    ) -> None:
        socket: zmq.Socket[bytes] = context.socket(kind)
        self._sockets[channel] = socket
        socket.linger = 0
        # A kernel binds some time after it is started, and its peer looks again this often: half
        # of that is what a start costs more than it must.
        socket.reconnect_ivl = 10
        # The kernel's publisher drops what a slow subscriber does not take, so ours never is slow.
        socket.rcvhwm = 0
        if kind == zmq.SUB:
            socket.subscribe(b"")
        else:
            socket.setsockopt(zmq.IDENTITY, identity)
        if channel == "stdin":
            # Writable then means connected, which is the only way to know (see stdin_connected).
            socket.immediate = True
        if self._curve_key:
            # The connection file holds one key pair, for both ends.
            socket.curve_serverkey = socket.curve_publickey = self._curve_key
            socket.curve_secretkey = self._curve_secret
        socket.connect(address)

        def read() -> None:
            self._read(channel)

        descriptor = int(socket.getsockopt(zmq.FD))
        self._loop.add_reader(descriptor, read)
        self._readers[descriptor] = read
        self._schedule(channel)

    def close(self) -> None:
        """Close every socket at once; what was not yet sent is dropped."""
        for descriptor in self._readers:
            self._loop.remove_reader(descriptor)
        for handle in self._scheduled.values():
            handle.cancel()
        for socket in self._sockets.values():
            socket.close(linger=0)
        self._readers.clear()
        self._scheduled.clear()
        self._sockets.clear()

    @property
    def stdin_connected(self) -> bool:
        """Whether the kernel has bound its stdin socket and knows ours."""
        return bool(_events(self._sockets["stdin"]) & _POLLOUT)

    def send(self, message: ClientMessage) -> bool:
        """Send a client's message on its channel; False if the socket takes no more for now.

        `Listener.on_writable` then says when to try again.
        """
        channel = message.channel
        socket = self._sockets[channel]
        try:
            socket.send_multipart(wire.pack(message, self._signer), _NOBLOCK, copy=True)
        except zmq.Again:
            self._blocked.add(channel)
            return False
        # The descriptor is edge-triggered, and sending may have eaten the edge of a message
        # that arrived meanwhile.
        if _events(socket) & _POLLIN:
            self._schedule(channel)
        return True

    def has_unread(self, channel: str) -> bool:
        """Whether something has arrived on a channel that has not been read."""
        unread = bool(_events(self._sockets[channel]) & _POLLIN)
        if unread:  # looking may have eaten the edge
            self._schedule(channel)
        return unread

    def drain(self) -> bool:
        """Read now all that has arrived on every socket; whether there was anything."""
        found = False
        for channel in list(self._sockets):
            count = MESSAGES_ALONE
            while count >= MESSAGES_ALONE and channel in self._sockets:
                count = self._receive(channel, MESSAGES_ALONE)
                found |= count > 0
        return found

    def _schedule(self, channel: str) -> None:
        if channel not in self._scheduled:
            self._scheduled[channel] = self._loop.call_soon(self._read, channel)

    def _read(self, channel: str) -> None:
        """One turn for one socket: read what its budget allows, come back for the rest."""
        handle = self._scheduled.pop(channel, None)
        if handle is not None:
            handle.cancel()
        if channel not in self._sockets:
            return
        budget = self._turns.messages(self.identity)
        if self._receive(channel, budget) >= budget:
            self._schedule(channel)
            return
        self._turns.was_short(self.identity)
        if channel in self._blocked:
            self._look_for_room(channel)

    def _receive(self, channel: str, max_messages: int) -> int:
        """Read up to so many messages, or `BYTES_PER_TURN`; ``max_messages`` if there may be more.

        One step is done for all of them, then the next: a step's code and data stay in the
        processor's caches.
        """
        arrived, is_full = self._read_all(channel, max_messages)
        messages: list[Message | None] = []
        unpack, signer, place = wire.unpack, self._signer, wire.LEADING_FRAMES[channel] - 5
        for frames in arrived:
            message = None
            try:
                if len(frames) > place and frames[place] == wire.DELIMITER:
                    message = unpack(channel, frames, signer)
            except MalformedMessage:
                pass
            messages.append(message)
        on_message = self.listener.on_message
        for frames, message in zip(arrived, messages, strict=True):
            if message is not None:
                on_message(message)
            else:
                self._take_apart(channel, frames)
            if channel not in self._sockets:  # the listener closed us
                break
        return max_messages if is_full else len(arrived)

    def _read_all(self, channel: str, max_messages: int) -> tuple[list[list[Buffer]], bool]:
        """The frames of up to so many messages, and whether they are `BYTES_PER_TURN`."""
        socket, leading = self._sockets[channel], wire.LEADING_FRAMES[channel]
        flags = (_NOBLOCK,) * leading
        arrived: list[list[Buffer]] = []
        size = 0
        while len(arrived) < max_messages and size < BYTES_PER_TURN:
            frames = read_frames(socket, flags)
            if not frames:
                break
            arrived.append(frames)
            size += len(frames[-1]) if len(frames) == leading + 1 else sum(map(len, frames))
            # Most come alone. To be told so costs half of what it costs to find out by reading.
            if len(arrived) == 1 and not _events(socket) & _POLLIN:
                break
        return arrived, size >= BYTES_PER_TURN

    def _take_apart(self, channel: str, frames: list[Buffer]) -> None:
        """Drop what is malformed, but not the messages that were read together with it."""
        for piece in wire.split(channel, frames):
            try:
                message = wire.unpack(channel, piece, self._signer)
            except MalformedMessage as error:
                self.listener.on_malformed(channel, error)
            else:
                self.listener.on_message(message)

    def _look_for_room(self, channel: str) -> None:
        socket = self._sockets.get(channel)
        if socket is not None and _events(socket) & _POLLOUT:
            self._blocked.discard(channel)
            self.listener.on_writable()


def _events(socket: zmq.Socket[bytes]) -> int:
    return int(socket.getsockopt(_EVENTS))


def _bytes(value: bytes | str | None) -> bytes:
    """A value of a connection file; jupyter_client has some as bytes, the file as text."""
    return value.encode() if isinstance(value, str) else value or b""
