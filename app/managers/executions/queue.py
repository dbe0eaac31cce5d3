"""Running code in a kernel without a WebSocket: executions that are asked for over HTTP.

The server holds each execution until the kernel's main shell has nothing left to do, and only then
sends its request: an execution that is cancelled before never runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter, deque
from collections.abc import Coroutine, Iterator, Mapping
from itertools import takewhile
from typing import Any, Final, Protocol, TypeVar
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
    KernelUnreachable,
    MessageTypeNotAllowed,
    NoInputRequested,
    PromptGone,
    ServerStopping,
    TimeoutTooLong,
    TooManyExecutions,
)
from ..log.message_log import MessageLog
from ..state import KernelState, Lifecycle
from .execution import Execution, ExecutionState
from .held import BACKLOG_BYTES, HeldExecutions
from .late_output import may_straggle
from .tracker import ExecutionTracker

__all__ = ["Code", "Executions", "ProcessControl"]

logger = logging.getLogger(__name__)

MAX_WAITING: Final = 100
"""How many executions asked for over HTTP may wait for one kernel."""

EARLY_SECONDS: Final = 0.3
"""A kernel that has gone busy ignores signals until it is about to run the code. So an interrupt
within this many seconds of the busy status is sent once more after them."""

KILL_AGAIN_SECONDS: Final = 1.0
MAX_KILL_AGAIN_SECONDS: Final = 30.0
"""After how many seconds a kernel that could not be killed is killed again: at first, and later."""

RETRY_SECONDS: Final = 5
"""After how many seconds a client may retry to which too many executions wait (Retry-After)."""


T = TypeVar("T")


class Code(msgspec.Struct, frozen=True):
    """Code to execute: the fields of an ``execute_request``, and more.

    ``timeout`` is how many seconds the code may run. ``queue`` is the name of the queue in which it
    waits, or None for the caller's own. ``if_generation`` is the generation of the kernel's process
    that it must run in, if any.
    """

    code: str
    silent: bool = False
    store_history: bool = True
    user_expressions: Mapping[str, str] = {}
    allow_stdin: bool = False
    stop_on_error: bool = True
    timeout: float | None = None
    queue: str | None = None
    if_generation: int | None = None


class ProcessControl(Protocol):
    """A kernel as the executions see it: it can be interrupted and killed."""

    async def interrupt(self) -> None:
        """Interrupt the kernel. Raises `KernelNotRunning` or `KernelUnreachable`."""

    async def kill(self) -> bool:
        """Kill the process; False if this server may not kill it. Raises `KernelNotStopped`."""


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


class Executions:
    """The executions of one kernel: asking for them, waiting for them, stopping them.

    Executions that clients have sent over WebSockets are among them.
    """

    def __init__(
        self, control: ProcessControl, messages: Messages, state: KernelState, settings: Settings
    ) -> None:
        self.closing = False
        self._control = control
        self._messages = messages
        self._tracker = messages.tracker
        self._tracker.listener = self
        self._state = state
        self._settings = settings
        self._held = HeldExecutions()
        self._timers: dict[Execution, asyncio.TimerHandle] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
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
        return self._tracker.showing(display_id)

    async def ended(self, execution: Execution, seconds: float) -> bool:
        """Wait for an execution's end for at most ``seconds``; returns whether it has ended.

        Returns early when the server stops.
        """
        if not execution.ended and not self.closing and seconds > 0:
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
        return execution.ended

    def close_streams(self) -> None:
        """Let all streams and waits end: the server is about to stop."""
        self.closing = True
        for future in self._waiting:
            if not future.done():
                future.set_result(None)
        self._messages.log.wake()

    # Asking

    def run(self, code: Code) -> Execution:
        """Execute code as soon as the kernel's main shell is free; this does not wait for that.

        Raises `TimeoutTooLong`, `KernelNotRunning`, `GenerationMismatch`, `TooManyExecutions`,
        `MessageTypeNotAllowed` or `ServerStopping`.
        """
        timeout = _timeout(code.timeout, self._settings)
        self._check_allowed("execute_request")
        if self.closing:
            raise ServerStopping()
        if self._state.lifecycle in (Lifecycle.DEAD, Lifecycle.STOPPING):
            raise KernelNotRunning(f"The kernel is {self._state.word}")
        if code.if_generation is not None and not self._is_present(code.if_generation):
            raise GenerationMismatch(self._state.generation)
        if len(self._held) >= MAX_WAITING or self._held.bytes > BACKLOG_BYTES:
            raise TooManyExecutions(f"{len(self._held)} executions wait already", RETRY_SECONDS)
        session = f"http-{uuid4().hex}"
        message = _execute_request(code, session)
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

    async def noted(self, execution: Execution) -> None:
        """Return when a waiting execution is stored for the next server, if there may be one."""
        if _waits(execution):
            await self._stored()

    async def _stored(self) -> None:
        if self._tracker.keeping is not None:
            await self._tracker.keeping.stored()

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
        if asked is None or not self._messages.submit(answer, execution.session):
            raise NoInputRequested(f"Execution {execution.id} asks for no input")
        self._messages.log.wake()

    def _check_allowed(self, msg_type: str) -> None:
        allowed = self._settings.allowed_message_types
        if allowed and msg_type not in allowed:
            raise MessageTypeNotAllowed(f"{msg_type} is not in allowed_message_types")

    # Stopping

    async def cancel(
        self,
        execution: Execution,
        kill_after: float | None = None,
        why: str = "It was cancelled",
    ) -> None:
        """Stop an execution. If it is held, it never runs; if it runs, it is interrupted.

        If it still runs ``kill_after`` seconds later, its process is killed. An execution in the
        kernel's own queue is interrupted when it begins. One that has ended does not change.
        Raises the error of an interrupt that failed, unless the process is to be killed.
        """
        # An execution that is idle only lacks its reply: an interrupt would hit the next one.
        if execution.ended or execution.idle:
            return
        # From here to the branches nothing is suspended, so an execution cannot be sent, or begin,
        # between the look at it and what is done.
        execution.cancel_asked = True
        if not execution.sent:
            self._step(execution, "cancel", f"{why} before it ran")
            self._held.take(lambda held: held is execution)
            self._tracker.give_up(execution, f"{why} before it ran", never_ran=True)
            await self._stored()
        elif execution.running:
            self._step(execution, "cancel", why)
            execution.kill_after = kill_after
            failed = await self._interrupt(execution, why, kill_after)
            self._spawn(self._follow_up(execution, why, kill_after))
            if failed is not None and kill_after is None:
                raise failed
        else:
            # Its request is on its way, or in the kernel's own queue, from which nothing can be
            # taken. An interrupt now would hit the execution before it; `on_start` sends one.
            self._step(execution, "cancel", f"{why}; it is interrupted when it begins")
            execution.kill_after = kill_after

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
        stops = execution.ended or execution.cancel_asked or self.closing
        return not (stops or self._attending[execution])

    async def _stop(self, execution: Execution, why: str, grace: float | None) -> None:
        await self._interrupt(execution, why, grace)
        await self._follow_up(execution, why, grace)

    async def _interrupt(
        self, execution: Execution, why: str, grace: float | None
    ) -> KernelkeepError | None:
        """Interrupt the kernel; returns the error if that fails.

        This waits for at most ``grace`` seconds, so that an interrupt that hangs does not delay the
        kill that follows. If the kernel is not running, its end ends the execution as well.
        """
        # The execution may have ended since the caller looked: the interrupt would hit the next.
        # One that ends while the interrupt is on its way cannot be told from here; the kernel then
        # ignores the signal, or interrupts the next execution.
        if execution.ended or execution.idle:
            return None
        self._step(execution, "interrupt", f"{why}; it was interrupted")
        interrupt = self._spawn(self._interrupt_kernel(execution))
        await asyncio.wait({interrupt}, timeout=grace)
        return interrupt.result() if interrupt.done() and not interrupt.cancelled() else None

    async def _interrupt_kernel(self, execution: Execution) -> KernelkeepError | None:
        try:
            await self._control.interrupt()
        except KernelNotRunning:
            pass
        except KernelkeepError as error:
            logger.error(
                "execution %s is not interrupted: %s",
                execution.id,
                error.message,
                extra={"execution_id": execution.id},
            )
            return error
        except Exception as error:
            logger.exception(
                "execution %s is not interrupted",
                execution.id,
                extra={"execution_id": execution.id},
            )
            return KernelUnreachable(f"The kernel was not interrupted: {type(error).__name__}")
        return None

    async def _follow_up(self, execution: Execution, why: str, grace: float | None) -> None:
        """Interrupt once more, and kill after ``grace`` seconds, unless the execution has ended."""
        ran = execution.seconds or 0.0
        if ran < EARLY_SECONDS:
            pause = EARLY_SECONDS if grace is None else min(grace, EARLY_SECONDS)
            if await self.ended(execution, pause):
                return
            grace = None if grace is None else grace - pause
            await self._interrupt(execution, why, grace)
        if grace is None or await self.ended(execution, grace) or self.closing or execution.idle:
            return
        why = f"{why}; it did not heed the interrupt, so its kernel was killed"
        self._step(execution, "kill", why)
        await self._kill(execution)

    async def _kill(self, execution: Execution) -> None:
        """Have the kernel killed, and try again with longer and longer pauses if that fails."""
        pause = KILL_AGAIN_SECONDS
        while not (execution.ended or execution.idle or self.closing):
            try:
                if not await self._control.kill():
                    logger.warning(
                        "execution %s runs on: its kernel is not ours to kill",
                        execution.id,
                        extra={"execution_id": execution.id},
                    )
                return
            except KernelkeepError as error:
                logger.error(
                    "execution %s runs on: %s",
                    execution.id,
                    error.message,
                    extra={"execution_id": execution.id},
                )
            except Exception:
                logger.exception(
                    "execution %s runs on: its kernel was not killed",
                    execution.id,
                    extra={"execution_id": execution.id},
                )
            if await self.ended(execution, pause):
                return
            pause = min(pause * 2, MAX_KILL_AGAIN_SECONDS)

    def _step(self, execution: Execution, step: Any, detail: str) -> None:
        execution.take_step(step, detail, self._messages.log.next_seq - 1)
        self._tracker.changed(execution)
        self._messages.log.wake()

    def _spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _on_timeout(self, execution: Execution) -> None:
        if execution.idle:  # the code has ended; only the reply, or late output, is awaited
            return
        why = f"It ran longer than its timeout of {execution.timeout:g} s"
        self._step(execution, "timeout", why)
        self._spawn(self._stop(execution, why, self._settings.execution_interrupt_grace))

    # Called by the tracker (the methods of app.managers.executions.tracker.ExecutionListener)

    def on_start(self, execution: Execution) -> None:
        """Begin to measure the execution's time, and interrupt it if it was cancelled before."""
        self._note_process(execution)
        if execution.cancel_asked:
            self._spawn(self._stop(execution, "It was cancelled", execution.kill_after))
        if execution.timeout is not None:
            self._time(execution, execution.timeout)

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

    def _time(self, execution: Execution, timeout: float) -> None:
        left = max(0.0, timeout - (execution.seconds or 0.0))
        loop = asyncio.get_running_loop()
        self._timers[execution] = loop.call_later(left, self._on_timeout, execution)

    def resume(self) -> None:
        """Take up timeouts and kills of executions that run, for the server before this one."""
        for execution in self._tracker:
            if execution.running and execution.kill_after is not None:
                why = "It was cancelled"
                self._spawn(self._follow_up(execution, why, execution.kill_after))
            if execution.running and execution.timeout is not None:
                self._time(execution, execution.timeout)

    def hold_again(self) -> None:
        """Hold the executions that the server before this one held.

        Call this before the log is read again: an end that is read there may abort them, or let
        them go.
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
            else:  # the server sends one at a time, when the kernel is free
                self._held.add_first(execution, message)
        self.on_free()

    def on_end(self, execution: Execution) -> None:
        """Stop the timer of an ended execution; if it failed, abort its queue behind it."""
        timer = self._timers.pop(execution, None)
        if timer is not None:
            timer.cancel()
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

        One at a time: the end of each calls this again. A held execution is not in the kernel's own
        queue, so an error of an earlier one cannot make the kernel abort it.
        """
        if not self._held or not self._is_free():
            return
        if self._is_for_another_process(self._held.first):
            never = self._held.take(self._is_for_another_process)
            self._abort(never, "The kernel was restarted, and has not the generation asked for")
        else:
            self._submit(*self._held.pop())

    def _submit(self, execution: Execution, message: ClientMessage) -> None:
        if not self._messages.submit(message, execution.session) and not execution.ended:
            # It was stored by the server before, whose options allowed it.
            self._abort([execution], "execute_request is not in allowed_message_types")

    def _is_for_another_process(self, execution: Execution | None) -> bool:
        asked = execution.if_generation if execution is not None else None
        return asked is not None and asked != self._state.generation

    def _is_free(self) -> bool:
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


def held_request(execution: Execution) -> ClientMessage:
    """The request of an execution that the server holds."""
    steering = Header(execution.id, "execute_request", execution.session)
    return ClientMessage("shell", steering, execution.held)


def _timeout(asked: float | None, settings: Settings) -> float | None:
    """How many seconds code may run; None without bound. Raises `TimeoutTooLong`."""
    longest = settings.execution_timeout_max
    if asked is None:
        return settings.execution_timeout_default or longest or None
    if longest and asked > longest:
        raise TimeoutTooLong(f"timeout: must be at most {longest:g} s")
    return asked


def _execute_request(code: Code, session: str) -> ClientMessage:
    header = new_header("execute_request", session, uuid4().hex)
    content = {
        "code": code.code,
        "silent": code.silent,
        "store_history": code.store_history,
        "user_expressions": code.user_expressions,
        "allow_stdin": code.allow_stdin,
        "stop_on_error": code.stop_on_error,
    }
    parts = [msgspec.json.encode(header), b"{}", b"{}", msgspec.json.encode(content)]
    steering = Header(header["msg_id"], "execute_request", session)
    return ClientMessage("shell", steering, parts)
