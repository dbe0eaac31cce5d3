"""Calls a function again and again, while a provider remembers principals."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Final

__all__ = ["SWEEP_SECONDS", "Sweeper"]

logger = logging.getLogger(__name__)

SWEEP_SECONDS: Final = 0.5
"""How many seconds after its credential has expired a principal is ended at the latest."""


class Sweeper:
    """A task that calls ``sweep`` every `SWEEP_SECONDS`, from `start` to `close`."""

    def __init__(self, sweep: Callable[[], None]) -> None:
        self._sweep = sweep
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start the task, unless it runs already."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="sweeping principals")

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            try:
                self._sweep()
            except Exception:  # the next sweep must come: open connections are ended by it
                logger.exception("principals could not be swept")

    async def close(self) -> None:
        """End the task."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
