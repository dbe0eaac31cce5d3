"""The messages of one kernel: clients' requests, the kernel's messages, and the server's own.

The requests of every client leave over the kernel's one `Line`. The keeper numbers all that the
kernel answers and publishes, and appends it to the log. `Traffic` reads the log once for everybody:
it draws its conclusions (state, executions, ends of requests) from each message before any client
sees that message. When the process ends, `Traffic` gives an end to every request that the kernel
has not finished.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Final
from uuid import uuid4

from ...keeper.hearings import Heard
from ...keeper.open_files import OpenFiles
from ...keeper.sockets import ConnectionInfo
from ...protocol.link import Bell
from ...protocol.messages import ClientMessage, Message
from ...settings import Settings
from ..executions.execution import Execution
from ..executions.held import BACKLOG_BYTES
from ..executions.tracker import ExecutionTracker
from ..limits.queues import QueuePlace
from ..log.message_log import MessageLog, Position
from ..state import KernelState, Lifecycle
from ..telemetry.counters import Counters
from .activity import Activity
from .attachments import Attachments
from .conclusions import Conclusions
from .interrupts import Interrupts
from .line import Hearer, Line
from .outbox import Outbox
from .own_requests import OwnRequests
from .reading import LogReading
from .request_ends import RequestEnds
from .submissions import Submissions
from .tracebacks import hide_traceback
from .voice import Voice

__all__ = ["Traffic"]

EXECUTIONS_REMEMBERED: Final = 1000
"""How many ended executions the server remembers per kernel."""

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


class Traffic:
    """Wires together what deals with the messages of one kernel, and sees its processes through.

    `Submissions` takes the requests of clients, `LogReading` reads the log, and `Conclusions` draws
    conclusions from what it reads.

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
        self.counters = counters
        self.activity = activity = Activity(counters)
        self._settings = settings
        self._state = state
        # The server's own requests have this session: clients do not see the answers to them.
        session = f"kernelkeep-{uuid4().hex}"
        self._line = line = Line(hearer, kernel_id, session, log.epoch, self)
        self.voice = voice = Voice(line, log, state)
        self.own = own = OwnRequests(line)
        # The tracker and the ends of requests need each other. The functions look `ends` up when
        # they are called, which is after a message was read, and so after this method.
        self.tracker = tracker = ExecutionTracker(
            log,
            EXECUTIONS_REMEMBERED,
            on_unanswered=lambda execution: self.ends.answer_for(execution),
            on_overdue=self._on_overdue,
            on_silent=lambda execution: self.ends.on_silent(execution),
            on_complete=lambda execution: self.ends.wait_for_stragglers(execution),
        )
        self._outbox = outbox = Outbox(BACKLOG_BYTES)
        self.ends = ends = RequestEnds(log, tracker, own, voice, outbox)
        self.clients = clients = Attachments(log, tracker.prompts, state, settings)
        self.interrupts = Interrupts(tracker, outbox, state, own)
        self.submissions = Submissions(
            settings, state, own, voice, tracker, outbox, ends, self.interrupts, kernel_id
        )
        self._conclusions = Conclusions(
            log, state, own, voice, tracker, outbox, ends, clients, activity, kernel_id
        )
        self.reading = LogReading(log, line, self._conclusions, voice, ends, outbox)
        self.why_it_stops = ""
        """Why the process is stopped, if a reason was given."""

    # Requests of clients

    def submit(self, message: ClientMessage, session: str, place: QueuePlace | None = None) -> bool:
        """Take a client's request (`Submissions.submit`); False if it is ignored or refused."""
        return self.submissions.submit(message, session, place)

    def _hand_over(self, message: ClientMessage, owner: str) -> bool:
        """Give a request to the kernel's line; False if the line does not take it now."""
        # After a change of keepers, older requests that the log lacks are sent again first: a newer
        # one must not overtake them. `LogReading` flushes the outbox then.
        if self.reading.comes_first or not self._line.send(message, owner):
            return False
        tally = self.counters.to_kernels[message.channel]
        tally.messages += 1
        tally.bytes += message.size
        return True

    @property
    def has_room(self) -> bool:
        """Whether clients may send more requests at once."""
        return self._outbox.has_room

    async def room(self) -> None:
        """Return when the bytes of waiting requests are below their bound.

        This has no timeout: it returns when the kernel takes requests, or when its process ends.
        """
        await self._outbox.room()

    def share_log(self, share: tuple[str, int] | None) -> None:
        """Have the log share a number of bytes with the logs of the same key (``share``)."""
        changed, self._line.share = share != self._line.share, share
        # For a kernel without a process the request to hear the process tells the share. A kernel
        # that gets another owner while it has a process is a warm kernel, and ready. `opened` tells
        # the keeper the share, and once more that the kernel is ready, which changes nothing.
        if changed and self._line.connected:
            self._line.opened()

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
        """Forget the state of the process before: the keeper hears a new process."""
        # What a client asks for from now on is for this process (`between_processes`), and waits in
        # the outbox until `ready`. The server's own probes are sent from now on.
        self._line.connected = True
        self._state.on_launch()
        self.activity.on_launch()
        self.own.on_launch()

    async def stdin_connected(self) -> None:
        """Return when the stdin socket is connected, or after `line.STDIN_SECONDS`."""
        await self._line.stdin_connected()

    def ready(self) -> None:
        """Tell clients that the kernel takes requests, and send those that have waited."""
        # Announced before requests are sent: the idle status comes before any busy status that
        # follows from them.
        self._state.on_ready()
        self.voice.announce(self._state.execution_state)
        # The keeper knows before it gets the first request of a client: the link keeps the order. A
        # server that takes over finds a kernel that has had requests to be ready.
        self._line.opened()
        self._outbox.open(self._hand_over)
        # After the requests of the outbox: the listener sends an execution that it holds only when
        # the main shell has nothing else to do.
        self.tracker.on_ready()
        if next(self.tracker.under_way, None) is not None:
            self.ends.dropped.watch()

    def replace_process(self) -> None:
        """Hold clients' requests from now on for the next process: this one is to be stopped.

        A request that comes between this call and the end of `close` waits, so it meets exactly
        one process.
        """
        self.submissions.hold()
        self.tracker.close_waiting(_ENDS[Lifecycle.RESTARTING])

    @property
    def connected(self) -> bool:
        """Whether the keeper hears a process of this kernel."""
        return self._line.connected

    @property
    def between_processes(self) -> bool:
        """Whether requests submitted now are for a process that is yet to come."""
        return not self._line.connected or self.submissions.are_held

    @property
    def is_replaced(self) -> bool:
        """Whether requests submitted now wait for the process after the present, or last, one."""
        return self.submissions.are_held

    def expect_process(self) -> None:
        """Hold clients' requests for a process that will be launched: there is none now."""
        self.submissions.hold()

    def retain_process(self) -> None:
        """Send the requests held for the next process to this one: it could not be stopped."""
        self.clients.note_again()
        self.submissions.release()
        self.tracker.on_ready()

    async def settle(self) -> None:
        """Read the last messages of a process that has ended. Bounded by `line.SETTLE_SECONDS`."""
        await self._line.settle()
        await self.reading.read_all()

    async def disconnect(self) -> None:
        """Have the keeper close its sockets to the process, and read the log to its end. Bounded.

        Requests that have not been sent stay where they wait.
        """
        if self._line.connected:
            # Before the await: the server's own probes and questions are not sent to a process that
            # is gone, and a second call does not ask the keeper again.
            self._line.connected = False
            await self._line.disconnect()
            # The keeper rings before it answers, over the same link (and `RemoteKeeper` waits for
            # the mirror). So the bell that tells the end of the log has come, and all before it is
            # read before requests are ended.
            await self.reading.read_all()

    async def close(self, reason: str | None = None) -> None:
        """End every request that the process, which is gone, has not finished.

        ``reason`` is shown as the error of the execution that was running. Bounded by
        `SAY_SECONDS`, beside the bound of `disconnect`.
        """
        # A client can send requests at each await below. They are held, so that ending the requests
        # of this process ends none of them; the last line submits them.
        is_last = not self.submissions.are_held
        self.submissions.hold()
        await self.disconnect()
        was_ready = self._outbox.is_open
        why = reason or self.why_it_stops or _ENDS.get(self._state.lifecycle, "The kernel is gone")
        # A stop may have cancelled an earlier call of this, so that requests are still held. All
        # the same no process follows one that is stopped for good.
        if is_last or self._state.lifecycle is Lifecycle.STOPPING:
            self.tracker.close_waiting(why)
        self._outbox.close()
        self.ends.clear()
        self.interrupts.clear()
        # The tracker ends executions only when the messages said here are in the log: the output of
        # an execution goes up to the log's end at its end, and its error is part of the output.
        await self.voice.wait_until_said(self.ends.finish_all(reason))
        self.tracker.close(why, was_ready=was_ready)
        self.ends.stragglers.clear()  # those executions have just ended: only timers are left
        self.submissions.release()

    async def remove_log(self) -> None:
        """Announce that the kernel is dead, and then have its log removed. Bounded.

        The announcement is awaited before the removal, and the log's files are held open for
        `HELD_SECONDS`: a reader that is a little behind can still read that the kernel is dead.
        """
        await self.voice.wait_until_said(self.voice.announce("dead"))
        self.log.close()
        # The newest file is opened before the keeper removes it: an open file outlives its name.
        self.log.hold()
        self._line.drop()
        # Weak: the timer must not keep a removed kernel's objects in memory. If they are gone when
        # it fires, their files are closed already.
        weak = weakref.WeakMethod(self.clients.let_go_of_log)
        asyncio.get_running_loop().call_later(HELD_SECONDS, lambda: (weak() or _nothing)())

    def refuse_waiting(self) -> None:
        """End the requests that came while the kernel died: no process will follow."""
        # `close` has submitted those that came during its awaits. They wait in the outbox, as the
        # lifecycle was not yet DEAD, and are refused only from now on.
        why = f"The kernel is {self._state.word}"
        self.tracker.close_waiting(why)
        self._outbox.close()
        self.ends.finish_all()
        self.tracker.close(why, was_ready=False)

    # What the line tells (the methods of app.managers.messages.line.LineOwner)

    def on_heard(self, heard: Heard) -> None:
        """Begin to read the log: a keeper hears the kernel."""
        self._state.on_reach("")
        self.reading.on_heard(heard)

    def on_lost(self, why: str) -> None:
        """Show that the kernel cannot be reached, for the reason ``why``; its requests go on."""
        self._state.on_reach(why)

    def on_bell(self, bell: Bell) -> None:
        """Read on: the log has grown."""
        self.reading.on_bell(bell)

    def on_malformed(self, count: int, channel: str, reason: str) -> None:
        """Count the malformed messages that the keeper has dropped."""
        self._conclusions.on_malformed(count, channel, reason)

    def on_writable(self) -> None:
        """Send the requests that wait, as far as the line takes them."""
        self._outbox.flush()

    def _on_overdue(self, execution: Execution) -> None:
        # Without a process no kernel can be asked: `close` ends the execution, or the next server
        # reads the reply in the log.
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
        # The places as they are now. Connections that end later store theirs when they end.
        self.clients.note_places()
        self.ends.stragglers.drop()
        self.tracker.leave()
        self._outbox.close()
        self.ends.clear()
        self.interrupts.clear()
        self._line.connected = False
        self.reading.stop()

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
        self._conclusions.replaying = True
        try:
            return await self._line.hear(self.log.directory, info)
        except BaseException:  # a cancellation too: bells are read again as before
            self._conclusions.replaying = False
            raise

    async def resume(self, heard: Heard) -> None:
        """Read the end of the log again, and go on from there for the server before this one.

        `put_back` comes before this. Reading begins where the oldest unfinished execution was sent,
        and `REPLAYED` messages before the end at the latest. Bells that come during the awaits
        below only move the log's end (`Conclusions.replaying`), and it is read up to there.
        """
        log = self.log
        # The place of an execution that has begun is its busy status: its request lies before that
        # in the log, and may not be read again.
        begun = self.ends.recall()
        try:
            places = [one.place.cursor for one in self.tracker if not one.ended]
            start = max(log.first_seq, min([heard.end[0] - REPLAYED, *places]))
            await self.reading.replay(start)
        finally:
            self._conclusions.replaying = False
        # Only now: if such a request was read again after all, `Conclusions` found it here as one
        # that is not logged yet, and did not add it a second time.
        for request in begun:
            request.logged = True
        # From here to the caller nothing is suspended, and no bell can come in between.
        self._line.connected = heard.connected
        self.own.on_resume(was_up=heard.opened)
        self.ends.was_unheard = heard.again
        self.ends.end_undelivered()

    def read_from_end(self) -> None:
        """Go on at the end of the log: the kernel could not be taken over, after `meet`.

        The messages before that are of earlier processes, or of one that is of no use. Without this
        no message of a later process would be read, and none could come up.
        """
        self.reading.skip()
        self._conclusions.replaying = False


def _nothing() -> None:
    """Do nothing, in place of a method whose object is gone."""
