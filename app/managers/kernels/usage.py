"""The usage of kernels: sampled while clients ask about it, and remembered for a while.

The keeper takes the samples. A kernel is sampled for a minute after a request about its usage.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Final, Literal, NamedTuple, Protocol, TypeVar

import msgspec
from msgspec import Meta

from ...keeper.limits import ProcessLimits
from ...log_formats import about
from ...protocol.messages import format_timestamp
from ..errors import KeeperUnavailable
from ..messages.traffic import Traffic
from ..processes.keeper.kept import ProcessUsage

__all__ = [
    "KernelUsage",
    "LimitModel",
    "Measured",
    "Series",
    "UsagePoint",
    "UsageSampler",
    "UsedTogether",
    "rounded_cpu",
    "sum_of_known",
]

T = TypeVar("T", int, float)

logger = logging.getLogger(__name__)

FRESH_SECONDS: Final = 1.0
"""A sample up to this age is used again, as many may ask."""

PERIOD_SECONDS: Final = 5.0
"""Seconds between two samples of a kernel that clients ask about."""

WANTED_SECONDS: Final = 60.0
"""How long a kernel is sampled after a request about its usage."""

HISTORY_SECONDS: Final = 600.0
POINTS: Final = int(HISTORY_SECONDS / PERIOD_SECONDS)

RECENT_SECONDS: Final = 30.0
"""How old samples may be if many kernels are asked about at once."""

LATELY_SECONDS: Final = 120.0
"""Up to this age a sample of a kernel counts in the sum over several kernels."""

REFRESH_SECONDS: Final = 2.0
"""How long a request waits for new samples of many kernels."""

AT_ONCE: Final = 32
"""How many kernels are sampled at a time."""

RATE_SECONDS: Final = 0.5
"""The shortest time in which a share of the processors is measured."""


class LimitModel(msgspec.Struct):
    """One limit of a kernel's owner."""

    value: Annotated[
        float,
        Meta(description="Bytes of memory, processors, processes with their threads, or files."),
    ]
    enforced: Annotated[
        Literal["cgroup", "setrlimit", "none"],
        Meta(
            description="`cgroup`: for all kernels of the owner together. `setrlimit`: for each "
            "process by itself; `processes`, for all that run as the owner's user. `none`: it "
            "cannot be enforced on this machine."
        ),
    ]


class UsagePoint(msgspec.Struct):
    """One sample of the past."""

    at: Annotated[str, Meta(description="When it was taken, UTC.")]
    cpu: Annotated[
        float | None, Meta(description="Processors that were busy since the one before.")
    ]
    memory: Annotated[int | None, Meta(description="Bytes.")]
    messages: Annotated[
        int, Meta(description="How many messages had gone into its log by then.")
    ] = 0


class KernelUsage(msgspec.Struct):
    """What a kernel uses of the machine. A figure that cannot be had is null."""

    kernel_id: Annotated[str, Meta(description="The kernel's id.")]
    at: Annotated[str, Meta(description="When this was sampled, UTC.")]
    pid: Annotated[
        int | None,
        Meta(description="Its process; null if it has none, or none that is sampled from here."),
    ]
    cpu_seconds: Annotated[
        float | None,
        Meta(
            description="Processors' time of its processes. With no control group, those that "
            "have ended unasked for are not in it."
        ),
    ]
    cpu: Annotated[
        float | None,
        Meta(
            description="Processors that it kept busy since the last sample; 1 is one processor. "
            "Null for the first one."
        ),
    ]
    memory: Annotated[int | None, Meta(description="Bytes of memory of its processes.")]
    memory_kind: Annotated[
        Literal["cgroup", "pss", "rss"] | None,
        Meta(
            description="How memory is counted. `cgroup`: what the limit is about, files that "
            "were read included. `pss`: with a fair part of what is shared. `rss`: what several "
            "processes share counts several times."
        ),
    ]
    owner_memory: Annotated[
        int | None,
        Meta(description="With a control group: of all kernels of its owner together."),
    ]
    processes: Annotated[int | None, Meta(description="Its processes.")]
    threads: Annotated[int | None, Meta(description="Threads of these.")]
    open_files: Annotated[int | None, Meta(description="Descriptors that these have open.")]
    bytes_said: Annotated[
        int, Meta(description="Bytes of all messages that have gone into its log.")
    ]
    messages: Annotated[int, Meta(description="How many messages those are.")]
    executions: Annotated[
        int, Meta(description="Executions that it has begun since the server was started.")
    ]
    limits: Annotated[
        dict[str, LimitModel],
        Meta(description="By `memory`, `cpu`, `processes` and `open_files`, as far as there are."),
    ]
    history: Annotated[
        list[UsagePoint] | None,
        Meta(
            description="With `?history=true`, up to ten minutes, the oldest first. A sample is "
            "taken every 5 s from the first time that somebody asks, until nobody has for a minute."
        ),
    ] = None


