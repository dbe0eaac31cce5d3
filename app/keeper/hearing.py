"""Hearing a kernel: its messages are numbered and logged, and requests to it are sent once each.

A kernel is heard from before its first process until after its last one: its log outlives them.
The requests of all clients leave over one set of sockets, so that all replies come back here.
"""

from __future__ import annotations

import hashlib
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

__all__ = ["MAX_SESSION", "NOBODY", "UNKNOWN_MESSAGES", "Hearing"]

NOBODY: Final = ""
"""The owner of messages that are in the log and shown to no session."""

UNKNOWN_MESSAGES: Final = 64
"""How many numbers are left out if no keeper has heard a kernel for a while: how many messages it
has sent in that time is not known, and readers are to find a gap."""


MAX_SESSION: Final = 2**13
"""How many characters the session of a reply may have. No client's session has more. A kernel may
claim any parent, and a name of more than 65,534 bytes does not fit a record."""

UNTOLD_REQUESTS: Final = 32
UNTOLD_BYTES: Final = 2**20
"""After how many requests, or bytes of requests, a bell tells the server that they are taken, even
if the kernel has sent nothing for which a bell is rung."""


class _Status(msgspec.Struct):
    execution_state: Any = ""


_status_decoder: Final = msgspec.json.Decoder(_Status)


