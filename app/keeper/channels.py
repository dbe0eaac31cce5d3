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
from .peer_ends import PeerEnds
from .sockets import ConnectionInfo, endpoint, read_frames
from .turns import MESSAGES_ALONE, Turns

__all__ = ["Channels", "Listener"]

logger = logging.getLogger(__name__)

BYTES_PER_TURN: Final = 512 * 1024
"""How many bytes are read from one socket in one turn of the loop, for which other kernels wait.
`Turns` bounds the messages."""

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

_AT_ONCE: Final = ("iopub", "shell")
"""The sockets that are opened to a new process. Thousands of kernels are never asked for anything,
and a socket takes two descriptors and some 30 kB."""

STDIN_SECONDS: Final = 1.0
"""How long requests wait until stdin is connected. Some kernels have no stdin."""

AGAIN_SECONDS: Final = 1.0
"""How many seconds after a socket could not be opened the keeper tries again. There may have been
no descriptors left."""


DRAIN_SECONDS: Final = 1.0
"""For how many seconds `drain` may read. A process that still runs (it is about to be killed) could
send faster than the keeper reads. Meanwhile no other kernel is read and no server is answered, and
servers take a keeper that is silent for 2 or 3 s for one that hangs."""


class Listener(Protocol):
    """Takes the messages that come from the sockets of one kernel.

    Its methods must not block and must not raise: other messages of the same turn would be lost.
    """

    def on_message(self, message: Message) -> None:
        """A valid message has come."""

    def on_malformed(self, channel: str, error: MalformedMessage) -> None:
        """Frames that are no message, or have a wrong signature, have come and were dropped."""

    def on_writable(self) -> None:
        """A socket that refused a message takes messages again."""


