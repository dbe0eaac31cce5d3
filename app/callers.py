"""The caller on whose behalf work is done, for the logs: no function need pass it on.

The task of a request, and every function that the task calls, finds its caller here. A task that
the request has started and that outlives it (a kernel's life) inherits the caller. When the request
has ended, `caller` returns None in that task.
"""

from __future__ import annotations

from contextvars import ContextVar

__all__ = ["Caller", "begin_call", "caller"]


class Caller:
    """The request or WebSocket on whose behalf work is done. ``over`` is set at its end."""

    __slots__ = (
        *("address", "credential", "execution_id", "kernel_id", "over", "request_id"),
        *("user", "waited"),
    )

    def __init__(self, request_id: str, address: str) -> None:
        self.request_id = request_id
        self.address = address
        """The client's IP address; empty if it is not known."""
        self.user = ""
        """The name of the owner whose credential the client has shown; empty before the check."""
        self.credential = ""
        """Which credential the client has shown, in a form that cannot be used as one."""
        self.kernel_id: str | None = None
        """The kernel that the path names, or that was started; set when the response begins."""
        self.execution_id: str | None = None
        self.waited = 0.0
        """Seconds that the request has waited because its client asked for that."""
        self.over = False


# A new task copies the context variables of the task that makes it. So a task that outlives its
# request still has the request's caller. All these tasks share the `Caller` object, and see in its
# `over` that the request has ended.
_caller: ContextVar[Caller | None] = ContextVar("caller", default=None)


def begin_call(new: Caller) -> None:
    """Let the present task work on behalf of this caller from now on."""
    _caller.set(new)


def caller() -> Caller | None:
    """The caller of the present task; None if the server works for itself."""
    found = _caller.get()
    return None if found is None or found.over else found
