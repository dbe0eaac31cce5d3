"""Hearing a kernel: what it says is numbered and appended to its log; requests leave for it once.

A kernel is heard from before its first process to after its last: its log outlives them. All
requests of all clients leave over one set of sockets, so that all replies come back here.
"""

from __future__ import annotations

import hashlib
import logging
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import msgspec
import zmq

from ..protocol import records, v1
from ..protocol.link import Bell
from ..protocol.messages import ClientMessage, MalformedMessage, Message
from .channels import Channels
from .held_replies import HeldReplies
from .log import LogWriter
from .requests import PendingRequests, Request
from .sockets import ConnectionInfo
from .turns import Turns

__all__ = ["NOBODY", "UNKNOWN_MESSAGES", "Hearing"]

logger = logging.getLogger(__name__)

NOBODY: Final = ""
"""The owner of what is kept in a log and shown to no session."""

UNKNOWN_MESSAGES: Final = 64
"""Numbers that are left out where nobody has heard a kernel for a while: how much it has said
meanwhile is not known."""


UNTOLD_REQUESTS: Final = 32
UNTOLD_BYTES: Final = 2**20
"""Requests, and their bytes, that may be taken before that is told for its own sake."""


class _Status(msgspec.Struct):
    execution_state: Any = ""


_status_decoder: Final = msgspec.json.Decoder(_Status)


