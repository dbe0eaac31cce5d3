"""Interrupts of one kernel: what they hold back, and those without effect.

When code awaits, ipykernel's signal handler puts the interrupt into the queue of the kernel's event
loop. That does not wake the loop, which sleeps until a request comes for the main shell; and while
a cell runs, none comes by itself. So the server sends a harmless request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Final

from ..executions.execution import Execution
from ..executions.tracker import ExecutionTracker
from ..state import KernelState
from .outbox import Outbox
from .own_requests import OwnRequests

__all__ = ["InterruptWatch", "Interrupts"]

UNSEEN_SECONDS: Final = 0.2
"""How long after an interrupt the kernel's loop is woken, if the same code still runs."""

MAX_WAKES: Final = 16
"""How often the loop is woken during one execution, at the most. A kernel that computes does not
read the request that should wake it: each waits in the kernel's queue until the code is done."""


class InterruptWatch:
    """Looks, a moment after each interrupt of one kernel, whether it had an effect.

    ``running`` returns the number of the execution that the main shell is busy with; None if it is
    not busy. ``wake`` sends the kernel a harmless request on its main shell.
    """

    def __init__(self, running: Callable[[], int | None], wake: Callable[[], None]) -> None:
        self._running = running
        self._wake = wake
        self._plan: asyncio.TimerHandle | None = None
        self._again = False  # whether an interrupt came while another one was watched
        self._woken: int | None = None  # the execution that ran when the loop was last woken
        self._wakes = 0  # how often the loop was woken during that execution

    def on_interrupt(self) -> None:
        """Plan to look whether this interrupt has an effect."""
        if self._plan is not None:
            # One timer serves all. An interrupt that comes just before it fires would get less
            # than its time, so `_look` plans another look.
            self._again = True
        else:
            self._plan = asyncio.get_running_loop().call_later(UNSEEN_SECONDS, self._look)

    def clear(self) -> None:
        """Forget all interrupts: the process is gone, or another server's from now on."""
        if self._plan is not None:
            self._plan.cancel()
        self._plan = self._woken = None
        self._again = False

    def _look(self) -> None:
        self._plan = None
        again, self._again = self._again, False
        running = self._running()
        if running is None:
            return
        # If the interrupted execution has ended and the next one runs, the wake is needless, and
        # harmless: the kernel answers it when it comes to it.
        if running != self._woken:
            self._woken, self._wakes = running, 0
        if self._wakes < MAX_WAKES:
            self._wakes += 1
            self._wake()
        if again:
            self.on_interrupt()


class Interrupts:
    """The interrupts of one kernel. To send one, call `before` first, and `after` later."""

    def __init__(
        self, tracker: ExecutionTracker, outbox: Outbox, state: KernelState, own: OwnRequests
    ) -> None:
        self._tracker = tracker
        self._outbox = outbox
        self._state = state
        self._watch = InterruptWatch(self._main_shell_runs, own.wake_main_shell)

    def before(self) -> None:
        """Hold back new code until the interrupted execution is over (see `Outbox.on_interrupt`).

        Call this before the interrupt is sent: the error that follows can be in the log before the
        task that sends the interrupt goes on.
        """
        execution = self._tracker.at_main_shell
        if execution is not None and not self._outbox.has(execution.id):
            self._outbox.on_interrupt(execution.id, partial(self._goes_on, execution))
            self._tracker.on_interrupt(execution)

    def _goes_on(self, execution: Execution) -> bool:
        # An execution that the kernel has forgotten never ends; but then the kernel is not busy.
        return self._state.busy and not execution.ended

    def after(self) -> None:
        """Watch for the effect of an interrupt that was just sent (see `InterruptWatch`)."""
        self._watch.on_interrupt()

    def _main_shell_runs(self) -> int | None:
        return self._tracker.begun if self._state.execution_state == "busy" else None

    def clear(self) -> None:
        """Forget all interrupts: the process is gone, or another server's from now on."""
        self._watch.clear()
