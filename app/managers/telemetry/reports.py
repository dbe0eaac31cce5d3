"""What happens to a kernel, told where it happens: to events, counters and the audit log."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final, Literal

from ...keeper.processes import UNKNOWN_EXIT
from ...protocol.messages import Buffer, ClientMessage
from ..errors import KernelkeepError
from .audit import AuditLog
from .counters import Counters
from .events import KERNEL_ACTIONS, KERNEL_LIFECYCLE, Events

__all__ = ["Action", "KernelReports", "LaunchCause"]

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
"""Messages to a kernel that are noted as they are; the last can have code evaluated."""


_ASKED: Final = {"input_reply": "input"}


class KernelReports:
    """Of one kernel; ``name`` is its kernelspec's, as it was asked for.

    ``kind`` is its label in the metrics; by default its name.
    """

    def __init__(
        self,
        events: Events,
        counters: Counters,
        kernel_id: str,
        name: str,
        audit: AuditLog | None = None,
        kind: str = "",
    ) -> None:
        self._audit = audit
        self._events = events
        self._counters = counters
        self._kernel: dict[str, Any] = {"kernel_id": kernel_id, "kernel_name": name}
        # As kernelspecs are named: asking for R and r is one series.
        self.kind = kind or name.lower()

    # What was asked for

    @asynccontextmanager
    async def action(self, action: Action) -> AsyncIterator[None]:
        """One event for what is done within: that it was done, or the error that it raised."""
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
        self._events.emit(KERNEL_ACTIONS, {"action": action, **self._kernel, **data})

    def executed(self, execution_id: str, session: str, content: Buffer) -> None:
        """Somebody has code executed; ``content`` is that of the ``execute_request``."""
        self._note("execute", content, execution_id=execution_id, session=session)

    def cancelled(self, execution_id: str) -> None:
        """Somebody has cancelled an execution."""
        self._note("cancel", execution_id=execution_id)

    def answered(self, session: str, content: Buffer) -> None:
        """Somebody has answered what a kernel asks; ``content`` is that of the ``input_reply``."""
        self._note("input", content, session=session)

    def refused(self, asked: str, content: Buffer = b"", **data: Any) -> None:
        """Somebody has asked for something that was not done; its id is nobody's, so not told."""
        self._note("refused", content, asked=asked, **data)

    def received(self, message: ClientMessage, session: str, *, passed: bool) -> None:
        """A message for the kernel has come over a WebSocket: some do what the API does too.

        Unless ``passed`` it was ignored, or refused.
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

    # What became of it

    def launching(self, cause: LaunchCause) -> None:
        """A process is about to be launched."""
        self._counters.starts[self.kind, cause] += 1

    def start_failed(self) -> None:
        """A process could not be launched, or did not become ready."""
        self._counters.deaths[self.kind, "start_failed"] += 1

    def ready(self, seconds: float) -> None:
        """The kernel takes requests, so many seconds after its process was launched."""
        self._counters.start_seconds[self.kind].observe(seconds)
        self._tell("ready", seconds=round(seconds, 6))

    def died(self, exit_code: int) -> None:
        """A process that was ready has ended unasked; the code of a signal is negative."""
        self._counters.deaths[self.kind, _cause_of_death(exit_code)] += 1
        self._note("died", exit_code=exit_code)

    def restarting(self, reason: str, count: int) -> None:
        """A kernel that died, ``count`` times in a row now, gets a new process."""
        self._tell("automatic_restart", reason=reason, count=count)

    def dead(self, reason: str) -> None:
        """There is no process, and none will come unless it is asked for."""
        self._tell("dead", reason=reason)
        self._note("dead")

    def culled(self, cause: str, idle_seconds: float, connections: int) -> None:
        """The kernel is stopped since nobody uses it; ``cause`` says which rule applied."""
        self._counters.culls[self.kind, cause] += 1
        self._note("culled", cause=cause, idle_seconds=round(idle_seconds))
        self._tell("culled", idle_seconds=round(idle_seconds, 3), connections=connections)

    def shut_down_by_client(self) -> None:
        """The kernel has ended as a client asked it to, over its channels."""
        self._tell("shut_down_by_client")
        self._note("shut_down_by_client")

    def _tell(self, event: str, **data: Any) -> None:
        self._events.emit(KERNEL_LIFECYCLE, {"event": event, **self._kernel, **data})

    def _note(self, action: str, content: Buffer = b"", **data: Any) -> None:
        if self._audit is not None:
            self._audit.note(action, content, **self._kernel, **data)


def _cause_of_death(exit_code: int) -> str:
    if exit_code == UNKNOWN_EXIT:
        return "unknown"
    if exit_code >= 0:
        return "exited"
    try:
        return signal.Signals(-exit_code).name
    except ValueError:
        return "unknown signal"
