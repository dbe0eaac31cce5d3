"""What a kernel's messages mean for its state, its executions and the requests under way."""

from __future__ import annotations

import logging
import time
from typing import Final

import msgspec

from ...log_formats import about
from ...protocol.messages import ClientMessage, Header, MalformedMessage, Message
from ..executions.late_output import OUTPUT_TYPES
from ..executions.tracker import ExecutionTracker
from ..log.message_log import Entry, MessageLog, Position
from ..state import KernelState
from .activity import Activity
from .attachments import Attachments
from .outbox import Outbox
from .own_requests import OwnRequests
from .request_ends import RequestEnds, is_execution
from .voice import Voice

__all__ = ["Conclusions"]

logger = logging.getLogger(__name__)


class _Status(msgspec.Struct):
    execution_state: str = ""


_status_decoder: Final = msgspec.json.Decoder(_Status)


class Conclusions:
    """Draws conclusions from the entries of one kernel's log, before any reader sees them.

    ``replaying`` is true while entries are read that the server before this one has read already:
    they count for no statistics, and for no activity of kernel or clients.
    """

    def __init__(
        self,
        log: MessageLog,
        state: KernelState,
        own: OwnRequests,
        voice: Voice,
        tracker: ExecutionTracker,
        outbox: Outbox,
        ends: RequestEnds,
        clients: Attachments,
        activity: Activity,
        kernel_id: str,
    ) -> None:
        self.replaying = False
        self._log = log
        self._state = state
        self._own = own
        self._voice = voice
        self._tracker = tracker
        self._outbox = outbox
        self._ends = ends
        self._clients = clients
        self._activity = activity
        self._counters = activity.counters
        self._kernel_id = kernel_id
        self._logger = about(logger, kernel_id=kernel_id)
        self._dropped = 0

    def take_all(self, entries: list[Entry]) -> None:
        """Draw conclusions from entries that follow each other, before any reader sees them.

        `MessageLog.step` moves the end that readers see, as the tracker needs it; but readers
        are woken by the caller, and none of them runs before this returns. Most entries are a
        ``stream`` that follows another ``stream`` of the same execution. Such an entry changes
        nothing, so it is only counted.
        """
        log, tally, before = self._log, self._counters.from_kernels["iopub"], b""
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
        if not is_output or self.replaying:
            return b""
        try:
            return message.stream_parent()
        except MalformedMessage:
            return b""

    def _is_of_execution(self, message: Message) -> bool:
        try:
            return self._tracker.is_under_way(message.parent.msg_id)
        except MalformedMessage:
            return False

    def _take(self, entry: Entry) -> None:
        try:
            self.on_entry(entry)
        except MalformedMessage as error:  # the keeper verifies messages: the file is damaged
            self.on_malformed(self._dropped + 1, entry.message.channel, str(error))
        except Exception:
            # A bug of the server's. Reading goes on, or no client would see any further message.
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
            self._voice.on_said(message)
            # A server draws its conclusions when it says a message, and not here. But a server that
            # takes over learns here which requests the one before has ended.
            if not self.replaying:
                return
        if not self.replaying:
            tally = self._counters.from_kernels[channel]
            tally.messages += 1
            tally.bytes += entry.size
        if channel == "iopub":
            self._on_iopub(message, entry)
        else:
            self._on_reply(message, entry.owner or "")

    def _on_request(self, message: Message, owner: str) -> None:
        """Note that a request has left for the kernel: the keeper logs its header before that."""
        header = message.header
        known = self._ends.pending.find_unlogged(header, owner)
        if known is not None:
            # The log has the request, so no later keeper is given it again: its parts can go.
            known.logged, known.message = True, None
        request = ClientMessage(message.channel, header, [bytes(message.part(0))])
        if known is not None:
            waiting = self._tracker.waiting(request) if known.is_execution else None
            if waiting is not None:
                self._tracker.on_handed(waiting)
            return
        # Not pending here: the server before this one has sent the request.
        self._ends.pending.add(request, owner).logged = True
        if is_execution(request):
            execution = self._tracker.get(header.msg_id)
            if execution is None or not (execution.sent or execution.ended):
                execution = self._tracker.on_request(request, owner)
                execution.place = Position(message.seq, message.offset)
                self._tracker.on_handed(execution)

    def _on_reply(self, message: Message, owner: str) -> None:
        parent = message.parent
        self._own.on_reply(message)
        if message.channel != "stdin":
            self._ends.pending.on_reply(parent)
        if parent.session == self._own.session:
            return
        if message.msg_type == "execute_reply":
            self._tracker.on_reply(message)
        elif message.msg_type == "input_request":
            # An attached client reads the prompt from the log. When its connection breaks and it
            # comes back, it is not shown the prompt a second time.
            is_shown = self.replaying or owner in self._clients
            self._tracker.on_input_request(message, owner, is_shown=is_shown)

    def _on_iopub(self, message: Message, entry: Entry) -> None:
        header, parent, state = message.header, message.parent, self._state
        msg_type = header.msg_type
        if entry.published:
            self._own.on_iopub()
        if header.session and entry.published:
            self._voice.session = header.session
        reported = ""
        if msg_type == "status":
            reported = self._on_status(message, by_kernel=entry.published)
            if parent.session == self._own.session:
                if reported == "idle":
                    self._own.on_idle(parent.msg_id)
                    self._ends.stragglers.on_idle(parent.msg_id)
                return
        if entry.owner is not None or not entry.published:
            return  # output of a new process's own start, or a message of the server's
        if not self.replaying:
            if state.is_activity(msg_type, parent):
                self._activity.last = time.time()
                state.changes += 1
            if state.at_work:
                self._activity.idle_since = time.monotonic()
        # Behind the change of the state: at the end of an execution the tracker's listener looks
        # whether the kernel is free for the next one.
        if reported:
            self._tracker.on_status(reported, message)
        elif msg_type in OUTPUT_TYPES:
            self._tracker.on_output(message)
            if msg_type == "error":
                self._on_error(parent)

    def _on_error(self, parent: Header) -> None:
        if parent.msg_type != "execute_request" or parent.subshell_id is not None:
            return
        # An error of an execution that is not known, or that has gone idle, is an old one.
        request = self._ends.pending.find(parent)
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
        # Looked up before `on_idle`, below, which forgets a request that is finished.
        request = self._ends.pending.find(parent)
        ours = parent.session == self._own.session  # a probe of the server's is not a client's work
        self._activity.begun += reported == "busy" and not ours
        # Control has a thread of its own in the kernel: its requests go busy and idle whatever the
        # main shell does.
        if by_kernel and not ours and (request is None or request.channel != "control"):
            self._state.on_status(reported, parent)
        if was_at_work and not self.replaying:
            self._activity.idle_since = time.monotonic()
        if parent.msg_type == "execute_request" and parent.subshell_id is None and not ours:
            self._activity.time_execution(reported)
        if reported == "idle":
            self._outbox.on_idle(parent.msg_id)
            request = self._ends.pending.on_idle(parent)
            # The tracker watches over executions, for which some kernels send the reply late.
            if request is not None and not request.replied and not request.is_execution:
                self._ends.unanswered.add(request)
        return reported

    def on_malformed(self, count: int, channel: str, reason: str) -> None:
        """Count malformed messages: ``count`` in all by now, the last dropped for ``reason``.

        A line is logged only when the count is a power of two.
        """
        self._counters.malformed += max(0, count - self._dropped)
        self._dropped = max(count, self._dropped)
        if count & (count - 1) == 0:
            self._logger.warning(
                "kernel %s: %d malformed messages dropped, the last on %s: %s",
                self._kernel_id,
                count,
                channel,
                reason,
            )
