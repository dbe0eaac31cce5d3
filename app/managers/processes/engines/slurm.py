"""The engine Slurm: a job is a batch job of one node."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final, NamedTuple, TypeVar
from urllib.parse import quote

from ...errors import KeeperUnavailable
from ...threads import DaemonThreads
from ..hosts.errors import HostUnreachable, HostUnusable
from .engine import Job, JobState, Order
from .slurm_commands import Commands
from .slurm_files import JobFiles
from .slurm_options import SlurmOptions, arguments, script
from .slurm_waits import SlurmWaits
from .slurm_words import (
    FORGOTTEN,
    QUEUE_FIELDS,
    RECORD_FIELDS,
    Seen,
    exit_of,
    labels_of,
    queued,
    recorded,
    refused,
    sight,
    why_ended,
)

__all__ = ["SlurmEngine"]

logger = logging.getLogger(__name__)

CALL_SECONDS: Final = 20.0
"""How long a command may take. Slurm's commands give up earlier by themselves, as configured."""

SUBMIT_SECONDS: Final = 60.0
"""How long sbatch may take, which tries again by itself while Slurm is busy."""

LOOK_SECONDS: Final = 3.0
"""The pause between two looks at the queue; a look is for all kernels."""

RECORDS_SECONDS: Final = 30.0
"""How long the accounting's records of jobs that have left the queue are used again."""

RECORDS_AT_ONCE: Final = 500
"""How many jobs one sacct is asked for: an argument of a command has 128 KiB at most (Linux)."""

RECORDS_DAYS: Final = 30
"""For how many days back sacct is asked: by default it tells of today's jobs only."""

END_SECONDS: Final = 90.0
"""How long a job may take to end: more than ``KillWait`` of Slurm's configuration."""

ENDING_SECONDS: Final = 2.0
"""How long `find` waits for a job that is just ending, until Slurm tells how it has ended."""

NO_ACCOUNTING: Final = "accounting storage is disabled"


_Result = TypeVar("_Result")


class _View(NamedTuple):
    """The jobs of this service at one moment: as Slurm tells them, by name, and as `Job`s."""

    seen: Mapping[str, Seen]
    jobs: Sequence[Job]