class Measured(Protocol):
    """What `UsageSampler` needs of a kernel."""

    @property
    def id(self) -> str:
        """The kernel's id."""

    @property
    def traffic(self) -> Traffic:
        """The kernel's messages."""

    @property
    def limits(self) -> ProcessLimits:
        """The limits of the kernel's processes."""

    async def usage(self) -> ProcessUsage | None:
        """The present usage of the kernel's processes; None if they cannot be measured."""


class UsedTogether(NamedTuple):
    """What several kernels use together; each figure is None where no kernel's is known."""

    memory: int | None
    cpu: float | None
    threads: int | None


class Series:
    """The samples of one kernel, the newest last. Times are in seconds since the epoch."""

    def __init__(self) -> None:
        self.latest: ProcessUsage | None = None
        self.at = float("-inf")
        self.tried = float("-inf")  # when the last sample was begun, by the monotonic clock
        self.cpu: float | None = None
        self._rated: ProcessUsage | None = None  # the sample from which the next rate is measured
        self._points: deque[UsagePoint] = deque(maxlen=POINTS)

    def is_fresh(self, seconds: float) -> bool:
        """Whether the last sample is younger than so many seconds."""
        # By the wall clock, as the time of a sample is told to clients. A sample from the future
        # is one that was taken before the clock was set back.
        return 0 <= time.time() - self.at < seconds

    def add(self, sample: ProcessUsage | None, now: float, messages: int = 0) -> None:
        """Add a sample, or None if there is none; ``messages`` were in the log by then."""
        self.latest, self.at = sample, now
        if sample is None:
            self.cpu = self._rated = None
            return
        self._rate(sample)
        self._points.append(UsagePoint(format_timestamp(now), self.cpu, sample.memory, messages))

    def _rate(self, sample: ProcessUsage) -> None:
        before = self._rated
        if before is None or before.pid != sample.pid:
            self.cpu, self._rated = None, sample
        elif before.cpu_seconds is not None and sample.cpu_seconds is not None:
            seconds = sample.at - before.at
            if seconds >= RATE_SECONDS:
                # Without a control group, a process that ends takes its time with it.
                spent = max(sample.cpu_seconds - before.cpu_seconds, 0.0)
                self.cpu, self._rated = rounded_cpu(spent / seconds), sample

    @property
    def points(self) -> list[UsagePoint]:
        """The samples of the last `HISTORY_SECONDS`, as far as there are."""
        oldest = format_timestamp(self.at - HISTORY_SECONDS)
        return [point for point in self._points if point.at >= oldest]


