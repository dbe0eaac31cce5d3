"""The requests to one kernel that a killed keeper may have lost."""

from __future__ import annotations

import asyncio

from ..handover.handover import settle_loss
from ..messages.traffic import Traffic
from ..state import KernelState

__all__ = ["Losses"]


class Losses:
    """Gives lost requests an end (`settle_loss`), in one task at a time."""

    def __init__(self, kernel_id: str, traffic: Traffic, state: KernelState) -> None:
        self._id = kernel_id
        self._traffic = traffic
        self._state = state
        self._task: asyncio.Task[None] | None = None

    def settle(self) -> None:
        """Begin to find the lost requests: the keeper was killed, and another hears the kernel.

        If a task runs already, it sees the new loss by `RequestEnds.has_loss`.
        """
        if self._task is None or self._task.done():
            settling = settle_loss(self._traffic, self._state)
            self._task = asyncio.get_running_loop().create_task(settling, name=f"settle {self._id}")

    def cancel(self) -> None:
        """Stop looking: the end of the process gives all its requests their end."""
        # The task is not waited for: once cancelled, it makes no further step that ends a request.
        if self._task is not None:
            self._task.cancel()
            self._task = None
