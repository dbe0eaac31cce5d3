"""Interrupts that reach a kernel and do not show: its event loop has to be woken.

An interrupt of code that awaits is an entry in the queue of the kernel's event loop, made by a
signal handler. That does not wake the loop of ipykernel, which sleeps until something comes for its
main shell; and while a cell runs, nothing else does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

__all__ = ["InterruptWatch"]

UNSEEN_SECONDS: Final = 0.2
"""How long an interrupt has to show, before the kernel's loop is woken."""

MAX_WAKES: Final = 16
"""How often the loop is woken while one thing runs. A kernel that computes takes no notice: what
wakes it waits in its queue until that is done."""


class InterruptWatch:
    """Looks, a moment after each interrupt of one kernel, whether that has shown.

    ``running`` tells which execution the main shell is busy with, by its number; None if it is not
    busy. ``wake`` sends the kernel something harmless on its main shell.
    """

    def __init__(self, running: Callable[[], int | None], wake: Callable[[], None]) -> None:
        self._running = running
        self._wake = wake
        self._plan: asyncio.TimerHandle | None = None
        self._again = False  # one has come while another was watched
        self._woken: int | None = None  # what was running then
        self._wakes = 0  # for that

    def on_interrupt(self) -> None:
        """The kernel is being interrupted."""
        if self._plan is not None:
            self._again = True
        else:
            self._plan = asyncio.get_running_loop().call_later(UNSEEN_SECONDS, self._look)

    def clear(self) -> None:
        """The process is gone, or somebody else's."""
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
        if running != self._woken:
            self._woken, self._wakes = running, 0
        if self._wakes < MAX_WAKES:
            self._wakes += 1
            self._wake()
        if again:
            self.on_interrupt()
