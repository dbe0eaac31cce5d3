"""Ends kernels whose time is up by their owners' limits, and announces that before."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from typing import Final
from weakref import WeakKeyDictionary

from ...log_formats import about
from ..limits.ending import TimePlan, due
from ..limits.shares import Shares
from ..state import Lifecycle
from .kernel import Kernel

__all__ = ["TimeLimits"]

logger = logging.getLogger(__name__)

LONGEST_PAUSE: Final = 5.0
"""How many seconds pass between two looks at the kernels, at the most."""

LOOKS: Final = 20.0
"""How often the kernels are looked at, at the least, within the shortest limit of any owner."""


class TimeLimits:
    """Looks at the kernels again and again, if any owner's time is limited.

    ``end`` begins to stop a kernel. Its arguments are the kernel, for how many seconds it has been
    idle, and the name of the limit.
    """

    def __init__(
        self,
        kernels: Iterable[Kernel],
        shares: Shares,
        end: Callable[[Kernel, float, str], None],
    ) -> None:
        self._kernels = kernels
        self._shares = shares
        self._end = end
        self._plans: WeakKeyDictionary[Kernel, TimePlan] = WeakKeyDictionary()
        # When each kernel was created, by the monotonic clock. The registry has that time by the
        # wall clock; a jump of that clock changes nothing for kernels that this server knows.
        self._created: WeakKeyDictionary[Kernel, float] = WeakKeyDictionary()

    async def run(self) -> None:
        """End kernels until cancelled; returns at once when no owner's time is limited."""
        least = self._shares.policy.least("idle_timeout", "lifetime")
        if least is None:
            return
        pause = min(LONGEST_PAUSE, least / LOOKS)
        while True:
            await asyncio.sleep(pause)
            for kernel in self._kernels:
                try:
                    self.look_at(kernel, time.monotonic())
                except Exception:  # a bug here must not let all others run for ever
                    about(logger, kernel_id=kernel.id).exception(
                        "the time of kernel %s could not be looked at", kernel.id
                    )

    def look_at(self, kernel: Kernel, now: float) -> None:
        """Announce a kernel's end, or begin it, if the time for that has come."""
        lifecycle = kernel.state.lifecycle
        if not kernel.counts or lifecycle is Lifecycle.STOPPING:
            return
        limits = self._shares.limits(kernel.ownership)
        if limits.idle_timeout is None and limits.lifetime is None:
            return
        created = self._created.get(kernel)
        if created is None:
            created = self._created[kernel] = now - max(0.0, time.time() - kernel.created)
        idle = now - kernel.traffic.activity.idle_since
        # A kernel that starts, or cannot be reached, is not idle.
        is_idle = lifecycle is Lifecycle.RUNNING and not kernel.state.at_work
        comes = due(limits, age=now - created, idle=idle if is_idle else None)
        # An end that fails (the process cannot be killed) is begun again by a later look.
        ends, left = self._plans.setdefault(kernel, TimePlan()).next(comes, now)
        if comes is not None and left is not None:
            kernel.reports.ends_soon(comes.limit, left)
            kernel.traffic.voice.warn(
                f"this kernel is stopped in {left:.3g} s, by its owner's limit {comes.limit}."
            )
        if comes is not None and ends:
            about(logger, kernel_id=kernel.id).warning(
                "kernel %s (%s) is stopped by its owner's limit %s",
                kernel.id,
                kernel.name,
                comes.limit,
            )
            self._end(kernel, idle, comes.limit)
