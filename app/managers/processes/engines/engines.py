"""The jobs of this service's kernels, by the engines that have them.

A kernel with an engine has one job at a time, and in it a keeper of its own. This server and the
next find the job by its labels. Another job, of a new *generation*, is submitted only when a launch
needs a keeper and the engine says that no earlier job is there or can come.

Other replicas of the service may have jobs in the same engines. Each replica looks after the jobs
of its own kernels, and leaves alone jobs that another may have.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from jupyter_client.kernelspec import KernelSpec

from ....keeper.limits import NO_LIMITS, ProcessLimits
from ....log_formats import about
from ...errors import KeeperUnavailable
from ..hosts.errors import HostUnreachable, HostUnusable
from ..hosts.joining import Joining
from ..hosts.service import Service
from ..keeper.remote_keepers import RemoteKeepers
from .engine import Engine, Job, Order, ParkingEngine, Strangers
from .kinds import KINDS, Chosen, chosen
from .order import stdin_of
from .place import EnginePlace
from .troubles import Troubles
from .work import Work

__all__ = ["Engines"]

logger = logging.getLogger(__name__)

WORDS_SECONDS: Final = 3.0
"""How long an engine may take to explain the end of a job whose kernel has ended."""

LEAVE_SECONDS: Final = 10.0
"""How long the keeper of a kernel that is gone may take to end by itself."""


class Engines:
    """The engines of one server. Make it in a running event loop, and `close` it there."""

    def __init__(self, joining: Joining, keepers: RemoteKeepers, service: Service) -> None:
        self._joining = joining
        self._keepers = keepers
        self._service = service
        self._works: dict[str, Work] = {}
        self._engines: dict[tuple[str, str], Engine] = {}
        self._strangers: dict[tuple[str, str], Strangers] = {}
        self._parting: set[Work] = set()  # jobs that may be there of kernels that are gone
        self._ending: set[str] = set()  # strangers that are being ended, by `Job.where`
        self._tasks: set[asyncio.Task[None]] = set()

    # Kernels

    def assign(
        self,
        kernel_id: str,
        spec: KernelSpec,
        left: Mapping[str, Any],
        *,
        owner: str,
        on_words: Callable[[str], None],
        limits: ProcessLimits = NO_LIMITS,
    ) -> bool:
        """Have a kernel in a job of the engine that its kernelspec names; False if it names none.

        ``left`` is as in `chosen`. ``on_words`` is called with what the engine says of the job: why
        it waits, or when it will be ended. Raises `KernelStartFailed`.
        """
        found = chosen(spec, left)
        if found is None:
            return False
        # An earlier kernel of the same id may still have its `Work` here, until its keeper is left
        # for good. So code that takes a `Work` out of the table checks first that it is still the
        # kernel's.
        work = self._works[kernel_id] = Work(kernel_id, owner, found, left, on_words, limits)
        place = EnginePlace(self._joining, work, self._submit, self._part_with, self._let_go)
        self._keepers.assign(kernel_id, f"job {work.keeper_id}", lambda: place)
        return True

    def noted(self, kernel_id: str) -> dict[str, Any]:
        """The data by which the next server finds a kernel's job."""
        return self._works[kernel_id].noted

    def noted_if_out(self, kernel_id: str) -> dict[str, Any]:
        """As `noted`, for a dead kernel; empty unless the kernel has a job that may run."""
        work = self._works.get(kernel_id)
        return work.noted if work is not None and work.is_out else {}

    def directory(self, kernel_id: str) -> str:
        """Where a kernel works, as its job sees it."""
        return self._works[kernel_id].chosen.options.directory

    def root_there(self, kernel_id: str, root_dir: Path) -> str:
        """As `EngineOptions.root_there`, of a kernel's job."""
        return self._works[kernel_id].chosen.options.root_there(root_dir)

    def has(self, kernel_id: str) -> bool:
        """Whether a kernel has an engine."""
        return kernel_id in self._works

    async def may_park(self, spec: KernelSpec) -> bool:
        """Whether a warm kernel of a kernelspec, which has no owner yet, may be started in a job.

        Raises `KernelStartFailed` and `KeeperUnavailable`.
        """
        found = chosen(spec, {})
        return found is not None and isinstance(await self._engine(found), ParkingEngine)

    async def own(self, kernel_id: str, owner: str) -> None:
        """Label the job of a warm kernel with the owner who gets it. Raises `KeeperUnavailable`.

        If this raises, the kernel must not be given to the owner.
        """
        work = self._works.get(kernel_id)
        if work is None:
            raise HostUnusable(f"Kernel {kernel_id} has no job")
        engine = await self._engine(work.chosen)
        assert isinstance(engine, ParkingEngine), "others have no such kernels"
        await engine.own(work.keeper_id, work.generation, owner)
        work.owner = owner  # not before: if the engine refuses, the next job has no owner, either

    async def prepare(self, kernel_id: str) -> None:
        """Return when a kernel's keeper is connected, for which a job may be submitted.

        That may take as long as the engine lets the job wait. Raises `KeeperUnavailable`.
        """
        work = self._works.get(kernel_id)
        if work is None:
            return
        work.is_wanted, work.was_tried = True, False
        try:
            try:
                await self._keepers.connect(kernel_id)
            except KeeperUnavailable:
                # All callers that want a connection share one attempt. One that began before this
                # launch, to reach a keeper that was lost, may have read `is_wanted` too early, and
                # has failed without submitting a job. The next attempt begins after this line.
                if work.was_tried:
                    raise
                await self._keepers.connect(kernel_id)
            work.tell("")
            await self._on_joined(work)
        finally:
            # If the caller is cancelled, the submission goes on, with the attempt to connect. The
            # next launch joins that attempt, or the end of the kernel cancels both.
            work.is_wanted = False

    async def _on_joined(self, work: Work) -> None:
        """Note that the keeper in a kernel's job is connected, and have its secret removed."""
        if not work.has_joined:
            # Before the await: from now on the keeper may launch a process, and a job that its
            # engine has lost must not be taken for ended any more (`_may_live`).
            work.has_joined = True
            engine = await self._engine(work.chosen)
            joined = engine.joined(work.keeper_id, work.generation)
            self._begin(joined, f"joined {work.keeper_id}")  # the launch does not wait for that

    async def words(self, kernel_id: str) -> str:
        """What the engine says of the job of a process that has ended; empty for nothing.

        A job that is about to be ended, as its node is needed, ends its kernel in good order.
        """
        work = self._works.get(kernel_id)
        if work is None:
            return ""
        if work.over is not None:
            return work.over.message
        with contextlib.suppress(KeeperUnavailable, TimeoutError):
            async with asyncio.timeout(WORDS_SECONDS):
                engine = await self._engine(work.chosen)
                jobs = await engine.find(work.keeper_id)
                if jobs and jobs[-1].generation == work.generation:
                    job = jobs[-1]
                    words = job.words if job.is_alive else (await engine.explain(job)).message
                    work.tell(words)
        return work.words

    def why_ended(self, kernel_id: str) -> str:
        """Why the job of a kernel has ended, if it has."""
        work = self._works.get(kernel_id)
        return work.over.message if work is not None and work.over is not None else ""

    async def end(self, kernel_id: str) -> bool:
        """End the job of a kernel whose keeper is out of reach; returns False if it has no engine.

        When this returns, the engine has said that no process of the job runs any more. Raises
        `KeeperUnavailable`.
        """
        work = self._works.get(kernel_id)
        if work is None:
            return False
        work.give_up()  # a submission has the lock, for as long as an image is pulled
        async with work.lock:
            await self._cancel_all(work, await self._engine(work.chosen))
            self._over(work, HostUnusable("The job was ended while its keeper was out of reach"))
        return True

    def is_out(self, kernel_id: str) -> bool:
        """Whether a kernel has a job whose end was not seen yet, as far as is known here."""
        work = self._works.get(kernel_id)
        return work is not None and work.is_out

    async def rest(self, kernel_id: str) -> None:
        """End the job of a dead kernel, once the mirror has all of its log.

        The kernel's next launch gets another job. Raises `KeeperUnavailable` if the mirror is not
        complete, or the engine does not answer: the job may run then; call this again.
        """
        work = self._works[kernel_id]
        if work.is_out:
            # The log first: it is in the job, and cannot be fetched after the job's end.
            await self._keepers.rest(kernel_id)
            async with work.lock:
                # Set before the job is ended: a launch that comes meanwhile, or after a failure,
                # must not use this job. `is_out` stays true until the engine has ended it.
                work.over = work.over or HostUnusable("The job was ended: its kernel is dead")
                await self._cancel_all(work, await self._engine(work.chosen))
                work.is_out = False
        # If no job was out, this is the first call. Otherwise the keeper may have dialled in again
        # while its job was being ended.
        await self._keepers.rest(kernel_id)

    async def _cancel_all(self, work: Work, engine: Engine) -> None:
        """End all jobs of a kernel. Raises `KeeperUnavailable`, also if another replica has it."""
        await self._cancel(work, engine, await engine.find(work.keeper_id))

    async def _cancel(self, work: Work, engine: Engine, jobs: Sequence[Job]) -> None:
        """End these jobs. Raises `KeeperUnavailable`, also if another replica has the kernel."""
        for job in jobs:
            # Checked before each: to end a job may take long, and another replica may take the
            # kernel meanwhile.
            await self._service.check_own(work.kernel_id)
            await engine.cancel(job)

    # Jobs

    async def _submit(self, work: Work) -> None:
        """Submit a job if a launch wants one and none is there. Raises `HostUnusable`.

        That is also raised if there is no job, and none is wanted.
        """
        # The lock is held from the question to the engine to the end of the submission: no other
        # task submits a second job, or ends this one, between the two.
        async with work.lock:
            engine = await self._engine(work.chosen)
            may_be = work.is_out or work.is_wanted
            if may_be and await self._is_there(work, engine):
                return
            # Read after the engine's answer: a launch may have come meanwhile, or was given up.
            if not work.is_wanted:
                why = work.over or HostUnreachable(f"{work.name} is not there")
                self._declare_ended(work, why)
                raise why
            await self._submit_anew(work, engine)

    async def _is_there(self, work: Work, engine: Engine) -> bool:
        """Whether a job of a kernel is alive. If not, the kernel's jobs are ended and removed."""
        jobs = await engine.find(work.keeper_id)
        if (job := work.alive(jobs)) is not None:
            work.on_job(job)
            return True
        # A job of an earlier generation says nothing about how the newest has ended.
        own = [job for job in jobs if job.generation >= work.generation]
        if work.is_out and self._may_live(work, engine, own):
            return True
        if work.is_out and work.over is None:
            await self._ended(work, engine, own[-1] if own else None)
        # All jobs are ended, also one that the engine still lists as running although its end was
        # seen: with a job of the next generation beside it the kernel would have two keepers.
        await self._cancel(work, engine, jobs)
        work.is_out = False
        return False

    def _may_live(self, work: Work, engine: Engine, jobs: Sequence[Job]) -> bool:
        """Whether the process of a kernel may live although its engine shows no living job.

        While its keeper is connected, the process lives, whatever the engine says. If it is not, an
        engine that shows no job at all may not know how the job ended (`Engine.absent_is_ended`):
        the kernel is out of reach until a person restarts or deletes it. A launch is wanted when
        the process before has ended: a keeper that lives on elsewhere has nothing then.
        """
        if work.is_wanted or not work.has_joined:
            return False
        # A job that another replica has submitted may be in the same kind of engine elsewhere.
        is_known = work.was_seen or self._service.is_alone
        if jobs or (engine.absent_is_ended and is_known):
            return self._keepers.is_connected(work.kernel_id)
        work.tell(f"{engine.name} has lost the job, and does not say that its process has ended")
        return True

    async def _submit_anew(self, work: Work, engine: Engine) -> None:
        options, work.was_tried = work.chosen.options, True
        addresses = [options.address] if options.address else []
        invitation = await self._joining.invite(
            work.keeper_id, seconds=options.patience, addresses=addresses
        )
        # From the invitation on a keeper of an earlier generation is refused, wherever it lives.
        work.generation, work.over = invitation.generation, None
        work.has_joined = False
        try:
            stdin = await asyncio.to_thread(stdin_of, invitation.document)
            order = Order(
                *(work.kernel_id, work.keeper_id, work.owner, invitation.generation),
                options=options,
                stdin=stdin,
                limits=work.limits,
            )
            await work.submit(engine.submit(order))
        except KeeperUnavailable as error:
            # An engine that has refused leaves no job. If it has not answered, there may be one: it
            # counts as over, so that the next launch, or `rest`, ends it and does not wait for it.
            work.is_out, work.over = isinstance(error, HostUnreachable), error
            self._joining.fail(work.keeper_id, error)
            raise
        # No job is wanted any more: if its keeper is lost from now on, it is looked for, and no
        # second job is submitted.
        work.is_out, work.is_wanted, work.was_seen = True, False, True
        told = (work.kernel_id, engine.name, work.generation)
        about(logger, kernel_id=work.kernel_id).info(
            "kernel %s: %s has its job, of generation %d", *told
        )

    async def _ended(self, work: Work, engine: Engine, job: Job | None) -> None:
        """Note why the job of a kernel has ended, as the engine explains it, and remove the job."""
        if job is None:
            self._over(work, HostUnusable(f"The job is gone: {engine.name} does not know it"))
            return
        why = await engine.explain(job)  # before its removal, after which nobody knows
        self._over(work, why)
        with contextlib.suppress(KeeperUnavailable):  # it is tried again before the next job
            await self._cancel(work, engine, [job])

    def _over(self, work: Work, why: KeeperUnavailable) -> None:
        # In this order: calls that wait for the keeper fail before the kernel is launched anew.
        # Nothing is awaited here: no task sees a job that is over and a keeper that is still
        # expected.
        about(logger, kernel_id=work.kernel_id).warning(
            "kernel %s: %s", work.kernel_id, why.message
        )
        work.is_out, work.over = False, why
        self._joining.fail(work.keeper_id, why)
        self._declare_ended(work, why)

    def _declare_ended(self, work: Work, why: KeeperUnavailable) -> None:
        with contextlib.suppress(ValueError):  # the kernel is gone, and its job not yet left
            self._keepers.declare_ended(work.kernel_id, why.message)

    # Engines

    async def _engine(self, found: Chosen) -> Engine:
        """The engine of a choice; it is made, and watched from now on, if need be."""
        # Nothing is awaited between the second check and the entry: there is one engine, and one
        # watch, for each key. The watch goes on without kernels: there may be jobs of earlier
        # servers.
        key = found.key
        if key not in self._engines:
            service = await self._service.name()
            if key not in self._engines:
                kind = KINDS[found.kind]
                self._engines[key] = kind.engine(found.options.engine, service, self._on_words)
                self._strangers[key] = Strangers()
                self._begin(self._watch(key), f"watch {found.kind}")
        return self._engines[key]

    def _begin(self, work: Any, name: str) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _on_words(self, kernel_id: str, words: str) -> None:
        if (work := self._works.get(kernel_id)) is not None:
            work.tell(words)

    async def _watch(self, key: tuple[str, str]) -> None:
        """See what happens to the jobs of an engine, as long as this server runs."""
        engine, loop = self._engines[key], asyncio.get_running_loop()
        troubles = Troubles(engine.name)
        while True:
            error: Exception | None = None
            try:
                async with contextlib.aclosing(engine.watch()) as watch:
                    async for jobs in watch:
                        await self._see(key, engine, jobs)
                        troubles.on_seen(loop.time())
            except Exception as raised:  # whatever was raised, the watch has to begin again
                error = raised
            await asyncio.sleep(troubles.on_end(error))

    async def _see(self, key: tuple[str, str], engine: Engine, jobs: Sequence[Job]) -> None:
        # The list is a moment old, and gets older while this awaits. A kernel that is assigned
        # meanwhile is not in `works`: if it is adopted, its job counts as a stranger until the next
        # list, but is not ended for that long (`Strangers`).
        now = asyncio.get_running_loop().time()
        works = [each for each in self._works.values() if each.chosen.key == key]
        troubles: list[KeeperUnavailable] = []
        for work in works:
            own = [job for job in jobs if job.keeper_id == work.keeper_id]
            try:
                await self._see_one(work, engine, own)
            except KeeperUnavailable as error:  # the jobs of others are seen all the same
                troubles.append(error)
        # Read after the loop, which may have found a job of a later generation.
        known = {each.keeper_id: each.generation for each in works}
        others = {job.keeper_id for job in jobs} - known.keys()
        known |= await self._service.generations(others) if others else {}
        for job in self._strangers[key].see(jobs, known, now):
            if job.where in self._ending:
                continue
            if job.is_alive:
                text = "job %s of %s is of no kernel of this server (%s), and is ended"
                logger.warning(text, job.where, engine.name, job.keeper_id)
            # In a task: to end a job takes as long as its processes do, and other jobs are to be
            # seen meanwhile.
            self._ending.add(job.where)
            self._begin(self._end_stranger(engine, job), f"end {job.where}")
        if troubles:
            raise troubles[0]

    async def _end_stranger(self, engine: Engine, job: Job) -> None:
        try:
            await engine.cancel(job)
        except KeeperUnavailable as error:  # the next look at all jobs finds it
            logger.error("job %s stays: %s", job.where, error.message)
        finally:
            self._ending.discard(job.where)

    async def _see_one(self, work: Work, engine: Engine, jobs: Sequence[Job]) -> None:
        # The task that has the lock asks the engine itself, and may have the lock for as long as an
        # image is pulled: the watch of all jobs does not wait for that.
        if work.lock.locked():
            return
        if (job := work.alive(jobs)) is not None:
            work.on_job(job)
            return
        if not work.is_out or work.over is not None:  # `rest` ends one that is over
            return
        async with work.lock:
            # A job may have been submitted since the list was made. So the engine is asked for this
            # kernel's jobs, unless the kernel has gone while this waited.
            if self._works.get(work.kernel_id) is work:
                await self._is_there(work, engine)

    # Kernels that are gone

    def _let_go(self, work: Work) -> None:
        """Leave a kernel, which another replica has taken, with its job."""
        # The job is left as it is. If the other replica invites a keeper for a job of its own, this
        # one is of an earlier generation, even if it was just submitted: that replica ends it.
        if self._works.get(work.kernel_id) is work:
            del self._works[work.kernel_id]
        work.give_up()

    def _part_with(self, work: Work) -> None:
        """Leave a kernel that is gone: its keeper ends by itself, or its job is ended later."""
        if self._works.get(work.kernel_id) is work:
            del self._works[work.kernel_id]
        if work.is_out:
            # From now on the watch takes the job for a stranger, and would end it much later.
            self._parting.add(work)
            self._begin(self._end_late(work), f"end {work.name}")

    async def _end_late(self, work: Work) -> None:
        await asyncio.sleep(LEAVE_SECONDS)
        await self._end_quietly(work)

    async def _end_quietly(self, work: Work) -> None:
        try:
            await self._cancel_all(work, await self._engine(work.chosen))
        except KeeperUnavailable as error:  # the next look at all jobs finds it
            text = "kernel %s: its job stays: %s"
            about(logger, kernel_id=work.kernel_id).error(text, work.kernel_id, error.message)
        except Exception:  # an engine may raise anything
            about(logger, kernel_id=work.kernel_id).exception("a job could not be ended")
        self._parting.discard(work)

    async def close(self) -> None:
        """Stop watching. The jobs go on; only those of kernels that are gone are ended."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        # Jobs whose `_end_late` was cancelled, in its pause or in the middle, are still in
        # `_parting`. The next server has no record of them, and would end them as strangers, later.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LEAVE_SECONDS):
                await asyncio.gather(*map(self._end_quietly, [*self._parting]))
        for engine in self._engines.values():
            await engine.close()
