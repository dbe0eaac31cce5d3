"""The messages of one kernel: what clients send it, what it says, and what is said in its place.

Requests of every client leave over the kernel's one line. All that comes back is read from the log,
where whoever hears the kernel has numbered it: conclusions are drawn here, once, before clients see
it. When the process goes, every request that it has not finished is given an end here.
"""

from __future__ import annotations

import asyncio
import logging
import time
import weakref
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Final
from uuid import uuid4

import msgspec

from ...keeper.hearings import Heard
from ...keeper.requests import Request
from ...keeper.sockets import ConnectionInfo
from ...protocol.link import Bell
from ...protocol.messages import (
    CLIENT_CHANNELS,
    ClientMessage,
    Header,
    MalformedMessage,
    Message,
    decode_header,
)
from ...settings import Settings
from ..executions.execution import Execution
from ..executions.held import BACKLOG_BYTES
from ..executions.late_output import OUTPUT_TYPES
from ..executions.tracker import ExecutionTracker
from ..log.message_log import Entry, Gap, MessageLog, Position
from ..state import KernelState, Lifecycle
from ..telemetry.counters import Counters
from .attachments import Attachments
from .interrupts import InterruptWatch
from .line import Hearer, Line
from .outbox import Outbox
from .own_requests import OwnRequests
from .request_ends import RequestEnds, is_execution
from .tracebacks import hide_traceback
from .voice import Voice

__all__ = ["Traffic"]

logger = logging.getLogger(__name__)

EXECUTIONS_KEPT: Final = 1000
"""Executions that have ended, and are remembered, per kernel."""

MESSAGES_PER_TURN: Final = 64
BYTES_PER_TURN: Final = 2**19
"""What is read of a log in one turn of the event loop: no kernel starves the others."""

HELD_SECONDS: Final = 2.0
"""How long what is left of a log can be read when its kernel, and its files, are gone."""

REPLAYED: Final = 256
"""Messages that are gone through again at least: what the kernel said of itself is in them."""


_ENDS: Final = {
    Lifecycle.RESTARTING: "The kernel was restarted",
    Lifecycle.STOPPING: "The kernel was shut down",
}
"""Why executions end when nobody has given another reason."""


class _Status(msgspec.Struct):
    execution_state: str = ""


_status_decoder: Final = msgspec.json.Decoder(_Status)


