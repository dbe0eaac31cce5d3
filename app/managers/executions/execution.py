"""One execution: what is known of one ``execute_request``, whoever sent it.

A state machine without a clock's ticks: it is told what was seen, and has exactly one end.

::

    queued ──▶ running ──▶ ok | error | aborted | cancelled | lost
       └───────────────────────────────▲
"""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import StrEnum
from typing import Final, Literal

import msgspec

from ...protocol.messages import decode_header
from ..log.entries import Position
from .late_output import LateOutput

__all__ = ["Execution", "ExecutionState", "InputRequest", "Step", "StepName"]

StepName = Literal["cancel", "timeout", "interrupt", "kill"]


class ExecutionState(StrEnum):
    """Where an execution is. All but the first two are ends, and an end is final.

    ``aborted``: it never ran, since an earlier one failed or the kernel ended. ``cancelled``:
    somebody cancelled it, and it did not run or did not end well. ``lost``: it ran, and how it
    ended will never be known.
    """

    QUEUED = "queued"
    RUNNING = "running"
    OK = "ok"
    ERROR = "error"
    ABORTED = "aborted"
    CANCELLED = "cancelled"
    LOST = "lost"


_UNFINISHED: Final = frozenset({ExecutionState.QUEUED, ExecutionState.RUNNING})

# The status of a reply [Jupyter messaging protocol, "Request-Reply"]; "abort" is an older form.
_ENDS: Final = {
    "ok": ExecutionState.OK,
    "error": ExecutionState.ERROR,
    "aborted": ExecutionState.ABORTED,
    "abort": ExecutionState.ABORTED,
}


NO_REPLY: Final = (
    "The kernel sent no reply, as when it is interrupted at the very beginning or end of the code"
)

AFTER_RESTART: Final = (
    "The kernel was restarted before it: what was defined by then is gone (see generation)"
)


class Step(msgspec.Struct, frozen=True):
    """Something that was done to an execution from outside."""

    seq: int
    """The newest number in the kernel's log at that time."""
    time: float
    """In seconds since the epoch."""
    step: StepName
    detail: str


class InputRequest(msgspec.Struct, frozen=True):
    """What an execution asks its user for; ``header`` is the raw header of the asking message."""

    prompt: str
    password: bool
    header: bytes

    @property
    def id(self) -> str:
        """The ``msg_id`` of the asking message."""
        return decode_header(self.header).msg_id