class Channels:
    """The sockets to one kernel process, four at the most.

    All requests leave over one shell socket, so all replies come back here, and are routed by the
    request that they answer. ``stdin`` has the identity of ``shell``: a kernel sends its input
    requests to the identity of the request that asks. Sockets with the ``identity`` of earlier
    ones, which are closed, get the replies to requests of those.

    Control is opened by the first request on it, and stdin by `expect_input`; with ``everything``
    both are there from the beginning, for what the kernel sends to earlier sockets.
    """

    def __init__(
        self,
        context: zmq.Context[Any],
        info: ConnectionInfo,
        listener: Listener,
        turns: Turns,
        identity: bytes,
        *,
        everything: bool = False,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._context = context
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
        self._timers: dict[str, asyncio.TimerHandle] = {}  # by the channel that they are about
        self._asks = everything  # whether the kernel may ask for input
        self._awaits_stdin = False  # whether requests wait until stdin is connected
        self._ends: PeerEnds | None = None  # once the process has ended
        self.identity = identity
        self._addresses = {channel: endpoint(info, channel) for channel in _SOCKETS}
        try:
            for channel in _SOCKETS if everything else _AT_ONCE:
                self._open(channel)
        except BaseException:  # as for want of descriptors: the caller has no object to close
            self.close()
            raise

    def _open(self, channel: str) -> zmq.Socket[bytes]:
        kind = _SOCKETS[channel]
        socket: zmq.Socket[bytes] = self._context.socket(kind)
        try:
            self._connect(socket, channel)
            descriptor = int(socket.getsockopt(zmq.FD))
        except BaseException:
            socket.close(linger=0)
            raise
        self._sockets[channel] = socket

        def read() -> None:
            self._read(channel)

        self._loop.add_reader(descriptor, read)
        self._readers[descriptor] = read
        # Events that came before the descriptor was watched make no further edge.
        self._schedule(channel)
        return socket

    def _connect(self, socket: zmq.Socket[bytes], channel: str) -> None:
        # A close drops what was not sent: a process that is gone would keep it for ever.
        socket.linger = 0
        # In milliseconds. A kernel binds its sockets some time after its launch, and ZMQ tries to
        # connect this often: on average a start is delayed by half of it.
        socket.reconnect_ivl = 10
        # No high-water mark: a kernel's publisher drops messages for a subscriber that is slow.
        socket.rcvhwm = 0
        if channel == "iopub":
            socket.subscribe(b"")
        else:
            socket.setsockopt(zmq.IDENTITY, self.identity)
        if channel == "stdin":
            # With it, a socket is writable only once it is connected (see stdin_connected).
            socket.immediate = True
        if self._curve_key:
            # The connection file has one key pair, which both ends use.
            socket.curve_serverkey = socket.curve_publickey = self._curve_key
            socket.curve_secretkey = self._curve_secret
        socket.connect(self._addresses[channel])

    def close(self) -> None:
        """Close every socket at once; what was not yet sent is dropped."""
        if self._ends is not None:
            self._ends.close()
        # The readers go first: the system gives the number of a closed descriptor to the next one
        # that is opened, and the loop would call this object for that.
        for descriptor in self._readers:
            self._loop.remove_reader(descriptor)
        for handle in (*self._scheduled.values(), *self._timers.values()):
            handle.cancel()
        for socket in self._sockets.values():
            socket.close(linger=0)
        self._readers.clear()
        self._scheduled.clear()
        self._timers.clear()
        self._sockets.clear()

    # Sockets that not every kernel needs

    def expect_input(self) -> None:
        """Open stdin, as a request follows that may ask for input.

        The kernel's ROUTER drops an input request for a peer that is not connected yet. So `send`
        takes no request on shell until stdin is connected, or `STDIN_SECONDS` have passed.
        """
        if self._asks:
            return
        self._asks = True
        self._socket("stdin")
        # Whichever comes first lets requests go: the connection (`_read`), or the timer.
        if not self.stdin_connected:
            self._awaits_stdin = True
            self._call_later("stdin", STDIN_SECONDS)

    @property
    def stdin_connected(self) -> bool:
        """Whether the kernel can send input requests; True, too, while it has no cause to."""
        if "stdin" not in self._sockets:
            return not self._asks
        return bool(self._look("stdin") & _POLLOUT)

    def _socket(self, channel: str) -> zmq.Socket[bytes] | None:
        """The socket of a channel, which is opened if it is not; None if it cannot be, for now."""
        # If there is no socket, no message is lost: it waits in `Hearing`, and the timer of `send`
        # has it sent again.
        socket = self._sockets.get(channel)
        if socket is None:
            try:
                socket = self._open(channel)
            except zmq.ZMQError as error:
                logger.warning("no socket to %s: %s", self._addresses[channel], error)
        return socket

    def _call_later(self, channel: str, seconds: float) -> None:
        if channel not in self._timers:
            self._timers[channel] = self._loop.call_later(seconds, self._has_waited, channel)

    def _has_waited(self, channel: str) -> None:
        # `close` and `_look_for_room` cancel a timer, so this is never called for one that is gone.
        del self._timers[channel]
        self._go_on(channel)

    def _go_on(self, channel: str) -> None:
        """Have requests sent again that waited for a channel."""
        self._blocked.discard(channel)
        if channel == "stdin":
            self._awaits_stdin = False
            self._socket("stdin")  # if it could not be opened before
        self.listener.on_writable()

    def send(self, message: ClientMessage) -> bool:
        """Send a client's message on its channel; False if the socket takes no more for now.

        `Listener.on_writable` then says when to try again.
        """
        channel = message.channel
        if channel == "shell" and self._awaits_stdin:
            return False
        socket = self._socket(channel)
        if socket is None:
            self._call_later(channel, AGAIN_SECONDS)
            return False
        try:
            # All parts or none: ZMQ refuses a message with its first part, and takes the rest then.
            socket.send_multipart(wire.pack(message, self._signer), _NOBLOCK, copy=True)
        except zmq.Again:  # the descriptor makes an edge when there is room, and `_read` looks
            self._blocked.add(channel)
            return False
        self._look(channel)  # the send has consumed the edge of a message that came meanwhile
        return True

    def has_unread(self, channel: str) -> bool:
        """Whether a message has arrived on a channel and has not been read."""
        return channel in self._sockets and bool(self._look(channel) & _POLLIN)

    def _look(self, channel: str) -> int:
        """The events that a socket is ready for (`zmq.POLLIN`, `zmq.POLLOUT`), as a bit mask.

        If messages can be read, this plans a read. The race: ZMQ's descriptor is edge-triggered
        [zmq_getsockopt(3), ZMQ_FD]. A send, and a look at the events, consume the edge of a message
        that arrives just then. The loop would not be woken for that message, and libzmq makes no
        further edge until the messages that are there have been read.
        """
        events = _events(self._sockets[channel])
        if events & _POLLIN:
            self._schedule(channel)
        return events

    def settle(self) -> bool:
        """Read the last messages of a process that has ended.

        Returns whether there were any, or whether more may still be on their way.
        """
        now = self._loop.time()
        if self._ends is None:
            self._ends = PeerEnds(self._sockets.values(), now)
        # The ends first: once a connection is known to have ended, all that was sent over it has
        # arrived. In the other order, a message and then the end could come between the two calls,
        # and nobody would read the message.
        are_over = self._ends.are_over(now)
        return self.drain() or not are_over

    def drain(self) -> bool:
        """Read all messages that have arrived on every socket; returns whether there were any."""
        found, until = False, self._loop.time() + DRAIN_SECONDS
        for channel in list(self._sockets):
            while channel in self._sockets:  # until the listener closes them
                count = self._receive(channel, MESSAGES_ALONE)
                found |= count > 0
                if count < MESSAGES_ALONE or self._loop.time() > until:
                    break
        return found

    def _schedule(self, channel: str) -> None:
        if channel not in self._scheduled:
            self._scheduled[channel] = self._loop.call_soon(self._read, channel)

    def _read(self, channel: str) -> None:
        """Read messages in one turn of the loop, and plan another turn if there may be more.

        Only a turn that has emptied the socket plans none: then the next message makes an edge.
        """
        # The descriptor and a planned turn may both call this in one turn of the loop: this call
        # takes the place of the planned one.
        handle = self._scheduled.pop(channel, None)
        if handle is not None:
            handle.cancel()
        if channel not in self._sockets:  # closed by another socket's listener in this turn
            return
        # A turn that was full plans the next one behind the other callbacks that are ready, so
        # kernels take turns. The descriptor alone would not do: it makes no edge for what is there.
        budget = self._turns.messages(self.identity)
        if self._receive(channel, budget) >= budget:
            self._schedule(channel)
            return
        self._turns.was_short(self.identity)
        if channel in self._blocked or (self._awaits_stdin and channel == "stdin"):
            self._look_for_room(channel)

    def _receive(self, channel: str, max_messages: int) -> int:
        """Read up to ``max_messages``, or `BYTES_PER_TURN`, and hand them to the listener.

        Returns how many were read, or ``max_messages`` if there may be more in the socket. Each
        step is done for all messages before the next one: the step's code and data stay in the
        processor's caches.
        """
        # Every message that was read must reach the listener. Only if the listener closes the
        # sockets, as it wants no more messages, does this end early.
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
        for frames, message in zip(arrived, messages):
            if message is not None:
                on_message(message)
            else:
                self._take_apart(channel, frames)
            if channel not in self._sockets:  # the listener has closed the sockets
                break
        return max_messages if is_full else len(arrived)

    def _read_all(self, channel: str, max_messages: int) -> tuple[list[list[Buffer]], bool]:
        """The frames of up to ``max_messages``, and whether `BYTES_PER_TURN` has ended the turn."""
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
            # Most messages come alone. To look at the events costs half of a read that finds none.
            if len(arrived) == 1 and not _events(socket) & _POLLIN:
                break
        return arrived, size >= BYTES_PER_TURN

    def _take_apart(self, channel: str, frames: list[Buffer]) -> None:
        """Drop a malformed message, but not messages that were read together with it."""
        for piece in wire.split(channel, frames):
            try:
                message = wire.unpack(channel, piece, self._signer)
            except MalformedMessage as error:
                self.listener.on_malformed(channel, error)
            else:
                self.listener.on_message(message)

    def _look_for_room(self, channel: str) -> None:
        if channel in self._sockets and self._look(channel) & _POLLOUT:
            timer = self._timers.pop(channel, None)
            if timer is not None:
                timer.cancel()
            self._go_on(channel)


def _events(socket: zmq.Socket[bytes]) -> int:
    return int(socket.getsockopt(_EVENTS))


def _bytes(value: bytes | str | None) -> bytes:
    """A value of the connection information, which jupyter_client may have as bytes or as text."""
    return value.encode() if isinstance(value, str) else value or b""
