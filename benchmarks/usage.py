"""What processes use: the server's beside the keeper's."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Self

import psutil

__all__ = ["Costs", "Usage"]


@dataclass(frozen=True)
class Usage:
    """CPU seconds since a process began; resident bytes and descriptors of now, or a difference."""

    cpu: float
    memory: int
    descriptors: int

    @classmethod
    def of(cls, pid: int) -> Self:
        """What a process uses. Raises `psutil.NoSuchProcess`."""
        process = psutil.Process(pid)
        return cls(_cpu_seconds(process), process.memory_info().rss, process.num_fds())

    @classmethod
    def sum(cls, usages: Iterable[Usage]) -> Self:
        """What several use together."""
        cpu, memory, descriptors = 0.0, 0, 0
        for usage in usages:
            cpu += usage.cpu
            memory += usage.memory
            descriptors += usage.descriptors
        return cls(cpu, memory, descriptors)

    def __sub__(self, before: Usage) -> Usage:
        return Usage(
            self.cpu - before.cpu,
            self.memory - before.memory,
            self.descriptors - before.descriptors,
        )


@dataclass(frozen=True)
class Costs:
    """What a server uses, and its keeper if it has one."""

    server: Usage
    keeper: Usage | None = None

    def __sub__(self, before: Costs) -> Costs:
        """A keeper that was not there before has used nothing before."""
        keeper = self.keeper
        if keeper is not None and before.keeper is not None:
            keeper = keeper - before.keeper
        return Costs(self.server - before.server, keeper)

    def figures(self, key: str, amount: Callable[[Usage], float]) -> dict[str, float]:
        """Three lines: the server's as ``key``, the keeper's, and both together.

        Without a keeper there is no line for it, and the server's is all there is.
        """
        server = amount(self.server)
        if self.keeper is None:
            return {key: server, f"{key}_both": server}
        keeper = amount(self.keeper)
        return {key: server, f"{key}_keeper": keeper, f"{key}_both": server + keeper}

    def cpu(self, key: str, times: float) -> dict[str, float]:
        """The lines of the CPU seconds, multiplied."""
        return self.figures(key, lambda usage: usage.cpu * times)


def _cpu_seconds(process: psutil.Process) -> float:
    if sys.platform == "linux":
        # The clock of another process, which counts nanoseconds [clock_getcpuclockid(3)]; what
        # /proc says is in hundredths of a second, of which an idle server needs one or two.
        return time.clock_gettime(~process.pid << 3 | 2)
    times = process.cpu_times()
    return float(times.user + times.system)
