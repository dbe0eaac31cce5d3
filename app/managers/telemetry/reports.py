"""Reports of what happens to a kernel, for events, counters and the audit log at once."""

from __future__ import annotations

import signal
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from ...keeper.processes import UNKNOWN_EXIT
from ...protocol.messages import Buffer, ClientMessage, format_timestamp
from ..errors import KernelkeepError
from ..owners.ownership import NOBODYS, Ownership
from ..owners.principal import ANONYMOUS
from .audit import AuditLog
from .counters import Counters
from .events import KERNEL_ACTIONS, KERNEL_LIFECYCLE, Events

__all__ = ["Action", "KernelReports", "LaunchCause", "PastEvent"]

Action = Literal["start", "interrupt", "shutdown", "restart"]

LaunchCause = Literal["start", "restart", "automatic_restart", "fallback"]
"""Why a process is launched; ``fallback``: the one before it did not come up over its transport."""

_DONE: Final = {
    "start": "started",
    "interrupt": "interrupted",
    "shutdown": "shutdown",
    "restart": "restarted",
}


_AUDITED: Final = ("interrupt_request", "shutdown_request", "debug_request")
"""Messages to a kernel whose type is noted in the audit log; a debug_request can evaluate code."""


_ASKED: Final = {"input_reply": "input"}

MOST_PAST: Final = 50
"""How many events of a kernel are remembered."""


class PastEvent(msgspec.Struct):
    """Something that has happened to a kernel."""

    at: Annotated[str, Meta(description="When, UTC.")]
    event: Annotated[
        str,
        Meta(
            description="The `event` of the schema `kernel_lifecycle`, or the `action` of "
            "`kernel_actions`.",
            examples=["automatic_restart"],
        ),
    ]
    details: Annotated[
        dict[str, Any], Meta(description="What its schema has beside, such as the `reason`.")
    ]


