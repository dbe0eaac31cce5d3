"""The event loop's lag: how many seconds after its time a timer fires, as other work runs first."""

from __future__ import annotations

import asyncio
from typing import Final

from .counters import Durations

__all__ = ["LoopLag"]

TICK_SECONDS: Final = 1.0

WATCH_SECONDS: Final = 300.0
"""How many seconds the loop is watched after a scrape; scrapers come more often than that."""


class LoopLag:
    """Adds to ``durations``, once a second while it is scraped, how late a timer was.

    Make it inside a running event loop, and `close` it there.
    """

    def __init__(self, durations: Durations) -> None:
        self._durations = durations
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._until = 0.0

    def watch(self) -> None:
        """Watch the loop for `WATCH_SECONDS` from now on: the metrics are being scraped."""
        self._until = self._loop.time() + WATCH_SECONDS
        if self._timer is None:
            self._set_timer()

    def close(self) -> None:
        """Stop watching."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set_timer(self) -> None:
        self._due = self._loop.time() + TICK_SECONDS
        self._timer = self._loop.call_at(self._due, self._tick)

    def _tick(self) -> None:
        # The next tick counts from now, not from when this one was due: a loop that was held up for
        # long has one late timer, and not one for each second.
        now = self._loop.time()
        self._durations.observe(max(now - self._due, 0.0))
        self._timer = None
        if now < self._until:
            self._set_timer()