class SlurmEngine:
    """The jobs of this service that share the directory ``shared``.

    A job is known by its name, which has the names of the service, the directory and the keeper,
    and the generation. A job that was submitted, and was not `cancel`led yet, has a file in the
    directory, too. The controller forgets jobs some minutes after their end: then the accounting is
    asked how they have ended.
    """

    absent_is_ended = False
    """As `Engine.absent_is_ended`: an end counts if the job's node tells it, or no node is away."""

    def __init__(self, shared: str, service: str, on_words: Callable[[str, str], None]) -> None:  # noqa: ARG002
        self.name = "Slurm"
        digest = hashlib.sha256(shared.encode()).hexdigest()[:8]
        self._prefix = f"kernelkeep-{service}-{digest}-"
        self._files = JobFiles(shared, self._prefix)
        # A thread of its own: a network file system may block it, and must block no other thread.
        self._disk = DaemonThreads(1, "slurm")
        self._commands = Commands()
        self._waits = SlurmWaits()
        self._view = _View({}, ())
        self._looks = self._done = 0
        self._looking = asyncio.Lock()
        self._failure: KeeperUnavailable | None = None
        self._failed = 0.0
        self._submitting: set[str] = set()
        self._dismissed: set[str] = set()  # jobs that were cancelled, and that squeue still lists
        self._has_accounting = True
        self._records: tuple[frozenset[str], float, dict[str, Seen]] = (frozenset(), 0.0, {})

    # The verbs

    async def submit(self, order: Order) -> None:
        """As `Engine.submit`: the job may then wait in the queue for long."""
        options: SlurmOptions = order.options
        name = self._name(order.keeper_id, order.generation)
        words = [
            "sbatch",
            "--parsable",
            f"--job-name={name}",
            f"--comment=kernel={quote(order.kernel_id)} owner={quote(order.owner)[:300]}",
            # The job gets the environment of a login, and nothing of this server's.
            "--export=NONE",
            "--no-requeue",
            "--nodes=1",
            "--ntasks=1",
            "--chdir=/",
            f"--input={self._files.path(name, 'in')}",
            f"--output={self._files.path(name, 'out')}",
            f"--error={self._files.path(name, 'out')}",
            "--open-mode=append",
            *arguments(options, order.limits),
        ]
        self._submitting.add(name)  # before its file is there (`_look_now`)
        try:
            await self._on_disk(self._files.write, name, order.stdin)
            # Before sbatch: `_look_now` may see the job in the queue before sbatch has ended.
            self._waits.begin(name, options.pending_timeout, _now())
            answer = await self._commands.run(
                *words, seconds=SUBMIT_SECONDS, given=script(options.python)
            )
            if answer.status != 0:
                raise refused(answer)
        except BaseException as error:
            await self._withdraw(name, error)
            raise
        finally:
            self._submitting.discard(name)

    async def find(self, keeper_id: str) -> list[Job]:
        """As `Engine.find`."""
        until = _now() + ENDING_SECONDS
        while True:
            view = await self._look()
            jobs = [job for job in view.jobs if job.keeper_id == keeper_id]
            jobs.sort(key=lambda job: job.generation)
            # While a job completes, Slurm does not tell yet how it has ended. A caller that asks
            # why a kernel has ended waits for that, but not for long: an epilogue may take minutes.
            newest = self._seen(view, jobs[-1]) if jobs else None
            if newest is None or newest.state != "COMPLETING" or _now() >= until:
                return jobs
            await asyncio.sleep(0.3)

    async def watch(self) -> AsyncGenerator[Sequence[Job], None]:
        """As `Engine.watch`: the queue, again and again, in one process for all jobs."""
        while True:
            yield (await self._look()).jobs
            await asyncio.sleep(LOOK_SECONDS)

    async def cancel(self, job: Job) -> None:
        """As `Engine.cancel`. Raises `HostUnreachable` if the job's node does not tell its end."""
        name = self._name(job.keeper_id, job.generation)
        # ``job`` may be out of date, and its ``where`` be a name: the id is looked up.
        view = await self._look()
        seen = view.seen.get(name)
        if seen is not None and not seen.is_over:
            await self._end(name, seen.job_id)
            view = self._view  # of the look that has seen the end, or of a later one
        if lost := self._lost(view, name):
            raise HostUnreachable(lost)
        # The files go last: as long as they are there, the next server looks for this job. squeue
        # lists the job for some minutes more, and this server must not see its end again.
        await self._on_disk(self._files.remove, name)
        self._dismissed.add(name)

    async def explain(self, job: Job) -> KeeperUnavailable:
        """As `Engine.explain`."""
        name = self._name(job.keeper_id, job.generation)
        if (why := self._waits.why(name)) is not None:
            return why
        # The keeper's output is in the file when Slurm tells the end, unless a network file system
        # is late: then only Slurm's words are told.
        said = await self._on_disk(self._files.tail, name)
        seen = self._view.seen.get(name) or Seen("", name, FORGOTTEN)
        if seen.job_id and seen.exit is None:
            asked = ("scontrol", "--oneliner", "show", "job", seen.job_id)
            answer = await self._commands.run(*asked, seconds=CALL_SECONDS)
            seen = seen._replace(exit=exit_of(answer.output))
        if seen.state == "CANCELLED" and seen.by is None:
            records = await self._ask_records([name])
            seen = seen._replace(by=records[name].by if name in records else None)
        return why_ended(seen, said)

    async def joined(self, keeper_id: str, generation: int) -> None:
        """As `Engine.joined`: the file with the job's stdin is removed."""
        try:
            name = self._name(keeper_id, generation)
            await self._on_disk(self._files.remove, name, "in")
        except KeeperUnavailable as error:
            logger.warning("the secret of %s stays, and works no more: %s", keeper_id, error)

    async def close(self) -> None:
        """As `Engine.close`."""
        self._disk.shutdown()

    # Helpers

    def _name(self, keeper_id: str, generation: int) -> str:
        return f"{self._prefix}{keeper_id}-{generation}"

    def _seen(self, view: _View, job: Job) -> Seen | None:
        return view.seen.get(self._name(job.keeper_id, job.generation))

    def _lost(self, view: _View, name: str) -> str:
        """Why the processes of a job that is over may live all the same; empty if they do not."""
        alive = (job for job in view.jobs if job.is_alive)
        words = (job.words for job in alive if self._name(job.keeper_id, job.generation) == name)
        return next(words, "")

    async def _look(self) -> _View:
        """The jobs as they are now. Callers that wait at the same time share one answer, or error.

        Raises `KeeperUnavailable`.
        """
        # The answer has to be of a look that began after this call. A look that is under way does
        # not count, as its squeue may have answered already: so the next number is wanted. The
        # first caller that gets its turn makes that look, and the others find it done.
        wanted, asked = self._looks + 1, _now()
        async with self._looking:
            # A failure counts for all callers that waited for it, also if it began before their
            # call: otherwise each would wait for a failure of its own, one after the other.
            if self._failure is not None and self._failed >= asked:
                raise type(self._failure)(self._failure.message)
            if self._done < wanted:
                # `_done` is set only after the look. If this caller is cancelled, its number is
                # never done, and the next caller in turn makes another look.
                number = self._looks = self._looks + 1
                try:
                    self._view = await self._look_now()
                except KeeperUnavailable as error:
                    self._failure, self._failed = error, _now()
                    raise
                self._done, self._failure = number, None
            return self._view

    async def _look_now(self) -> _View:
        # In this order: first the files, then the jobs that are being submitted, then the queue. A
        # job with a file that is not being submitted any more was in the queue before; if it is not
        # there now, it has left the queue.
        began = _now()
        files = await self._on_disk(self._files.names)
        submitting = frozenset(self._submitting)
        seen = {each.name: each for each in await self._queue()}
        absent = [name for name in files if name not in seen and name not in submitting]
        # The accounting may say that a job which is absent from the queue is running, as it learns
        # of ends late. Such a job is `FORGOTTEN`, and counts as ended if no node is away.
        records = await self._recorded(absent)
        for name in absent:
            record = records.get(name)
            is_over = record is not None and record.is_over
            seen[name] = record if record and is_over else Seen("", name, FORGOTTEN)
        is_unsure = any(each.is_over and not each.is_sure for each in seen.values())
        away = await self._away() if is_unsure else frozenset()
        # Nothing is awaited from here on: jobs that were dismissed, submitted or given up while the
        # commands ran are in these tables, and the view is made of them in one turn of the loop.
        # Jobs that were submitted meanwhile are in no list yet: `keep` leaves those that are newer
        # than the beginning of this look.
        self._dismissed &= seen.keys()
        self._waits.keep({*seen, *submitting}, began)
        shown = [each for each in seen.values() if each.name not in self._dismissed]
        return _View(seen, [job for each in shown if (job := self._job(each, away)) is not None])

    def _job(self, seen: Seen, away: frozenset[str]) -> Job | None:
        labels = labels_of(seen.name, self._prefix)
        if labels is None:
            return None
        self._waits.see(seen, _now())
        state, words = sight(seen, away, time.time())
        if self._waits.why(seen.name) is not None:
            state, words = JobState.ENDED, ""
        return Job(seen.job_id or seen.name, *labels, state, words)

    async def _queue(self) -> list[Seen]:
        """The jobs that the controller knows: those that have not ended long ago.

        Raises `HostUnreachable`.
        """
        answer = await self._commands.run(
            *("squeue", "--noheader", "--states=all", f"--user={os.geteuid()}"),
            f"--format={QUEUE_FIELDS}",
            seconds=CALL_SECONDS,
            env={"SLURM_TIME_FORMAT": "%s"},
        )
        if answer.status != 0:
            raise HostUnreachable(f"Slurm does not tell its jobs: {answer.complaint}")
        return queued(answer.output, self._prefix)

    async def _away(self) -> frozenset[str]:
        """The nodes that do not answer the controller."""
        asked = ("sinfo", "--noheader", "--Node", "--dead", "--format=%N")
        answer = await self._commands.run(*asked, seconds=CALL_SECONDS)
        if answer.status != 0:
            raise HostUnreachable(f"Slurm does not tell its nodes: {answer.complaint}")
        return frozenset(answer.output.split())

    async def _recorded(self, names: Sequence[str]) -> dict[str, Seen]:
        """The accounting's records of these jobs, `RECORDS_SECONDS` old at the most."""
        asked, when, records = self._records
        if asked != frozenset(names) or _now() - when >= RECORDS_SECONDS:
            records = await self._ask_records(names)
            self._records = frozenset(names), _now(), records
        return records

    async def _ask_records(self, names: Sequence[str]) -> dict[str, Seen]:
        """The accounting's records of these jobs; empty if there is no accounting, or it fails."""
        records: dict[str, Seen] = {}
        for begin in range(0, len(names) if self._has_accounting else 0, RECORDS_AT_ONCE):
            answer = await self._commands.run(
                *("sacct", "--noheader", "--parsable2", "--allocations"),
                f"--user={os.geteuid()}",
                f"--starttime=now-{RECORDS_DAYS}days",
                f"--format={RECORD_FIELDS}",
                f"--name={','.join(names[begin : begin + RECORDS_AT_ONCE])}",
                seconds=CALL_SECONDS,
            )
            if NO_ACCOUNTING in answer.complaint:
                self._has_accounting = False  # for good: Slurm is set up without
                return {}
            # If sacct fails, its output has no records; it is asked again when these are too old
            # (`RECORDS_SECONDS`).
            records |= recorded(answer.output, self._prefix)
        return records

    async def _end(self, name: str, job_id: str) -> None:
        """End a job, and return when its node has said that it has ended."""
        answer = await self._commands.run("scancel", job_id, seconds=CALL_SECONDS)
        if answer.status != 0:
            kind = HostUnreachable if answer.is_of_nobody else HostUnusable
            raise kind(f"The job {job_id} could not be cancelled: {answer.complaint}")
        # scancel returns when the controller has noted the request. The processes get SIGTERM, and
        # after ``KillWait`` SIGKILL.
        pause = 0.1
        try:
            async with asyncio.timeout(END_SECONDS):
                while True:
                    seen = (await self._look()).seen.get(name)
                    if seen is None or seen.is_over:
                        return
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, LOOK_SECONDS)
        except TimeoutError:
            text = "is being ended, and its node does not say that it has ended"
            raise HostUnreachable(f"The job {job_id} {text}") from None

    async def _withdraw(self, name: str, error: BaseException) -> None:
        """Cancel a job whose submission has failed with ``error``, and remove its files.

        If the job begins all the same, it finds no stdin, and ends.
        """
        # After a refusal there is no job. After any other error there may be one: sbatch was
        # killed, or its answer lost, or the caller was cancelled. It is cancelled by its name, as
        # its id is not known.
        if isinstance(error, HostUnreachable) or not isinstance(error, KeeperUnavailable):
            words = ("scancel", f"--user={os.geteuid()}", f"--name={name}")
            with contextlib.suppress(KeeperUnavailable):
                await self._commands.run(*words, seconds=CALL_SECONDS)
        with contextlib.suppress(KeeperUnavailable):
            await self._on_disk(self._files.remove, name)

    async def _on_disk(self, work: Callable[..., _Result], *arguments: Any) -> _Result:
        """Do work that may block, in the one thread. Raises `HostUnreachable` if it is late."""
        asked = asyncio.get_running_loop().run_in_executor(self._disk, partial(work, *arguments))
        try:
            async with asyncio.timeout(CALL_SECONDS):
                # Work that has not begun by then is cancelled, and never begins. Work that has
                # begun goes on in the thread, and holds up all other work until it ends.
                return await asked
        except TimeoutError:
            text = f"The directory {self._files.directory} does not answer"
            raise HostUnreachable(f"{text} within {CALL_SECONDS:g} s") from None


def _now() -> float:
    return asyncio.get_running_loop().time()