class Hearing:
    """One kernel's log, and the sockets to its process while it has one.

    ``session`` is the server's own: clients see neither replies to requests of that session nor
    their statuses. ``on_change`` is called, once before each bell, when there are messages to write
    or facts to tell. ``on_malformed`` is called with kernel, channel and reason of each message
    that is dropped.
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
        """How many requests do not wait here any more, since the beginning: sent or dropped."""
        self.opened = False
        """Whether a server has taken the present process for ready."""
        self._on_change = on_change
        self._tell_malformed = on_malformed
        self._is_changed = False
        self._told = 0  # what the last bell told of ``taken``
        self._untold_bytes = 0
        self._requests = PendingRequests()
        self._held = HeldReplies(self._release, self._has_unread_output)
        self._waiting: dict[str, deque[ClientMessage]] = {}
        self._channels: Channels | None = None
        self._info: ConnectionInfo | None = None
        # The process is new until it is ready and has published a message with a parent.
        self._is_new = self._has_begun = False
        # Whether the process may have been asked for something that is not in ``_requests``.
        self._may_be_asked = False

    @property
    def connected(self) -> bool:
        """Whether there are sockets to a process."""
        return self._channels is not None

    def bell(self) -> Bell:
        """The ends of the log. The caller flushes first, so all that the bell tells is written."""
        writer = self.writer
        self._told, self._untold_bytes = self.taken, 0
        self._is_changed = False  # what is appended from here on asks for the next bell
        return Bell(self.handle, writer.first, writer.end, writer.tip, self.taken)

    def _change(self) -> None:
        if not self._is_changed:  # one call before each bell is enough
            self._is_changed = True
            self._on_change(self)

    def used(self, share: tuple[str, int]) -> None:
        """Note that a server takes the process for ready, and which ``share`` the log has."""
        self.opened = True
        self.writer.share(*share)

    # The process

    def connect(self, context: zmq.Context[Any], info: ConnectionInfo, turns: Turns) -> None:
        """Hear a process that was just launched. Raises `zmq.ZMQError` or `ValueError`."""
        # The server has mostly asked for `disconnect` when the process before ended. If the keeper
        # did not answer in time (`Line.disconnect`), the server has gone on, and has ended that
        # process's requests by itself. So replies that are held here are dropped: behind those
        # ends they would be a second answer.
        self._disconnect()
        self._requests.take_all()
        self._held.clear()
        self._is_new, self._has_begun, self.opened = True, False, False
        self._may_be_asked = False
        self._open(context, info, turns)

    def connect_again(self, context: zmq.Context[Any], info: ConnectionInfo, turns: Turns) -> None:
        """Hear a process that was heard by an earlier keeper, which is gone.

        The kernel's sockets dropped messages while no keeper was connected, so a gap is left in the
        log. Replies that the kernel has not sent yet come here: these sockets have the identity of
        those of the earlier keeper.
        """
        self._recall()  # before the sockets are open: each reply finds its request
        if self.writer.next.cursor > 1:
            self.writer.skip(UNKNOWN_MESSAGES)
        self.opened = True
        # A kernel without unanswered requests sends nothing to control and stdin. Such a request
        # may lie before the part of the log that `_recall` has read, or the log has dropped it.
        self._may_be_asked = self.writer.first.cursor > 1 or bool(self.writer.droppable)
        self._open(context, info, turns, everything=self._is_asked)
        self._change()

    def _open(
        self,
        context: zmq.Context[Any],
        info: ConnectionInfo,
        turns: Turns,
        *,
        everything: bool = False,
    ) -> None:
        try:
            # Every keeper has the same identity: a kernel replies to the identity that has asked,
            # so that this keeper gets the replies to requests of the one before it.
            identity = hashlib.blake2b(self.kernel_id.encode(), digest_size=15).digest()
            self._channels = Channels(
                context, info, self, turns, b"k" + identity, everything=everything
            )
        except (KeyError, AttributeError, TypeError, ValueError) as error:
            raise ValueError(f"no use for the connection information: {error!r}") from None
        self._info = info

    def disconnect(self) -> None:
        """Log the last messages of the process, and close the sockets. The log goes on."""
        # In this order: replies that have arrived, and may be held, are read before the held ones
        # are logged. So no reply is left when the server is told that the process has ended.
        if self._channels is not None:
            self._channels.drain()
        self._disconnect()
        for request in self._requests.take_all():  # in the order in which the replies were due
            self._release(request)
        self._held.clear()

    def _disconnect(self) -> None:
        if self._channels is not None:
            self._channels.close()
            self._channels = None
        left = sum(map(len, self._waiting.values()))
        self._waiting.clear()
        if left:  # these are dropped. The server ends them, and may send as many others
            self.taken += left
            self._change()

    def settle(self) -> bool:
        """Log what has arrived of a process that has ended, as `Channels.settle` does.

        If the kernel has answered every request, this only reads, as `Channels.drain`.
        """
        if self._channels is None:
            return False
        # It takes some milliseconds to see the ends of the connections. A stop does not wait for
        # that if no reply is due.
        return self._channels.settle() if self._is_asked else self._channels.drain()

    @property
    def _is_asked(self) -> bool:
        """Whether there is, or may be, a request that the process has not finished with."""
        requests = self._requests
        return len(requests) > 0 or requests.has_forgotten or self._may_be_asked

    @property
    def stdin_connected(self) -> bool:
        """Whether the stdin socket is connected; also True if there is no process."""
        return self._channels is None or self._channels.stdin_connected

    def close(self) -> None:
        """Close the sockets and the log's files, which another keeper can open again."""
        # The process goes on. Messages that its sockets still hold are a gap in the log of the next
        # keeper. A reply that is held here has left the sockets, and the kernel sends none twice:
        # so it is logged now.
        for request in self._requests.take_all():
            self._release(request)
        self._held.clear()
        self._disconnect()
        self.writer.close()

    def remove(self) -> None:
        """Close the sockets, and remove the log: the kernel is gone."""
        self._held.clear()
        self._disconnect()
        self.writer.remove()

    # Requests

    def request(self, message: ClientMessage, owner: str) -> None:
        """Send a session's request to the kernel, behind the earlier ones of its channel.

        A client's request is logged, its header only, before it is sent. So the log never lacks a
        request that the kernel may have: a server that finds no header there may send the request
        again. If this keeper is killed between the two, the log has a request that the kernel never
        got; servers take it for sent, and end it as lost.
        """
        channel = message.channel
        # Servers send clients' requests only to a kernel that is ready. So such a request shows
        # that it is ready, even if the message which tells that was lost with a link.
        self.opened |= owner != self.session
        if channel != "stdin":
            self._requests.add(message, owner)
            if owner != self.session:
                header, _ = v1.encode(channel, [message.parts[0], b"{}", b"{}", b"{}"])
                self.writer.append(header, channel, owner, records.REQUEST)
                self.writer.flush()  # before the request is sent, not at the end of the turn
        waiting = self._waiting.get(channel)
        # Before the request is sent: the kernel may ask for input at once.
        if self._channels is not None and channel == "shell" and owner != self.session:
            self._channels.expect_input()
        if self._channels is None:
            self.taken += 1
        elif waiting or not self._channels.send(message):  # none overtakes those that wait
            # This queue needs no bound of its own: a server sends only a bounded number of requests
            # beyond those of which a bell has told that they are taken
            # (`app.managers.messages.line`).
            self._waiting.setdefault(channel, deque()).append(message)
        else:
            self.taken += 1
        # The next bell tells that the request is taken. Mostly the kernel's answer rings it; only
        # if many requests are untold is it rung for them.
        self._untold_bytes += message.size
        if self.taken - self._told >= UNTOLD_REQUESTS or self._untold_bytes >= UNTOLD_BYTES:
            self._change()

    def on_writable(self) -> None:
        """Send the requests that wait, as far as the sockets take them."""
        # No channel waits for another: an interrupt on control passes code that waits on shell.
        for waiting in self._waiting.values():
            while waiting and self._channels is not None and self._channels.send(waiting[0]):
                waiting.popleft()
                self.taken += 1
        self._change()

    # Messages of the server and of the kernel

    def say(self, channel: str, frame: bytes, owner: str | None, flags: int) -> None:
        """Append a message that the server has made."""
        self.writer.append(frame, channel, owner, flags)
        self._change()

    def on_message(self, message: Message) -> None:
        """Append a message of the kernel, with the session that is to see it as its owner."""
        channel = message.channel
        if channel == "iopub":
            self._append(message, self._owner_of_output(message))
            return
        parent = message.parent
        if channel == "stdin":
            # The parent tells who is asked for input, and not the present execution: a subshell or
            # a thread may ask for input beside it.
            owner = self._requests.owner(parent)
        else:
            request = self._requests.on_reply(parent)
            owner = request.owner if request is not None else parent.session
            # The race: the reply comes over another socket than the output, and may overtake it. A
            # client that stops at the reply would miss output that is still on its way. So the
            # reply is held until the idle status, which the kernel publishes after all output.
            is_early = request is not None and not request.idle and owner != self.session
            if request is not None and is_early and message.msg_type == "execute_reply":
                self._release(request)  # a kernel in error replies twice: neither reply is lost
                self._held.hold(request, message)
                return
        is_shown = owner is not None and owner != self.session and len(owner) <= MAX_SESSION
        self._append(message, owner if is_shown else NOBODY)

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
        """The owner of a status; None is every session."""
        try:
            reported = _status_decoder.decode(message.part(3)).execution_state
        except (msgspec.MsgspecError, RecursionError):  # clients get the status as it is
            return None
        parent = message.parent
        if reported == "idle":
            request = self._requests.on_idle(parent)
            if request is not None:
                # The reply goes before the idle status, as some clients stop at that status.
                self._release(request)
        if parent.session == self.session:
            return NOBODY
        if reported == "starting" and self.opened:
            # The process published it when it started, and it is read here only after a server has
            # taken the kernel for ready, over other sockets. A client would see the kernel go back
            # to starting, with no further status to follow.
            return NOBODY
        return None

    def _is_chatter(self, message: Message) -> bool:
        """Whether a message is output of a new process's own start, rather than of a client's code.

        Such output may be read here only after the kernel has replied over another socket, so that
        it is ready. But iopub keeps its order: a message with a parent comes after all of it.
        """
        self._has_begun |= bool(message.parent.msg_id)
        self._is_new = not (self._has_begun and self.opened)
        return self._is_new and message.msg_type == "stream"

    def _append(self, message: Message, owner: str | None) -> None:
        self.writer.append(message.frame, message.channel, owner, records.PUBLISHED, message.rest)
        self._change()

    def _release(self, request: Request) -> None:
        """Append a request's reply, if it is held. A second call finds none, and does nothing."""
        # The idle status, the timer of `HeldReplies` or the end of the process may come first.
        reply, request.held = request.held, None
        if reply is not None:
            self._append(reply, request.owner)

    def _has_unread_output(self) -> bool:
        return self._channels is not None and self._channels.has_unread("iopub")

    def on_malformed(self, channel: str, error: MalformedMessage) -> None:
        """Tell of a message that was dropped."""
        self._tell_malformed(self.kernel_id, channel, str(error))

    def _recall(self) -> None:
        """Find the requests that the kernel has not answered, and their owners, in the log's end.

        Replies to these requests may come from now on, and go to those sessions.
        """
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
            except MalformedMessage:  # one that a server has made: those of kernels were checked
                continue
