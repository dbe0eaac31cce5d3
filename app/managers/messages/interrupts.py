"""Interrupts that reach a kernel without effect, because its event loop sleeps.

When code awaits, ipykernel's signal handler puts the interrupt into the queue of the kernel's event
loop. That does not wake the loop, which sleeps until a request comes for the main shell; and while
a cell runs, none comes by itself. So the server sends a harmless request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

__all__ = ["InterruptWatch"]

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
