"""The executions of one kernel, followed by the messages that `Traffic` reads in the log.

Replies to executions, statuses and input requests cost a look into a dictionary each; other
messages of the kernel cost nothing here, or hardly anything.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec

from ...protocol.messages import ClientMessage, Message
from ..log.entries import Position
from ..log.message_log import MessageLog
from .contents import count_of
from .displays import Displays
from .execution import Execution, InputRequest
from .incomplete import IDLE_SECONDS, REPLY_SECONDS, Incomplete
from .late_output import MAX_UPDATES, LateOutput, display_id_in
from .listeners import ExecutionListener, ExecutionStore
from .prompts import Prompt, Prompts

__all__ = ["ExecutionTracker"]

MAX_UNFINISHED: Final = 8192
"""How many executions of a kernel may be under way; beyond that the oldest is given up."""

MAX_STORED_REQUEST: Final = 2**20
MAX_STORED_BYTES: Final = 2**24
"""How many bytes of one waiting request, and of all those of a kernel, are stored for the next
server. A larger request waits all the same, but ends if this server does."""

STRAGGLING: Final = 16
"""For how many executions late output is expected, once a kernel's output has come late."""

STRAGGLER_SECONDS: Final = 1.0
"""Output within so many seconds after an execution's end shows that its kernel's output is late."""


class _Reply(msgspec.Struct):
    status: Any = ""
    execution_count: Any = None


class _Question(msgspec.Struct):
    prompt: str = ""
    password: bool = False


_reply_decoder: Final = msgspec.json.Decoder(_Reply)
_question_decoder: Final = msgspec.json.Decoder(_Question)


