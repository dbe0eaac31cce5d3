"""The requests of one kernel's clients, and the ends that they get where the kernel gives none.

Every request ends: with the kernel's reply and idle status, or with those that the server says in
the kernel's place.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterable
from typing import Any, Final

from ...keeper.requests import PendingRequests, Request
from ...protocol.messages import (
    ClientMessage,
    MalformedMessage,
    Message,
    decode_header,
    reply_type,
)
from ..executions.execution import Execution
from ..executions.made_up import reply_made_of_iopub
from ..executions.stragglers import Stragglers
from ..executions.tracker import ExecutionTracker
from ..executions.unanswered import Behind, Overdue, Subshells, Unanswered
from ..log.message_log import MessageLog
from .line import Line
from .outbox import Outbox
from .own_requests import OwnRequests
from .voice import Voice

__all__ = ["RequestEnds", "is_execution"]

_UNDELIVERED: Final = "The server was killed before the kernel had the request"
_UNSENT: Final = "The keeper of the kernel was killed before the kernel had the request"
_UNREAD: Final = "A part of the kernel's log is lost, and with it how it ended"
_UNHEARD: Final = "The keeper of the kernel was killed, and nobody heard how it ended"


class RequestEnds:
    """The requests of one kernel that have not ended, and the watch over them.

    ``pending`` has them in the order in which they were sent.
    """

    def __init__(
        self,
        log: MessageLog,
        tracker: ExecutionTracker,
        own: OwnRequests,
        voice: Voice,
        outbox: Outbox,
    ) -> None:
        self.pending = PendingRequests()
        self._log = log
        self._tracker = tracker
        self._own = own
        self._voice = voice
        self._outbox = outbox
        # Requests that may have left although the log does not tell: that part of it is lost.
        self._doubtful: weakref.WeakSet[Request] = weakref.WeakSet()
        self.was_unheard = False
        """Whether no keeper has heard the kernel for a while."""
        self.has_loss = False
        """Whether messages of the kernel are lost, and nobody has looked yet what that means."""
        self.overdue = Overdue(own.answers_on_shell, tracker.finish_unanswered)
        self.behind = Behind(own.catch_up, tracker.finish_unanswered)
        self.stragglers = Stragglers(own.ask_on_control, tracker.finish)
        self.unanswered = Unanswered(self._answer_in_its_place)
        self.subshells = Subshells(own.subshells, self._end_in_subshell)

    def clear(self) -> None:
        """The process is gone, or is another server's from now on: watch over nothing."""
        self.unanswered.clear()
        self.subshells.clear()
        self.overdue.clear()
        self.behind.clear()

    # Of one request

    def finish(
        self, request: Request, answer: dict[str, Any] | None = None, *, error: str | None = None
    ) -> Message | None:
        """Answer a request that the kernel will never answer, and go idle for it.

        ``answer`` is the content of the reply, if anything tells it; ``error`` is why the execution
        that was running failed. Returns the last of the messages, if there are any.
        """
        parent, owner = request.header, request.owner
        voice = self._voice
        if owner == self._own.session:
            return None
        said: Message | None = None
        if error is not None:
            died = {
                "ename": "KernelDied",
                "evalue": error,
                "traceback": [f"\x1b[0;31mKernelDied\x1b[0m: {error}"],
            }
            said = voice.say(voice.make("iopub", "error", died, parent))
        msg_type = reply_type(request.msg_type)
        content: dict[str, Any] | bytes | None = answer or {"status": "aborted"}
        if request.msg_type == "kernel_info_request":
            # To JupyterLab any other answer than ok means that the kernel is of no use. What the
            # kernel once said of itself still holds; if it never did, the idle status must do.
            content = self._own.kernel_info
        if msg_type is not None and content is not None and not request.replied:
            said = voice.say(voice.make(request.channel, msg_type, content, parent), owner)
        if not request.idle:
            said = voice.say(voice.make("iopub", "status", {"execution_state": "idle"}, parent))
        return said

    def refuse(self, message: ClientMessage, session: str, reason: str) -> None:
        """End a request for which there is no process, and will be none."""
        execution = self._tracker.on_request(message, session) if is_execution(message) else None
        self.finish(Request(message, session))
        if execution is not None:
            self._tracker.give_up(execution, reason, never_ran=True)

    def answer_for(self, execution: Execution) -> None:
        """The kernel has gone idle without a reply; whoever asked would wait for it for ever.

        That is how ipykernel takes an interrupt that hits it just before the code, or just behind
        it. What it has published tells whether it failed; that it did not fail tells nothing.
        """
        answer = None
        found = reply_made_of_iopub(self._log, execution)
        execution.execution_count = found.get("execution_count")
        if found["status"] == "error":
            answer = found
            execution.on_reply("error", execution.execution_count)
        request = self.pending.unanswered(execution.id, execution.session)
        if request is not None:
            self.pending.discard(request)
            self.finish(request, answer)

    def on_silent(self, execution: Execution) -> None:
        """The kernel has replied to an execution, and has neither gone idle nor said more since."""
        if self._own.can_ask and self._own.tells_control:
            self.behind.add(execution)
        else:
            self._tracker.finish_unanswered(execution)

    def _answer_in_its_place(self, request: Request) -> None:
        """The kernel went idle for a request of another kind, and no reply has come behind that."""
        if request in self.pending and not request.replied:
            self.pending.discard(request)
            self.finish(request, _error("NoReply", "The kernel sent no reply to this request"))

    def _end_in_subshell(self, execution: Execution, subshell_id: str) -> None:
        """An execution waits in a subshell that the kernel does not have: it will never begin."""
        reason = f"The kernel has no subshell {subshell_id[:64]!r}"
        if execution.cancel_asked:  # that it is interrupted when it begins is no longer true
            execution.take_step("cancel", reason, self._log.next_seq)
        self._tracker.give_up(execution, reason)
        for request in [*self.pending]:
            if request.msg_id == execution.id and request.owner == execution.session:
                self.pending.discard(request)
                self.finish(request, _error("NoSubshell", reason))
                return

    def wait_for_stragglers(self, execution: Execution) -> None:
        """An execution is complete but for output that may come late."""
        quiet = execution.may_straggle or self._tracker.straggling > 0
        self.stragglers.wait_for(execution, quiet=quiet)

    # Of all

    def finish_all(self, reason: str | None = None) -> Message | None:
        """The process is gone: end every request that it has not finished.

        ``reason`` is shown as the error of the execution that was running. Returns the last of the
        messages, if there are any.
        """
        said: Message | None = None
        for request in self.pending.take_all():
            # Kernels work in order: the first execution that is not finished was running. That
            # it had gone busy need not have been heard: a process that exits at once says nothing.
            finished = request.idle or request.replied
            was_running = request.msg_type == "execute_request" and not finished
            said = self.finish(request, error=reason if was_running else None) or said
            if was_running:
                reason = None
        return said

    def recall(self) -> list[Request]:
        """Know the requests again of the executions that the kernel has begun with.

        Such an execution is read from its busy status on, and its request lies before that, behind
        whatever the kernel did first.
        """
        recalled = []
        for execution in self._tracker.under_way:
            replied = execution.reply_status is not None
            if not execution.has_begun or (execution.idle and replied):
                continue
            with contextlib.suppress(MalformedMessage):
                header = decode_header(execution.header)
                message = ClientMessage("shell", header, [execution.header])
                request = self.pending.add(message, execution.session)
                request.idle, request.replied = execution.idle, replied
                recalled.append(request)
        return recalled

    def send_again(self, line: Line) -> None:
        """Send what is not in the log although it was sent: a keeper that is gone had it."""
        waiting = {id(message) for message in self._outbox.waiting}
        for request in [*self.pending]:
            message = request.message
            if request.logged or message is None or id(message) in waiting:
                continue
            if request in self._doubtful:  # the kernel may have it
                continue
            if not line.send(message, request.owner):
                self._outbox.send(message, request.owner)

    def doubt(self) -> None:
        """A part of the log is lost: whether the kernel has these requests is not known."""
        self._doubtful.update(self.in_doubt())
        self.has_loss = True

    def in_doubt(self) -> list[Request]:
        """The requests that the kernel has, or has had, as far as is known, and has not answered.

        `has_loss` tells of losses from now on.
        """
        self.has_loss = False
        waiting = {id(message) for message in self._outbox.waiting}
        return [
            request
            for request in self.pending
            if not request.replied and id(request.message) not in waiting
        ]

    def end_undelivered(self) -> None:
        """End what the server before was killed with, on its way to the keeper.

        Requests that waited there are sent again; of these only that they were asked for is known.
        """
        left = {(request.msg_id, request.owner) for request in self.pending}
        for execution in [*self._tracker.under_way]:
            is_old = execution.place.cursor < self._log.first_seq  # it may have been in the log
            if execution.has_begun or is_old or (execution.id, execution.session) in left:
                continue
            self._tracker.give_up(execution, _UNDELIVERED, never_ran=True)
            with contextlib.suppress(MalformedMessage):
                header = decode_header(execution.header)
                request = ClientMessage("shell", header, [execution.header])
                self.finish(Request(request, execution.session))

    def end_lost(self, requests: Iterable[Request]) -> None:
        """The kernel has nothing left of these requests: those without an end are lost.

        After a keeper that was killed: the requests that it had just given to its sockets went with
        it, and so did what the kernel said until another keeper heard it. Or where the log is
        damaged.
        """
        was_heard, self.was_unheard = not self.was_unheard, False
        for request in requests:
            if request.replied or request not in self.pending:
                continue
            execution = self._tracker.get(request.msg_id) if request.is_execution else None
            if execution is not None and was_heard and not execution.on_main_shell:
                continue  # a subshell goes on beside what the kernel has answered
            if execution is not None and not execution.ended:
                ran = execution.running
                why = _UNREAD if was_heard else _UNHEARD if ran else _UNSENT
                self._tracker.give_up(execution, why, never_ran=not (ran or was_heard))
            self.pending.discard(request)
            self.finish(request)


def is_execution(message: ClientMessage) -> bool:
    """Whether a message asks the kernel to execute code."""
    return message.header.msg_type == "execute_request" and message.channel == "shell"


def _error(ename: str, evalue: str) -> dict[str, Any]:
    """The content of a reply that tells of an error."""
    return {"status": "error", "ename": ename, "evalue": evalue, "traceback": []}