class Traffic:
    """Routes between one kernel's sockets, its log and its clients."""

    def __init__(
        self,
        kernel_id: str,
        state: KernelState,
        directory: Path,
        hearer: Hearer,
        settings: Settings,
        counters: Counters,
    ) -> None:
        hides = not settings.allow_tracebacks
        self.log = log = MessageLog(directory, kernel_id, self.shown if hides else None)
        self.last_activity = time.time()
        # When the kernel was last at work for somebody, in monotonic seconds: culling counts from
        # here. Unlike last_activity it stands still for what a background thread prints.
        self.active_since = time.monotonic()
        self._kernel_id = kernel_id
        self._logger = logging.LoggerAdapter(logger, {"kernel_id": kernel_id})
        self._settings = settings
        self.counters = counters
        self._state = state
        # The requests of this session are the server's own: clients do not see their answers.
        session = f"kernelkeep-{uuid4().hex}"
        self._line = line = Line(hearer, kernel_id, session, log.epoch, self)
        self.voice = Voice(line, log, state)
        self.own = OwnRequests(line)
        self.tracker = ExecutionTracker(
            log,
            EXECUTIONS_KEPT,
            on_unanswered=lambda execution: self.ends.answer_for(execution),
            on_overdue=self._on_overdue,
            on_silent=lambda execution: self.ends.on_silent(execution),
            on_complete=lambda execution: self.ends.wait_for_stragglers(execution),
        )
        self._outbox = Outbox(BACKLOG_BYTES)
        self.ends = RequestEnds(log, self.tracker, self.own, self.voice, self._outbox)
        self.clients = Attachments(log, self.tracker.prompts, state, settings)
        self.why_it_stops = ""
        """Why the process is stopped, if a reason was given."""
        self._reading: asyncio.Handle | None = None
        self._replaying = False
        self._interrupts = InterruptWatch(self._main_shell_runs, self.own.wake_main_shell)
        # Where the log was when the kernel was heard again: nothing is sent before that is read.
        self._read_first: int | None = None
        self._is_again = False  # what was said until then is not known
        self._for_next: list[tuple[ClientMessage, str]] | None = None
        self.begun = 0
        """How often the kernel has begun with something that others than this server asked for."""
        self._execution_began: float | None = None  # in monotonic seconds
        self._next_ignored_line = 0.0
        self._ignored_silently = 0
        self._dropped = 0
        self.on_loss: Callable[[], None] = lambda: None
        """Called when another keeper hears the kernel: what was said meanwhile is not known."""
        self.on_end_asked: Callable[[bool], None] = lambda _restart: None
        """Called when a client asks the kernel to end, with whether it is to be restarted."""

    # Requests of clients

    def submit(self, message: ClientMessage, session: str) -> bool:
        """Send a client's message to the kernel, now or when it is ready for it.

        A dead kernel's requests end at once. Channels that clients cannot write to are ignored.
        Returns whether the message was, or will be, done as it says.
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
            is_taken = self._outbox.is_open
            if is_taken and message.header.msg_type == "input_reply":
                is_taken = self._close_prompt(message, session)
            if is_taken:
                self._outbox.send(message, session)
            return is_taken
        if self._state.lifecycle in (Lifecycle.DEAD, Lifecycle.STOPPING):
            self.ends.refuse(message, session, f"The kernel is {self._state.word}")
            return False
        if self._for_next is not None:
            self._for_next.append((message, session))
            self._outbox.charge(message)
            if is_execution(message):
                self.tracker.on_early(message, session)
            return True
        if (
            message.header.msg_type == "kernel_info_request"
            and channel == "shell"
            and self.own.kernel_info is not None
            and self._state.busy
        ):
            self._answer_kernel_info(message, session, self.own.kernel_info)
            return True
        if message.header.msg_type == "shutdown_request":
            self._on_shutdown_request(message)
        if message.header.msg_type == "interrupt_request" and channel == "control":
            self.before_interrupt()
            self.after_interrupt()
        self.ends.pending.add(message, session).message = message
        execution = self.tracker.on_request(message, session) if is_execution(message) else None
        if execution is not None and self._line.connected:
            execution.generation = self._state.generation
        if execution is not None and message.header.subshell_id is not None:
            self.ends.subshells.add(execution, message.header.subshell_id)
        if not self._outbox.send(message, session) and execution is not None:
            self.tracker.keep_request(execution, message)
        return True

    def _close_prompt(self, answer: ClientMessage, session: str) -> bool:
        """Whether this ``input_reply`` answers an open prompt, which then is open no more."""
        try:
            parent = decode_header(answer.parts[1], "parent_header")
        except MalformedMessage as error:
            self._tell_ignored("answer ignored: %.80s", str(error))
            return False
        prompt = self.tracker.prompts.meant_by(parent, session)
        if prompt is None:
            self._tell_ignored("answer to %.80r ignored: no such prompt is open", parent.msg_id)
            return False
        self.tracker.on_answer(prompt)
        return True

    def _submit_late(self, message: ClientMessage, session: str) -> None:
        """Submit what has waited for another process, unless it was cancelled meanwhile."""
        execution = self.tracker.get(message.header.msg_id) if is_execution(message) else None
        if execution is not None and execution.ended and execution.session == session:
            self.ends.finish(Request(message, session))
            return
        self.submit(message, session)

    def _hand_over(self, message: ClientMessage, owner: str) -> bool:
        """Give a request to the kernel's line; False if that does not take it now."""
        if self._read_first is not None or not self._line.send(message, owner):
            return False
        tally = self.counters.to_kernels[message.channel]
        tally.messages += 1
        tally.bytes += message.size
        return True

    def _on_shutdown_request(self, message: ClientMessage) -> None:
        try:
            restart = msgspec.json.decode(message.parts[3], type=_Shutdown).restart
        except (msgspec.MsgspecError, RecursionError):
            return
        self.on_end_asked(restart)

    @property
    def has_room(self) -> bool:
        """Whether clients may send more at once."""
        return self._outbox.has_room

    async def room(self) -> None:
        """Return when clients may send more: the requests that wait are below their bound.

        Has no bound of its own: it ends when the kernel takes its requests, or ends.
        """
        await self._outbox.room()

    # The process

    async def open_log(self) -> None:
        """Have the kernel's log, before it has a process. Raises what `Line.hear` does."""
        await self._line.hear(self.log.directory, None)

    async def connect(self, info: ConnectionInfo) -> None:
        """A process has been launched: hear it. Raises what `Line.hear` does."""
        await self._line.hear(self.log.directory, info, anew=True)
        self.on_launch()

    def on_launch(self) -> None:
        """There is a new process, which is heard."""
        self._line.connected = True
        self._state.on_launch()
        self._execution_began = None
        self.own.on_launch()

    def before_interrupt(self) -> None:
        """The kernel is about to be interrupted, by whatever means."""
        execution = self.tracker.at_main_shell
        if execution is not None and not self._outbox.has(execution.id):
            self._outbox.on_interrupt(execution.id, partial(self._goes_on, execution))
            self.tracker.on_interrupt(execution)

    def _goes_on(self, execution: Execution) -> bool:
        # One that the kernel has forgotten never ends: it is not busy then.
        return self._state.busy and not execution.ended

    def after_interrupt(self) -> None:
        """The interrupt is on its way."""
        self._interrupts.on_interrupt()

    def _main_shell_runs(self) -> int | None:
        return self.tracker.begun if self._state.execution_state == "busy" else None

    async def stdin_connected(self) -> None:
        """Return when input requests can arrive, or after a moment."""
        await self._line.stdin_connected()

    def touch(self) -> None:
        """Somebody has just come to use the kernel: its idle time begins."""
        self.last_activity = time.time()
        self.active_since = time.monotonic()

    def ready(self) -> None:
        """The kernel takes requests: tell the clients, and send what has waited."""
        self._state.on_ready()
        self.voice.announce(self._state.execution_state)
        self._line.opened()
        self._outbox.open(self._hand_over)
        self.tracker.on_ready()

    def replace_process(self) -> None:
        """This process is about to be stopped: what clients send from now on is for the next."""
        if self._for_next is None:  # not if it is about to be stopped once more
            self._for_next = []
        self.clients.note_replaced(True)
        self.tracker.close_waiting(_ENDS[Lifecycle.RESTARTING])

    @property
    def connected(self) -> bool:
        """Whether there is a process that is heard."""
        return self._line.connected

    @property
    def between_processes(self) -> bool:
        """Whether what is submitted now is for a process that is yet to come."""
        return not self._line.connected or self._for_next is not None

    @property
    def is_replaced(self) -> bool:
        """Whether what is submitted now is for a process after the one that is, or was, there."""
        return self._for_next is not None

    def expect_process(self) -> None:
        """There is no process, and there will be one: what is submitted is for that."""
        self._for_next = []

    def keep_process(self) -> None:
        """This process could not be stopped: what was for the next one is for this one."""
        self.clients.note_replaced(False)
        for_next, self._for_next = self._for_next or [], None
        for message, session in for_next:
            self._outbox.discharge(message)
            self._submit_late(message, session)
        self.tracker.on_ready()

    async def settle(self) -> None:
        """Take the last messages of a process that has ended. Bounded."""
        await self._line.settle()
        await self._read_all()

    async def disconnect(self) -> None:
        """This process is heard no more; requests that wait wait for its next process. Bounded."""
        if self._line.connected:
            self._line.connected = False
            await self._line.disconnect()
            await self._read_all()

    async def close(self, reason: str | None = None) -> None:
        """The process is gone: every request that it has not finished ends here.

        ``reason`` is shown as the error of the execution that was running. Bounded by
        `SAY_SECONDS`. What clients send meanwhile waits for what follows.
        """
        if self._for_next is None:
            self._for_next, is_last = [], True
        else:
            is_last = False
        await self.disconnect()
        was_ready = self._outbox.is_open
        why = reason or self.why_it_stops or _ENDS.get(self._state.lifecycle, "The kernel is gone")
        if is_last:
            self.tracker.close_waiting(why)
        self._outbox.close()
        self.ends.clear()
        self._interrupts.clear()
        await self.voice.wait_until_said(self.ends.finish_all(reason))
        self.tracker.close(why, was_ready=was_ready)
        self.ends.stragglers.clear()
        for_next, self._for_next = self._for_next or [], None
        for message, session in for_next:
            self._submit_late(message, session)

    async def remove_log(self) -> None:
        """The kernel is gone: its log goes when that it is dead can be read there. Bounded."""
        await self.voice.wait_until_said(self.voice.announce("dead"))
        self.log.close()
        self.log.hold()
        self._line.drop()
        weak = weakref.WeakMethod(self.clients.let_go_of_log)  # what is gone has closed its files
        asyncio.get_running_loop().call_later(HELD_SECONDS, lambda: (weak() or _nothing)())

    def refuse_waiting(self) -> None:
        """The kernel is dead: what was asked of it meanwhile ends."""
        self._outbox.close()
        self.ends.finish_all()
        self.tracker.close(f"The kernel is {self._state.word}", was_ready=False)

    def _answer_kernel_info(self, message: ClientMessage, owner: str, info: bytes) -> None:
        """Answer from the cached reply: the kernel is busy and would answer when it is done.

        A client waits for busy, the reply, and idle; then it must know the true state again.
        """
        voice, parent = self.voice, bytes(message.parts[0])
        for channel, msg_type, content in (
            ("iopub", "status", {"execution_state": "busy"}),
            ("shell", "kernel_info_reply", info),
            ("iopub", "status", {"execution_state": "idle"}),
        ):
            voice.say(voice.make(channel, msg_type, content, parent), owner)
        voice.say(voice.greeting(), owner)

    # What is in the log (app.managers.messages.line.LineOwner)

    def on_heard(self, heard: Heard) -> None:
        """The kernel is heard: for the first time, after another server, or by another keeper."""
        self.log.begin_at(heard.epoch, heard.bell)
        if self.voice.has_log:  # what has come into the log meanwhile tells what was said and sent
            self._read_first, self._is_again = heard.end[0], heard.again
            self.voice.hold()
        else:
            self.voice.go_on()
        if not self._replaying:
            self._read_on()

    def _go_on(self) -> None:
        """Say and send what is not in the log: who wrote it before had not come to that."""
        self._read_first = None
        self.voice.go_on()
        if self._line.connected:
            self.ends.send_again(self._line)
            if self._is_again:
                self.ends.was_unheard = self.ends.has_loss = True
                self.on_loss()
        self._outbox.flush()

    def on_bell(self, bell: Bell) -> None:
        """The log has grown."""
        before = self.log.next_seq
        self.log.advance(bell)
        if self.log.next_seq > before:  # it has dropped what was not read
            self._on_loss()
        if self._reading is None and not self._replaying:
            self._read_on()

    def _read_on(self) -> None:
        """Draw the conclusions of what is new in the log, and show it to clients."""
        self._reading = None
        log = self.log
        found = log.next_unseen(MESSAGES_PER_TURN, BYTES_PER_TURN)
        if isinstance(found, Gap):
            end = log.end
            log.show(Position(end.cursor + found.messages, end.offset + found.bytes))
            # Numbers without bytes nobody has written: no request has left meanwhile.
            if found.bytes or log.is_cut_off:
                self._on_loss()
        elif found:
            self._take_all(found)
            log.step(found[-1])
            log.wake()
        if self._read_first is not None and log.next_seq >= self._read_first:
            self._go_on()
        if log.unseen:
            self._reading = asyncio.get_running_loop().call_soon(self._read_on)

    def _on_loss(self) -> None:
        """A part of what the kernel has said is lost: nobody is to wait for it."""
        if self.log.is_cut_off:  # what comes next would be lost as well
            self.log.is_cut_off = False
            self._line.renew()
        self.ends.doubt()
        if not self._replaying:
            self.on_loss()

    def _take_all(self, entries: list[Entry]) -> None:
        """Draw the conclusions of entries, before readers see the last of them.

        From a piece of a stream that follows another of the same execution nothing is to be
        concluded, and most messages are such.
        """
        log, tally, before = self.log, self.counters.from_kernels["iopub"], b""
        for entry in entries:
            parent = self._more_of(entry)
            if parent and parent == before:
                tally.messages += 1
                tally.bytes += entry.size
                continue
            log.step(entry)
            self._take(entry)
            before = parent if parent and self._is_of_execution(entry.message) else b""

    def _more_of(self, entry: Entry) -> bytes:
        """The parent header of a stream that is for everybody; empty for anything else."""
        message = entry.message
        is_output = entry.published and entry.owner is None and message.channel == "iopub"
        if not is_output or self._replaying:
            return b""
        try:
            return message.stream_parent()
        except MalformedMessage:
            return b""

    def _is_of_execution(self, message: Message) -> bool:
        try:
            return self.tracker.is_under_way(message.parent.msg_id)
        except MalformedMessage:
            return False

    async def _read_all(self) -> None:
        """Return when all that was told of is read."""
        while self._reading is not None:
            self._reading.cancel()
            self._read_on()
            await asyncio.sleep(0)

    def _take(self, entry: Entry) -> None:
        try:
            self.on_entry(entry)
        except MalformedMessage as error:  # nobody who writes a log as he should has written that
            self.on_malformed(self._dropped + 1, entry.message.channel, str(error))
        except Exception:
            self._logger.exception(
                "kernel %s: number %d is not understood", self._kernel_id, entry.seq
            )

    def on_entry(self, entry: Entry) -> None:
        """Draw the conclusions of one number of the log."""
        message, channel = entry.message, entry.message.channel
        if entry.is_request:
            self._on_request(message, entry.owner or "")
            return
        if not entry.published:
            self.voice.on_said(message)
            if not self._replaying:
                return
        if not self._replaying:
            tally = self.counters.from_kernels[channel]
            tally.messages += 1
            tally.bytes += entry.size
        if channel == "iopub":
            self._on_iopub(message, entry)
        else:
            self._on_reply(message, entry.owner or "")

    def _on_request(self, message: Message, owner: str) -> None:
        """This request has left for the kernel."""
        header = message.header
        known = self.ends.pending.find_unlogged(header, owner)
        if known is not None:
            known.logged, known.message = True, None
        request = ClientMessage(message.channel, header, [bytes(message.part(0))])
        if known is not None:
            waiting = self.tracker.waiting(request) if known.is_execution else None
            if waiting is not None:
                self.tracker.on_handed(waiting)
            return
        # Another server has sent it.
        self.ends.pending.add(request, owner).logged = True
        if is_execution(request):
            execution = self.tracker.get(header.msg_id)
            if execution is None or not (execution.sent or execution.ended):
                execution = self.tracker.on_request(request, owner)
                execution.place = Position(message.seq, message.offset)
                self.tracker.on_handed(execution)

    def _on_reply(self, message: Message, owner: str) -> None:
        parent = message.parent
        self.own.on_reply(message)
        if message.channel != "stdin":
            self.ends.pending.on_reply(parent)
        if parent.session == self.own.session:
            return
        if message.msg_type == "execute_reply":
            self.tracker.on_reply(message)
        elif message.msg_type == "input_request":
            # Who has it already, and comes back over a new connection, need not see it twice.
            is_shown = self._replaying or owner in self.clients
            self.tracker.on_input_request(message, owner, is_shown=is_shown)

    def _on_overdue(self, execution: Execution) -> None:
        if self._line.connected:
            self.ends.overdue.add(execution)

    def shown(self, message: Message) -> Message:
        """A message as clients see it where tracebacks are not allowed."""
        return hide_traceback(message, self._settings.traceback_replacement_message)

    # Before and after another process of the server

    def leave(self) -> None:
        """Let go of the process, which runs on. What comes for it now does not reach it."""
        self.clients.note_places()
        self.ends.stragglers.drop()
        self.tracker.leave()
        self._outbox.close()
        self.ends.clear()
        self._interrupts.clear()
        self._line.connected = False
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None
        self._replaying = True  # the next server reads on

    def put_back(self, executions: Iterable[Execution]) -> None:
        """Know the executions that another process of the server knew, in order."""
        for execution in executions:
            if execution.held and not (execution.ended or execution.running):
                execution.sent = False  # unless the log says otherwise
            self.tracker.put_back(execution)

    async def meet(self, info: ConnectionInfo | None, known: Position) -> Heard:
        """Have the log that another process of the server has left; `resume` comes next.

        ``info`` tells how to hear the process, if there is one; ``known`` how far some client of
        that server's has come. Raises what `Line.hear` does, and nothing has changed then.
        """
        self._line.known = known
        self._replaying = True
        try:
            return await self._line.hear(self.log.directory, info)
        except BaseException:
            self._replaying = False
            raise

    async def resume(self, heard: Heard) -> None:
        """Go on for another process of the server, of which all is put back that it knew.

        The end of the log is gone through again, from where the oldest of the executions was sent
        that have not ended.
        """
        log = self.log
        # The requests of those that have begun may lie further back.
        begun = self.ends.recall()
        try:
            places = [one.place.cursor for one in self.tracker if not one.ended]
            start = max(log.first_seq, min([heard.end[0] - REPLAYED, *places]))
            log.show(log.place_of(start))
            while log.unseen:
                self._read_on()
                if self._reading is not None:
                    self._reading.cancel()
                    self._reading = None
                await asyncio.sleep(0)
        finally:
            self._replaying = False
        for request in begun:
            request.logged = True
        self._line.connected = heard.connected
        self.own.on_resume(was_up=heard.opened)
        self.ends.was_unheard = heard.again
        self.ends.end_undelivered()

    def _on_iopub(self, message: Message, entry: Entry) -> None:
        header, parent, state = message.header, message.parent, self._state
        msg_type = header.msg_type
        if entry.published:
            self.own.on_iopub()
        if header.session and entry.published:
            self.voice.session = header.session
        reported = ""
        if msg_type == "status":
            reported = self._on_status(message, by_kernel=entry.published)
            if parent.session == self.own.session:
                if reported == "idle":
                    self.own.on_idle(parent.msg_id)
                    self.ends.stragglers.on_idle(parent.msg_id)
                return
        if entry.owner is not None or not entry.published:  # chatter, or what a server has said
            return
        if not self._replaying:
            if state.is_activity(msg_type, parent):
                self.last_activity = time.time()
                state.changes += 1
            if state.at_work:
                self.active_since = time.monotonic()
        if reported:
            self.tracker.on_status(reported, message)
        elif msg_type in OUTPUT_TYPES:
            self.tracker.on_output(message)
            if msg_type == "error":
                self._on_error(parent)

    def _on_error(self, parent: Header) -> None:
        if parent.msg_type != "execute_request" or parent.subshell_id is not None:
            return
        request = self.ends.pending.find(parent)
        if request is not None and not request.idle:
            self._outbox.on_error(parent.msg_id)

    def _on_status(self, message: Message, *, by_kernel: bool) -> str:
        """Take note of a status; the state that it reports."""
        try:
            reported = _status_decoder.decode(message.part(3)).execution_state
        except (msgspec.MsgspecError, RecursionError) as error:
            self.on_malformed(self._dropped + 1, "iopub", f"status: {error}")
            return ""
        parent = message.parent
        was_at_work = self._state.at_work
        request = self.ends.pending.find(parent)
        ours = parent.session == self.own.session  # our probes are nobody's work, tracked or not
        self.begun += reported == "busy" and not ours
        if by_kernel and not ours and (request is None or request.channel != "control"):
            self._state.on_status(reported, parent)
        if was_at_work and not self._replaying:
            self.active_since = time.monotonic()
        if parent.msg_type == "execute_request" and parent.subshell_id is None and not ours:
            self._time_execution(reported)
        if reported == "idle":
            self._outbox.on_idle(parent.msg_id)
            request = self.ends.pending.on_idle(parent)
            # The tracker looks after executions, which some kernels reply to late.
            if request is not None and not request.replied and not request.is_execution:
                self.ends.unanswered.add(request)
        return reported

    def _time_execution(self, reported: str) -> None:
        """The main shell, which runs one request at a time, has gone busy or idle for one."""
        now = time.monotonic()
        if reported == "busy":
            self._execution_began = now
        elif reported == "idle" and self._execution_began is not None:
            self.counters.execution_seconds.observe(now - self._execution_began)
            self._execution_began = None

    def _tell_ignored(self, text: str, value: str) -> None:
        """Log what was ignored, at most once a second: a client may send any number of it."""
        now = time.monotonic()
        if now < self._next_ignored_line:
            self._ignored_silently += 1
            return
        more = f" (and {self._ignored_silently} more)" if self._ignored_silently else ""
        self._logger.warning(f"kernel %s: {text}%s", self._kernel_id, value, more)
        self._ignored_silently = 0
        self._next_ignored_line = now + 1.0

    def on_malformed(self, count: int, channel: str, reason: str) -> None:
        """So many messages were dropped, the last for this reason; it is told ever more rarely."""
        self.counters.malformed += max(0, count - self._dropped)
        self._dropped = max(count, self._dropped)
        if count & (count - 1) == 0:
            self._logger.warning(
                "kernel %s: %d malformed messages dropped, the last on %s: %s",
                self._kernel_id,
                count,
                channel,
                reason,
            )

    def on_writable(self) -> None:
        """Send what waits, as far as the line takes it."""
        self._outbox.flush()


class _Shutdown(msgspec.Struct):
    restart: bool = False


def _nothing() -> None:
    """There is nobody left to do it for."""