class UsageSampler:
    """Samples the kernels whose usage clients ask about. `close` it."""

    def __init__(self) -> None:
        self._series: dict[str, Series] = {}
        self._kernels: dict[str, tuple[Measured, float]] = {}  # with when they were asked about
        self._sampling: dict[str, asyncio.Task[None]] = {}
        self._periodic: asyncio.Task[None] | None = None

    async def usage(self, kernel: Measured, *, history: bool = False) -> KernelUsage:
        """What a kernel uses; at most `FRESH_SECONDS` old. Raises `KeeperUnavailable`."""
        series = await self.latest(kernel, FRESH_SECONDS)
        self._kernels[kernel.id] = kernel, time.monotonic()
        if self._periodic is None:
            self._periodic = asyncio.get_running_loop().create_task(
                self._sample_on(), name="sample kernels"
            )
        model = model_of(kernel, series)
        if history:
            model.history = series.points
        return model

    async def latest(self, kernel: Measured, seconds: float) -> Series:
        """The samples of a kernel, the last no older than so many seconds."""
        series = self._series.get(kernel.id)
        if series is None:
            series = self._series[kernel.id] = Series()
        if not series.is_fresh(seconds):
            await self._sample(kernel, series)
        return series

    async def refresh(self, kernels: Iterable[Measured], seconds: float = RECENT_SECONDS) -> None:
        """Have samples of these kernels that are no older than so many seconds, or of as many of
        them as can be sampled within `REFRESH_SECONDS`.
        """
        # Side by side, so that a host that answers slowly delays no other host's samples; but not
        # all at once, as there may be thousands. The timeout ends no sample (`_sample`).
        room = asyncio.Semaphore(AT_ONCE)

        async def one(kernel: Measured) -> None:
            async with room:
                await self._try(kernel, seconds)

        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(REFRESH_SECONDS):
                await asyncio.gather(*map(one, kernels))
        self._forget_old()

    async def refresh_oldest(self, kernels: Iterable[Measured], most: int) -> None:
        """Have new samples of ``most`` kernels, those that were tried longest ago (`refresh`).

        A sample that is younger than a period will do. If this is called again and again, many
        kernels are sampled in turn.
        """
        seconds = 0.9 * PERIOD_SECONDS
        none = Series()
        known = [(self._series.get(kernel.id, none), kernel) for kernel in kernels]
        stale = [each for each in known if not each[0].is_fresh(seconds)]
        # By when they were tried: those that cannot be sampled must not come first for ever.
        stale.sort(key=lambda each: each[0].tried)
        await self.refresh([kernel for _, kernel in stale[:most]], seconds)

    def last(self, kernel_id: str) -> Series | None:
        """The samples of a kernel, if there are any."""
        return self._series.get(kernel_id)

    def used_together(self, kernel_ids: Iterable[str]) -> UsedTogether:
        """The sums over those of these kernels that were sampled lately. No sample is taken."""
        known = [series for each in kernel_ids if (series := self._series.get(each)) is not None]
        lately = [series for series in known if series.is_fresh(LATELY_SECONDS)]
        samples = [series.latest for series in lately if series.latest is not None]
        return UsedTogether(
            sum_of_known(sample.memory for sample in samples),
            rounded_cpu(sum_of_known(series.cpu for series in lately)),
            sum_of_known(sample.threads for sample in samples),
        )

    async def _sample(self, kernel: Measured, series: Series) -> None:
        """Take one sample; a caller that asks for one meanwhile waits for the same."""
        task = self._sampling.get(kernel.id)
        if task is None:
            series.tried = time.monotonic()
            task = asyncio.get_running_loop().create_task(self._take(kernel, series))
            self._sampling[kernel.id] = task
            task.add_done_callback(lambda done: self._on_taken(kernel.id, done))
        # Several callers share the task: the cancellation of one, such as the timeout of `refresh`,
        # must not reach it. The keeper's bound for an answer ends the task in any case.
        await asyncio.shield(task)

    def _on_taken(self, kernel_id: str, task: asyncio.Task[None]) -> None:
        self._sampling.pop(kernel_id, None)
        if not task.cancelled():
            task.exception()  # looked at here, as perhaps no caller waits any more

    async def _take(self, kernel: Measured, series: Series) -> None:
        sample = await kernel.usage()
        series.add(sample, time.time(), kernel.traffic.log.end.cursor - 1)

    async def _try(self, kernel: Measured, seconds: float) -> None:
        """As `latest`; a failure is logged, and does not end the samples of other kernels."""
        try:
            await self.latest(kernel, seconds)
        except KeeperUnavailable as error:
            about(logger, kernel_id=kernel.id).debug(
                "kernel %s is not sampled: %s", kernel.id, error.message
            )
        except Exception:
            about(logger, kernel_id=kernel.id).exception(
                "kernel %s could not be sampled", kernel.id
            )

    async def _sample_on(self) -> None:
        while self._kernels:
            await asyncio.sleep(PERIOD_SECONDS)
            for kernel_id, (kernel, asked) in [*self._kernels.items()]:
                if time.monotonic() - asked > WANTED_SECONDS:
                    del self._kernels[kernel_id]
                    continue
                await self._try(kernel, PERIOD_SECONDS * 0.9)
            self._forget_old()
        # Nothing is awaited since the last look at the kernels: a request about a kernel that comes
        # after that look finds no task here, and begins the next one.
        self._periodic = None

    def _forget_old(self) -> None:
        # A series whose sample is under way stays, however old it is: the sample goes into it, and
        # a caller that comes meanwhile waits for that sample, and must find it in its series.
        oldest = time.monotonic() - HISTORY_SECONDS
        for kernel_id, series in [*self._series.items()]:
            if series.tried < oldest and kernel_id not in self._sampling:
                del self._series[kernel_id]

    async def close(self) -> None:
        """End the tasks that take samples."""
        tasks = [*self._sampling.values(), *([self._periodic] if self._periodic else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def sum_of_known(figures: Iterable[T | None]) -> T | None:
    """The sum of the figures that are not None; None if none is."""
    known = [figure for figure in figures if figure is not None]
    return sum(known[1:], known[0]) if known else None


def rounded_cpu(cpu: float | None) -> float | None:
    """Processors to four places: a sum of such figures may have an error in the seventeenth."""
    return None if cpu is None else round(cpu, 4)


def model_of(kernel: Measured, series: Series) -> KernelUsage:
    """The usage of a kernel as clients see it, made from its samples."""
    used, end = series.latest, kernel.traffic.log.end
    figures = {} if used is None else _rounded(used)
    return KernelUsage(
        kernel_id=kernel.id,
        at=format_timestamp(series.at),
        **{name: figures.get(name) for name in _FIGURES},
        cpu=series.cpu,
        bytes_said=end.offset,
        messages=end.cursor - 1,
        executions=kernel.traffic.tracker.begun,
        limits=dict(_limits(kernel.limits, {} if used is None else used.enforced)),
    )


_FIGURES: Final = (
    *("pid", "cpu_seconds", "memory", "memory_kind", "owner_memory"),
    *("processes", "threads", "open_files"),
)


def _rounded(used: ProcessUsage) -> dict[str, Any]:
    figures: dict[str, Any] = {name: getattr(used, name) for name in _FIGURES}
    if used.cpu_seconds is not None:
        figures["cpu_seconds"] = round(used.cpu_seconds, 3)
    return figures


def _limits(limits: ProcessLimits, enforced: Mapping[str, str]) -> Iterator[tuple[str, LimitModel]]:
    for name in sorted(limits.limited):
        how: Any = enforced.get(name, "none")
        yield name, LimitModel(getattr(limits, name), how)
