"""The messages of one kernel: what clients send it, what it says, and what is said in its place.

Requests of every client leave over the kernel's one line. All that comes back is read from the log,
where whoever hears the kernel has numbered it: conclusions are drawn here, once, before clients see
it. When the process goes, every request that it has not finished is given an end here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import weakref
from collections.abc import Callable, Collection, Iterable
from functools import partial
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import msgspec

from app.keeper.hearings import Heard
from app.keeper.requests import PendingRequests, Request
from app.keeper.sockets import ConnectionInfo
from app.managers.counters import Counters
from app.managers.execution import Execution
from app.managers.execution_tracker import ExecutionTracker
from app.managers.interrupts import InterruptWatch
from app.managers.journal import Journal
from app.managers.late_output import OUTPUT_TYPES
from app.managers.line import Hearer, Line
from app.managers.log import Entry, Gap, MessageLog, Position, Reader
from app.managers.made_up import reply_made_of_iopub
from app.managers.outbox import Outbox
from app.managers.state import KernelState, Lifecycle
from app.managers.stragglers import Stragglers
from app.managers.tracebacks import hide_traceback
from app.managers.unanswered import Overdue, Subshells, Unanswered
from app.protocol.compose import make_message, make_parts
from app.protocol.link import Bell
from app.protocol.messages import (
    CLIENT_CHANNELS,
    ClientMessage,
    Header,
    MalformedMessage,
    Message,
    decode_header,
    reply_type,
)
from app.settings import Settings

__all__ = ["Traffic"]

logger = logging.getLogger(__name__)

MAX_UNSAID: Final = 256
"""Messages that are said of a kernel before it has a log."""

MAX_DEPARTED: Final = 256
"""Cursors kept per kernel for sessions whose connection is gone; the oldest is forgotten first."""

PLACE_SECONDS: Final = 60.0
"""How often the place of a client that stays where it is is noted anew: it was there until then."""

SUBSHELL_SECONDS: Final = 5.0
"""How long a kernel may take to tell which subshells it has."""

MESSAGES_PER_TURN: Final = 64
BYTES_PER_TURN: Final = 2**19
"""What is read of a log in one turn of the event loop: no kernel starves the others."""

SAY_SECONDS: Final = 2.0
"""How long what the server says in a kernel's place may take to be in its log."""

HELD_SECONDS: Final = 2.0
"""How long what is left of a log can be read when its kernel, and its files, are gone."""

REPLAYED: Final = 256
"""Messages that are gone through again at least: what the kernel said of itself is in them."""


_ENDS: Final = {
    Lifecycle.RESTARTING: "The kernel was restarted",
    Lifecycle.STOPPING: "The kernel was shut down",
}
"""Why executions end when nobody has given another reason."""


