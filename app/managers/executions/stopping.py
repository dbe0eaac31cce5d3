"""How executions are stopped: cancelled, interrupted, and ended with their kernel at last."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, Final, Protocol, TypeVar

from ...log_formats import about
from ..errors import KernelkeepError, KernelNotRunning, KernelUnreachable
from ..log.message_log import MessageLog
from .execution import Execution
from .held import HeldExecutions
from .tracker import ExecutionTracker

__all__ = ["ProcessControl", "Stopping"]

logger = logging.getLogger(__name__)

EARLY_SECONDS: Final = 0.3
"""A kernel that has gone busy ignores signals until it is about to run the code. So an interrupt
within this many seconds of the busy status is sent once more after them."""

KILL_AGAIN_SECONDS: Final = 1.0

MAX_KILL_AGAIN_SECONDS: Final = 30.0
"""After how many seconds a kernel that could not be killed is killed again: at first, and later."""

T = TypeVar("T")


class ProcessControl(Protocol):
    """A kernel as the executions see it: it can be interrupted and killed."""

    async def interrupt(self) -> None:
        """Interrupt the kernel. Raises `KernelNotRunning` or `KernelUnreachable`."""

    async def kill(self) -> bool:
        """Kill the process; False if this server may not kill it. Raises `KernelNotStopped`."""


class Waits(Protocol):
    """Waits for the ends of executions. ``closing`` is true when the server stops."""

    closing: bool

    async def ended(self, execution: Execution, seconds: float) -> bool:
        """Wait for an execution's end for at most ``seconds``; returns whether it has ended."""


class Stopping:
    """Stops executions of one kernel: those that are cancelled, and those that run too long.

    ``grace`` is how many seconds code may run on after the interrupt at its timeout.
    """

    def __init__(
        self,
        control: ProcessControl,
        log: MessageLog,
        tracker: ExecutionTracker,
        held: HeldExecutions,
        waits: Waits,
        grace: float,
    ) -> None:
        self._control = control
        self._log = log
        self._tracker = tracker
        self._held = held
        self._waits = waits
        self._grace = grace
        self._timers: dict[Execution, asyncio.TimerHandle] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    def on_start(self, execution: Execution) -> None:
        """Begin to measure the execution's time, and interrupt it if it was cancelled before."""
        if execution.cancel_asked:
            self._spawn(self._stop(execution, "It was cancelled", execution.kill_after))
        if execution.timeout is not None:
            self._time(execution, execution.timeout)

    def on_end(self, execution: Execution) -> None:
        """Stop the timer of an execution that has ended."""
        timer = self._timers.pop(execution, None)
        if timer is not None:
            timer.cancel()

    def resume(self, execution: Execution) -> None:
        """Take up timeout and kill of an execution that runs, for the server before this one."""
        # Not interrupted again: the server before has done so, or was killed within the moment that
        # `on_start` takes, and then the kill comes all the same.
        if execution.running and execution.kill_after is not None:
            why = "It was cancelled"
            self._spawn(self._follow_up(execution, why, execution.kill_after))
        if execution.running and execution.timeout is not None:
            self._time(execution, execution.timeout)

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
        # From here to the branches nothing is suspended: the execution is neither sent nor begun
        # between the look at its state and the step that follows from it.
        execution.cancel_asked = True
        if not execution.sent:
            self._step(execution, "cancel", f"{why} before it ran")
            self._held.take(lambda held: held is execution)
            self._tracker.give_up(execution, f"{why} before it ran", never_ran=True)
            await self._tracker.stored()
        elif execution.running:
            self._step(execution, "cancel", why)
            execution.kill_after = kill_after
            failed = await self._interrupt(execution, why, kill_after)
            self._spawn(self._follow_up(execution, why, kill_after))
            if failed is not None and kill_after is None:
                raise failed
        else:
            # Its request is on its way, or in the kernel's own queue, from which nothing can be
            # taken. An interrupt now would hit an earlier execution; `on_start` sends it in time.
            self._step(execution, "cancel", f"{why}; it is interrupted when it begins")
            execution.kill_after = kill_after

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
        # A task of its own, which is not cancelled: an interrupt that was sent cannot be taken
        # back, and its failure is logged, however late it comes.
        interrupt = self._spawn(self._interrupt_kernel(execution))
        await asyncio.wait({interrupt}, timeout=grace)
        return interrupt.result() if interrupt.done() and not interrupt.cancelled() else None

    async def _interrupt_kernel(self, execution: Execution) -> KernelkeepError | None:
        try:
            await self._control.interrupt()
        except KernelNotRunning:
            pass
        except KernelkeepError as error:
            about(logger, execution_id=execution.id).error(
                "execution %s is not interrupted: %s", execution.id, error.message
            )
            return error
        except Exception as error:
            about(logger, execution_id=execution.id).exception(
                "execution %s is not interrupted", execution.id
            )
            return KernelUnreachable(f"The kernel was not interrupted: {type(error).__name__}")
        return None

    async def _follow_up(self, execution: Execution, why: str, grace: float | None) -> None:
        """Interrupt once more, and kill after ``grace`` seconds, unless the execution has ended."""
        # Both interrupts may reach the code, and the second may hit its handler of the first. That
        # is rarer than a kernel that ignores the first, so that cancelled code goes on.
        ran = execution.seconds or 0.0
        if ran < EARLY_SECONDS:
            pause = EARLY_SECONDS if grace is None else min(grace, EARLY_SECONDS)
            if await self._waits.ended(execution, pause):
                return
            grace = None if grace is None else grace - pause
            await self._interrupt(execution, why, grace)
        if (
            grace is None
            or await self._waits.ended(execution, grace)
            or self._waits.closing
            or execution.idle
        ):
            return
        why = f"{why}; it did not heed the interrupt, so its kernel was killed"
        self._step(execution, "kill", why)
        await self._kill(execution)

    async def _kill(self, execution: Execution) -> None:
        """Have the kernel killed, and try again with longer and longer pauses if that fails."""
        # After a kill the kernel's life launches the next process, which must not be killed: this
        # returns when a kill has worked, and after a failed one looks if the execution has ended.
        pause = KILL_AGAIN_SECONDS
        while not (execution.ended or execution.idle or self._waits.closing):
            try:
                if not await self._control.kill():
                    about(logger, execution_id=execution.id).warning(
                        "execution %s runs on: its kernel is not ours to kill", execution.id
                    )
                return
            except KernelkeepError as error:
                about(logger, execution_id=execution.id).error(
                    "execution %s runs on: %s", execution.id, error.message
                )
            except Exception:
                about(logger, execution_id=execution.id).exception(
                    "execution %s runs on: its kernel was not killed", execution.id
                )
            if await self._waits.ended(execution, pause):
                return
            pause = min(pause * 2, MAX_KILL_AGAIN_SECONDS)

    def _step(self, execution: Execution, step: Any, detail: str) -> None:
        execution.take_step(step, detail, self._log.next_seq - 1)
        self._tracker.changed(execution)
        self._log.wake()

    def _spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        # The loop has weak references to tasks alone.
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _on_timeout(self, execution: Execution) -> None:
        if execution.idle:  # the code has ended; only the reply, or late output, is awaited
            return
        why = f"It ran longer than its timeout of {execution.timeout:g} s"
        self._step(execution, "timeout", why)
        self._spawn(self._stop(execution, why, self._grace))

    def _time(self, execution: Execution, timeout: float) -> None:
        left = max(0.0, timeout - (execution.seconds or 0.0))
        loop = asyncio.get_running_loop()
        self._timers[execution] = loop.call_later(left, self._on_timeout, execution)
