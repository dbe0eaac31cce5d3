"""A server's record of the job of one kernel."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

from ....keeper.limits import NO_LIMITS, ProcessLimits
from ...errors import KeeperUnavailable
from ..hosts.errors import HostUnusable
from .engine import Job
from .kinds import Chosen

__all__ = ["Work", "kernel_of"]


def kernel_of(keeper_id: str) -> str:
    """The id of the kernel whose job has this keeper."""
    return keeper_id.partition(".")[0]


class Work:
    """The job of one kernel, in all its generations.

    ``left`` is what an earlier server has noted of the job (`noted`), or empty. ``on_words`` is
    called with what the engine says of the job, when that has changed.
    """

    def __init__(
        self,
        kernel_id: str,
        owner: str,
        chosen: Chosen,
        left: Mapping[str, Any],
        on_words: Callable[[str], None],
        limits: ProcessLimits = NO_LIMITS,
    ) -> None:
        self.kernel_id = kernel_id
        self.owner = owner
        self.limits = limits
        self.chosen = chosen
        # Not the kernel's id alone: another kernel may have the same id, once this one is gone.
        self.keeper_id = str(left.get("keeper_id") or f"{kernel_id}.{secrets.token_hex(4)}")
        self.generation = int(left.get("job", 0))
        """The generation of the newest job; 0 before the first."""
        self.is_out = bool(left)
        """Whether a job was submitted, or may have been, whose end was not seen yet."""
        self.has_joined = bool(left)
        """Whether the keeper in the newest job has dialled in, and may have launched a process."""
        self.was_seen = False
        """Whether this server has seen a job of this kernel in its engine."""
        self.is_wanted = False
        """Whether a launch waits for a keeper, so that a job may be submitted."""
        self.was_tried = False
        """Whether a submission was tried since a launch wants a job."""
        self.over: KeeperUnavailable | None = None
        """Why the newest job has ended, if it has."""
        self.submission: asyncio.Task[None] | None = None
        """The task that submits a job, which may take long; None if there is none."""
        self.lock = asyncio.Lock()
        self._on_words = on_words
        self.words = ""
        """What the engine says of the job now, for people; empty for nothing."""

    @property
    def name(self) -> str:
        """The job, for people."""
        return f"the job of kernel {self.kernel_id}"

    @property
    def noted(self) -> dict[str, Any]:
        """The data by which the next server finds the job."""
        return {**self.chosen.as_json, "job": self.generation, "keeper_id": self.keeper_id}

    async def submit(self, submission: Coroutine[Any, Any, None]) -> None:
        """Submit a job. Raises what the engine does, and `HostUnusable` after a `give_up`."""
        # A task of its own, which `give_up` can cancel without cancelling the caller: the caller is
        # the attempt to connect, which others share.
        task = self.submission = asyncio.get_running_loop().create_task(submission, name="submit")
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            # The end of the task is waited for: in it the engine removes what it has made so far,
            # and the caller has the lock until then.
            task.cancel()
            await asyncio.wait({task})
            raise
        finally:
            self.submission = None
        if task.cancelled():
            raise HostUnusable("The job was given up before it was there")
        task.result()

    def give_up(self) -> None:
        """Cancel the submission of a job, if there is one."""
        if self.submission is not None:
            self.submission.cancel()

    def alive(self, jobs: Sequence[Job]) -> Job | None:
        """The newest of these jobs that is this kernel's, and may run; None if there is none.

        A job whose end was seen does not count: the engine may list it as running or being removed
        for a while yet, and a list may have been made before that end.
        """
        for job in reversed(jobs):  # the newest first
            is_over = job.generation == self.generation and self.over is not None
            if job.is_alive and job.generation >= self.generation and not is_over:
                return job
        return None

    def on_job(self, job: Job) -> None:
        """Note that the engine has this job of the kernel, which is alive."""
        # The generation may be later than the one that was noted: an earlier server was killed
        # between the submission of the job and the record of the process.
        if job.generation > self.generation:
            self.generation, self.over = job.generation, None
        self.is_out = self.was_seen = True
        self.tell(job.words)

    def tell(self, words: str) -> None:
        """Tell what the engine says, if that has changed."""
        if words != self.words:
            self.words = words
            self._on_words(words)