class ExecutionTracker:
    """Knows the executions that are under way, and the last ``remembered`` that have ended.

    An id names one execution. If a client uses the ``msg_id`` of an execution that is known, the id
    goes on to name the earlier one. The later one is followed to its end, but cannot be looked up;
    messages of the kernel with this id count for the earlier one until that is complete.
    """

    def __init__(
        self,
        log: MessageLog,
        remembered: int,
        *,
        on_unanswered: Callable[[Execution], None] = lambda _: None,
        on_overdue: Callable[[Execution], None] = lambda _: None,
        on_silent: Callable[[Execution], None] | None = None,
        on_complete: Callable[[Execution], None] | None = None,
    ) -> None:
        self.listener: ExecutionListener | None = None
        self.store: ExecutionStore | None = None
        self.prompts = Prompts()
        self.displays = Displays()
        # Called with an execution to which the kernel will not reply any more.
        self._on_unanswered = on_unanswered
        # Called with an execution for which the kernel has gone idle without a reply.
        self._on_overdue = on_overdue
        # Called with a complete execution that may have late output: it is to be finished soon.
        self._on_complete = on_complete
        self.straggling = 0
        """For how many executions more output is expected after their end."""
        self._may_straggle = False  # whether any code that ran seems to write to descriptors
        self._log = log
        self._remembered = remembered
        self._by_id: dict[str, Execution] = {}  # in the order in which they were asked for
        self._under_way: dict[str, list[Execution]] = {}  # those that were sent, by id, in order
        self._count = 0  # how many executions are under way
        self._stored_bytes = 0  # the bytes of clients' waiting requests that are stored
        self.begun = 0
        """How many executions the kernel has begun with, ever."""
        self._ended: deque[Execution] = deque()
        self._incomplete = Incomplete(
            log, self.finish_unanswered, on_silent or self.finish_unanswered
        )

    # Looking

    def __iter__(self) -> Iterator[Execution]:
        """The known executions, in the order in which they were asked for."""
        return iter(tuple(self._by_id.values()))

    def get(self, execution_id: str) -> Execution | None:
        """The execution with this id, if it is (still) known."""
        return self._by_id.get(execution_id)

    @property
    def under_way(self) -> Iterator[Execution]:
        """The executions that were sent and have not ended, oldest first."""
        return (execution for same_id in self._under_way.values() for execution in same_id)

    @property
    def at_main_shell(self) -> Execution | None:
        """The execution that the main shell runs, or runs next: kernels work in order.

        If the kernel has begun with several and ended none, it has forgotten all but the last.
        """
        waiting = [
            one
            for one in self.under_way
            if one.on_main_shell and not one.idle and one.reply_status is None
        ]
        return next((one for one in reversed(waiting) if one.running), next(iter(waiting), None))

    # Executions that begin to be known

    def add(self, execution: Execution) -> None:
        """Know an execution from now on; its request need not be sent yet."""
        self._drop(execution.id)  # an earlier execution of this id, elsewhere in the order
        self._by_id[execution.id] = execution
        self.changed(execution)

    def changed(self, execution: Execution) -> None:
        """Have a changed execution stored for the next server."""
        if self.store is not None and self._by_id.get(execution.id) is execution:
            self.store.changed(execution)

    async def stored(self) -> None:
        """Return when all changes are stored for the next server, if there is to be one."""
        if self.store is not None:
            await self.store.stored()

    async def execution_stored(self, execution: Execution) -> None:
        """As `ExecutionStore.execution_stored`."""
        if self.store is not None:
            await self.store.execution_stored(execution)

    def put_back(self, execution: Execution) -> None:
        """Know an execution that the server before this one has stored. Call oldest first."""
        self._by_id[execution.id] = execution
        for display_id in execution.display_ids:
            self.displays.add(execution, display_id)
        if execution.by_client:
            self._stored_bytes += sum(map(len, execution.held))
        if execution.ended:
            self._ended.append(execution)
        elif execution.sent:
            self._under_way.setdefault(execution.id, []).append(execution)
            self._count += 1

    def on_request(self, message: ClientMessage, session: str) -> Execution:
        """Follow an ``execute_request`` that is on its way to the kernel; returns its execution."""
        execution_id = message.header.msg_id
        execution = self._by_id.get(execution_id)
        if execution is None or execution.sent or execution.ended or execution.session != session:
            execution = self._by_client(message, session)
        execution.header = bytes(message.parts[0])
        execution.on_sent(self._log.end)
        self.changed(execution)
        self._under_way.setdefault(execution_id, []).append(execution)
        self._count += 1
        if self._count > MAX_UNFINISHED:  # the new one is counted already: an older one is there
            oldest = next(self.under_way)
            self.give_up(oldest, "Too many executions of this kernel are under way")
        return execution

    def _by_client(self, message: ClientMessage, session: str) -> Execution:
        execution = Execution(
            message.header.msg_id,
            session,
            self._log.end,
            on_main_shell=message.header.subshell_id is None,
        )
        execution.by_client = True
        # An id names one execution: if an earlier one has this id, the id goes on to name that.
        if execution.id not in self._by_id:
            self.add(execution)
        return execution

    # Requests that wait, stored for the next server

    def on_early(self, message: ClientMessage, session: str) -> None:
        """Know a client's ``execute_request`` that waits for a process which is yet to come."""
        if message.header.msg_id not in self._by_id:
            self.store_request(self._by_client(message, session), message)

    def store_request(self, execution: Execution, message: ClientMessage) -> None:
        """Store a waiting request, so that the next server sends it if this one cannot."""
        fits = message.size <= MAX_STORED_REQUEST
        if execution.held or not fits or self._stored_bytes + message.size > MAX_STORED_BYTES:
            return
        execution.held = tuple(map(bytes, message.parts))
        self._stored_bytes += sum(map(len, execution.held))
        self.changed(execution)

    def waiting(self, message: ClientMessage) -> Execution | None:
        """The execution of this request, if the request is stored as one that waits."""
        for execution in self._under_way.get(message.header.msg_id, ()):
            if execution.held and execution.held[0] == message.parts[0]:
                return execution
        return None

    def on_handed(self, execution: Execution) -> None:
        """Store a request no longer: the log says that it has left for the kernel.

        If this server is killed before the change is stored, the next one finds the request's
        header in the log, and concludes the same before it sends anything.
        """
        self._let_go(execution)
        self.changed(execution)

    def _let_go(self, execution: Execution) -> None:
        """Forget the parts of the execution's request."""
        if execution.by_client:
            self._stored_bytes -= sum(map(len, execution.held))
        execution.held = ()

    def _withdraw(self, execution: Execution) -> None:
        """Take an execution out of those that are under way, and close its prompt."""
        same_id = self._under_way.get(execution.id, [])
        if execution in same_id:
            self._count -= 1
            same_id.remove(execution)
            if not same_id:
                del self._under_way[execution.id]
                self.prompts.close(execution.id)

    def give_up(self, execution: Execution, reason: str, *, never_ran: bool = False) -> None:
        """End an execution of which no more messages can come."""
        if not execution.ended:
            execution.give_up(self._log.end, reason, never_ran=never_ran)
            self._forget(execution)

    def take_back(self, execution: Execution, reason: str) -> None:
        """End an execution that was never sent, and forget it.

        The registry may have the execution; if it cannot be deleted there, the next server runs it.
        """
        self.give_up(execution, reason, never_ran=True)
        if self._by_id.get(execution.id) is execution:
            self._ended.remove(execution)
            self._drop(execution.id)

    def finish_unanswered(self, execution: Execution) -> None:
        """End an execution that lacks its reply or its idle status, which will not come."""
        if not execution.ended:
            if execution.reply_status is None:
                self._on_unanswered(execution)
            self._finish(execution)

    def finish(self, execution: Execution) -> None:
        """End an execution that is complete."""
        if not execution.ended:
            self._finish(execution)

    # Messages of the kernel. Each one is in the log, and `MessageLog.end` lies behind it.

    def on_status(self, reported: str, message: Message) -> None:
        """Take a status of the kernel: ``reported`` is its ``execution_state``."""
        if reported == "idle":
            self.prompts.close(message.parent.msg_id)
        same_id = self._under_way.get(message.parent.msg_id)
        if same_id is None:
            if reported == "idle" and self.listener is not None:
                self.listener.on_free()
        elif reported == "busy":
            self._on_busy(same_id, message)
        elif reported == "idle":
            # Kernels work in order: of several executions with one id, the status is that of the
            # oldest that lacks it. The same holds for busy statuses and replies.
            execution = next((one for one in same_id if not one.idle), same_id[0])
            if execution.on_idle():
                self._complete(execution)
            else:
                # The reply may be late, as it comes over another socket, or never come.
                self.changed(execution)
                self._incomplete.add(execution, REPLY_SECONDS)
                if execution.on_main_shell:
                    self._on_overdue(execution)

    def _on_busy(self, same_id: list[Execution], message: Message) -> None:
        execution = next((one for one in same_id if not one.running), None)
        if execution is not None and execution.on_busy(_place_of(message)):
            self.begun += 1
            self._let_go(execution)
            self.changed(execution)
            self._log.wake()
            if self.listener is not None:
                self.listener.on_start(execution)

    def on_reply(self, message: Message) -> None:
        """Take an ``execute_reply``."""
        self.prompts.close(message.parent.msg_id)
        same_id = self._under_way.get(message.parent.msg_id)
        if same_id is None:
            return
        execution = next((one for one in same_id if one.reply_status is None), same_id[0])
        reply = _read_reply(message)
        status = reply.status if isinstance(reply.status, str) else ""
        if execution.on_reply(status, count_of(reply.execution_count)):
            self._complete(execution)
        else:
            self.changed(execution)
            self._incomplete.add(execution, IDLE_SECONDS)

    def is_under_way(self, msg_id: str) -> bool:
        """Whether an execution with this id was sent and has not ended."""
        return msg_id in self._under_way

    def on_output(self, message: Message) -> None:
        """Take a message that changes the outputs of an execution (`OUTPUT_TYPES`)."""
        msg_type, same_id = message.header.msg_type, self._under_way.get(message.parent.msg_id)
        if msg_type == "stream" and same_id is not None:  # by far the most frequent case
            return
        if same_id is None:
            execution = self._by_id.get(message.parent.msg_id)
            if execution is not None and execution.ended:
                self._on_late_output(execution, message)
        else:
            execution = next((one for one in same_id if not one.idle), same_id[0])
            if msg_type == "error" and not execution.has_error:
                execution.has_error = True
                self.changed(execution)
        if msg_type == "display_data" and execution is not None:
            self._on_display(execution, display_id_in(message))
        elif msg_type == "update_display_data":
            self._on_update(message)

    def _on_late_output(self, execution: Execution, message: Message) -> None:
        place = _place_of(message)
        if execution.end is None or place.cursor < execution.end.cursor:
            return  # this server reads the log again, and the message came before the end
        execution.late = execution.late or LateOutput()
        execution.late.add(place)
        if time.time() - (execution.ended_at or 0.0) < STRAGGLER_SECONDS:
            self.straggling = STRAGGLING
        self.changed(execution)

    def _on_display(self, execution: Execution, display_id: str) -> None:
        known = execution.display_ids
        if display_id and display_id not in known and len(known) < MAX_UPDATES:
            known.append(display_id)
            self.displays.add(execution, display_id)
            self.changed(execution)

    def _on_update(self, message: Message) -> None:
        """Note an update of a display for the ended executions that show that display."""
        display_id = display_id_in(message)
        place = _place_of(message)
        for execution in self.displays.of(display_id):
            if execution.end is not None and execution.end.cursor <= place.cursor:
                execution.late = execution.late or LateOutput()
                execution.late.update(display_id, place)
                self.changed(execution)

    def on_input_request(self, message: Message, owner: str, *, is_shown: bool = True) -> None:
        """Open a prompt: the kernel asks the client of a request, whose session is ``owner``.

        ``is_shown`` tells whether a client of that session is attached, and so sees the prompt.
        """
        execution = next(iter(self._under_way.get(message.parent.msg_id, ())), None)
        # The answer was stored with the execution when it was passed on. So a new server, which
        # reads the prompt in the log, does not open it for a second answer.
        if execution is not None and execution.answered == message.header.msg_id:
            self._close_prompt(execution, message.parent.msg_id)
            return
        self.prompts.open(Prompt(message, owner, message.seq, execution, is_shown=is_shown))
        if execution is None:
            return
        try:
            question = _question_decoder.decode(message.part(3))
        except (msgspec.MsgspecError, RecursionError):  # malformed, and a prompt all the same
            question = _Question()
        header = bytes(message.part(0))
        execution.on_input_request(InputRequest(question.prompt, question.password, header))
        self.changed(execution)

    def on_answer(self, prompt: Prompt) -> None:
        """Close a prompt whose answer is about to be sent to the kernel."""
        if prompt.execution is not None:
            prompt.execution.answered = prompt.id
        self._close_prompt(prompt.execution, prompt.request_id)

    def _close_prompt(self, execution: Execution | None, request_id: str) -> None:
        self.prompts.close(request_id)
        if execution is not None:
            execution.input_request = None
            self.changed(execution)

    def on_interrupt(self, execution: Execution) -> None:
        """Tell the listener that an execution is about to be interrupted."""
        if self.listener is not None:
            self.listener.on_interrupt(execution)

    def on_ready(self) -> None:
        """Tell the listener that the kernel takes requests."""
        if self.listener is not None:
            self.listener.on_free()

    def close_waiting(self, reason: str) -> None:
        """End the executions that wait to be sent: the process takes no more requests."""
        if self.listener is not None:
            self.listener.on_close(reason)

    def leave(self) -> None:
        """Finish the complete executions, so that the next server finds them stored as ended."""
        for execution in self.under_way:
            if execution.complete:
                execution.finish(self._log.end)
                self.changed(execution)

    def close(self, reason: str, *, was_ready: bool) -> None:
        """End every execution that was sent to the process, which is gone.

        Kernels work in order: in a process that ``was_ready``, the first unfinished execution was
        running, even if its busy status never came.
        """
        # A copy: each end takes its execution out of those under way.
        for execution in tuple(self.under_way):
            if execution.reply_status is not None:  # only its idle status was still to come
                self._finish(execution)
                continue
            blamed = was_ready and execution.on_main_shell and not execution.idle
            was_ready = was_ready and not blamed
            self.give_up(execution, reason, never_ran=not blamed)
        self.prompts.clear()
        self._incomplete.clear()
        self.straggling, self._may_straggle = 0, False

    # Ends

    def _complete(self, execution: Execution) -> None:
        """Finish an execution with reply and idle status, now or when late output has come."""
        self._may_straggle |= execution.may_straggle  # later code may call what this one defined
        asks = (self.straggling > 0 or self._may_straggle) and not execution.by_client
        if asks and self._on_complete is not None:
            self._on_complete(execution)
        else:
            self._finish(execution)
        self.straggling = max(self.straggling - 1, 0)

    def _finish(self, execution: Execution) -> None:
        execution.finish(self._log.end)
        self._forget(execution)

    def _forget(self, execution: Execution) -> None:
        """Move an execution that has ended to those that are remembered; the oldest go."""
        # The listener is called last. It sends the next execution, whose end may call this again:
        # by then this execution is not among those under way.
        self._withdraw(execution)
        self._let_go(execution)
        self.changed(execution)
        self._ended.append(execution)
        while len(self._ended) > self._remembered:
            oldest = self._ended.popleft()
            self.displays.remove(oldest)
            if self._by_id.get(oldest.id) is oldest:
                self._drop(oldest.id)
        self._log.wake()  # readers that follow the execution look at its end
        if self.listener is not None:
            self.listener.on_end(execution)
            self.listener.on_free()

    def _drop(self, execution_id: str) -> None:
        """Forget the execution of this id, if there is one."""
        execution = self._by_id.pop(execution_id, None)
        if execution is not None and self.store is not None:
            self.store.forgotten(execution)


def _place_of(message: Message) -> Position:
    return Position(message.seq, message.offset)


def _read_reply(message: Message) -> _Reply:
    part = message.part(3)
    try:
        return _reply_decoder.decode(part)
    except (msgspec.MsgspecError, RecursionError):
        pass
    try:  # Python kernels send NaN, in the values of user_expressions
        return msgspec.convert(json.loads(str(part, "utf-8")), _Reply)
    except (ValueError, RecursionError):
        return _Reply()