class Execution:
    """What is known of one execution.

    ``place`` is where it begins in the kernel's log and ``end`` the place behind its last message,
    once it has ended. Times that people see are in seconds since the epoch; durations come from a
    monotonic clock.
    """

    __slots__ = (
        "_began",
        "_took",
        "_why",
        "answered",
        "by_client",
        "caller",
        "cancel_asked",
        "display_ids",
        "end",
        "ended_at",
        "execution_count",
        "first_after_restart",
        "first_seq",
        "generation",
        "has_error",
        "header",
        "held",
        "id",
        "idle",
        "if_generation",
        "input_request",
        "kill_after",
        "last_seq",
        "late",
        "may_straggle",
        "on_end",
        "on_main_shell",
        "place",
        "queue",
        "queued_at",
        "reason",
        "reply_status",
        "sent",
        "session",
        "started_at",
        "state",
        "steps",
        "stop_on_error",
        "timeout",
    )

    def __init__(
        self,
        execution_id: str,
        session: str,
        place: Position,
        *,
        on_main_shell: bool = True,
        timeout: float | None = None,
        stop_on_error: bool = False,
        if_generation: int | None = None,
        queue: str | None = None,
        caller: str = "",
    ) -> None:
        self.id = execution_id
        self.session = session
        self.place = place
        self.on_main_shell = on_main_shell
        self.timeout = timeout
        # Whether what the server holds behind it, in the same queue, is aborted when it fails.
        self.stop_on_error = stop_on_error
        # In which queue it waits: one that its caller has named, or that caller's own.
        self.queue = queue
        self.caller = caller
        # The kernel's process that it must run in, and the one that it was sent to.
        self.if_generation = if_generation
        self.generation: int | None = None
        self.first_after_restart = False
        self.state = ExecutionState.QUEUED
        self.sent = False
        self.idle = False
        self.reply_status: str | None = None
        # Whether the kernel has published its error, rather than told it in the reply alone.
        self.has_error = False
        self.execution_count: int | None = None
        self.first_seq: int | None = None
        self.last_seq: int | None = None
        self.end: Position | None = None
        self.queued_at = time.time()
        self.started_at: float | None = None
        self.ended_at: float | None = None
        self.reason = ""
        self.late: LateOutput | None = None
        # Whether it seems to write to file descriptors (app.managers.executions.late_output).
        self.may_straggle = False
        # Of what it shows: so many as are known by their id (app.managers.executions.tracker).
        self.display_ids: list[str] = []
        self.steps: list[Step] = []
        self.input_request: InputRequest | None = None
        self.answered = ""  # the id of the last prompt whose answer was passed on
        # The raw header of its request, and all its parts as long as it is not with the kernel.
        self.header = b""
        self.held: tuple[bytes, ...] = ()
        # Whether a client sent the request, rather than this server in its turn.
        self.by_client = False
        self.cancel_asked = False
        self.kill_after: float | None = None  # seconds, of a cancel that waits for the start
        # Called once, when it has ended.
        self.on_end: list[Callable[[], None]] = []
        self._why = ""
        self._began: float | None = None
        self._took: float | None = None

    @property
    def ended(self) -> bool:
        """Whether it has come to its one end."""
        return self.state not in _UNFINISHED

    @property
    def running(self) -> bool:
        """Whether the kernel has begun with it, and not ended."""
        return self.state is ExecutionState.RUNNING

    @property
    def has_begun(self) -> bool:
        """Whether the kernel has said anything of it."""
        return self.running or self.idle or self.reply_status is not None

    @property
    def seconds(self) -> float | None:
        """How long it has run, up to now or its end; None if it has not begun."""
        if self._began is None or self._took is not None:
            return self._took
        return time.monotonic() - self._began

    def in_queue_of(self, other: Execution) -> bool:
        """Whether the two wait in one queue."""
        if self.queue is None and other.queue is None:
            return self.caller == other.caller
        return self.queue == other.queue

    def put_back(self, state: ExecutionState, seconds: float | None) -> None:
        """It is one of another process's, and was in this state; its fields are set already.

        ``seconds`` is how long it had run; while nobody was there the wall clock counts.
        """
        self.state = state
        self._why = self.steps[-1].detail if self.steps else ""
        if self.started_at is not None:
            ran = seconds or 0.0
            if self.ended:
                self._took = ran
            else:
                ran = max(ran, time.time() - self.started_at)
            self._began = time.monotonic() - ran

    def on_sent(self, place: Position) -> None:
        """It is on its way to the kernel; nothing of it comes before ``place``."""
        self.sent = True
        self.place = place

    def on_busy(self, place: Position) -> bool:
        """The kernel has begun with it, by a status at ``place``; whether that is news."""
        if self.state is not ExecutionState.QUEUED:
            return False
        self.state = ExecutionState.RUNNING
        if self.first_seq is None:  # the kernel says nothing of it before that
            self.place = place
        self._see()
        self.started_at = time.time()
        self._began = time.monotonic()
        return True

    def on_idle(self) -> bool:
        """The kernel is done with it; whether that makes it complete."""
        self._see()
        self.idle = True
        self.input_request = None
        return self._may_be_complete()

    def on_reply(self, status: str, execution_count: int | None) -> bool:
        """The reply has come; whether that makes it complete."""
        self._see()
        self.reply_status = status
        self.input_request = None
        if execution_count is not None:
            self.execution_count = execution_count
        return self._may_be_complete()

    def _may_be_complete(self) -> bool:
        if self.complete and self._took is None and self._began is not None:
            self._took = time.monotonic() - self._began
        return self.complete

    @property
    def complete(self) -> bool:
        """Whether both the reply and the idle status have come."""
        return self.idle and self.reply_status is not None

    def _see(self) -> None:
        # Not the place of what is seen: a log may have dropped what the server has not yet read.
        if self.first_seq is None:
            self.first_seq = self.place.cursor

    def take_step(self, step: StepName, detail: str, seq: int) -> None:
        """Note what is done to it, which is then the reason of an end that follows from it."""
        self.steps.append(Step(seq, time.time(), step, detail))
        self._why = detail

    def finish(self, end: Position) -> None:
        """All that will come has come: the reply decides how it has ended, if there was one."""
        if self.reply_status is None:
            self.give_up(end, NO_REPLY)
            return
        state = _ENDS.get(self.reply_status)
        reason = ""
        if state is None:
            state = ExecutionState.ERROR
            reason = "The kernel's reply has no status that is known"
        elif state is ExecutionState.ERROR and self.first_after_restart:
            reason = AFTER_RESTART
        elif state is ExecutionState.ABORTED:
            reason = "The kernel aborted it, since an earlier execution failed"
        self._end(state, reason, end)

    def give_up(self, end: Position, reason: str, *, never_ran: bool = False) -> None:
        """Nothing more can come of it; ``never_ran`` unless the kernel had begun with it."""
        aborted = never_ran and self.state is ExecutionState.QUEUED
        self._end(ExecutionState.ABORTED if aborted else ExecutionState.LOST, reason, end)

    def _end(self, state: ExecutionState, reason: str, end: Position) -> None:
        if self.ended:
            return
        if self.cancel_asked and state is not ExecutionState.OK:
            state = ExecutionState.CANCELLED
        self.state = state
        self.reason = self._why or reason
        self.input_request = None
        self.ended_at = time.time()
        if self._took is None and self._began is not None:
            self._took = time.monotonic() - self._began
        self.end = end if self.sent else self.place
        if self.first_seq is not None:
            self.last_seq = end.cursor - 1
        callbacks, self.on_end = self.on_end, []
        for callback in callbacks:
            callback()
