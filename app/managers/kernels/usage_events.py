"""Events that tell the usage of kernels, for subscribers to the server's events."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Final, Protocol

from ...log_formats import about
from ..errors import KeeperUnavailable
from ..state import KernelState
from ..telemetry.events import Events
from ..telemetry.reports import KernelReports
from .usage import Measured, UsageSampler

__all__ = ["Reported", "UsageEvents"]

logger = logging.getLogger(__name__)

EVENT_SECONDS: Final = 60.0
"""Seconds between two events about a kernel that does something."""


class Reported(Measured, Protocol):
    """What `UsageEvents` needs of a kernel."""

    @property
    def state(self) -> KernelState:
        """The kernel's state."""

    @property
    def reports(self) -> KernelReports:
        """The kernel's reports."""


class UsageEvents:
    """Emits an event about each of ``kernels``, once a minute while ``events`` has subscribers.

    A kernel that has run and published nothing since its last event is passed over, so idle kernels
    cost nothing. Make this inside a running event loop, and `close` it there.
    """

    def __init__(self, kernels: Iterable[Reported], sampler: UsageSampler, events: Events) -> None:
        self._kernels = kernels
        self._sampler = sampler
        self._events = events
        self._told: dict[str, int] = {}  # by kernel: the log's next number at its last event
        self._task = asyncio.get_running_loop().create_task(self._run(), name="usage events")

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(EVENT_SECONDS)
            if self._events.has_subscribers:
                await self._tell()

    async def _tell(self) -> None:
        # Kernels that have gone are forgotten with the earlier dict. A kernel that cannot be
        # sampled is noted all the same, and gets an event when it does something more.
        before, self._told = self._told, {}
        for kernel in self._kernels:
            said = kernel.traffic.log.end.cursor
            self._told[kernel.id] = said
            if said == before.get(kernel.id) and not kernel.state.at_work:
                continue
            try:
                series = await self._sampler.latest(kernel, EVENT_SECONDS / 2)
                if series.latest is not None:
                    kernel.reports.used(series.latest.cpu_seconds, series.latest.memory)
            except KeeperUnavailable:
                pass  # the kernel gets an event when its keeper answers and it does something
            except Exception:  # one kernel must not end the events of all others
                about(logger, kernel_id=kernel.id).exception(
                    "what kernel %s uses could not be told", kernel.id
                )

    def close(self) -> None:
        """Emit no more events."""
        self._task.cancel()
