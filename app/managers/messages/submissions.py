"""The requests of one kernel's clients, on their way to the kernel."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import msgspec

from ...keeper.requests import Request
from ...log_formats import about
from ...protocol.messages import (
    CLIENT_CHANNELS,
    ClientMessage,
    MalformedMessage,
    decode_header,
)
from ...settings import Settings
from ..errors import KernelkeepError
from ..executions.tracker import ExecutionTracker
from ..limits.queues import QueuePlace, QueueShare
from ..state import KernelState, Lifecycle
from .interrupts import Interrupts
from .outbox import Outbox
from .own_requests import OwnRequests
from .request_ends import RequestEnds, is_execution
from .voice import Voice

__all__ = ["Submissions"]

logger = logging.getLogger(__name__)


class _Shutdown(msgspec.Struct):
    restart: bool = False


class Submissions:
    """Takes the requests of one kernel's clients: sends, holds, answers or refuses them."""

    def __init__(
        self,
        settings: Settings,
        state: KernelState,
        own: OwnRequests,
        voice: Voice,
        tracker: ExecutionTracker,
        outbox: Outbox,
        ends: RequestEnds,
        interrupts: Interrupts,
        kernel_id: str,
    ) -> None:
        self.on_end_asked: Callable[[bool], None] = lambda _restart: None
        """Called when a client asks the kernel to end, with whether it is to be restarted."""
        self.share = QueueShare()
        """How many executions may wait at the kernels of this one's owner."""
        self._settings = settings
        self._state = state
        self._own = own
        self._voice = voice
        self._tracker = tracker
        self._outbox = outbox
        self._ends = ends
        self._interrupts = interrupts
        self._kernel_id = kernel_id
        self._logger = about(logger, kernel_id=kernel_id)
        # Requests for the next process, each with its session; None while they are for this one.
        self._for_next: list[tuple[ClientMessage, str]] | None = None
        self._next_ignored_line = 0.0
        self._ignored_silently = 0

    def place(
        self, message: ClientMessage, session: str
    ) -> AbstractAsyncContextManager[QueuePlace] | None:
        """The place of an execution that is to be submitted (`Queues.queue_place`), or None."""
        if not is_execution(message) or self._is_known(message, session):
            return None
        return self.share.place()

    def submit(self, message: ClientMessage, session: str, place: QueuePlace | None = None) -> bool:
        """Send a client's message to the kernel, at once or when the kernel is ready.

        A request to a dead kernel ends at once. Messages for channels that clients cannot write to
        are ignored. ``place`` is an execution's, if others were asked for one. Returns False if the
        message was ignored or refused.
        """
        channel = message.channel
        if channel not in CLIENT_CHANNELS:
            self._tell_ignored("message for channel %.20r ignored", channel)
            return False
        allowed = self._settings.allowed_message_types
        if allowed and message.header.msg_type not in allowed:
            self._tell_ignored("%.40r is not allowed", message.header.msg_type)
            return False
        if channel == "stdin":
            return self._submit_on_stdin(message, session)
        if self._state.lifecycle in (Lifecycle.DEAD, Lifecycle.STOPPING):
            self._ends.refuse(message, session, f"The kernel is {self._state.word}")
            return False
        if is_execution(message) and not self._has_share(message, session, place):
            return False
        if self._for_next is not None:
            # The process is being replaced. The request must not reach the old one, which would
            # end with it; `release` submits it again when all requests of the old one have ended.
            self._for_next.append((message, session))
            self._outbox.charge(message)
            if is_execution(message):
                self._tracker.on_early(message, session)
            return True
        if (
            message.header.msg_type == "kernel_info_request"
            and channel == "shell"
            and self._own.kernel_info is not None
            and self._state.busy
        ):
            self._voice.answer_kernel_info(message, session, self._own.kernel_info)
            return True
        # Noted before the request is sent. After a `shutdown_request` the kernel may end at once,
        # which must not be taken for a death; after an interrupt the error may come at once.
        if message.header.msg_type == "shutdown_request":
            self._on_shutdown_request(message)
        if message.header.msg_type == "interrupt_request" and channel == "control":
            self._interrupts.before()
            self._interrupts.after()
        # The request is pending before it is sent. If the keeper dies with it, `send_again` finds
        # it here; its reply is read from the log, in a later turn of the loop.
        self._ends.pending.add(message, session).message = message
        execution = self._tracker.on_request(message, session) if is_execution(message) else None
        if execution is not None and self._own.can_ask:
            execution.generation = self._state.generation
        if execution is not None and message.header.subshell_id is not None:
            self._ends.subshells.add(execution, message.header.subshell_id)
        elif execution is not None:
            self._ends.dropped.watch()
        # A request that leaves now is not stored. Either the keeper logs its header, and the next
        # server finds that; or it is lost with this server, and then ended (`end_undelivered`).
        if not self._outbox.send(message, session) and execution is not None:
            self._tracker.store_request(execution, message)
        return True

    def _submit_on_stdin(self, message: ClientMessage, session: str) -> bool:
        # An answer is never held for the next process: the prompt is of this one, even if this one
        # is about to be replaced, and goes with it.
        is_taken = self._outbox.is_open
        if is_taken and message.header.msg_type == "input_reply":
            is_taken = self._close_prompt(message, session)
        if is_taken:
            self._outbox.send(message, session)
        return is_taken

    def _is_known(self, message: ClientMessage, session: str) -> bool:
        """Whether an execution was asked for before, and counts already."""
        execution = self._tracker.get(message.header.msg_id)
        return execution is not None and execution.session == session and not execution.ended

    def _has_share(self, message: ClientMessage, session: str, place: QueuePlace | None) -> bool:
        """Whether another execution may wait; if not, this one ends with an error that says so."""
        if self._is_known(message, session):
            return True
        try:
            self.share.check(place)
        except KernelkeepError as error:
            self._ends.refuse(message, session, error.message, ename=type(error).__name__)
            return False
        return True

    @property
    def executions_held(self) -> int:
        """How many executions wait for the process after the present one."""
        return sum(1 for message, _ in self._for_next or () if is_execution(message))

    def _close_prompt(self, answer: ClientMessage, session: str) -> bool:
        """Whether this ``input_reply`` answers an open prompt. If so, the prompt is closed.

        The first of two answers to one prompt closes it, so the second is not sent: the kernel
        would take it for the answer to its next ``input()``.
        """
        try:
            parent = decode_header(answer.parts[1], "parent_header")
        except MalformedMessage as error:
            self._tell_ignored("answer ignored: %.80s", str(error))
            return False
        prompt = self._tracker.prompts.meant_by(parent, session)
        if prompt is None:
            self._tell_ignored("answer to %.80r ignored: no such prompt is open", parent.msg_id)
            return False
        self._tracker.on_answer(prompt)
        return True

    def _submit_late(self, message: ClientMessage, session: str) -> None:
        """Submit a request that has waited for another process, unless it was cancelled."""
        execution = self._tracker.get(message.header.msg_id) if is_execution(message) else None
        if execution is not None and execution.ended and execution.session == session:
            self._ends.finish(Request(message, session))
            return
        self.submit(message, session)

    def _on_shutdown_request(self, message: ClientMessage) -> None:
        try:
            restart = msgspec.json.decode(message.parts[3], type=_Shutdown).restart
        except (msgspec.MsgspecError, RecursionError):
            return
        self.on_end_asked(restart)

    def _tell_ignored(self, text: str, value: str) -> None:
        """Log that a message was ignored, at most once a second, however many a client sends."""
        now = time.monotonic()
        if now < self._next_ignored_line:
            self._ignored_silently += 1
            return
        more = f" (and {self._ignored_silently} more)" if self._ignored_silently else ""
        self._logger.warning(f"kernel %s: {text}%s", self._kernel_id, value, more)
        self._ignored_silently = 0
        self._next_ignored_line = now + 1.0

    @property
    def are_held(self) -> bool:
        """Whether requests wait for the process after the present, or last, one."""
        return self._for_next is not None

    def hold(self) -> None:
        """Hold requests from now on for the next process, until `release`."""
        if self._for_next is None:  # a second call must not lose the requests that wait already
            self._for_next = []

    def release(self) -> None:
        """Submit the requests that were held: to a process that takes them, or else to the next.

        The outbox decides that (`Outbox.is_open`), as for every request.
        Call it when the requests of the process before have ended, or when that process could not
        be stopped and is the present one still.
        """
        # None before the loop: `submit` would append to the list again. Nothing is suspended in
        # the loop, so a request that a client sends now comes behind all that were held.
        for_next, self._for_next = self._for_next or [], None
        for message, session in for_next:
            self._outbox.discharge(message)  # `submit` charges a request that goes on to wait
            self._submit_late(message, session)
