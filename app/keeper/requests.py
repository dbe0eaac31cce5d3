"""The pending requests of one kernel: those that it has not finished with.

They decide to which session a reply or an input request goes, and which requests need an end when
the kernel's process dies. The keeper and the server each have their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from ..protocol.messages import ClientMessage, Header, Message, reply_type

__all__ = ["MAX_REQUESTS", "PendingRequests", "Request"]

MAX_REQUESTS: Final = 8192
"""How many requests are remembered for each kernel: one that never goes idle finishes none."""


class Request:
    """One request: the session that has made it, and which of reply and idle status have come."""

    __slots__ = (
        "__weakref__",
        "channel",
        "header",
        "held",
        "idle",
        "logged",
        "message",
        "msg_id",
        "msg_type",
        "owner",
        "replied",
        "session",
    )

    def __init__(self, message: ClientMessage, owner: str) -> None:
        self.channel = message.channel
        self.msg_id = message.header.msg_id
        self.msg_type = message.header.msg_type
        self.session = message.header.session
        self.header = bytes(message.parts[0])
        self.owner = owner
        self.replied = reply_type(self.msg_type) is None  # comm messages get no reply
        self.idle = False
        # At the server: whether the log says that the request has left for the kernel; and until
        # then the message, which may have to be sent again.
        self.logged = False
        self.message: ClientMessage | None = None
        # At the keeper: the reply, while it is held back for the output that belongs before it.
        self.held: Message | None = None

    @property
    def is_execution(self) -> bool:
        """Whether the request is an execution, which the server's tracker follows."""
        return self.msg_type == "execute_request" and self.channel == "shell"

    @property
    def finished(self) -> bool:
        """Whether both the reply and the idle status have come."""
        return self.replied and self.idle


class PendingRequests:
    """The pending requests of one kernel, in the order in which they were sent.

    Two clients may use the same ``msg_id``. Their sessions tell the requests apart. If the sessions
    are the same too, a reply counts for the earlier request: kernels work in order.
    """

    def __init__(self) -> None:
        self._in_order: dict[Request, None] = {}
        self._by_id: dict[str, list[Request]] = {}
        self.has_forgotten = False
        """Whether one was forgotten for want of room since `take_all`."""

    def __len__(self) -> int:
        return len(self._in_order)

    def __contains__(self, request: object) -> bool:
        return request in self._in_order

    def __iter__(self) -> Iterator[Request]:
        return iter(self._in_order)

    def add(self, message: ClientMessage, owner: str) -> Request:
        """Remember a request that is about to be sent; returns it."""
        # The reply to one that is forgotten goes by its parent's session (`owner`), which mostly is
        # the right one, too.
        if len(self) >= MAX_REQUESTS:
            self._forget_one()
        request = Request(message, owner)
        self._in_order[request] = None
        self._by_id.setdefault(request.msg_id, []).append(request)
        return request

    def owner(self, parent: Header) -> str | None:
        """The session that a reply or an input request with this parent is for.

        That is the owner of the request or, if the request is unknown, the parent's session.
        """
        request = self.find(parent)
        return parent.session if request is None else request.owner

    def find(self, parent: Header) -> Request | None:
        """The request that a message with this parent belongs to; None if it is unknown."""
        requests = self._candidates(parent)
        if not requests:
            return None
        return next((request for request in requests if not request.idle), requests[0])

    def find_unlogged(self, header: Header, owner: str) -> Request | None:
        """The oldest request with this header that was not found in the log yet."""
        for request in self._by_id.get(header.msg_id, []):
            if not request.logged and request.owner == owner:
                return request
        return None

    def _candidates(self, parent: Header) -> list[Request]:
        requests = self._by_id.get(parent.msg_id, [])
        if len(requests) < 2:
            return requests
        return [request for request in requests if request.session == parent.session] or requests

    def on_reply(self, parent: Header) -> Request | None:
        """Note a reply; returns the request that it answers, or None if that is unknown."""
        requests = self._candidates(parent)
        if not requests:
            return None
        request = next((request for request in requests if not request.replied), requests[0])
        request.replied = True
        if request.idle:  # reply and idle status come in either order: the second one removes it
            self.discard(request)
        return request

    def on_idle(self, parent: Header) -> Request | None:
        """Note an idle status; returns the request that it is for, or None if that is unknown."""
        request = self.find(parent)
        if request is None:
            return None
        request.idle = True
        if request.replied:  # else `on_reply` removes it
            self.discard(request)
        return request

    def unanswered(self, msg_id: str, owner: str) -> Request | None:
        """The oldest request with this id for which the kernel went idle and did not reply."""
        requests = self._by_id.get(msg_id, [])
        return next((one for one in requests if one.idle and one.owner == owner), None)

    def take_all(self) -> list[Request]:
        """Forget every request and return them, oldest first."""
        requests = list(self)
        self._in_order.clear()
        self._by_id.clear()
        self.has_forgotten = False
        return requests

    def discard(self, request: Request) -> None:
        """Forget a request: it is finished, or will not be answered."""
        requests = self._by_id[request.msg_id]
        requests.remove(request)
        del self._in_order[request]
        if not requests:
            del self._by_id[request.msg_id]

    def _forget_one(self) -> None:
        """Forget one request: the oldest that has its reply, or else the oldest of all."""
        self.has_forgotten = True
        victim = next((request for request in self if request.replied), None)
        self.discard(victim or next(iter(self)))
