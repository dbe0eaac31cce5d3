"""Running code in a kernel without a WebSocket: executions that are asked for over HTTP.

The server holds each execution until the kernel's main shell has nothing left to do, and only then
sends its request: an execution that is cancelled before never runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from itertools import takewhile
from typing import Any, Final, Protocol
from uuid import uuid4

import msgspec

from ...callers import caller
from ...protocol.messages import ClientMessage, Header, new_header
from ...settings import Settings
from ..errors import (
    ExecutionNotFound,
    GenerationMismatch,
    KernelkeepError,
    KernelNotRunning,
    MessageTypeNotAllowed,
    NoInputRequested,
    PromptGone,
    ServerStopping,
    TooManyExecutions,
)
from ..limits.queues import QueuePlace, QueueShare
from ..log.message_log import MessageLog
from ..state import KernelState, Lifecycle
from .code import Code, execute_request, held_request, timeout_of
from .execution import Execution, ExecutionState
from .held import BACKLOG_BYTES, HeldExecutions
from .late_output import may_straggle
from .stopping import ProcessControl, Stopping
from .tracker import ExecutionTracker

__all__ = ["Executions"]

MAX_WAITING: Final = 100
"""How many executions asked for over HTTP may wait for one kernel."""

RETRY_SECONDS: Final = 5
"""After how many seconds a client may retry to which too many executions wait (Retry-After)."""


class Messages(Protocol):
    """The messages of one kernel, as the executions see them: its log, and requests to it."""

    log: MessageLog
    tracker: ExecutionTracker

    @property
    def between_processes(self) -> bool:
        """Whether a request submitted now is for a process that is yet to come."""

    @property
    def is_replaced(self) -> bool:
        """Whether a request submitted now waits for the process after the present, or last, one."""

    def submit(self, message: ClientMessage, session: str) -> bool:
        """Send a request at once or when the kernel is ready; False if it is refused."""


def _always() -> bool:
    return True


class Executions:
    """The executions of one kernel: asking for them, waiting for them, stopping them.

    Executions that clients have sent over WebSockets are among them.
    """

    def __init__(
        self, control: ProcessControl, messages: Messages, state: KernelState, settings: Settings
    ) -> None:
        self.closing = False
        self.share = QueueShare()
        """How many executions may wait at the kernels of this one's owner."""
        self._messages = messages
        self._tracker = messages.tracker
        self._tracker.listener = self
        self._state = state
        self._settings = settings
        self._held = HeldExecutions()
        grace = settings.execution_interrupt_grace
        self._stopping = Stopping(control, messages.log, self._tracker, self._held, self, grace)
        self.cancel = self._stopping.cancel
        self._waiting: set[asyncio.Future[None]] = set()
        self._attending: Counter[Execution] = Counter()
        self._seen_generation = 1  # of the last process that is known to have begun an execution

    # Looking

    def get(self, execution_id: str) -> Execution:
        """The execution with this id. Raises `ExecutionNotFound`."""
        execution = self._tracker.get(execution_id)
        if execution is None:
            raise ExecutionNotFound(execution_id)
        return execution

    def known_id(self, execution_id: str, within: float) -> str | None:
        """This id, if such an execution was asked for within so many seconds."""
        execution = self._tracker.get(execution_id)
        is_found = execution is not None and execution.queued_at > time.time() - within
        return execution_id if is_found else None

    def page(self, limit: int, before: str | None = None) -> list[Execution]:
        """The newest ``limit`` known executions, in the order of asking.

        With ``before``, the id of an execution, only those asked for before it. Raises
        `ExecutionNotFound`.
        """
        found: Any = iter(self._tracker)
        if before is not None:
            last = self.get(before)
            found = takewhile(lambda execution: execution is not last, found)
        return list(deque(found, maxlen=limit))

    def showing(self, display_id: str | None) -> list[Execution]:
        """The executions that are known to show a display with this id."""
        return self._tracker.displays.of(display_id)

    @property
    def waiting(self) -> int:
        """How many executions have been asked for, by whatever way, and have not begun."""
        sent = (one for one in self._tracker.under_way if one.state is ExecutionState.QUEUED)
        return len(self._held) + sum(1 for _ in sent)

    async def ended(
        self, execution: Execution, seconds: float, permission: Callable[[], bool] = _always
    ) -> bool:
        """Wait for an execution's end for at most ``seconds``; returns whether it has ended.

        Returns early when the server stops, and when there is no ``permission`` any more.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while not execution.ended and not self.closing and permission():
            left = deadline - loop.time()
            if left <= 0:
                break
            await self._ended_or_woken(execution, left)
        return execution.ended

    async def _ended_or_woken(self, execution: Execution, seconds: float) -> None:
        future = asyncio.get_running_loop().create_future()

        def wake() -> None:
            if not future.done():
                future.set_result(None)

        # Nothing is suspended since the look at `ended`, so no end is missed.
        execution.on_end.append(wake)
        self._waiting.add(future)
        try:
            await asyncio.wait({future}, timeout=seconds)
        finally:
            self._waiting.discard(future)
            with contextlib.suppress(ValueError):  # it has ended, and taken its callbacks
                execution.on_end.remove(wake)

    def wake(self) -> None:
        """Let all streams and waits look again: the shares of the kernel have changed, or more."""
        # No task runs, and none leaves the set, before this returns: the loop is over what waits.
        for future in self._waiting:
            if not future.done():
                future.set_result(None)
        self._messages.log.wake()

    def close_streams(self) -> None:
        """Let all streams and waits end: the server is about to stop."""
        self.closing = True
        self.wake()

    # Asking

    async def ask(self, code: Code, new_id: str = "") -> Execution:
        """As `run`, but other servers that count together are asked first if one more may wait."""
        asking = self.share.place()
        if asking is None:
            return self.run(code, new_id)
        async with asking as place:
            return self.run(code, new_id, place)

    def run(self, code: Code, new_id: str = "", place: QueuePlace | None = None) -> Execution:
        """Execute code as soon as the kernel's main shell is free; this does not wait for that.

        The execution gets the id ``new_id``, or one of its own. Raises `TimeoutTooLong`,
        `KernelNotRunning`, `GenerationMismatch`, `TooManyExecutions`, `ExecutionsLimit`,
        `MessageTypeNotAllowed` or `ServerStopping`.
        """
        # Nothing is awaited in here, between the checks and the moment when the execution is held:
        # so the bounds are exact, and no execution is held behind `close_streams`.
        timeout = timeout_of(code.timeout, self._settings)
        self._check_allowed("execute_request")
        if self.closing:
            raise ServerStopping()
        if self._state.lifecycle in (Lifecycle.DEAD, Lifecycle.STOPPING):
            raise KernelNotRunning(f"The kernel is {self._state.word}")
        if code.if_generation is not None and not self._is_present(code.if_generation):
            raise GenerationMismatch(self._state.generation)
        if len(self._held) >= MAX_WAITING or self._held.bytes > BACKLOG_BYTES:
            raise TooManyExecutions(f"{len(self._held)} executions wait already", RETRY_SECONDS)
        self.share.check(place)
        session = f"http-{uuid4().hex}"
        message = execute_request(code, session, new_id or uuid4().hex)
        asked_by = caller()
        execution = Execution(
            message.header.msg_id,
            session,
            self._messages.log.end,
            timeout=timeout,
            stop_on_error=code.stop_on_error,
            if_generation=code.if_generation,
            queue=code.queue,
            caller=asked_by.address if asked_by is not None else "",
        )
        execution.held = tuple(map(bytes, message.parts))  # until the kernel has the request
        execution.may_straggle = may_straggle(code.code)
        self._tracker.add(execution)
        self._held.add(execution, message)
        self.on_free()
        return execution

    def _is_present(self, generation: int) -> bool:
        """Whether code that is asked for now would run in the process of this generation."""
        replaced = (
            self._state.lifecycle is Lifecycle.RESTARTING and self._messages.between_processes
        )
        return generation == self._state.generation and not replaced

    async def noted(self, execution_id: str) -> None:
        """Return when a waiting execution is stored for the next server, if there may be one.

        Raises what `ExecutionStore.execution_stored` does: then it may be stored or not.
        """
        execution = self.get(execution_id)
        if not _waits(execution):
            return
        try:
            await self._tracker.execution_stored(execution)
        except KernelkeepError:
            if _waits(execution):  # else it was sent meanwhile, or has ended
                raise

    async def withdraw(self, execution_id: str) -> None:
        """Take back an execution that waits: its client is told that it could not be stored.

        The execution never runs, and the server forgets it, so that its client can ask for it anew,
        even under the same id.
        """
        # While it was being stored the execution may have been sent: then it runs, and stays known.
        execution = self.get(execution_id)
        if _waits(execution):
            self._held.take(lambda held: held is execution)
            self._tracker.take_back(execution, "It could not be stored")

    def answer(self, execution: Execution, value: str, prompt: str | None = None) -> None:
        """Answer the open prompt of an execution; ``prompt`` is the id of the prompt that is meant.

        Raises `NoInputRequested` if none is open, `PromptGone` if ``prompt`` is not open any more,
        or `MessageTypeNotAllowed`.
        """
        self._check_allowed("input_reply")
        asked = execution.input_request
        if prompt is not None and (asked is None or asked.id != prompt):
            raise PromptGone(f"Execution {execution.id} does not ask this, or not any more")
        header = new_header("input_reply", execution.session)
        parts = [msgspec.json.encode(header), asked.header if asked else b"{}", b"{}"]
        parts.append(msgspec.json.encode({"value": value}))
        steering = Header(header["msg_id"], "input_reply", execution.session)
        answer = ClientMessage("stdin", steering, parts)
        # `submit` closes the prompt before anything is awaited: of two answers, one is passed on.
        if asked is None or not self._messages.submit(answer, execution.session):
            raise NoInputRequested(f"Execution {execution.id} asks for no input")
        self._messages.log.wake()

    def _check_allowed(self, msg_type: str) -> None:
        allowed = self._settings.allowed_message_types
        if allowed and msg_type not in allowed:
            raise MessageTypeNotAllowed(f"{msg_type} is not in allowed_message_types")

    # Stopping

    @contextlib.contextmanager
    def attended(self, execution: Execution) -> Iterator[None]:
        """Count, for the time of a ``with`` block, a client that waits for an execution's end."""
        self._attending[execution] += 1
        try:
            yield
        finally:
            self._attending[execution] -= 1
            if not self._attending[execution]:
                del self._attending[execution]

    def is_deserted(self, execution: Execution) -> bool:
        """Whether no client waits for an execution that still runs, and that none has cancelled."""
        # When the server closes, it ends the waits itself: their clients have not gone.
        stops = execution.ended or execution.cancel_asked or self.closing
        return not (stops or self._attending[execution])

    # Called by the tracker (the methods of app.managers.executions.listeners.ExecutionListener)

    def on_start(self, execution: Execution) -> None:
        """Begin to measure the execution's time, and interrupt it if it was cancelled before."""
        self.share.changed()
        self._note_process(execution)
        self._stopping.on_start(execution)

    def _note_process(self, execution: Execution) -> None:
        """Note in which process an execution runs, and whether it is the first in that process."""
        generation = execution.generation = self._state.generation
        if generation <= self._seen_generation:
            return
        self._seen_generation = generation
        others = (known for known in self._tracker if known is not execution)
        # A new server starts with the generation 1 in _seen_generation. The executions that it has
        # taken over tell whether one has begun in this process before.
        execution.first_after_restart = all(
            known.started_at is None or known.generation != generation for known in others
        )

    def resume(self) -> None:
        """Take up timeouts and kills of executions that run, for the server before this one."""
        for execution in self._tracker:
            self._stopping.resume(execution)

    def hold_again(self) -> None:
        """Hold the executions that the server before this one held.

        Call this before the log is read again: an end that is read there may abort the held
        executions, or have the first of them sent.
        """
        for execution in self._tracker:
            if _waits(execution) and not execution.by_client:
                self._held.add(execution, held_request(execution))

    def send_again(self) -> None:
        """Submit the executions that the server before this one has not sent.

        Call this when the log was read again, and once more when requests turned out to be lost
        that the server before was just sending.
        """
        self._held.take(lambda held: not _waits(held))  # the log says that their requests have left
        for execution in self._tracker:
            if not _waits(execution) or execution in self._held:
                continue
            message = held_request(execution)
            if execution.by_client:
                self._submit(execution, message)
            else:
                # There is one such execution at most, as the server sends one at a time. It was its
                # turn, so it goes before all that are held.
                self._held.add_first(execution, message)
        self.on_free()

    def on_end(self, execution: Execution) -> None:
        """Stop the timer of an ended execution; if it failed, abort its queue behind it."""
        self.share.changed()
        self._stopping.on_end(execution)
        failed = execution.state is ExecutionState.ERROR and execution.stop_on_error
        # While a process is being replaced, the held executions are for the next process: the
        # failures of this one's last executions do not abort them.
        if failed and not self._messages.is_replaced:
            self._abort(
                self._held.take_behind(execution),
                "An execution before it failed, with stop_on_error",
            )

    def on_interrupt(self, execution: Execution) -> None:
        """Have executions that are asked for from now on run although the interrupted one fails."""
        self._held.on_interrupt(execution)

    def on_close(self, reason: str) -> None:
        """Abort all executions that are held."""
        self._abort(self._held.take(), reason)

    def _abort(self, held: list[Execution], reason: str) -> None:
        for execution in held:
            self._tracker.give_up(execution, reason, never_ran=True)

    def on_free(self) -> None:
        """Send the next held execution, if the kernel has nothing left to do.

        One at a time: the end of each execution calls this again. A held execution is not in the
        kernel's own queue, so an error of an earlier one cannot make the kernel abort it.
        """
        # This may call itself: `give_up` and `submit`, below, may end an execution, and each end
        # comes here by `on_end`. So an execution is taken out of the held ones first: the inner
        # call does not find it.
        if not self._held or not self._is_free():
            return
        if self._is_for_another_process(self._held.first):
            never = self._held.take(self._is_for_another_process)
            self._abort(never, "The kernel was restarted, and has not the generation asked for")
        else:
            self._submit(*self._held.pop())

    def _submit(self, execution: Execution, message: ClientMessage) -> None:
        if not self._messages.submit(message, execution.session) and not execution.ended:
            # The server before has stored the execution, and its options allowed the request.
            self._abort([execution], "execute_request is not in allowed_message_types")

    def _is_for_another_process(self, execution: Execution | None) -> bool:
        asked = execution.if_generation if execution is not None else None
        return asked is not None and asked != self._state.generation

    def _is_free(self) -> bool:
        # A client's own requests count, too: code over HTTP waits for them, and not they for it.
        return self._state.lifecycle is Lifecycle.RUNNING and not any(
            self._occupies(execution) for execution in self._tracker.under_way
        )

    def _occupies(self, execution: Execution) -> bool:
        """Whether an execution keeps the main shell from the next one.

        It does until both its reply and its idle status have come, or will not. If it runs, has no
        idle status, and the kernel is not busy, then the kernel has forgotten it.
        """
        forgotten = execution.running and not execution.idle and not self._state.busy
        return execution.on_main_shell and not forgotten


def _waits(execution: Execution) -> bool:
    """Whether the server has an execution's request, and has not sent it."""
    return bool(execution.held) and not execution.sent and not execution.ended
