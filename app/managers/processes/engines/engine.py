"""What an engine is: it runs jobs, and in each job the keeper of one kernel."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol, runtime_checkable

from ....keeper.limits import ProcessLimits
from ...errors import KeeperUnavailable

__all__ = [
    "Engine",
    "EngineOptions",
    "Job",
    "JobState",
    "Order",
    "ParkingEngine",
    "Strangers",
]


class JobState(StrEnum):
    """The state of a job."""

    WAITING = "waiting"
    """It has not begun to run."""
    RUNNING = "running"
    """It runs, as far as the engine knows."""
    ENDED = "ended"
    """It has ended, and never runs again."""


class Job(NamedTuple):
    """A job, as its engine has it. Its labels name its keeper, and the generation."""

    where: str
    """The engine's own name or id for the job."""
    keeper_id: str
    generation: int
    state: JobState
    words: str = ""
    """What the engine says of the job: why it waits, or when it will be ended."""
    is_nobodys: bool = False
    """Whether the kernel has no owner yet, as far as the engine knows (`ParkingEngine`)."""

    @property
    def is_alive(self) -> bool:
        """Whether a process of this job may run, now or later."""
        return self.state is not JobState.ENDED


class Order(NamedTuple):
    """A job that is to be submitted, with the keeper of a kernel, in one generation."""

    kernel_id: str
    keeper_id: str
    owner: str
    """The kernel's owner; empty for a warm kernel, which has no owner yet (`ParkingEngine`)."""
    generation: int
    options: Any
    """The options of the engine's kind (`EngineOptions`)."""
    stdin: bytes
    """The bytes that the job's process reads from its stdin. There are secrets in them."""
    limits: ProcessLimits
    """The limits of all kernels of the owner together: one job need not get more."""


class EngineOptions(Protocol):
    """The options of an engine in a kernelspec, as they were checked."""

    @property
    def directory(self) -> str:
        """Where kernels work, as the job sees it."""

    def root_there(self, root_dir: Path) -> str:
        """The job's directory that has the files of this server's root directory; empty for none.

        If there is one, a kernel works below it, in the directory that its path names.
        """

    @property
    def address(self) -> str:
        """Where jobs reach this server, as ``host:port``; empty for the server's own addresses."""

    @property
    def engine(self) -> str:
        """A text that names the engine: kernels whose options have the same share one `Engine`."""

    @property
    def patience(self) -> float:
        """How many seconds a keeper may take to dial in, from the submission of its job."""


class Engine(Protocol):
    """One engine that runs jobs of this service.

    Each method has a bound, and raises `HostUnreachable` if the engine does not answer. That an
    engine does not answer says nothing about its jobs.
    """

    name: str
    """The engine, for people."""

    absent_is_ended: bool
    """Whether a job that the engine had, and has no more, has ended with all its processes."""

    async def submit(self, order: Order) -> None:
        """Have a job run. Raises `HostUnusable`.

        If the engine refuses the job, nothing of it is left. If the engine does not answer
        (`HostUnreachable`), there may be a job, although this has tried to end it.
        """

    async def find(self, keeper_id: str) -> list[Job]:
        """The jobs of one keeper, by their labels; the newest comes last."""

    def watch(self) -> AsyncGenerator[Sequence[Job], None]:
        """Yield all jobs of this service: at first, whenever one has changed, and now and then.

        There is one stream for all kernels. It raises when the engine goes away.
        """

    async def cancel(self, job: Job) -> None:
        """End a job, and remove what is left of it; returns when it is gone. One that is gone
        already is no error.
        """

    async def explain(self, job: Job) -> KeeperUnavailable:
        """The error that says, in the engine's words, why a job has ended."""

    async def joined(self, keeper_id: str, generation: int) -> None:
        """Remove the secret of a job whose keeper has joined. Raises nothing."""

    async def close(self) -> None:
        """Close the connections to the engine."""


@runtime_checkable
class ParkingEngine(Protocol):
    """An engine whose jobs may be submitted for warm kernels, which get an owner later."""

    async def own(self, keeper_id: str, generation: int, owner: str) -> None:
        """Label a job with the owner that its kernel has from now on.

        Raises `HostUnusable` if the job is not there, or the engine does not answer: the kernel
        must not be given to the owner then.
        """


UNKNOWN_SECONDS: Final = 1800.0
"""How long a job of a kernel that this server does not know is left alone: the server may take so
long to adopt its kernels."""

ENDED_SECONDS: Final = 60.0
"""The same for a job that has ended: a kernel that is adopted a little later asks how it ended."""


class Strangers:
    """The jobs of kernels that are not known here (*strangers*), and since when each was seen.

    They are not ended at once: the kernel may be about to be adopted, or the keeper about to end by
    itself.
    """

    def __init__(self, seconds: float = UNKNOWN_SECONDS) -> None:
        self._seconds = seconds
        self._since: dict[str, float] = {}

    def see(self, jobs: Sequence[Job], known: dict[str, int], now: float) -> list[Job]:
        """The jobs that are to be ended now, among ``jobs``, which are all that the engine has.

        ``known`` has, by keeper, the newest generation of its jobs; jobs of earlier generations are
        strangers, too. A stranger without an owner is ended at once: it was the job of a warm
        kernel, whose server was killed. ``now`` is in seconds of a monotonic clock.
        """
        strangers = {
            job.where: job
            for job in jobs
            if job.keeper_id not in known or job.generation < known[job.keeper_id]
        }
        # Made anew each time: a job that has become known, or is gone, is forgotten here. The times
        # are this server's: the engine's clock may differ.
        since = self._since
        self._since = {where: since.get(where, now) for where in strangers}
        return [
            job
            for where, job in strangers.items()
            if job.is_nobodys or now - self._since[where] >= self._patience(job)
        ]

    def _patience(self, job: Job) -> float:
        return self._seconds if job.is_alive else min(self._seconds, ENDED_SECONDS)
