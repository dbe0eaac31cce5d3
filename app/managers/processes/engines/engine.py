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
    """What a job does."""

    WAITING = "waiting"
    """It has not begun to run."""
    RUNNING = "running"
    """It runs, as far as the engine knows."""
    ENDED = "ended"
    """It has ended, and never runs again."""


class Job(NamedTuple):
    """A job, as its engine has it. Its labels name its keeper, and the generation."""

    where: str
    """The engine's own name for it."""
    keeper_id: str
    generation: int
    state: JobState
    words: str = ""
    """What the engine says of it: why it waits, or when it will be ended."""
    is_nobodys: bool = False
    """Whether its kernel has no owner yet, as far as the engine knows (`ParkingEngine`)."""

    @property
    def is_alive(self) -> bool:
        """Whether a process of this job may run, now or later."""
        return self.state is not JobState.ENDED


class Order(NamedTuple):
    """What is to be submitted: a job with the keeper of this kernel, in this generation."""

    kernel_id: str
    keeper_id: str
    owner: str
    """Whose the kernel is; empty for a warm kernel, which has no owner yet (`ParkingEngine`)."""
    generation: int
    options: Any
    """The engine's, as `EngineOptions` has them."""
    stdin: bytes
    """What the job's process reads from its stdin. There are secrets in it."""
    limits: ProcessLimits
    """What all kernels of the owner may take together: one job has no use for more."""


class EngineOptions(Protocol):
    """The options of an engine in a kernelspec, as they were checked."""

    @property
    def directory(self) -> str:
        """Where kernels work, as the job sees it."""

    def root_there(self, root_dir: Path) -> str:
        """The job's directory that has the files of this server's root directory; empty for none.

        Kernels work below it then, where their paths say.
        """

    @property
    def address(self) -> str:
        """Where jobs reach this server, as ``host:port``; empty for what the server says."""

    @property
    def engine(self) -> str:
        """Which engine it is: options of equal ones share a connection to it."""

    @property
    def patience(self) -> float:
        """For how many seconds a keeper may be waited for, from the start of its job."""


class Engine(Protocol):
    """One engine that runs jobs of this service.

    Whatever asks raises `HostUnreachable` if the engine does not answer, and has a bound. That an
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
        """All jobs of this service: at first, whenever one has changed, and once in a while.

        One stream for all kernels. It raises when the engine goes away.
        """

    async def cancel(self, job: Job) -> None:
        """End a job, and remove what is left of it; returns when it is gone. One that is gone
        already is no error.
        """

    async def explain(self, job: Job) -> KeeperUnavailable:
        """Why a job has ended, in the engine's words, as the error of a start that fails by it."""

    async def joined(self, keeper_id: str, generation: int) -> None:
        """The keeper in this job has joined: its secret can be removed. Raises nothing."""

    async def close(self) -> None:
        """Close what is open."""


@runtime_checkable
class ParkingEngine(Protocol):
    """An engine whose jobs may be submitted for warm kernels, which get an owner later."""

    async def own(self, keeper_id: str, generation: int, owner: str) -> None:
        """Note whose a job is from now on. Raises `HostUnusable` if the job is not there, or the
        engine does not answer: the kernel must not be given to the owner then.
        """


UNKNOWN_SECONDS: Final = 1800.0
"""How long a job of a kernel that this server does not know is left alone: it may be adopting
kernels for as long."""

ENDED_SECONDS: Final = 60.0
"""The same of a job that has ended: a kernel that is adopted a little later asks how."""


class Strangers:
    """Which jobs are of no kernel that is known, and since when that was seen.

    A kernel may be about to be adopted, or its keeper about to end by itself.
    """

    def __init__(self, seconds: float = UNKNOWN_SECONDS) -> None:
        self._seconds = seconds
        self._since: dict[str, float] = {}

    def see(self, jobs: Sequence[Job], known: dict[str, int], now: float) -> list[Job]:
        """The jobs that are to be ended now, of all that there are.

        ``known`` has the newest generation of each keeper's jobs. Jobs of earlier ones are
        strangers, too. A stranger that is nobody's goes at once: a server that was killed has kept
        it for whoever would ask.
        """
        strangers = {
            job.where: job
            for job in jobs
            if job.keeper_id not in known or job.generation < known[job.keeper_id]
        }
        # Made anew each time: a job that is known meanwhile, or gone, is forgotten here, too. The
        # times are this server's: an engine's clock may be another.
        since = self._since
        self._since = {where: since.get(where, now) for where in strangers}
        return [
            job
            for where, job in strangers.items()
            if job.is_nobodys or now - self._since[where] >= self._patience(job)
        ]

    def _patience(self, job: Job) -> float:
        return self._seconds if job.is_alive else min(self._seconds, ENDED_SECONDS)
