"""When one kernel was last used, and how many requests it has begun with."""

from __future__ import annotations

import time

from ..telemetry.counters import Counters

__all__ = ["Activity"]


class Activity:
    """The activity of one kernel. Its counters are those of the service."""

    def __init__(self, counters: Counters) -> None:
        self.last = time.time()
        """When the kernel or its clients last said anything, in seconds since the epoch."""
        # When the kernel last worked on a client's request, in monotonic seconds: culling counts
        # from here. Unlike `last`, output of a background thread does not move it.
        self.idle_since = time.monotonic()
        self.begun = 0
        """How many requests of clients the kernel has begun with: its busy statuses, counted."""
        self.counters = counters
        self._execution_began: float | None = None  # in monotonic seconds

    def on_launch(self) -> None:
        """Forget the execution that the process before ran: a new process was launched."""
        self._execution_began = None

    def touch(self) -> None:
        """Begin the kernel's idle time anew: a client has just come to use it."""
        self.last = time.time()
        self.idle_since = time.monotonic()

    def time_execution(self, reported: str) -> None:
        """Measure an execution from a busy status to the next idle one.

        The main shell runs one request at a time, so the two are of the same execution.
        """
        now = time.monotonic()
        if reported == "busy":
            self._execution_began = now
        elif reported == "idle" and self._execution_began is not None:
            self.counters.execution_seconds.observe(now - self._execution_began)
            self._execution_began = None