class Hearing:
    """One kernel's log, and its sockets while it has a process.

    ``session`` is the service's own: of what the kernel says of requests in that session clients
    see nothing. ``on_change`` is called when there is something to flush and to tell.
    ``on_malformed`` is told of each message that is dropped.
    """

    def __init__(
        self,
        handle: int,
        kernel_id: str,
        session: str,
        writer: LogWriter,
        on_change: Callable[[Hearing], None],
        on_malformed: Callable[[str, str, str], None],
    ) -> None:
        self.handle = handle
        self.kernel_id = kernel_id
        self.session = session
        self.writer = writer
        self.taken = 0
        """Requests that have left for the kernel, or never will, ever."""
        self.opened = False
        """Whether the present process has been taken for ready."""
        self._on_change = on_change
        self._tell_malformed = on_malformed
        self._is_changed = False
        self._told = 0  # of those that were taken
        self._untold_bytes = 0
        self._requests = PendingRequests()
        self._held = HeldReplies(self._release, self._has_unread_output)
        self._waiting: dict[str, deque[ClientMessage]] = {}
        self._channels: Channels | None = None
        self._info: ConnectionInfo | None = None
        # The process is new until it is ready and has published something that it was asked for.
        self._is_new = self._has_begun = False

    @property
    def connected(self) -> bool:
        """Whether there are sockets to a process."""
        return self._channels is not None

    def bell(self) -> Bell:
        """How far the log goes; all that is told of is written."""
        writer = self.writer
        self._told, self._untold_bytes = self.taken, 0
        self._is_changed = False
        return Bell(self.handle, writer.first, writer.end, writer.tip, self.taken)

    def _change(self) -> None:
        if not self._is_changed:  # since the last bell
            self._is_changed = True
            self._on_change(self)

    # The process

    def connect(self, context: zmq.Context[Any], info: ConnectionInfo, turns: Turns) -> None:
        """A process has been launched: hear it. Raises `zmq.ZMQError` or `ValueError`."""
        self._disconnect()
        self._requests.take_all()
        self._is_new, self._has_begun, self.opened = True, False, False
        self._open(context, info, turns)

    def connect_again(self, context: zmq.Context[Any], info: ConnectionInfo, turns: Turns) -> None:
        """Hear a process that another keeper has heard. What was said meanwhile is a gap."""
        self._recall()
        if self.writer.next.cursor > 1:
            self.writer.skip(UNKNOWN_MESSAGES)
        self.opened = True
        self._open(context, info, turns)
        self._change()

    def _open(self, context: zmq.Context[Any], info: ConnectionInfo, turns: Turns) -> None:
        try:
            # The same for every keeper: a kernel answers the socket that asked.
            identity = hashlib.blake2b(self.kernel_id.encode(), digest_size=15).digest()
            self._channels = Channels(context, info, self, turns, b"k" + identity)
        except (KeyError, AttributeError, TypeError, ValueError) as error:
            raise ValueError(f"no use for the connection information: {error!r}") from None
        self._info = info

    def disconnect(self) -> None:
        """The process has ended, or is nobody's business here any more."""
        if self._channels is not None:
            self.settle()
        self._disconnect()
        for request in self._requests.take_all():
            self._release(request)
        self._held.clear()

    def _disconnect(self) -> None:
        if self._channels is not None:
            self._channels.close()
            self._channels = None
        left = sum(map(len, self._waiting.values()))
        self._waiting.clear()
        if left:
            self.taken += left
            self._change()

    def settle(self) -> bool:
        """Take what has arrived from the kernel; whether there was anything."""
        return self._channels is not None and self._channels.drain()

    @property
    def stdin_connected(self) -> bool:
        """Whether input requests can arrive."""
        return self._channels is None or self._channels.stdin_connected

    def close(self) -> None:
        """Let go of the sockets and the files; both can be opened again."""
        self._held.clear()
        self._disconnect()
        self.writer.close()

    def remove(self) -> None:
        """The kernel is gone, and with it its log."""
        self._held.clear()
        self._disconnect()
        self.writer.remove()

    # Requests

    def request(self, message: ClientMessage, owner: str) -> None:
        """Send a request of a session's to the kernel, after those before it."""
        channel = message.channel
        # Those of clients come when it was taken for ready, should that word itself be lost.
        self.opened |= owner != self.session
        if channel != "stdin":
            self._requests.add(message, owner)
            if owner != self.session:
                header, _ = v1.encode(channel, [message.parts[0], b"{}", b"{}", b"{}"])
                self.writer.append(header, channel, owner, records.REQUEST)
                self.writer.flush()  # whoever hears the kernel next knows that it has left
        waiting = self._waiting.get(channel)
        if self._channels is None:
            self.taken += 1
        elif waiting or not self._channels.send(message):
            self._waiting.setdefault(channel, deque()).append(message)
        else:
            self.taken += 1
        # That it is taken is told with what the kernel says of it, or when much was.
        self._untold_bytes += message.size
        if self.taken - self._told >= UNTOLD_REQUESTS or self._untold_bytes >= UNTOLD_BYTES:
            self._change()

    def on_writable(self) -> None:
        """Send what waits, as far as the sockets take it."""
        for waiting in self._waiting.values():
            while waiting and self._channels is not None and self._channels.send(waiting[0]):
                waiting.popleft()
                self.taken += 1
        self._change()

    # What is said

    def say(self, channel: str, frame: bytes, owner: str | None, flags: int) -> None:
        """Append a message of the server's own making."""
        self.writer.append(frame, channel, owner, flags)
        self._change()

    def on_message(self, message: Message) -> None:
        """Number a message of the kernel's, for those it is for (`app.keeper.channels`)."""
        channel = message.channel
        if channel == "iopub":
            self._append(message, self._owner_of_output(message))
            return
        parent = message.parent
        if channel == "stdin":
            owner = self._requests.owner(parent)
        else:
            request = self._requests.on_reply(parent)
            owner = request.owner if request is not None else parent.session
            is_early = request is not None and not request.idle and owner != self.session
            if request is not None and is_early and message.msg_type == "execute_reply":
                self._held.hold(request, message)
                return
        self._append(message, NOBODY if owner == self.session else owner or NOBODY)

    def _owner_of_output(self, message: Message) -> str | None:
        msg_type = message.header.msg_type
        owner: str | None = None
        if msg_type == "status":
            owner = self._on_status(message)
        elif msg_type == "iopub_welcome":  # [JEP 65] to us, the one subscriber
            owner = NOBODY
        if self._is_new and self._is_chatter(message):
            owner = NOBODY
        return owner

    def _on_status(self, message: Message) -> str | None:
        """Whom a status is for."""
        try:
            reported = _status_decoder.decode(message.part(3)).execution_state
        except (msgspec.MsgspecError, RecursionError):
            return None
        parent = message.parent
        if reported == "idle":
            request = self._requests.on_idle(parent)
            if request is not None:
                self._release(request)  # before the idle status: some clients stop at that
        if parent.session == self.session:
            return NOBODY
        if reported == "starting" and self.opened:
            # Said before it was taken for ready and heard after that: to a client it would be a
            # step back that nothing follows.
            return NOBODY
        return None

    def _is_chatter(self, message: Message) -> bool:
        """Whether a new process says this of its own start: it is the output of nobody's code.

        It may be read only after the kernel has answered, over another socket. Whatever has a
        parent was published after it.
        """
        self._has_begun |= bool(message.parent.msg_id)
        self._is_new = not (self._has_begun and self.opened)
        return self._is_new and message.msg_type == "stream"

    def _append(self, message: Message, owner: str | None) -> None:
        self.writer.append(message.frame, message.channel, owner, records.PUBLISHED, message.rest)
        self._change()

    def _release(self, request: Request) -> None:
        """Let a reply go that was held."""
        reply, request.held = request.held, None
        if reply is not None:
            self._append(reply, request.owner)

    def _has_unread_output(self) -> bool:
        return self._channels is not None and self._channels.has_unread("iopub")

    def on_malformed(self, channel: str, error: MalformedMessage) -> None:
        """Something was dropped (`app.keeper.channels`)."""
        self._tell_malformed(self.kernel_id, channel, str(error))

    def _recall(self) -> None:
        """Know again whom the kernel owes replies, from the end of the log."""
        for record, owner, frame in self.writer.newest():
            message = Message(record.channel, frame)
            try:
                if record.flags & records.REQUEST:
                    parts = [bytes(message.part(0))]
                    request = ClientMessage(record.channel, message.header, parts)
                    self._requests.add(request, owner or NOBODY)
                elif record.channel in ("shell", "control"):
                    self._requests.on_reply(message.parent)
                elif message.msg_type == "status" and b'"idle"' in bytes(message.part(3)):
                    self._requests.on_idle(message.parent)
            except MalformedMessage:
                continue
