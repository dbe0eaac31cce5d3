"""The messages of one kernel: clients' requests, the kernel's messages, and the server's own.

The requests of every client leave over the kernel's one `Line`. The keeper numbers all that the
kernel answers and publishes, and appends it to the log. `Traffic` reads the log once for everybody:
it draws its conclusions (state, executions, ends of requests) from each message before any client
sees that message. When the process ends, `Traffic` gives an end to every request that the kernel
has not finished.
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
from ..log.open_files import OpenFiles
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
"""How many ended executions the server remembers per kernel."""

MESSAGES_PER_TURN: Final = 64
BYTES_PER_TURN: Final = 2**19
"""How much of one log is read in one turn of the event loop, so that no kernel starves others."""

HELD_SECONDS: Final = 2.0
"""How long after a kernel was removed the rest of its log can be read: the files are held open."""

REPLAYED: Final = 256
"""How many of the log's newest messages a new server reads again, at the least.

The kernel's last statuses and replies are in them, and so its state.
"""


_ENDS: Final = {
    Lifecycle.RESTARTING: "The kernel was restarted",
    Lifecycle.STOPPING: "The kernel was shut down",
}
"""Why executions end, by the lifecycle of the kernel, when no other reason was given."""


class _Status(msgspec.Struct):
    execution_state: str = ""


_status_decoder: Final = msgspec.json.Decoder(_Status)


class Traffic:
    """Routes requests from clients to one kernel, and draws conclusions from that kernel's log.

    Everything here runs in the event loop's thread. Between two ``await``s of a method neither a
    bell, nor a request of a client, nor a timer can come in.
    """

    def __init__(
        self,
        kernel_id: str,
        state: KernelState,
        directory: Path,
        hearer: Hearer,
        settings: Settings,
        counters: Counters,
        files: OpenFiles | None = None,
    ) -> None:
        shown = None if settings.allow_tracebacks else self.shown
        self.log = log = MessageLog(directory, kernel_id, shown, files)
        self.last_activity = time.time()
        # When the kernel last worked on a client's request, in monotonic seconds: culling counts
        # from here. Unlike last_activity, output of a background thread does not move it.
        self.active_since = time.monotonic()
        self._kernel_id = kernel_id
        self._logger = logging.LoggerAdapter(logger, {"kernel_id": kernel_id})
        self._settings = settings
        self.counters = counters
        self._state = state
        # The server's own requests have this session: clients do not see the answers to them.
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
        # The end of the log when a keeper began to hear the kernel again: no request is sent before
        # the log has been read up to there. None while nothing stands in the way of requests.
        self._read_first: int | None = None
        self._is_again = False  # whether no keeper heard the kernel for a while before that
        # Requests for the next process, each with its session; None while they are for this one.
        self._for_next: list[tuple[ClientMessage, str]] | None = None
        self.begun = 0
        """How many requests of clients the kernel has begun with: its busy statuses, counted."""
        self._execution_began: float | None = None  # in monotonic seconds
        self._next_ignored_line = 0.0
        self._ignored_silently = 0
        self._dropped = 0
        self.on_loss: Callable[[], None] = lambda: None
        """Called when messages of the kernel are lost, or no keeper heard it for a while."""
        self.on_end_asked: Callable[[bool], None] = lambda _restart: None
        """Called when a client asks the kernel to end, with whether it is to be restarted."""

    # Requests of clients

    def submit(self, message: ClientMessage, session: str) -> bool:
        """Send a client's message to the kernel, at once or when the kernel is ready.

        A request to a dead kernel ends at once. Messages for channels that clients cannot write to
        are ignored. Returns False if the message was ignored or refused.
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
            # The process is being replaced. The request must not reach the old one, which would
            # end with it; `close` submits it again when all requests of the old one have ended.
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
        # The request is pending before it is sent. If the keeper dies with it, `send_again` finds
        # it here; its reply is read from the log, in a later turn of the loop.
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
        """Whether this ``input_reply`` answers an open prompt. If so, the prompt is closed.

        The first of two answers to one prompt closes it, so the second is not sent: the kernel
        would take it for the answer to its next ``input()``.
        """
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
        """Submit a request that has waited for another process, unless it was cancelled."""
        execution = self.tracker.get(message.header.msg_id) if is_execution(message) else None
        if execution is not None and execution.ended and execution.session == session:
            self.ends.finish(Request(message, session))
            return
        self.submit(message, session)

    def _hand_over(self, message: ClientMessage, owner: str) -> bool:
        """Give a request to the kernel's line; False if the line does not take it now."""
        # After a change of keepers, older requests that the log lacks are sent again first: a newer
        # one must not overtake them. `_go_on` flushes the outbox then.
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
        """Whether clients may send more requests at once."""
        return self._outbox.has_room

    async def room(self) -> None:
        """Return when the bytes of waiting requests are below their bound.

        This has no timeout: it returns when the kernel takes requests, or when its process ends.
        """
        await self._outbox.room()

    # The process

    async def open_log(self) -> None:
        """Have the keeper open the kernel's log, before there is a process.

        Raises what `Line.hear` does.
        """
        await self._line.hear(self.log.directory, None)

    async def connect(self, info: ConnectionInfo) -> None:
        """Have the keeper open sockets to a process just launched. Raises what `Line.hear` does."""
        # Messages of the process may be read before this returns, and `on_launch` then forgets the
        # state that they report. They can only be of the process's own start: no request is sent to
        # it before `on_launch`, so it has gone neither busy nor idle for one.
        await self._line.hear(self.log.directory, info, anew=True)
        self.on_launch()

    def on_launch(self) -> None:
        """Forget the state of the process before: there is a new one, and the keeper hears it."""
        self._line.connected = True
        self._state.on_launch()
        self._execution_began = None
        self.own.on_launch()

    def before_interrupt(self) -> None:
        """Hold back new code until the interrupted execution is over (see `Outbox.on_interrupt`).

        It must be called before the interrupt is sent: the error that follows can be in the log
        before the sender of the interrupt goes on.
        """
        execution = self.tracker.at_main_shell
        if execution is not None and not self._outbox.has(execution.id):
            self._outbox.on_interrupt(execution.id, partial(self._goes_on, execution))
            self.tracker.on_interrupt(execution)

    def _goes_on(self, execution: Execution) -> bool:
        # An execution that the kernel has forgotten never ends; but then the kernel is not busy.
        return self._state.busy and not execution.ended

    def after_interrupt(self) -> None:
        """Watch for the effect of an interrupt that was just sent (see `InterruptWatch`)."""
        self._interrupts.on_interrupt()

    def _main_shell_runs(self) -> int | None:
        return self.tracker.begun if self._state.execution_state == "busy" else None

    async def stdin_connected(self) -> None:
        """Return when the stdin socket is connected, or after `line.STDIN_SECONDS`."""
        await self._line.stdin_connected()

    def touch(self) -> None:
        """Begin the kernel's idle time anew: a client has just come to use it."""
        self.last_activity = time.time()
        self.active_since = time.monotonic()

    def ready(self) -> None:
        """Tell clients that the kernel takes requests, and send those that have waited."""
        # Announced before requests are sent: the idle status comes before any busy status that
        # follows from them.
        self._state.on_ready()
        self.voice.announce(self._state.execution_state)
        self._line.opened()
        self._outbox.open(self._hand_over)
        self.tracker.on_ready()

    def replace_process(self) -> None:
        """Hold clients' requests from now on for the next process: this one is to be stopped.

        A request that comes between this call and the end of `close` waits, so it meets exactly
        one process.
        """
        if self._for_next is None:  # a second call must not lose the requests that wait already
            self._for_next = []
        self.clients.note_replaced(True)
        self.tracker.close_waiting(_ENDS[Lifecycle.RESTARTING])

    @property
    def connected(self) -> bool:
        """Whether the keeper hears a process of this kernel."""
        return self._line.connected

    @property
    def between_processes(self) -> bool:
        """Whether requests submitted now are for a process that is yet to come."""
        return not self._line.connected or self._for_next is not None

    @property
    def is_replaced(self) -> bool:
        """Whether requests submitted now wait for the process after the present, or last, one."""
        return self._for_next is not None

    def expect_process(self) -> None:
        """Hold clients' requests for a process that will be launched: there is none now."""
        self._for_next = []

    def keep_process(self) -> None:
        """Send the requests held for the next process to this one: it could not be stopped."""
        self.clients.note_replaced(False)
        for_next, self._for_next = self._for_next or [], None
        for message, session in for_next:
            self._outbox.discharge(message)
            self._submit_late(message, session)
        self.tracker.on_ready()

    async def settle(self) -> None:
        """Read the last messages of a process that has ended. Bounded by `line.SETTLE_SECONDS`."""
        await self._line.settle()
        await self._read_all()

    async def disconnect(self) -> None:
        """Have the keeper close its sockets to the process, and read the log to its end. Bounded.

        Requests that have not been sent stay where they wait.
        """
        if self._line.connected:
            self._line.connected = False
            await self._line.disconnect()
            await self._read_all()

    async def close(self, reason: str | None = None) -> None:
        """End every request that the process, which is gone, has not finished.

        ``reason`` is shown as the error of the execution that was running. Bounded by
        `SAY_SECONDS`, beside the bound of `disconnect`.
        """
        # A client can send requests at each await below. They wait in _for_next, so that ending
        # the requests of this process ends none of them; the last lines submit them.
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
        # None before the loop: `submit` would append to the list again.
        for_next, self._for_next = self._for_next or [], None
        for message, session in for_next:
            self._submit_late(message, session)

    async def remove_log(self) -> None:
        """Announce that the kernel is dead, and then have its log removed. Bounded.

        The announcement is awaited before the removal, and the log's files are held open for
        `HELD_SECONDS`: a reader that is a little behind can still read that the kernel is dead.
        """
        await self.voice.wait_until_said(self.voice.announce("dead"))
        self.log.close()
        self.log.hold()
        self._line.drop()
        # Weak: the timer must not keep a removed kernel's objects in memory. If they are gone when
        # it fires, their files are closed already.
        weak = weakref.WeakMethod(self.clients.let_go_of_log)
        asyncio.get_running_loop().call_later(HELD_SECONDS, lambda: (weak() or _nothing)())

    def refuse_waiting(self) -> None:
        """End the requests that came while the kernel died: no process will follow."""
        self._outbox.close()
        self.ends.finish_all()
        self.tracker.close(f"The kernel is {self._state.word}", was_ready=False)

    def _answer_kernel_info(self, message: ClientMessage, owner: str, info: bytes) -> None:
        """Answer a ``kernel_info_request`` from the cached reply, as the kernel itself is busy.

        Clients wait for the busy status, the reply and the idle status of this request. The last
        of them would leave the client with a wrong state, so a status with the true one follows.
        """
        voice, parent = self.voice, bytes(message.parts[0])
        for channel, msg_type, content in (
            ("iopub", "status", {"execution_state": "busy"}),
            ("shell", "kernel_info_reply", info),
            ("iopub", "status", {"execution_state": "idle"}),
        ):
            voice.say(voice.make(channel, msg_type, content, parent), owner)
        voice.say(voice.greeting(), owner)

    # Reading the log (the methods of app.managers.messages.line.LineOwner)

    def on_heard(self, heard: Heard) -> None:
        """Begin with a log: a keeper hears the kernel, perhaps not the one that heard it before."""
        self.log.begin_at(heard.epoch, heard.bell)
        if self.voice.has_log:
            # This is another keeper, or the same one over another link, or for another process.
            # Requests and messages that left here before are in the log, or are lost with the link:
            # only the log tells. So nothing is sent or said until the log has been read up to its
            # present end, and nothing is done twice.
            self._read_first, self._is_again = heard.end[0], heard.again
            self.voice.hold()
        else:
            self.voice.go_on()
        if not self._replaying:
            self._read_on()

    def _go_on(self) -> None:
        """Say and send again what is not in the log: the keeper before had not written it."""
        self._read_first = None
        self.voice.go_on()
        if self._line.connected:
            self.ends.send_again(self._line)
            if self._is_again:
                self.ends.was_unheard = self.ends.has_loss = True
                self.on_loss()
        self._outbox.flush()

    def on_bell(self, bell: Bell) -> None:
        """Read on: the log has grown up to the place that the bell tells.

        The keeper writes records before it rings, so all that lies before that place can be read.
        """
        before = self.log.next_seq
        self.log.advance(bell)
        if self.log.next_seq > before:  # the log has dropped messages that were not read here
            self._on_loss()
        # If a turn of reading is planned already, that turn sees the new end too.
        if self._reading is None and not self._replaying:
            self._read_on()

    def _read_on(self) -> None:
        """Draw conclusions from the next messages of the log, then let readers see them.

        This reads a bounded number, and plans another turn for the rest.
        """
        self._reading = None
        log = self.log
        found = log.next_unseen(MESSAGES_PER_TURN, BYTES_PER_TURN)
        if isinstance(found, Gap):
            end = log.end
            log.show(Position(end.cursor + found.messages, end.offset + found.bytes))
            # A gap without bytes is one that a keeper left for a time in which none heard the
            # kernel (`Hearing.connect_again`): no request has left in that time, so none is in
            # doubt. Any other gap may have held replies, or the headers of requests.
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
        """Note that messages of the kernel are lost, so that no request waits for one of them."""
        if self.log.is_cut_off:  # messages written to that file from now on would be lost as well
            self.log.is_cut_off = False
            self._line.renew()
        self.ends.doubt()
        if not self._replaying:
            self.on_loss()

    def _take_all(self, entries: list[Entry]) -> None:
        """Draw conclusions from entries that follow each other, before any reader sees them.

        `MessageLog.step` moves the end that readers see, as the tracker needs it; but readers
        are woken by the caller, and none of them runs before this returns. Most entries are a
        ``stream`` that follows another ``stream`` of the same execution. Such an entry changes
        nothing, so it is only counted.
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
        """The raw parent header of a ``stream`` for all clients; empty for any other entry."""
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
        """Return when the log is read up to the last bell."""
        # A bell that comes during the sleep finds a turn planned, or plans one: the loop goes on
        # until a turn has found nothing more.
        while self._reading is not None:
            self._reading.cancel()
            self._read_on()
            await asyncio.sleep(0)

    def _take(self, entry: Entry) -> None:
        try:
            self.on_entry(entry)
        except MalformedMessage as error:  # the keeper verifies messages: the file is damaged
            self.on_malformed(self._dropped + 1, entry.message.channel, str(error))
        except Exception:
            self._logger.exception(
                "kernel %s: number %d is not understood", self._kernel_id, entry.seq
            )

    def on_entry(self, entry: Entry) -> None:
        """Draw conclusions from one entry of the log."""
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
        """Note that a request has left for the kernel: the keeper logs its header before that."""
        header = message.header
        known = self.ends.pending.find_unlogged(header, owner)
        if known is not None:
            # The log has it, so no later keeper is to be given it again: its parts can go.
            known.logged, known.message = True, None
        request = ClientMessage(message.channel, header, [bytes(message.part(0))])
        if known is not None:
            waiting = self.tracker.waiting(request) if known.is_execution else None
            if waiting is not None:
                self.tracker.on_handed(waiting)
            return
        # Nothing is known of it here: the server before this one has sent it.
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
            # An attached client reads the prompt from the log. When its connection breaks and it
            # comes back, it is not shown the prompt a second time.
            is_shown = self._replaying or owner in self.clients
            self.tracker.on_input_request(message, owner, is_shown=is_shown)

    def _on_overdue(self, execution: Execution) -> None:
        if self._line.connected:
            self.ends.overdue.add(execution)

    def shown(self, message: Message) -> Message:
        """The message that clients see in place of ``message`` if tracebacks are not allowed."""
        return hide_traceback(message, self._settings.traceback_replacement_message)

    # Handing over to the next server, and taking over from the one before

    def leave(self) -> None:
        """Let go of the process, which runs on for the next server.

        Requests that come from now on do not reach it, and the log is read no further here: the
        next server draws those conclusions, from the place that this one has stored.
        """
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
        self._replaying = True  # bells that still come do not start a turn of reading

    def put_back(self, executions: Iterable[Execution]) -> None:
        """Take over the executions that the server before this one has stored, in order."""
        for execution in executions:
            if execution.held and not (execution.ended or execution.running):
                # That server may have been killed between storing the execution and sending its
                # request, or right after. If its request is found in the log, it was sent.
                execution.sent = False
            self.tracker.put_back(execution)

    async def meet(self, info: ConnectionInfo | None, known: Position) -> Heard:
        """Have the keeper hear a kernel of the server before this one; `resume` comes next.

        ``info`` is the connection information of the process, if there is one. ``known`` is the
        furthest place that a client has come to: the log must not give those numbers again. Raises
        what `Line.hear` does; nothing has changed then.
        """
        self._line.known = known
        self._replaying = True
        try:
            return await self._line.hear(self.log.directory, info)
        except BaseException:  # a cancellation too: bells are read again as before
            self._replaying = False
            raise

    async def resume(self, heard: Heard) -> None:
        """Read the end of the log again, and go on from there for the server before this one.

        `put_back` comes before this. Reading begins where the oldest unfinished execution was sent,
        and `REPLAYED` messages before the end at the latest. Bells that come during the awaits
        below only move the log's end (``_replaying``), and the loop reads up to it.
        """
        log = self.log
        # The place of an execution that has begun is its busy status: its request lies before that
        # in the log, and may not be read again.
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
        # Only now: if such a request was read again after all, `_on_request` found it here as one
        # that is not logged yet, and did not add it a second time.
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
        if entry.owner is not None or not entry.published:
            return  # output of a new process's own start, or a message of the server's
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
        """Take note of a status; returns the ``execution_state`` that it reports."""
        try:
            reported = _status_decoder.decode(message.part(3)).execution_state
        except (msgspec.MsgspecError, RecursionError) as error:
            self.on_malformed(self._dropped + 1, "iopub", f"status: {error}")
            return ""
        parent = message.parent
        was_at_work = self._state.at_work
        request = self.ends.pending.find(parent)
        ours = parent.session == self.own.session  # a probe of the server's is not a client's work
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
            # The tracker watches over executions, for which some kernels send the reply late.
            if request is not None and not request.replied and not request.is_execution:
                self.ends.unanswered.add(request)
        return reported

    def _time_execution(self, reported: str) -> None:
        """Measure an execution from a busy status to the next idle one.

        The main shell runs one request at a time, so the two are of the same execution.
        """
        now = time.monotonic()
        if reported == "busy":
            self._execution_began = now
        elif reported == "idle" and self._execution_began is not None:
            self.counters.execution_seconds.observe(now - self._execution_began)
            self._execution_began = None

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

    def on_malformed(self, count: int, channel: str, reason: str) -> None:
        """Count malformed messages: ``count`` in all by now, the last dropped for ``reason``.

        A line is logged only when the count is a power of two.
        """
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
        """Send the requests that wait, as far as the line takes them."""
        self._outbox.flush()


class _Shutdown(msgspec.Struct):
    restart: bool = False


def _nothing() -> None:
    """Do nothing, in place of a method whose object is gone."""