class KernelReports:
    """The reports of one kernel. ``name`` is its kernelspec's, as the client has written it.

    ``kind`` is the kernel's label in the metrics; by default the name in lower case. The kernel's
    events go to subscribers who may see the kernel, by its ``ownership``.
    """

    def __init__(
        self,
        events: Events,
        counters: Counters,
        kernel_id: str,
        name: str,
        audit: AuditLog | None = None,
        kind: str = "",
        ownership: Ownership = NOBODYS,
    ) -> None:
        self.ownership = ownership
        self._audit = audit
        self._events = events
        self._counters = counters
        self._kernel: dict[str, Any] = {"kernel_id": kernel_id, "kernel_name": name}
        # In lower case, as kernelspecs are found: R and r are one series.
        self.kind = kind or name.lower()
        self.past: deque[PastEvent] = deque(maxlen=MOST_PAST)
        """The kernel's latest events and actions, the newest first; usage is left out."""

    # Actions of clients

    @asynccontextmanager
    async def action(self, action: Action) -> AsyncIterator[None]:
        """Report the action that the ``with`` block does: its success, or the error it raises."""
        # A cancellation, as at the end of the server, is not reported: it is not known then whether
        # the action is done.
        try:
            yield
        except Exception as error:
            status = {"status_code": error.status} if isinstance(error, KernelkeepError) else {}
            self._act(action, status="error", msg=str(error), **status)
            self._note(action, error=getattr(error, "code", "internal_error"))
            raise
        msg = f"Kernel {self._kernel['kernel_id']} was {_DONE[action]}."
        self._act(action, status="success", msg=msg)
        self._note(action)

    def _act(self, action: Action, **data: Any) -> None:
        self._remember(action, data)
        told = {"action": action, **self._kernel, **data}
        self._events.emit(KERNEL_ACTIONS, told, self.ownership)

    def executed(self, execution_id: str, session: str, content: Buffer) -> None:
        """A client has sent code; ``content`` is that of the ``execute_request``."""
        self._note("execute", content, execution_id=execution_id, session=session)

    def cancelled(self, execution_id: str) -> None:
        """A client has cancelled an execution."""
        self._note("cancel", execution_id=execution_id)

    def answered(self, session: str, content: Buffer) -> None:
        """A client has answered a prompt; ``content`` is that of the ``input_reply``."""
        self._note("input", content, session=session)

    def refused(self, asked: str, content: Buffer = b"", **data: Any) -> None:
        """A client's request was refused. Its id names no execution, so it is not noted."""
        self._note("refused", content, asked=asked, **data)

    def received(self, message: ClientMessage, session: str, *, passed: bool) -> None:
        """A client has sent the kernel a message over a WebSocket; some types are reported.

        ``passed`` is False if the message was ignored or refused.
        """
        kind = message.header.msg_type
        if not passed:
            if kind in ("execute_request", "input_reply", *_AUDITED):
                content = message.parts[3] if kind in ("execute_request", "input_reply") else b""
                self.refused(
                    _ASKED.get(kind, kind.removesuffix("_request")), content, session=session
                )
        elif kind == "input_reply":
            self.answered(session, message.parts[3])
        elif kind == "execute_request":
            self.executed(message.header.msg_id, session, message.parts[3])
        elif kind in _AUDITED:
            self._note(kind, session=session)

    # The life of the kernel

    def launching(self, cause: LaunchCause) -> None:
        """A process is about to be launched."""
        self._counters.starts[self.kind, cause] += 1

    def start_failed(self) -> None:
        """A process could not be launched, or did not become ready."""
        self._counters.deaths[self.kind, "start_failed"] += 1

    def ready(self, seconds: float) -> None:
        """The kernel takes requests, ``seconds`` after its process was launched."""
        self._counters.start_seconds[self.kind].observe(seconds)
        self._tell("ready", seconds=round(seconds, 6))

    def died(self, exit_code: int, *, of_memory: bool = False) -> None:
        """A process that was ready has ended by itself; the exit code of a signal is negative.

        ``of_memory`` is whether the process was killed for want of memory.
        """
        cause = "oom" if of_memory else _cause_of_death(exit_code)
        self._counters.deaths[self.kind, cause] += 1
        why: dict[str, Any] = {"oom": True} if of_memory else {}
        self._note("died", exit_code=exit_code, **why)

    def restarting(self, reason: str, count: int) -> None:
        """The kernel has died, ``count`` times in a row by now, and gets a new process."""
        self._tell("automatic_restart", reason=reason, count=count)

    def dead(self, reason: str) -> None:
        """The kernel has no process, and gets none unless a client restarts it."""
        self._tell("dead", reason=reason)
        self._note("dead")

    def used(self, cpu_seconds: float | None, memory: int | None) -> None:
        """The kernel's processes have used so much processor time, and use ``memory`` bytes."""
        figures = {"cpu_seconds": cpu_seconds, "memory": memory}
        known = {name: value for name, value in figures.items() if value is not None}
        self._emit("usage", known)

    def ends_soon(self, limit: str, seconds: float) -> None:
        """The kernel will be stopped in ``seconds``, by its owner's ``limit``."""
        self._tell("ends_soon", limit=limit, seconds=round(seconds, 3))

    def culled(self, cause: str, idle_seconds: float, connections: int, limit: str = "") -> None:
        """The kernel is stopped as no client uses it; ``cause`` names the rule that applied.

        With a ``limit`` the kernel is stopped because its time is up by that limit of its owner.
        """
        self._counters.culls[self.kind, cause] += 1
        self._note("culled", cause=cause, idle_seconds=round(idle_seconds))
        why = {"limit": limit} if limit else {}
        idle = round(idle_seconds, 3)
        self._tell("culled", idle_seconds=idle, connections=connections, **why)

    def shut_down_by_client(self) -> None:
        """The kernel has ended by a ``shutdown_request`` that a client has sent it."""
        self._tell("shut_down_by_client")
        self._note("shut_down_by_client")

    def _tell(self, event: str, **data: Any) -> None:
        self._remember(event, data)
        self._emit(event, data)

    def _remember(self, event: str, details: dict[str, Any]) -> None:
        self.past.appendleft(PastEvent(format_timestamp(time.time()), event, details))

    def _emit(self, event: str, data: dict[str, Any]) -> None:
        owner = self.ownership.owner
        whose = {} if owner == ANONYMOUS else {"owner": owner}
        told = {"event": event, **self._kernel, **whose, **data}
        self._events.emit(KERNEL_LIFECYCLE, told, self.ownership)

    def _note(self, action: str, content: Buffer = b"", **data: Any) -> None:
        if self._audit is not None:
            self._audit.note(action, content, **self._kernel, owner=self.ownership.owner, **data)


def _cause_of_death(exit_code: int) -> str:
    if exit_code == UNKNOWN_EXIT:
        return "unknown"
    if exit_code >= 0:
        return "exited"
    try:
        return signal.Signals(-exit_code).name
    except ValueError:
        return "unknown signal"
