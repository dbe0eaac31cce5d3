"""The messages of one kernel: what clients send it, what it says, and what is said in its place.

Requests of every client leave over the kernel's one set of sockets. All that comes back is numbered
in the log: iopub for every session, replies and input requests for the session that asked. When the
process goes, every request that it has not finished is given an end here.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection, Iterable
from functools import partial
from typing import Any, Final
from uuid import uuid4

import msgspec

from app.managers.channels import Channels
from app.managers.counters import Counters
from app.managers.execution import Execution
from app.managers.execution_tracker import ExecutionTracker
from app.managers.held_replies import HeldReplies
from app.managers.inheritance import Inheritance
from app.managers.interrupts import InterruptWatch
from app.managers.journal import Journal
from app.managers.late_output import OUTPUT_TYPES
from app.managers.log import NOBODY, MessageLog, Position, Reader
from app.managers.made_up import reply_made_of_iopub
from app.managers.outbox import Outbox
from app.managers.requests import PendingRequests, Request
from app.managers.state import KernelState, Lifecycle
from app.managers.stragglers import Stragglers
from app.managers.tracebacks import hide_traceback
from app.managers.unanswered import Overdue, Subshells, Unanswered
from app.protocol.compose import make_message, make_parts
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

MAX_DEPARTED: Final = 256
"""Cursors kept per kernel for sessions whose connection is gone; the oldest is forgotten first."""

STDIN_SECONDS: Final = 0.5
"""How much longer than the other channels stdin may take to be connected."""

PLACE_SECONDS: Final = 60.0
"""How often the place of a client that stays where it is is noted anew: it was there until then."""

SUBSHELL_SECONDS: Final = 5.0
"""How long a kernel may take to tell which subshells it has."""

SETTLE_SECONDS: Final = 0.2
"""How long the last messages of a process that has ended may take to arrive here."""


_ENDS: Final = {
    Lifecycle.RESTARTING: "The kernel was restarted",
    Lifecycle.STOPPING: "The kernel was shut down",
}
"""Why executions end when nobody has given another reason."""


MADE_UP: Final = b'{"kernelkeep":{"made_up":true}}'
"""The metadata of an answer that the kernel gave, and nobody heard: made of what else it said."""


class _Status(msgspec.Struct):
    execution_state: str = ""


_status_decoder: Final = msgspec.json.Decoder(_Status)


class Traffic:
    """Routes between one kernel's sockets, its log and its clients."""

    def __init__(
        self,
        kernel_id: str,
        state: KernelState,
        log: MessageLog,
        settings: Settings,
        counters: Counters,
    ) -> None:
        self.log = log
        self.last_activity = time.time()
        # When the kernel was last at work for somebody, in monotonic seconds: culling counts from
        # here. Unlike last_activity it stands still for what a background thread prints.
        self.active_since = time.monotonic()
        self._attached: dict[str, Reader] = {}
        # Of a kernel that is to outlive this process.
        self.journal: Journal | None = None
        self._kernel_id = kernel_id
        self._settings = settings
        self._hides_tracebacks = not settings.allow_tracebacks
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
        self._channels: Channels | None = None
        self._kernel_info: bytes | None = None
        self._held = HeldReplies(self._release, self._has_unread_output)
        self._unanswered = Unanswered(self._answer_in_its_place)
        self._subshells = Subshells(self._ask_for_subshells, self._end_in_subshell)
        self._interrupts = InterruptWatch(self._main_shell_runs, self._wake_main_shell)
        self._outbox = Outbox(settings.websocket_backlog_bytes)
        self._for_next: list[tuple[ClientMessage, str]] | None = None
        # The process is new until it is ready and has published something that it was asked for.
        self._is_new = self._has_begun = False
        self.begun = 0
        """How often the kernel has begun with something that others than this server asked for."""
        self.answered = False
        self.heard_iopub = False
        self._reachable = asyncio.Event()
        self._execution_began: float | None = None  # in monotonic seconds
        self._next_ignored_line = 0.0
        self._ignored_silently = 0
        self._dropped = 0
        self._inheritance = Inheritance(log, self._requests, self.tracker, self._finish)

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
                self._outbox.send(message)
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
        self._requests.add(message, session)
        execution = self.tracker.on_request(message, session) if _is_execution(message) else None
        if execution is not None and self._channels is not None:
            execution.generation = self._state.generation
        if execution is not None and message.header.subshell_id is not None:
            self._subshells.add(execution, message.header.subshell_id)
        if not self._outbox.send(message) and execution is not None:
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

    def _hand_over(self, message: ClientMessage) -> bool:
        """Give a request to the sockets; False if they do not take it now.

        Of one that has waited, the registry may still say that it waits when this process is
        killed. So that it is sent is noted first, where that cannot be lost: between the two
        nothing is awaited, and the next server sends nothing that is noted.
        """
        assert self._channels is not None
        execution = self.tracker.waiting(message) if _is_execution(message) else None
        if execution is None:
            return self._channels.send(message)
        journal = self.journal
        if journal is not None:
            journal.note_sent(execution.id, execution.session)
        if not self._channels.send(message):
            if journal is not None:
                journal.take_back_sent()
            return False
        self.tracker.on_handed(execution)
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

    def open(self, channels: Channels) -> None:
        """A process has been launched, and these are its sockets."""
        self._channels = channels
        self._is_new, self._has_begun = True, False
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
        if self._channels is not None:
            self._channels.send(ClientMessage(channel, header, parts))

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
        if self._channels is None:
            return None
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._asked[header.msg_id] = answer
        try:
            self._channels.send(ClientMessage(channel, header, parts))
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
        """Return when input requests can arrive, or after `STDIN_SECONDS`.

        A kernel's ROUTER drops an input request for a peer that is not connected yet. Not every
        kernel has the channel.
        """
        deadline = time.monotonic() + STDIN_SECONDS
        while self._channels is not None and not self._channels.stdin_connected:
            if time.monotonic() > deadline:
                return
            await asyncio.sleep(0.002)

    def touch(self) -> None:
        """Somebody has just come to use the kernel: its idle time begins."""
        self.last_activity = time.time()
        self.active_since = time.monotonic()

    def ready(self) -> None:
        """The kernel takes requests: tell the clients, and send what has waited."""
        self._state.on_ready()
        self.announce(self._state.execution_state)
        assert self._channels is not None
        self._outbox.open(self._hand_over)
        self.tracker.on_ready()

    def announce(self, execution_state: str) -> None:
        """Tell every client a state of the kernel, as a status without a parent.

        Not those who come later: they are greeted with the state of then.
        """
        status = self._make("iopub", "status", {"execution_state": execution_state})
        self.log.append(status, transient=True)

    def replace_process(self) -> None:
        """This process is about to be stopped: what clients send from now on is for the next."""
        if self._for_next is None:  # not if it is about to be stopped once more
            self._for_next = []
        self._note_replaced(True)
        self.tracker.close_waiting(_ENDS[Lifecycle.RESTARTING])

    @property
    def between_processes(self) -> bool:
        """Whether what is submitted now is for a process that is yet to come."""
        return self._channels is None or self._for_next is not None

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
        """Take the last messages of a process that has ended."""
        deadline = time.monotonic() + SETTLE_SECONDS
        quiet = 0
        while self._channels is not None and quiet < 3 and time.monotonic() < deadline:
            quiet = 0 if self._channels.drain() else quiet + 1
            await asyncio.sleep(0.002)

    def close_channels(self) -> None:
        """These sockets end; requests that wait for the kernel wait for its next process."""
        if self._channels is not None:
            self._channels.close()
            self._channels = None
        self._inheritance.close()

    def close(self, reason: str | None = None) -> None:
        """The process is gone: every request that it has not finished ends here.

        ``reason`` is shown as the error of the execution that was running.
        """
        self.close_channels()
        was_ready = self._outbox.is_open
        why = reason or self.why_it_stops or _ENDS.get(self._state.lifecycle, "The kernel is gone")
        if self._for_next is None:
            self.tracker.close_waiting(why)
        self._outbox.close()
        self._unanswered.clear()
        self._subshells.clear()
        self._overdue.clear()
        self._interrupts.clear()
        for request in self._requests.take_all():
            # Kernels work in order: the first execution that is not finished was running. That
            # it had gone busy need not have been heard: a process that exits at once says nothing.
            finished = request.idle or request.replied
            was_running = request.msg_type == "execute_request" and not finished
            self._finish(request, error=reason if was_running else None)
            if was_running:
                reason = None
        self.tracker.close(why, was_ready=was_ready)
        self._stragglers.clear()
        self._held.clear()
        for_next, self._for_next = self._for_next or [], None
        for message, session in for_next:
            self._submit_late(message, session)

    def _finish(
        self, request: Request, made_up: dict[str, Any] | None = None, *, error: str | None = None
    ) -> None:
        """Answer a request that the kernel will never answer, and go idle for it.

        ``made_up`` is the answer, if what the kernel has said of it tells that; ``error`` why the
        execution that was running failed.
        """
        parent, owner = request.header, request.owner
        if owner == self._session:
            return
        if error is not None:
            died = {
                "ename": "KernelDied",
                "evalue": error,
                "traceback": [f"\x1b[0;31mKernelDied\x1b[0m: {error}"],
            }
            self.log.append(self._make("iopub", "error", died, parent))
        self._release(request)
        answer = reply_type(request.msg_type)
        content: dict[str, Any] | bytes | None = made_up or {"status": "aborted"}
        metadata = MADE_UP if made_up else b"{}"
        if request.msg_type == "kernel_info_request":
            # To JupyterLab any other answer than ok means that the kernel is of no use. What the
            # kernel once said of itself still holds; if it never did, the idle status must do.
            content = self._kernel_info
        if answer is not None and content is not None and not request.replied:
            reply = self._make(request.channel, answer, content, parent, metadata)
            self.log.append(reply, owner)
        if not request.idle:
            self.log.append(self._make("iopub", "status", {"execution_state": "idle"}, parent))

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
            self.log.append(self._make(channel, msg_type, content, parent), owner)
        self.log.append(self.greeting(), owner)

    def _make(
        self,
        channel: str,
        msg_type: str,
        content: dict[str, Any] | bytes,
        parent: bytes = b"{}",
        metadata: bytes = b"{}",
    ) -> Message:
        return make_message(
            channel,
            msg_type,
            content,
            session=self.kernel_session,
            parent=parent,
            metadata=metadata,
        )

    # What the sockets say (app.managers.channels.Listener)

    def on_message(self, message: Message) -> None:
        """Number a message of the kernel's, for those it is for."""
        channel = message.channel
        if channel == "iopub":
            self._on_iopub(message)
            return
        parent = message.parent
        if self._asked and (answer := self._asked.get(parent.msg_id)) and not answer.done():
            answer.set_result(bytes(message.part(3)))
        if message.header.msg_type == "kernel_info_reply":
            self._on_kernel_info(message)
        if channel == "stdin":
            owner = self._requests.owner(parent)
        else:
            request = self._requests.on_reply(parent)
            owner = request.owner if request is not None else parent.session
            if request is not None and not request.idle and message.msg_type == "execute_reply":
                self._held.hold(request, message)
                return
        if owner != self._session:
            owner = owner or NOBODY
            self._append(message, owner)
            if message.msg_type == "execute_reply":
                self.tracker.on_reply(message)
            elif message.msg_type == "input_request":
                self.tracker.on_input_request(message, owner, is_shown=owner in self._attached)

    def _release(self, request: Request) -> None:
        """Let a reply go that was held."""
        reply, request.held = request.held, None
        if reply is not None:
            self._append(reply, request.owner)
            self.tracker.on_reply(reply)

    def _wait_for_stragglers(self, execution: Execution) -> None:
        quiet = execution.may_straggle or self.tracker.straggling > 0
        self._stragglers.wait_for(execution, quiet=quiet)

    def _ask_on_control(self) -> str:
        header, parts = make_parts("kernel_info_request", {}, self._session)
        request = ClientMessage("control", header, parts)
        asked = self._channels is not None and self._channels.send(request)
        return header.msg_id if asked else ""

    def _has_unread_output(self) -> bool:
        return self._channels is not None and self._channels.has_unread("iopub")

    def _answer_for(self, execution: Execution) -> None:
        """The kernel has gone idle without a reply; whoever asked would wait for it for ever.

        That is how ipykernel takes an interrupt that hits it just before the code, or just behind
        it. What it has published tells whether it failed; that it did not fail tells nothing.
        """
        made_up = self._inheritance.reply_to(execution)
        if made_up is None:
            found = reply_made_of_iopub(self.log, execution)
            execution.execution_count = found.get("execution_count")
            if found["status"] == "error":
                made_up = found
                execution.on_reply(self.log.end, "error", execution.execution_count)
        request = self._requests.unanswered(execution.id, execution.session)
        if request is not None:
            self._requests.discard(request)
            self._finish(request, made_up)

    def _on_overdue(self, execution: Execution) -> None:
        if self._channels is not None and not self._inheritance.has(execution):
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

    def _append(self, message: Message, owner: str) -> None:
        """Number what the kernel has said to one session, or to nobody."""
        self.log.append(self.shown(message), owner)

    def shown(self, message: Message) -> Message:
        """A message as clients see it: without tracebacks where they are not allowed."""
        if self._hides_tracebacks:
            return hide_traceback(message, self._settings.traceback_replacement_message)
        return message

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
        self.close_channels()

    @property
    def session(self) -> str:
        """The server's own, in which it asks the kernel things of which clients see nothing."""
        return self._session

    def inherit(
        self, session: str, executions: Iterable[Execution], *, starting: bool = False
    ) -> None:
        """Go on for another process of the server, which had this session.

        ``executions`` are those that it knew, in order; ``starting``: the kernel had not been ready
        yet. What was numbered is put back into the log next, and each message told to `replay`.
        """
        self._is_new = starting
        self._session = session or self._session
        self._inheritance.take(executions)

    def replay(self, message: Message, *, by_kernel: bool) -> None:
        """This is back in the log: draw the conclusions that were drawn when it was numbered."""
        if message.channel == "stdin":
            owner = self._requests.owner(message.parent) or ""
            # Who has it already, and comes back over a new connection, need not see it twice.
            self.tracker.on_input_request(message, owner, is_shown=True)
        elif message.channel != "iopub":
            if message.msg_type == "kernel_info_reply":
                self._kernel_info = bytes(message.part(3))
            self._requests.on_reply(message.parent)
            if message.msg_type == "execute_reply":
                self.tracker.on_reply(message)
        elif message.msg_type == "status" and by_kernel:
            self.kernel_session = message.header.session or self.kernel_session
            reported = self._on_status(message)
            if reported:
                self.tracker.on_status(reported, message)
        elif message.msg_type == "status":
            self._requests.on_idle(message.parent)
        elif message.msg_type in OUTPUT_TYPES:
            self.tracker.on_output(message)

    def heard_all(self) -> None:
        """Nothing that the kernel has published since that process ended has escaped us."""
        self._inheritance.has_heard_all = True

    def settle_inherited(self, *, all_of_them: bool) -> None:
        """Answer what the kernel was asked before our time, and has done with.

        ``all_of_them``: it has nothing left of those requests.
        """
        self._inheritance.settle(all_of_them=all_of_them)

    @property
    def channels(self) -> Channels | None:
        """The sockets to the present process, if there is one."""
        return self._channels

    def hear_with(self, channels: Channels) -> None:
        """Ask over these sockets; what they say goes elsewhere until `go_on`."""
        self._channels = channels

    def go_on(self, channels: Channels, earlier: Channels | None) -> None:
        """These are the sockets to a process that runs already.

        Over ``earlier`` come answers to what was asked before our time.
        """
        self._channels = channels
        channels.listener = self
        if earlier is not None:
            earlier.listener = self
            self._inheritance.hear(earlier)

    def _on_iopub(self, message: Message) -> None:
        header, parent, state = message.header, message.parent, self._state
        msg_type = header.msg_type
        if not self.heard_iopub:
            self.heard_iopub = True
            self._look_reachable()
        if msg_type == "iopub_welcome":  # [JEP 65] to us, the one subscriber
            return
        if header.session:
            self.kernel_session = header.session
        if self._is_new and self._is_chatter(message):
            self.log.append(message, NOBODY, published=True)
            return
        reported = ""
        if msg_type == "status":
            reported = self._on_status(message)
            if parent.session == self._session:
                if reported == "idle":
                    self._stragglers.on_idle(parent.msg_id)
                return
            if reported == "starting" and self._outbox.is_open:
                # Said before we took it for ready and heard after that: to a client it would be
                # a step back that nothing follows.
                return
        if state.is_activity(msg_type, parent):
            self.last_activity = time.time()
            state.changes += 1
        if state.at_work:
            self.active_since = time.monotonic()
        self.log.append(self.shown(message), published=True)
        if reported:
            self.tracker.on_status(reported, message)
        elif msg_type in OUTPUT_TYPES:
            self.tracker.on_output(message)
            if msg_type == "error":
                self._on_error(parent)

    def _is_chatter(self, message: Message) -> bool:
        """Whether a new process says this of its own start: it is the output of nobody's code.

        It may be read only after the kernel has answered, over another socket. Whatever has a
        parent was published after it.
        """
        self._has_begun |= bool(message.parent.msg_id)
        self._is_new = not (self._has_begun and self._outbox.is_open)
        return self._is_new and message.msg_type == "stream"

    def _on_error(self, parent: Header) -> None:
        if parent.msg_type != "execute_request" or parent.subshell_id is not None:
            return
        request = self._requests.find(parent)
        if request is not None and not request.idle:
            self._outbox.on_error(parent.msg_id)

    def _on_status(self, message: Message) -> str:
        """Take note of a status; the state that it reports."""
        try:
            reported = _status_decoder.decode(message.part(3)).execution_state
        except (msgspec.MsgspecError, RecursionError) as error:
            self.on_malformed("iopub", MalformedMessage(f"status: {error}"))
            return ""
        parent = message.parent
        was_at_work = self._state.at_work
        request = self._requests.find(parent)
        ours = parent.session == self._session  # our probes are nobody's work, tracked or not
        self.begun += reported == "busy" and not ours
        if request is None and self._inheritance.is_open and reported == "busy" and not ours:
            self._inheritance.meet(message)
            request = self._requests.find(parent)
        if not ours and (request is None or request.channel != "control"):
            self._state.on_status(reported, parent)
        if was_at_work:
            self.active_since = time.monotonic()
        if parent.msg_type == "execute_request" and parent.subshell_id is None and not ours:
            self._time_execution(reported)
        if reported == "idle":
            self._outbox.on_idle(parent.msg_id)
            request = self._requests.on_idle(parent)
            if request is not None:
                self._release(request)  # before the idle status: some clients stop at that
                # The tracker looks after executions, which some kernels reply to late.
                if not request.replied and not request.is_execution:
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

    def on_malformed(self, channel: str, error: MalformedMessage) -> None:
        """Count what was dropped; say so at the first and then more and more rarely."""
        self.counters.malformed += 1
        self._dropped += 1
        if self._dropped & (self._dropped - 1) == 0:
            logger.warning(
                "kernel %s: %d malformed messages dropped, the last on %s: %s",
                self._kernel_id,
                self._dropped,
                channel,
                error,
            )

    def on_writable(self) -> None:
        """Send what waits, as far as the sockets take it."""
        self._outbox.flush()


class _SubshellList(msgspec.Struct):
    subshell_id: list[str] | None = None  # so it is called, although it is a list [JEP 91]


class _Info(msgspec.Struct):
    implementation: str = ""


class _Shutdown(msgspec.Struct):
    restart: bool = False


def _error(ename: str, evalue: str) -> dict[str, Any]:
    """The content of a reply that tells of an error."""
    return {"status": "error", "ename": ename, "evalue": evalue, "traceback": []}


def _is_execution(message: ClientMessage) -> bool:
    return message.header.msg_type == "execute_request" and message.channel == "shell"
