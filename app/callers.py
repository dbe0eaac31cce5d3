"""On whose behalf something is done: known to the logs without being passed through every call.

A request's task, and what it calls, finds its caller here. Work that outlives the request (a
kernel's life, which a request began) inherits it too, but nobody is behind that any more.
"""

from __future__ import annotations

from contextvars import ContextVar

__all__ = ["Caller", "begin_call", "caller"]


class Caller:
    """The request, or the WebSocket, that something is done for."""

    __slots__ = ("address", "execution_id", "kernel_id", "over", "request_id", "waited")

    def __init__(self, request_id: str, address: str) -> None:
        self.request_id = request_id
        self.address = address
        """Of the client, as far as it is known: its IP address."""
        self.kernel_id: str | None = None
        """The kernel that its path names, or that was started for it; known when it is answered."""
        self.execution_id: str | None = None
        self.waited = 0.0
        """Seconds that it has waited because it wanted to."""
        self.over = False


_caller: ContextVar[Caller | None] = ContextVar("caller", default=None)


def begin_call(new: Caller) -> None:
    """What the present task does from now on, it does for this one."""
    _caller.set(new)


def caller() -> Caller | None:
    """Who is behind the present task; None for the server itself."""
    found = _caller.get()
    return None if found is None or found.over else found
