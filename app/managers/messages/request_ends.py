"""The requests of one kernel's clients, and the ends that the server gives them in its place.

Every request ends: with the kernel's own reply and idle status or, where the kernel sends none,
with messages that the server makes and puts into the log.
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
from ..executions.contents import content_of, count_of
from ..executions.execution import Execution, ExecutionState
from ..executions.history import WholeReader
from ..executions.stragglers import Stragglers
from ..executions.tracker import ExecutionTracker
from ..executions.unanswered import Behind, Dropped, Overdue, Subshells, Unanswered
from ..log.message_log import MessageLog
from .line import Line
from .outbox import Outbox
from .own_requests import OwnRequests
from .voice import Voice

__all__ = ["RequestEnds", "is_execution"]

_DROPPED: Final = "The kernel has dropped the request: it has answered a later one"
_UNDELIVERED: Final = "The server was killed before the kernel had the request"
_UNSENT: Final = "The keeper of the kernel was killed before the kernel had the request"
_UNREAD: Final = "A part of the kernel's log is lost, and with it how it ended"
_UNHEARD: Final = "The keeper of the kernel was killed, and nobody heard how it ended"


class RequestEnds:
    """The requests of one kernel that have not ended, and the watch over them.

    ``pending`` holds them in the order in which they were sent.

    No request is sent twice, and each one ends. The keeper logs a request's header before it sends
    the request. So after a keeper is lost, a request that is not in the log was never sent, and is
    given to the next keeper (`send_again`). A request that is in the log may have been sent, so it
    is not sent again: it ends by the kernel's reply, or as lost (`end_lost`). If a part of the log
    is lost, all requests that it may have held are doubtful, and are treated as sent.
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
        # Requests that may have been sent although the log does not tell: a part of it is lost.
        # Weak: a request that ends, in any way, is gone from here, too.
        self._doubtful: weakref.WeakSet[Request] = weakref.WeakSet()
        self.was_unheard = False
        """Whether no keeper heard the kernel for a while, and `end_lost` has not run since."""
        self.has_loss = False
        """Whether messages of the kernel were lost since `in_doubt` was called last."""
        self.overdue = Overdue(own.answers_on_shell, tracker.finish_unanswered)
        self.behind = Behind(own.catch_up, tracker.finish_unanswered)
        self.stragglers = Stragglers(own.ask_on_control, tracker.finish)
        self.unanswered = Unanswered(self._answer_in_its_place)
        self.subshells = Subshells(own.subshells, self._end_in_subshell)
        self.dropped = Dropped(self._suspects, own.answers_on_shell, self._end_dropped)

    def clear(self) -> None:
        """Watch over nothing: the process is gone, or is another server's from now on."""
        self.unanswered.clear()
        self.subshells.clear()
        self.overdue.clear()
        self.behind.clear()
        self.dropped.clear()

    # The end of one request

    def finish(
        self, request: Request, answer: dict[str, Any] | None = None, *, error: str | None = None
    ) -> Message | None:
        """Say, in the kernel's place, the reply and the idle status that a request still lacks.

        ``answer`` is the content of the reply, if it is known. ``error`` is why the execution that
        was running failed. Returns the last message said, or None if there is none.
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
            # JupyterLab takes any other status than ok for a kernel that is of no use. The kernel's
            # last kernel_info_reply still holds; without one, the idle status alone must do.
            content = self._own.kernel_info
        if msg_type is not None and content is not None and not request.replied:
            said = voice.say(voice.make(request.channel, msg_type, content, parent), owner)
        if not request.idle:
            said = voice.say(voice.make("iopub", "status", {"execution_state": "idle"}, parent))
        return said

    def refuse(self, message: ClientMessage, session: str, reason: str, *, ename: str = "") -> None:
        """End a request that the kernel does not get: as aborted, or with an error of a name.

        An error is shown to people, as one of the kernel's is.
        """
        execution = self._tracker.on_request(message, session) if is_execution(message) else None
        answer = _error(ename, reason) if ename else None
        if answer is not None:
            shown = {name: value for name, value in answer.items() if name != "status"}
            shown["traceback"] = [f"\x1b[0;31m{ename}\x1b[0m: {reason}"]
            self._voice.say(self._voice.make("iopub", "error", shown, bytes(message.parts[0])))
        self.finish(Request(message, session), answer)
        if execution is not None:
            self._tracker.give_up(execution, reason, never_ran=True)

    def answer_for(self, execution: Execution) -> None:
        """Reply to an execution for which the kernel has gone idle, and sent no reply.

        Its client would wait for ever. ipykernel does that when an interrupt hits it just before
        the code, or just behind it. An ``error`` on iopub proves that the execution failed; without
        one it is not known how it ended.
        """
        count, error = _published(self._log, execution)
        execution.execution_count = count
        answer = None
        if error is not None:
            # What the kernel calls a status or a count in its error must not stand in their places.
            answer = {**error, "status": "error", "execution_count": count}
            execution.on_reply("error", count)
        request = self.pending.unanswered(execution.id, execution.session)
        if request is not None:
            self.pending.discard(request)
            self.finish(request, answer)

    def on_silent(self, execution: Execution) -> None:
        """Find out whether the idle status of an execution is late, or will never come.

        The kernel has replied to the execution, and has published nothing of it since.
        """
        if self._own.can_ask and self._own.tells_control:
            self.behind.add(execution)
        else:
            self._tracker.finish_unanswered(execution)

    def _answer_in_its_place(self, request: Request) -> None:
        """Reply to a request, no execution, for which the kernel went idle and sent no reply."""
        if request in self.pending and not request.replied:
            self.pending.discard(request)
            self.finish(request, _error("NoReply", "The kernel sent no reply to this request"))

    def _end_in_subshell(self, execution: Execution, subshell_id: str) -> None:
        """End an execution that was sent to a subshell which the kernel does not have."""
        reason = f"The kernel has no subshell {subshell_id[:64]!r}"
        if execution.cancel_asked:  # that it is interrupted when it begins is no longer true
            execution.take_step("cancel", reason, self._log.next_seq)
        self._tracker.give_up(execution, reason)
        self._finish_request_of(execution, _error("NoSubshell", reason))

    def _suspects(self) -> list[Execution] | None:
        """The executions that may have been dropped (`Dropped`); None if none is under way."""
        under_way = [*self._tracker.under_way]
        if not under_way:
            return None
        # While the main shell runs code, its answers do not prove that a later request is gone.
        at_work = self._tracker.at_main_shell
        if at_work is None or at_work.running:
            return []
        sent = {(request.msg_id, request.owner) for request in self.pending if request.logged}
        return [
            one
            for one in under_way
            if one.on_main_shell
            and one.state is ExecutionState.QUEUED
            and (one.id, one.session) in sent
        ]

    def _end_dropped(self, execution: Execution) -> None:
        """End an execution that the kernel has dropped; it has not run."""
        self._tracker.give_up(execution, _DROPPED, never_ran=True)
        self._finish_request_of(execution)

    def _finish_request_of(
        self, execution: Execution, answer: dict[str, Any] | None = None
    ) -> None:
        """Answer the request of an execution with which the kernel has not begun."""
        for request in [*self.pending]:
            if request.msg_id == execution.id and request.owner == execution.session:
                self.pending.discard(request)
                self.finish(request, answer)
                return

    def wait_for_stragglers(self, execution: Execution) -> None:
        """Finish an execution when output that may come behind its end has come, or soon."""
        quiet = execution.may_straggle or self._tracker.straggling > 0
        self.stragglers.wait_for(execution, quiet=quiet)

    # The ends of all requests

    def finish_all(self, reason: str | None = None) -> Message | None:
        """End every request that the process, which is gone, has not finished.

        ``reason`` is shown as the error of the execution that was running. Returns the last message
        said, or None if there is none.
        """
        said: Message | None = None
        for request in self.pending.take_all():
            # Kernels work in order, so the first execution that is not finished was running. Its
            # busy status need not have come: a process that exits at once publishes nothing.
            finished = request.idle or request.replied
            was_running = request.msg_type == "execute_request" and not finished
            # `or said`: the caller waits for the last message, behind which the log has all others.
            said = self.finish(request, error=reason if was_running else None) or said
            if was_running:
                reason = None
        return said

    def recall(self) -> list[Request]:
        """Make the requests of running executions pending again, for a server that takes over.

        That server reads the log from the busy status of such an execution on. The request lies
        further back, so it is not found by reading.
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
        """Send again the requests that went to a keeper which is gone, and are not in the log.

        That keeper did not send them to the kernel: it would have logged them first. This is called
        when the log has been read up to its end, and before any newer request is sent.
        """
        # Requests that wait in the outbox never went to that keeper; they leave after these.
        waiting = {id(message) for message in self._outbox.waiting}
        for request in [*self.pending]:
            message = request.message
            if request.logged or message is None or id(message) in waiting:
                continue
            if request in self._doubtful:  # its header may be in the part of the log that is lost
                continue
            if not line.send(message, request.owner):
                self._outbox.send(message, request.owner)

    def doubt(self) -> None:
        """Mark all requests as doubtful: a part of the log is lost, and may have held them."""
        self._doubtful.update(self.in_doubt())
        self.has_loss = True  # behind `in_doubt`, which clears it

    def in_doubt(self) -> list[Request]:
        """The requests that were, or may have been, sent to the kernel, and have no reply.

        This clears `has_loss`: a loss while the caller asks the kernel shows there.
        """
        self.has_loss = False
        waiting = {id(message) for message in self._outbox.waiting}
        return [
            request
            for request in self.pending
            if not request.replied and id(request.message) not in waiting
        ]

    def end_undelivered(self) -> None:
        """End executions whose requests never reached the keeper: the server before was killed.

        The log, which has been read to its end, has no header of them. They cannot be sent again:
        the server before stored the parts of a request only as long as it waited there.
        """
        left = {(request.msg_id, request.owner) for request in self.pending}
        for execution in [*self._tracker.under_way]:
            # The log may have dropped its header since.
            is_old = execution.place.cursor < self._log.first_seq
            if execution.has_begun or is_old or (execution.id, execution.session) in left:
                continue
            self._tracker.give_up(execution, _UNDELIVERED, never_ran=True)
            with contextlib.suppress(MalformedMessage):
                header = decode_header(execution.header)
                request = ClientMessage("shell", header, [execution.header])
                self.finish(Request(request, execution.session))

    def end_lost(self, requests: Iterable[Request]) -> None:
        """End as lost those of ``requests`` that have no reply: the kernel has none of them left.

        There are two causes. A keeper was killed: the requests that its sockets held went with it,
        and so did the messages of the kernel until another keeper heard it. Or a part of the log is
        lost. The caller has asked the kernel since, and the kernel has answered: requests that it
        got before that are done.
        """
        was_heard, self.was_unheard = not self.was_unheard, False
        for request in requests:
            if request.replied or request not in self.pending:  # its reply came meanwhile
                continue
            execution = self._tracker.get(request.msg_id) if request.is_execution else None
            if execution is not None and was_heard and not execution.on_main_shell:
                continue  # an execution in a subshell may go on while the main shell answers
            if execution is not None and not execution.ended:
                ran = execution.running
                why = _UNREAD if was_heard else _UNHEARD if ran else _UNSENT
                self._tracker.give_up(execution, why, never_ran=not (ran or was_heard))
            self.pending.discard(request)
            self.finish(request)


def is_execution(message: ClientMessage) -> bool:
    """Whether a message asks the kernel to execute code."""
    return message.header.msg_type == "execute_request" and message.channel == "shell"


def _published(log: MessageLog, execution: Execution) -> tuple[int | None, dict[str, Any] | None]:
    """What the kernel has published of an execution: its count, and the content of its error.

    The log has all messages of the execution by now: it ends because no more can come.
    """
    count: int | None = None
    reader = WholeReader(log, execution.place)
    while reader.behind:
        for message in (entry.message for entry in reader.take().entries):
            if message.parent.msg_id != execution.id:
                continue
            if message.msg_type == "execute_input":
                count = count_of(content_of(message).get("execution_count"))
            elif message.msg_type == "error":
                return count, content_of(message)
    return count, None


def _error(ename: str, evalue: str) -> dict[str, Any]:
    """The content of an error reply."""
    return {"status": "error", "ename": ename, "evalue": evalue, "traceback": []}