_UNDELIVERED: Final = "The server was killed before the kernel had the request"
_UNSENT: Final = "The keeper of the kernel was killed before the kernel had the request"
_UNHEARD: Final = "The keeper of the kernel was killed, and nobody heard how it ended"


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
        self._attached: dict[str, Reader] = {}
        # Of a kernel that is to outlive this process.
        self.journal: Journal | None = None
        self._kernel_id = kernel_id
        self._settings = settings
        self.counters = counters
        self._state = state
        self._requests = PendingRequests()
        self.tracker = ExecutionTracker(
            log,
            settings.executions_kept,
            on_unanswered=self._answer_for,
            on_overdue=self._on_overdue,
            on_complete=self._wait_for_stragglers,
        )
        self._overdue = Overdue(self._answers_on_shell, self.tracker.finish_unanswered)
        self._stragglers = Stragglers(self._ask_on_control, self.tracker.finish)
        # Why the process is stopped, if somebody has said so.
        self.why_it_stops = ""
        self._departed: dict[str, tuple[Position, float]] = {}  # and since when
        # What the journal has of the sessions that are attached, and since when.
        self._noted: dict[str, tuple[Position, float]] = {}
        # Our own session, for probes; what the kernel says of them is not shown to clients.
        self._session = f"kernelkeep-{uuid4().hex}"
        self._asked: dict[str, asyncio.Future[bytes]] = {}  # whose answers `ask` waits for
        # By a client, with a shutdown request of its own:
        self.shutdown_asked = self.restart_asked = False
        # The session of the kernel's own messages, which ours carry too (see make_message).
        self.kernel_session = self._session
        self._line = Line(hearer, kernel_id, self._session, log.epoch, self)
        self._connected = False  # there is a process that is heard
        self._reading: asyncio.Handle | None = None
        self._replaying = False
        self._unsaid: list[tuple[Message, str | None, bool]] = []  # before there is a log
        self._kernel_info: bytes | None = None
        self._unanswered = Unanswered(self._answer_in_its_place)
        self._subshells = Subshells(self._ask_for_subshells, self._end_in_subshell)
        self._interrupts = InterruptWatch(self._main_shell_runs, self._wake_main_shell)
        self._outbox = Outbox(settings.websocket_backlog_bytes)
        self._for_next: list[tuple[ClientMessage, str]] | None = None
        self.begun = 0
        """How often the kernel has begun with something that others than this server asked for."""
        self.answered = False
        self.heard_iopub = False
        self._reachable = asyncio.Event()
        self._execution_began: float | None = None  # in monotonic seconds
        self._next_ignored_line = 0.0
        self._ignored_silently = 0
        self._dropped = 0
        self._awaited: dict[str, asyncio.Future[None]] = {}  # what is said until it is in the log
        self.on_loss: Callable[[], None] = lambda: None
        """Called when another keeper hears the kernel: what was said meanwhile is not known."""

    # Clients

    @property
    def connections(self) -> int:
        """Open connections of clients."""
        return len(self._attached)

    def attach(self, session: str, start: Position | None = None) -> Reader:
        """A reader for a connection: from ``start``, where its session left off, or from now on.

        Of two connections with one session the newer wins: the older's reader is told that it is
        replaced, and the newer goes on from what has arrived there.
        """
        self._forget_departed()
        left_at, _ = self._departed.pop(session, (None, 0.0))
        journal = self.journal
        if left_at is None and journal is not None and self._settings.buffer_offline_messages:
            left_at = journal.place_of(session, self._settings.session_retention)
        older = self._attached.pop(session, None)
        if older is not None:
            left_at = older.arrived
            older.replaced = True
            self.log.wake()
        start = start or left_at
        self._state.changes += 1
        reader = self._attached[session] = Reader(self.log, session, start)
        if journal is not None:
            journal.put_place(session, reader.position)
        return reader

    def open_prompts(self, reader: Reader) -> list[Message]:
        """The prompts that a new connection is to be shown although they lie behind its reader.

        Those of its own session that it has closed a connection on: a page that was reloaded has
        them no more, while one whose connection broke still has. And those of sessions whose
        connection is gone, for a page that comes back as another session. They have no number.
        """
        start = max(reader.position.cursor, self.log.first_seq)
        again = []
        for prompt in self.tracker.prompts:
            if prompt.owner == reader.session:
                is_wanted = prompt.seq < start and not prompt.is_shown
                is_wanted |= reader.position.cursor <= prompt.seq < start  # it has left the log
                prompt.is_shown = True
            else:
                # Who runs code over HTTP looks for its prompts there.
                over_http = prompt.execution is not None and not prompt.execution.by_client
                is_wanted = prompt.owner not in self._attached and not over_http
            if is_wanted:
                asked = prompt.message
                again.append(Message(asked.channel, asked.frame, asked.header, asked.parent))
        return again

    def detach(self, reader: Reader, *, closed: bool = False) -> None:
        """The connection is gone; its session may come back to where it was.

        ``closed``: by the client, in due form, rather than cut.
        """
        if self._attached.get(reader.session) is not reader:
            return
        for prompt in self.tracker.prompts:
            if closed and prompt.owner == reader.session:
                prompt.is_shown = False
        del self._attached[reader.session]
        self._noted.pop(reader.session, None)
        self._state.changes += 1
        if self.log.closed:
            self._let_go_of_log()
        if not self._settings.buffer_offline_messages:
            return
        self._departed[reader.session] = (reader.arrived, time.monotonic())
        if self.journal is not None:
            self.journal.put_place(reader.session, reader.arrived)
        self._forget_departed()

    def note_places(self) -> None:
        """Remember, for the server's next process, how far each client has come."""
        journal = self.journal
        if journal is not None:
            now = time.monotonic()
            old = now - min(PLACE_SECONDS, self._settings.session_retention / 4)
            for session, reader in self._attached.items():
                place, noted = reader.arrived, self._noted.get(session)
                if noted is None or noted[0] != place or noted[1] < old:
                    self._noted[session] = place, now
                    journal.put_place(session, place)

    def _forget_departed(self) -> None:
        """Drop the cursors of sessions that have been away too long, or are too many."""
        too_old = time.monotonic() - self._settings.session_retention
        for session, (_, since) in tuple(self._departed.items()):
            if since >= too_old and len(self._departed) <= MAX_DEPARTED:
                return
            del self._departed[session]

    def greeting(self) -> Message:
        """A status that tells a new connection the present state, before anything else.

        Its metadata tells which numbers the log has.
        """
        log = self.log
        numbers = {"epoch": log.epoch, "first": log.first_seq, "next": log.next_seq}
        return make_message(
            "iopub",
            "status",
            {"execution_state": self._state.greeting},
            session=self.kernel_session,
            metadata=msgspec.json.encode({"kernelkeep": numbers}),
        )

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
            self._refuse(message, session)
            return False
        if self._for_next is not None:
            self._for_next.append((message, session))
            self._outbox.charge(message)
            if _is_execution(message):
                self.tracker.on_early(message, session)
            return True
        if (
            message.header.msg_type == "kernel_info_request"
            and channel == "shell"
            and self._kernel_info is not None
            and self._state.busy
        ):
            self._answer_kernel_info(message, session, self._kernel_info)
            return True
        if message.header.msg_type == "shutdown_request":
            self._on_shutdown_request(message)
        if message.header.msg_type == "interrupt_request" and channel == "control":
            self.before_interrupt()
            self.after_interrupt()
        self._requests.add(message, session).message = message
        execution = self.tracker.on_request(message, session) if _is_execution(message) else None
        if execution is not None and self._connected:
            execution.generation = self._state.generation
        if execution is not None and message.header.subshell_id is not None:
            self._subshells.add(execution, message.header.subshell_id)
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
        execution = self.tracker.get(message.header.msg_id) if _is_execution(message) else None
        if execution is not None and execution.ended and execution.session == session:
            self._finish(Request(message, session))
            return
        self.submit(message, session)

    def _hand_over(self, message: ClientMessage, owner: str) -> bool:
        """Give a request to the kernel's line; False if that does not take it now."""
        if not self._line.send(message, owner):
            return False
        tally = self.counters.to_kernels[message.channel]
        tally.messages += 1
        tally.bytes += message.size
        return True

    def _refuse(self, message: ClientMessage, session: str) -> None:
        """End a request for which there is no process, and will be none."""
        execution = self.tracker.on_request(message, session) if _is_execution(message) else None
        self._finish(Request(message, session))
        if execution is not None:
            reason = f"The kernel is {self._state.word}"
            self.tracker.give_up(execution, reason, never_ran=True)

    def _on_shutdown_request(self, message: ClientMessage) -> None:
        try:
            restart = msgspec.json.decode(message.parts[3], type=_Shutdown).restart
        except (msgspec.MsgspecError, RecursionError):
            return
        self.shutdown_asked, self.restart_asked = not restart, restart

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
        self._connected = True
        self._state.on_launch()
        self._execution_began = None
        self.answered = self.heard_iopub = False
        self.shutdown_asked = self.restart_asked = False
        self._reachable.clear()

    def probe(self) -> None:
        """Ask the kernel for its info, on control (answered while busy) and shell."""
        for channel in ("control", "shell"):
            self.request(channel, "kernel_info_request", {})

    def request(self, channel: str, msg_type: str, content: dict[str, Any]) -> None:
        """Send a request of the server's own; its answer is seen by nobody else."""
        header, parts = make_parts(msg_type, content, self._session)
        if self._connected:
            self._line.send(ClientMessage(channel, header, parts), self._session)

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

    def _wake_main_shell(self) -> None:
        self.request("shell", "kernel_info_request", {})

    async def ask(
        self, msg_type: str, content: dict[str, Any], seconds: float, channel: str = "shell"
    ) -> bytes | None:
        """The content of the answer to a request of the server's own; None if none comes.

        Nobody else sees of it more than what the kernel's code prints.
        """
        header, parts = make_parts(msg_type, content, self._session)
        if not self._connected:
            return None
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._asked[header.msg_id] = answer
        try:
            self._line.send(ClientMessage(channel, header, parts), self._session)
            async with asyncio.timeout(seconds):
                return await answer
        except TimeoutError:
            return None
        finally:
            del self._asked[header.msg_id]

    @property
    def implementation(self) -> str:
        """What the kernel calls itself in its `kernel_info_reply`; empty if it has said nothing."""
        try:
            return msgspec.json.decode(self._kernel_info or b"{}", type=_Info).implementation
        except (msgspec.MsgspecError, RecursionError):
            return ""

    async def reachable(self) -> None:
        """Return when the kernel has answered a probe and its iopub has been heard."""
        await self._reachable.wait()

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
        self.announce(self._state.execution_state)
        self._line.opened()
        self._outbox.open(self._hand_over)
        self.tracker.on_ready()

    def announce(self, execution_state: str) -> Message:
        """Tell every client a state of the kernel, as a status without a parent.

        Not those who come later: they are greeted with the state of then.
        """
        status = self._make("iopub", "status", {"execution_state": execution_state})
        return self._say(status, transient=True)

    def replace_process(self) -> None:
        """This process is about to be stopped: what clients send from now on is for the next."""
        if self._for_next is None:  # not if it is about to be stopped once more
            self._for_next = []
        self._note_replaced(True)
        self.tracker.close_waiting(_ENDS[Lifecycle.RESTARTING])

    @property
    def connected(self) -> bool:
        """Whether there is a process that is heard."""
        return self._connected

    @property
    def between_processes(self) -> bool:
        """Whether what is submitted now is for a process that is yet to come."""
        return not self._connected or self._for_next is not None

    @property
    def is_replaced(self) -> bool:
        """Whether what is submitted now is for a process after the one that is, or was, there."""
        return self._for_next is not None

    def expect_process(self) -> None:
        """There is no process, and there will be one: what is submitted is for that."""
        self._for_next = []

    def _note_replaced(self, replaced: bool) -> None:
        if self.journal is not None:
            self.journal.replaced = replaced

    def keep_process(self) -> None:
        """This process could not be stopped: what was for the next one is for this one."""
        self._note_replaced(False)
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
        if self._connected:
            self._connected = False
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
        self._unanswered.clear()
        self._subshells.clear()
        self._overdue.clear()
        self._interrupts.clear()
        said: Message | None = None
        for request in self._requests.take_all():
            # Kernels work in order: the first execution that is not finished was running. That
            # it had gone busy need not have been heard: a process that exits at once says nothing.
            finished = request.idle or request.replied
            was_running = request.msg_type == "execute_request" and not finished
            said = self._finish(request, error=reason if was_running else None) or said
            if was_running:
                reason = None
        await self._wait_until_said(said)
        self.tracker.close(why, was_ready=was_ready)
        self._stragglers.clear()
        for_next, self._for_next = self._for_next or [], None
        for message, session in for_next:
            self._submit_late(message, session)

    async def remove_log(self) -> None:
        """The kernel is gone: its log goes when that it is dead can be read there. Bounded."""
        await self._wait_until_said(self.announce("dead"))
        self.log.close()
        self.log.hold()
        self._line.drop()
        weak = weakref.WeakMethod(self._let_go_of_log)  # what is gone has closed its files
        asyncio.get_running_loop().call_later(HELD_SECONDS, lambda: (weak() or _nothing)())

    def _let_go_of_log(self) -> None:
        """Those who follow over HTTP have read the rest; the last of the others will say so."""
        if not self._attached:
            self.log.let_go()

    def refuse_waiting(self) -> None:
        """The kernel is dead: what was asked of it meanwhile ends."""
        self._outbox.close()
        for request in self._requests.take_all():
            self._finish(request)
        self.tracker.close(f"The kernel is {self._state.word}", was_ready=False)

    async def _wait_until_said(self, message: Message | None) -> None:
        """Return when what was said in the kernel's place is in the log, or after a while."""
        if message is None or not self._line.handle:
            return
        msg_id = message.header.msg_id
        said = self._awaited[msg_id] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(SAY_SECONDS):
                await said
        except TimeoutError:
            logger.warning("kernel %s: its log is not written", self._kernel_id)
        finally:
            del self._awaited[msg_id]

    def _finish(
        self, request: Request, made_up: dict[str, Any] | None = None, *, error: str | None = None
    ) -> Message | None:
        """Answer a request that the kernel will never answer, and go idle for it.

        Returns what was said last, if anything.

        ``made_up`` is the answer, if what the kernel has said of it tells that; ``error`` why the
        execution that was running failed.
        """
        parent, owner = request.header, request.owner
        if owner == self._session:
            return None
        said: Message | None = None
        if error is not None:
            died = {
                "ename": "KernelDied",
                "evalue": error,
                "traceback": [f"\x1b[0;31mKernelDied\x1b[0m: {error}"],
            }
            said = self._say(self._make("iopub", "error", died, parent))
        answer = reply_type(request.msg_type)
        content: dict[str, Any] | bytes | None = made_up or {"status": "aborted"}
        if request.msg_type == "kernel_info_request":
            # To JupyterLab any other answer than ok means that the kernel is of no use. What the
            # kernel once said of itself still holds; if it never did, the idle status must do.
            content = self._kernel_info
        if answer is not None and content is not None and not request.replied:
            said = self._say(self._make(request.channel, answer, content, parent), owner)
        if not request.idle:
            said = self._say(self._make("iopub", "status", {"execution_state": "idle"}, parent))
        return said

    def _answer_kernel_info(self, message: ClientMessage, owner: str, info: bytes) -> None:
        """Answer from the cached reply: the kernel is busy and would answer when it is done.

        A client waits for busy, the reply, and idle; then it must know the true state again.
        """
        parent = bytes(message.parts[0])
        for channel, msg_type, content in (
            ("iopub", "status", {"execution_state": "busy"}),
            ("shell", "kernel_info_reply", info),
            ("iopub", "status", {"execution_state": "idle"}),
        ):
            self._say(self._make(channel, msg_type, content, parent), owner)
        self._say(self.greeting(), owner)

    def _make(
        self,
        channel: str,
        msg_type: str,
        content: dict[str, Any] | bytes,
        parent: bytes = b"{}",
    ) -> Message:
        return make_message(channel, msg_type, content, session=self.kernel_session, parent=parent)

    def _say(
        self, message: Message, owner: str | None = None, *, transient: bool = False
    ) -> Message:
        """Have a message of the server's own making appended to the log."""
        if self._line.handle:
            self._line.say(message, owner, transient=transient)
        elif len(self._unsaid) < MAX_UNSAID:
            self._unsaid.append((message, owner, transient))
        return message

    # What is in the log (app.managers.line.LineOwner)

    def on_heard(self, heard: Heard) -> None:
        """The kernel is heard: for the first time, after another server, or by another keeper."""
        self._session = heard.session
        self.log.begin_at(heard.epoch, heard.bell)
        unsaid, self._unsaid = self._unsaid, []
        for message, owner, transient in unsaid:
            self._line.say(message, owner, transient=transient)
        if not self._replaying:
            self._read_on()
        if self._connected:  # by another keeper: what the one before had not yet sent is sent
            for request in [*self._requests]:
                if not request.logged and request.message is not None:
                    self._line.send(request.message, request.owner)
            if heard.again:
                self.on_loss()

    def on_bell(self, bell: Bell) -> None:
        """The log has grown."""
        self.log.advance(bell)
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
        elif found:
            self._take_all(found)
            log.step(found[-1])
            log.wake()
        if log.unseen:
            self._reading = asyncio.get_running_loop().call_soon(self._read_on)

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
            logger.exception("kernel %s: number %d is not understood", self._kernel_id, entry.seq)

    def on_entry(self, entry: Entry) -> None:
        """Draw the conclusions of one number of the log."""
        message, channel = entry.message, entry.message.channel
        if entry.is_request:
            self._on_request(message, entry.owner or "")
            return
        if not entry.published:
            self._on_said(message)
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

    def _on_said(self, message: Message) -> None:
        """The server has said this, in the kernel's place."""
        said = self._awaited.get(message.header.msg_id) if self._awaited else None
        if said is not None and not said.done():
            said.set_result(None)

    def _on_request(self, message: Message, owner: str) -> None:
        """This request has left for the kernel."""
        header = message.header
        known = self._requests.find_unlogged(header, owner)
        if known is not None:
            known.logged, known.message = True, None
        request = ClientMessage(message.channel, header, [bytes(message.part(0))])
        if known is not None:
            waiting = self.tracker.waiting(request) if known.is_execution else None
            if waiting is not None:
                self.tracker.on_handed(waiting)
            return
        # Another server has sent it.
        self._requests.add(request, owner).logged = True
        if _is_execution(request):
            execution = self.tracker.get(header.msg_id)
            if execution is None or not (execution.sent or execution.ended):
                execution = self.tracker.on_request(request, owner)
                execution.place = Position(message.seq, message.offset)
                self.tracker.on_handed(execution)

    def _on_reply(self, message: Message, owner: str) -> None:
        parent = message.parent
        if self._asked and (answer := self._asked.get(parent.msg_id)) and not answer.done():
            answer.set_result(bytes(message.part(3)))
        if message.header.msg_type == "kernel_info_reply":
            self._on_kernel_info(message)
        if message.channel != "stdin":
            self._requests.on_reply(parent)
        if parent.session == self._session:
            return
        if message.msg_type == "execute_reply":
            self.tracker.on_reply(message)
        elif message.msg_type == "input_request":
            # Who has it already, and comes back over a new connection, need not see it twice.
            is_shown = self._replaying or owner in self._attached
            self.tracker.on_input_request(message, owner, is_shown=is_shown)

    def _wait_for_stragglers(self, execution: Execution) -> None:
        quiet = execution.may_straggle or self.tracker.straggling > 0
        self._stragglers.wait_for(execution, quiet=quiet)

    def _ask_on_control(self) -> str:
        header, parts = make_parts("kernel_info_request", {}, self._session)
        request = ClientMessage("control", header, parts)
        asked = self._connected and self._line.send(request, self._session)
        return header.msg_id if asked else ""

    def _answer_for(self, execution: Execution) -> None:
        """The kernel has gone idle without a reply; whoever asked would wait for it for ever.

        That is how ipykernel takes an interrupt that hits it just before the code, or just behind
        it. What it has published tells whether it failed; that it did not fail tells nothing.
        """
        made_up = None
        found = reply_made_of_iopub(self.log, execution)
        execution.execution_count = found.get("execution_count")
        if found["status"] == "error":
            made_up = found
            execution.on_reply("error", execution.execution_count)
        request = self._requests.unanswered(execution.id, execution.session)
        if request is not None:
            self._requests.discard(request)
            self._finish(request, made_up)

    def _on_overdue(self, execution: Execution) -> None:
        if self._connected:
            self._overdue.add(execution)

    async def _answers_on_shell(self, seconds: float) -> bool:
        """Whether the main shell takes a question of ours, and answers it in time."""
        return await self.ask("kernel_info_request", {}, seconds) is not None

    def _answer_in_its_place(self, request: Request) -> None:
        """The kernel went idle for a request of another kind, and no reply has come behind that."""
        if request in self._requests and not request.replied:
            self._requests.discard(request)
            self._finish(request, _error("NoReply", "The kernel sent no reply to this request"))

    async def _ask_for_subshells(self) -> Collection[str] | None:
        """The subshells that the kernel has; None if it does not tell."""
        answer = await self.ask("list_subshell_request", {}, SUBSHELL_SECONDS, "control")
        try:
            return msgspec.json.decode(answer or b"{}", type=_SubshellList).subshell_id
        except (msgspec.MsgspecError, RecursionError):
            return None

    def _end_in_subshell(self, execution: Execution, subshell_id: str) -> None:
        """An execution waits in a subshell that the kernel does not have: it will never begin."""
        reason = f"The kernel has no subshell {subshell_id[:64]!r}"
        if execution.cancel_asked:  # that it is interrupted when it begins is no longer true
            execution.take_step("cancel", reason, self.log.next_seq)
        self.tracker.give_up(execution, reason)
        for request in [*self._requests]:
            if request.msg_id == execution.id and request.owner == execution.session:
                self._requests.discard(request)
                self._finish(request, _error("NoSubshell", reason))
                return

    def shown(self, message: Message) -> Message:
        """A message as clients see it where tracebacks are not allowed."""
        return hide_traceback(message, self._settings.traceback_replacement_message)

    # Before and after another process of the server

    def leave(self) -> None:
        """Let go of the process, which runs on. What comes for it now does not reach it."""
        self.note_places()
        self._stragglers.drop()
        self.tracker.leave()
        self._outbox.close()
        self._unanswered.clear()
        self._subshells.clear()
        self._overdue.clear()
        self._interrupts.clear()
        self._connected = False
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

    async def meet(self, info: ConnectionInfo | None) -> Heard:
        """Have the log that another process of the server has left; `resume` comes next.

        ``info`` tells how to hear the process, if there is one. Raises what `Line.hear` does, and
        nothing has changed then.
        """
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
        self._connected = heard.connected
        self.answered = self.heard_iopub = heard.opened
        self._end_unsent()

    def _end_unsent(self) -> None:
        """What the server before was killed with, on its way to whoever hears the kernel.

        What waited there is sent again; of the rest nobody has more than that it was asked for.
        """
        left = {(request.msg_id, request.owner) for request in self._requests}
        for execution in [*self.tracker.under_way]:
            begun = execution.running or execution.idle or execution.reply_status is not None
            is_old = execution.place.cursor < self.log.first_seq  # it may have been in the log
            if begun or is_old or (execution.id, execution.session) in left:
                continue
            self.tracker.give_up(execution, _UNDELIVERED, never_ran=True)
            with contextlib.suppress(MalformedMessage):
                header = decode_header(execution.header)
                request = ClientMessage("shell", header, [execution.header])
                self._finish(Request(request, execution.session))

    def end_lost(self) -> None:
        """The kernel has nothing left of what it was asked before: what has no end is lost.

        After a keeper that was killed: what it had just given to its sockets went with it, and so
        did what the kernel said until another one heard it.
        """
        for request in [*self._requests]:
            if request.replied or not request.logged:
                continue
            execution = self.tracker.get(request.msg_id) if request.is_execution else None
            if execution is not None and not execution.ended:
                ran = execution.running
                self.tracker.give_up(execution, _UNHEARD if ran else _UNSENT, never_ran=not ran)
            self._requests.discard(request)
            self._finish(request)

    def _on_iopub(self, message: Message, entry: Entry) -> None:
        header, parent, state = message.header, message.parent, self._state
        msg_type = header.msg_type
        if not self.heard_iopub and entry.published:
            self.heard_iopub = True
            self._look_reachable()
        if header.session and entry.published:
            self.kernel_session = header.session
        reported = ""
        if msg_type == "status":
            reported = self._on_status(message, by_kernel=entry.published)
            if parent.session == self._session:
                if reported == "idle":
                    self._stragglers.on_idle(parent.msg_id)
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
        request = self._requests.find(parent)
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
        request = self._requests.find(parent)
        ours = parent.session == self._session  # our probes are nobody's work, tracked or not
        self.begun += reported == "busy" and not ours
        if by_kernel and not ours and (request is None or request.channel != "control"):
            self._state.on_status(reported, parent)
        if was_at_work and not self._replaying:
            self.active_since = time.monotonic()
        if parent.msg_type == "execute_request" and parent.subshell_id is None and not ours:
            self._time_execution(reported)
        if reported == "idle":
            self._outbox.on_idle(parent.msg_id)
            request = self._requests.on_idle(parent)
            # The tracker looks after executions, which some kernels reply to late.
            if request is not None and not request.replied and not request.is_execution:
                self._unanswered.add(request)
        return reported

    def _time_execution(self, reported: str) -> None:
        """The main shell, which runs one request at a time, has gone busy or idle for one."""
        now = time.monotonic()
        if reported == "busy":
            self._execution_began = now
        elif reported == "idle" and self._execution_began is not None:
            self.counters.execution_seconds.observe(now - self._execution_began)
            self._execution_began = None

    def _on_kernel_info(self, message: Message) -> None:
        self._kernel_info = bytes(message.part(3))
        if not self.answered:
            self.answered = True
            self._look_reachable()

    def _look_reachable(self) -> None:
        if self.answered and self.heard_iopub:
            self._reachable.set()

    def _tell_ignored(self, text: str, value: str) -> None:
        """Log what was ignored, at most once a second: a client may send any number of it."""
        now = time.monotonic()
        if now < self._next_ignored_line:
            self._ignored_silently += 1
            return
        more = f" (and {self._ignored_silently} more)" if self._ignored_silently else ""
        logger.warning(f"kernel %s: {text}%s", self._kernel_id, value, more)
        self._ignored_silently = 0
        self._next_ignored_line = now + 1.0

    def on_malformed(self, count: int, channel: str, reason: str) -> None:
        """So many messages were dropped, the last for this reason; it is told ever more rarely."""
        self.counters.malformed += max(0, count - self._dropped)
        self._dropped = max(count, self._dropped)
        if count & (count - 1) == 0:
            logger.warning(
                "kernel %s: %d malformed messages dropped, the last on %s: %s",
                self._kernel_id,
                count,
                channel,
                reason,
            )

    def on_writable(self) -> None:
        """Send what waits, as far as the line takes it."""
        self._outbox.flush()


class _SubshellList(msgspec.Struct):
    subshell_id: list[str] | None = None  # so it is called, although it is a list [JEP 91]


class _Info(msgspec.Struct):
    implementation: str = ""


class _Shutdown(msgspec.Struct):
    restart: bool = False


def _nothing() -> None:
    """There is nobody left to do it for."""


def _error(ename: str, evalue: str) -> dict[str, Any]:
    """The content of a reply that tells of an error."""
    return {"status": "error", "ename": ename, "evalue": evalue, "traceback": []}


def _is_execution(message: ClientMessage) -> bool:
    return message.header.msg_type == "execute_request" and message.channel == "shell"
