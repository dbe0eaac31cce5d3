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

from app.managers.entries import Position
from app.protocol.messages import decode_header

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
        "cancel_asked",
        "end",
        "ended_at",
        "execution_count",
        "first_seq",
        "header",
        "held",
        "id",
        "idle",
        "input_request",
        "kill_after",
        "last_seq",
        "on_end",
        "on_main_shell",
        "place",
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
    ) -> None:
        self.id = execution_id
        self.session = session
        self.place = place
        self.on_main_shell = on_main_shell
        self.timeout = timeout
        # Whether what the server holds behind it is aborted when it fails.
        self.stop_on_error = stop_on_error
        self.state = ExecutionState.QUEUED
        self.sent = False
        self.idle = False
        self.reply_status: str | None = None
        self.execution_count: int | None = None
        self.first_seq: int | None = None
        self.last_seq: int | None = None
        self.end: Position | None = None
        self.queued_at = time.time()
        self.started_at: float | None = None
        self.ended_at: float | None = None
        self.reason = ""
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
    def seconds(self) -> float | None:
        """How long it has run, up to now or its end; None if it has not begun."""
        if self._began is None or self._took is not None:
            return self._took
        return time.monotonic() - self._began

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
        self._see(place)
        self.started_at = time.time()
        self._began = time.monotonic()
        return True

    def on_idle(self, place: Position) -> bool:
        """The kernel is done with it; whether that makes it complete."""
        self._see(place)
        self.idle = True
        self.input_request = None
        return self.complete

    def on_reply(self, place: Position, status: str, execution_count: int | None) -> bool:
        """The reply has come; whether that makes it complete."""
        self._see(place)
        self.reply_status = status
        self.input_request = None
        if execution_count is not None:
            self.execution_count = execution_count
        return self.complete

    @property
    def complete(self) -> bool:
        """Whether both the reply and the idle status have come."""
        return self.idle and self.reply_status is not None

    def _see(self, place: Position) -> None:
        if self.first_seq is None:
            self.first_seq = place.cursor
            self.place = place

    def take_step(self, step: StepName, detail: str, seq: int) -> None:
        """Note what is done to it, which is then the reason of an end that follows from it."""
        self.steps.append(Step(seq, time.time(), step, detail))
        self._why = detail

    def finish(self, end: Position) -> None:
        """All that will come has come: the reply decides how it has ended, if there was one."""
        if self.reply_status is None:
            self.give_up(end, "The kernel sent no reply")
            return
        state = _ENDS.get(self.reply_status)
        reason = ""
        if state is None:
            state = ExecutionState.ERROR
            reason = "The kernel's reply has no status that is known"
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
        if self._began is not None:
            self._took = time.monotonic() - self._began
        self.end = end if self.sent else self.place
        if self.first_seq is not None:
            self.last_seq = end.cursor - 1
        callbacks, self.on_end = self.on_end, []
        for callback in callbacks:
            callback()
