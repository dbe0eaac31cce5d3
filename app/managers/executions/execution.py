"""One execution: all that is known of one ``execute_request``, over whatever transport it came.

An `Execution` is a state machine: its methods are called for the messages that the server reads in
the log. An execution has no timers of its own, and exactly one end.

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
    """The state of an execution. All but the first two are ends, and an end is final.

    ``aborted``: the code never ran, as an earlier execution failed or the kernel ended.
    ``cancelled``: a client cancelled the execution, and its code did not run or did not end well.
    ``lost``: the code ran, and how it ended will never be known.
    """

    QUEUED = "queued"
    RUNNING = "running"
    OK = "ok"
    ERROR = "error"
    ABORTED = "aborted"
    CANCELLED = "cancelled"
    LOST = "lost"


_UNFINISHED: Final = frozenset({ExecutionState.QUEUED, ExecutionState.RUNNING})

# By the status of the reply [Jupyter messaging protocol, "Request-Reply"]; "abort" is an old form.
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
    """A step that was taken against an execution from outside."""

    seq: int
    """The newest number in the kernel's log when the step was taken."""
    time: float
    """In seconds since the epoch."""
    step: StepName
    detail: str


class InputRequest(msgspec.Struct, frozen=True):
    """What an execution asks its user for; ``header`` is the raw header of ``input_request``."""

    prompt: str
    password: bool
    header: bytes

    @property
    def id(self) -> str:
        """The ``msg_id`` of the ``input_request``."""
        return decode_header(self.header).msg_id


class Execution:
    """All that is known of one execution.

    ``place`` is a place in the kernel's log before which there is no message of the execution; it
    moves forward when more is known. ``end`` is the place behind its last message, once it has
    ended. Times are in seconds since the epoch; durations come from a monotonic clock. ``queue`` is
    the queue that its caller has named, or None for the caller's own. ``stop_on_error`` tells
    whether its failure aborts the executions that the server holds behind it in its queue.
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
        self.stop_on_error = stop_on_error
        self.queue = queue
        self.caller = caller
        # The generation of the process that it must run in, and of the one that it was sent to.
        self.if_generation = if_generation
        self.generation: int | None = None
        self.first_after_restart = False
        self.state = ExecutionState.QUEUED
        self.sent = False
        self.idle = False
        self.reply_status: str | None = None
        # Whether the kernel has published its error on iopub; else the reply alone has it.
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
        # Whether its code seems to write to file descriptors (`late_output.may_straggle`).
        self.may_straggle = False
        # The ids of displays that it shows, at most `late_output.MAX_UPDATES`.
        self.display_ids: list[str] = []
        self.steps: list[Step] = []
        self.input_request: InputRequest | None = None
        self.answered = ""  # the msg_id of the last prompt whose answer was passed on
        # The raw header of its request; and all parts, as long as the kernel has not got them.
        self.header = b""
        self.held: tuple[bytes, ...] = ()
        # Whether the request came over a WebSocket, rather than from this server's queue.
        self.by_client = False
        self.cancel_asked = False
        # In seconds: how long after its interrupt a cancelled execution is killed, if at all.
        self.kill_after: float | None = None
        # These are called once, when the execution has ended.
        self.on_end: list[Callable[[], None]] = []
        self._why = ""
        self._began: float | None = None
        self._took: float | None = None

    @property
    def ended(self) -> bool:
        """Whether the execution has come to its one end."""
        return self.state not in _UNFINISHED

    @property
    def running(self) -> bool:
        """Whether the kernel has gone busy for the execution, and it has not ended."""
        return self.state is ExecutionState.RUNNING

    @property
    def has_begun(self) -> bool:
        """Whether any status or reply of the execution has come from the kernel."""
        return self.running or self.idle or self.reply_status is not None

    @property
    def seconds(self) -> float | None:
        """How many seconds the execution has run, to now or its end; None if it has not begun."""
        if self._began is None or self._took is not None:
            return self._took
        return time.monotonic() - self._began

    def in_queue_of(self, other: Execution) -> bool:
        """Whether this execution and another wait in one queue."""
        if self.queue is None and other.queue is None:
            return self.caller == other.caller
        return self.queue == other.queue

    def put_back(self, state: ExecutionState, seconds: float | None) -> None:
        """Go on with an execution that the server before this one has stored.

        Its other fields are set already. ``seconds`` is how long it had run when it was stored. If
        it still runs, the time since it started counts, by the wall clock.
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
        """Note that the request is on its way; ``place`` is the end of the log at that time."""
        self.sent = True
        self.place = place

    def on_busy(self, place: Position) -> bool:
        """Begin: the kernel has gone busy, by the status at ``place``. False if it had begun."""
        # It had begun: this server reads the log once more, or the kernel goes busy twice.
        if self.state is not ExecutionState.QUEUED:
            return False
        self.state = ExecutionState.RUNNING
        # A kernel sends nothing of an execution before it goes busy. Only messages over another
        # socket than the status's may be read before it: an input request, or the reply. Those have
        # set `first_seq` already (`_see`).
        if self.first_seq is None:
            self.place = place
        self._see()
        self.started_at = time.time()
        self._began = time.monotonic()
        return True

    def on_input_request(self, asked: InputRequest) -> None:
        """Note that the kernel asks for input, which may be known before it is known to be busy."""
        self._see()
        self.input_request = asked

    def on_idle(self) -> bool:
        """Note the idle status; returns whether the execution is `complete` now."""
        self._see()
        self.idle = True
        self.input_request = None
        return self._may_be_complete()

    def on_reply(self, status: str, execution_count: int | None) -> bool:
        """Note the reply; returns whether the execution is `complete` now."""
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
        """Whether both the reply and the idle status have come.

        They come over two sockets, in either order: neither alone is an end.
        """
        return self.idle and self.reply_status is not None

    def _see(self) -> None:
        # The place before all messages of the execution, rather than that of the message just
        # seen: the log may have dropped earlier ones that this server has not read.
        if self.first_seq is None:
            self.first_seq = self.place.cursor

    def take_step(self, step: StepName, detail: str, seq: int) -> None:
        """Note a step against the execution; ``detail`` becomes the reason of its end."""
        self.steps.append(Step(seq, time.time(), step, detail))
        self._why = detail

    def finish(self, end: Position) -> None:
        """End: all messages have come. The reply, if there is one, decides how it has ended."""
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
        """End without the kernel's messages: as aborted if it ``never_ran``, else as lost."""
        aborted = never_ran and self.state is ExecutionState.QUEUED
        self._end(ExecutionState.ABORTED if aborted else ExecutionState.LOST, reason, end)

    def _end(self, state: ExecutionState, reason: str, end: Position) -> None:
        if self.ended:  # exactly one end: of two causes the first counts
            return
        if self.cancel_asked and state is not ExecutionState.OK:
            state = ExecutionState.CANCELLED
        self.state = state
        self.reason = self._why or reason
        self.input_request = None
        self.ended_at = time.time()
        if self._took is None and self._began is not None:
            self._took = time.monotonic() - self._began
        # The log has nothing of an execution that was never sent: its end is its own place.
        self.end = end if self.sent else self.place
        if self.first_seq is not None:
            self.last_seq = end.cursor - 1
        # Taken out before they are called: a callback that adds another does not change this loop.
        callbacks, self.on_end = self.on_end, []
        for callback in callbacks:
            callback()
