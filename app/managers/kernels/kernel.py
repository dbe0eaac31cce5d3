"""One kernel: its process, its sockets and its traffic, from the start to the end.

One task, the kernel's *life* (`life.py`), sees its processes through. `restart`, `stop` and `leave`
change the process too. They never do so beside the life: each holds the kernel's lock, and cancels
the life first.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Container, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

from jupyter_client.kernelspec import KernelSpec

from ...keeper.limits import ProcessLimits
from ..errors import KernelkeepError, KernelNotRunning, KernelStartFailed, KernelUnreachable
from ..executions.queue import Executions
from ..handover.store import KernelRecord
from ..limits.processes import log_share
from ..limits.queues import QueueShare
from ..messages.traffic import Traffic
from ..owners.ownership import Ownership
from ..processes.engines.quantities import Value
from ..processes.keeper.kept import ProcessUsage
from ..state import KernelState, Lifecycle
from .launches import Launches, not_stopped
from .life import Life
from .model import ModelCache
from .moving import WantedKernel
from .phases import Course, Event, Phase
from .process_limits import limits_of, usage_of
from .registration import Registration
from .services import KernelServices
from .take_over import TakeOver

__all__ = ["Kernel", "OnGone"]

OnGone = Callable[["Kernel"], None]


class Kernel:
    """A kernel under one id, through all its processes.

    ``name`` is the kernelspec's name as the client wrote it. ``place``, an absolute path, and
    ``env`` are used for every launch: the process works in ``place``, or in the nearest directory
    above it that exists then. ``on_gone`` is called when the kernel has ended for good: it was
    stopped, or a client asked it to shut down. Without an ``ownership`` it is the server's own.
    ``given`` has the options of its engine that were given for this kernel (`check_given`).
    """

    def __init__(
        self,
        kernel_id: str,
        name: str,
        spec: KernelSpec,
        services: KernelServices,
        *,
        place: Path,
        env: Mapping[str, str],
        on_gone: OnGone,
        ownership: Ownership | None = None,
        given: Mapping[str, Value] | None = None,
    ) -> None:
        settings = services.settings
        self.id = kernel_id
        self.name = name
        self.spec = spec
        self.ownership = ownership = Ownership() if ownership is None else ownership
        self.state = KernelState(frozenset(settings.untracked_message_types))
        directory = services.log_of(kernel_id, spec)
        self.traffic = Traffic(
            kernel_id,
            self.state,
            directory,
            services.keepers,
            settings,
            services.counters,
            services.open_files,
        )
        self._course = Course()
        self.traffic.submissions.on_end_asked = self._on_end_asked
        self.executions = Executions(self, self.traffic, self.state, settings)
        self.reports = services.reports(kernel_id, name, ownership=ownership)
        self._services = services
        share = QueueShare(lambda: self._services.queues, lambda: self.ownership)
        self.executions.share = self.traffic.submissions.share = share
        self._launches = Launches(
            *(name, spec, services, self.traffic, self.state),
            kernel_id=kernel_id,
            ownership=ownership,
            place=place,
            env=env,
            given=given or {},
            on_reach=self._on_reach,
        )
        self.traffic.share_log(log_share(services.shares, ownership))
        self._lock = asyncio.Lock()
        self._registration = Registration(
            *(self, name, spec, self._launches, services, self._note_process),
            ownership,
        )
        self._life = Life(
            *(self, self._launches, self._course, self._registration, services),
            on_gone=partial(on_gone, self),
        )
        self._left = TakeOver(
            *(self, self._launches, self._course, self._life, self._registration, services)
        )
        self._model = ModelCache(kernel_id, name, self.traffic, self.state, ownership.owner)

    # What others see

    @property
    def model(self) -> bytes:
        """The kernel model as JSON, serialised once per change."""
        return self._model.json

    @property
    def came_up(self) -> asyncio.Future[bool]:
        """Done when the latest start is over: whether the kernel answers."""
        return self._life.came_up

    @property
    def pid(self) -> int | None:
        """The process id of a local kernel's present process."""
        return self._launches.pid

    @property
    def shutdown_seconds(self) -> float:
        """How long the process may take to end by itself when it is asked to, in seconds."""
        return self._launches.shutdown_seconds

    @property
    def has_process(self) -> bool:
        """Whether there is a process.

        This becomes False when the process ends. `state` follows later, when the last messages of
        the process are in the log.
        """
        return self._launches.running

    @property
    def is_changing(self) -> bool:
        """Whether a start, a restart or a stop is under way, even if `state` is still the old."""
        return self._lock.locked()

    @property
    def is_left(self) -> bool:
        """Whether an earlier server has left the kernel, and this one could not reach it yet."""
        return self._course.phase is Phase.LEFT

    @property
    def created(self) -> float:
        """When the kernel was created, in seconds since the epoch."""
        return self._registration.created

    @property
    def counts(self) -> bool:
        """Whether the kernel counts towards ``max_kernels``."""
        return self.state.lifecycle is not Lifecycle.DEAD

    async def resolve_path(self, path: str) -> str | None:
        """The file that ``path`` means in the kernel's directory (`Launches.resolve_path`)."""
        return await self._launches.resolve_path(path)

    @property
    def limits(self) -> ProcessLimits:
        """How much of the machine the kernel's processes may take."""
        return limits_of(self._launches.provisioner)

    @property
    def given(self) -> Mapping[str, Value]:
        """The options of its engine that were given for it, and the host that was chosen for it."""
        return self._launches.given

    async def usage(self) -> ProcessUsage | None:
        """What the kernel's processes use of the machine (`usage_of`)."""
        return await usage_of(self._launches.provisioner) if self.has_process else None

    # What others do

    async def impose_limits(self) -> None:
        """Apply its new owner's limits to a warm kernel (`Launches.impose_limits`)."""
        await self._launches.impose_limits()

    async def relocate(self, place: Path | None, env: Mapping[str, str]) -> None:
        """Change variables of the next process's environment, and its directory unless None."""
        self._launches.place = place or self._launches.place
        self._launches.env = {**self._launches.env, **env}
        await self.save()

    async def save(self) -> None:
        """Store the kernel's changed directory, environment or shares for the next server.

        During a start, a restart, a stop or an adoption this returns before the change is stored.
        """
        self._registration.changed()
        if self.is_left and self._left.record is not None:
            await self._registration.save_again(self._left.record)
        elif not self._lock.locked():
            async with self._alone():
                pass
        # Else the holder of the lock, perhaps after long, stores the change before it lets go. If
        # it is cancelled, or this server is killed before, the next server may not know the change.

    @asynccontextmanager
    async def _alone(self) -> AsyncIterator[None]:
        """Hold the kernel's lock, and store at the end what `save` has left to its holder.

        A holder that is cancelled stores nothing: a stop may have removed the record, so that the
        next server ends the kernel (`Registration.disown`).
        """
        async with self._lock:
            is_cancelled = False
            try:
                yield
            except asyncio.CancelledError:
                is_cancelled = True
                raise
            finally:
                # Without sockets, and not dead, the kernel is being started: that registers it.
                is_known = self.traffic.connected or self.state.lifecycle is Lifecycle.DEAD
                is_over = is_cancelled or self._course.phase is Phase.GONE
                if is_known and not is_over:
                    await self._registration.catch_up()

    async def start(self) -> None:
        """Launch the process; returns before it is ready.

        An engine may let the launch wait for long. Then this returns before the launch, too.

        Raises `KernelStartFailed` when no process could be launched. Nothing of the kernel stays
        then, unless a process was launched that could not be ended: it stays this kernel's. Raises
        `KernelNotRunning` when the kernel was shut down before its start.
        """
        async with self._alone():
            if self._course.phase is Phase.GONE:
                raise KernelNotRunning(f"Kernel {self.id} was shut down before it was started")
            self._course.on(Event.BEGUN)
            # A cancellation passes through: `MultiKernelManager._launch` then stops the kernel.
            try:
                given = await self._services.choose_host(self.spec, self._launches.given)
                self._launches.given = given
                self._assign(None)
                await self._life.start()
            except KernelStartFailed as error:
                await self.traffic.close(error.message)
                if self.has_process:
                    self._course.on(Event.SHUTDOWN_ASKED)  # the kernel goes when the process does
                    await self._life.give_up(error.message)
                else:
                    await self._life.retire(error.message)
                raise

    def _assign(self, left: Mapping[str, Any] | None, spec: KernelSpec | None = None) -> None:
        """Assign the kernel to the host or engine of its kernelspec (`KernelServices.assign`)."""
        ownership, given, on_words = self.ownership, self._launches.given, self.state.on_words
        named = (self.id, spec or self.spec, left)
        self._services.assign(*named, given=given, ownership=ownership, on_words=on_words)

    async def adopt(self, record: KernelRecord) -> None:
        """Own the kernel that an earlier process of the server has left; in place of `start`.

        A kernel whose process has ended meanwhile is dead, and its log can be read.
        """
        async with self._alone():
            self._registration.created = record.created
            self.state.generation = record.generation
            self._assign(record.provisioner, KernelSpec(**record.spec))
            if record.dead:
                await self._left.recover(record, {})
                await self._life.stay_dead(record.reason)
                return
            await self._left.begin(record)

    async def _reach_at_once(self) -> None:
        """Reach the process, so that it can be ended. Raises `KernelNotStopped` if that fails."""
        if self.state.unreachable:
            await self._life.end_job(self.state.unreachable)
        await self._left.at_once()

    def _on_end_asked(self, restart: bool) -> None:
        """A client has sent a ``shutdown_request`` of its own."""
        self._course.on(Event.RESTART_ASKED if restart else Event.SHUTDOWN_ASKED)

    def _on_reach(self, why: str) -> None:
        """The process cannot be reached for the reason ``why``; with none, it can be again."""
        self.state.reason = f"The kernel's process cannot be reached: {why}" if why else ""
        self.state.changes += 1

    async def leave(self) -> bool:
        """Let the process go on without this server, for the next one; False if it cannot.

        A dead kernel is left as well: its log and its reason can be read under the next server.
        """
        async with self._alone():
            is_gone = self._course.phase is Phase.GONE
            if is_gone or self.state.lifecycle not in self._leavable:
                return False
            await self._life.end()
            # The life is over. Nothing is awaited from here to `Traffic.leave`, so that no bell has
            # this server read on in the log, and no client sends a request, between the two.
            # The process may not be reached yet, or the log of a dead kernel not read to the end.
            was_left = self._course.phase in (Phase.LEFT, Phase.NEW)
            self._course.on(Event.HANDED_OVER)
            self.traffic.leave()
            if was_left:  # the record of the server before holds
                return True
            # WebSockets end later than this. The places of their clients are stored all the same:
            # they are no part of the record.
            try:
                await self._registration.save()
            finally:
                self._launches.leave()
            return True

    @property
    def _leavable(self) -> Container[Lifecycle]:
        # The next server waits on for a kernel that starts, and launches a process for one that is
        # between two processes. One that is being stopped may have been asked to end already.
        return [lifecycle for lifecycle in Lifecycle if lifecycle is not Lifecycle.STOPPING]

    async def register(self) -> None:
        """Have the next server process know this kernel, if kernels outlive the server."""
        await self._registration.register()

    async def _note_process(self, record: KernelRecord) -> None:
        """Add to a record what the next server needs to find the process, or the job, again."""
        await self._launches.note(record)
        if record.dead:
            record.provisioner = self._services.engines.noted_if_out(self.id)

    def hand_over(self, services: KernelServices, asked: WantedKernel, on_gone: OnGone) -> None:
        """Give a claimed warm kernel these services, and owner, directory and env of the start."""
        self._services = services
        self._life.hand_over(services, partial(on_gone, self))
        self._registration.hand_over(services)
        self._launches.hand_over(services, cwd=asked.cwd, place=asked.place, env=asked.env)
        self.reports = services.reports(self.id, self.name)
        self.own(asked.ownership)
        self.traffic.activity.touch()

    def own(self, ownership: Ownership) -> None:
        """Give the kernel to an owner; call this before any request can find the kernel."""
        self.ownership = self._registration.ownership = self.reports.ownership = ownership
        self._launches.ownership = ownership
        self.traffic.share_log(log_share(self._services.shares, ownership))
        self._model.own(ownership.owner)

    def lose(self) -> None:
        """Store nothing more of the kernel: another replica has it."""
        self._registration.lose()

    async def interrupt(self) -> None:
        """Interrupt what the kernel runs, by signal or by message as its kernelspec says.

        Nothing is sent to a kernel that is not ready: it runs nothing, and a signal would only hit
        its start. Raises `KernelNotRunning` for a kernel that is dead or being stopped, and
        `KernelUnreachable`.
        """
        # Without the lock, which a start or a stop may hold for long: the interrupt is for what the
        # kernel runs now. A restart that begins meanwhile asks for its launch behind the signal.
        async with self.reports.action("interrupt"):
            if self.state.lifecycle in (Lifecycle.DEAD, Lifecycle.STOPPING):
                raise KernelNotRunning(f"Kernel {self.id} is not running")
            if self.state.unreachable or self.is_left:
                raise KernelUnreachable(self.state.unreachable or self.state.reason)
            if self.state.lifecycle in (Lifecycle.RUNNING, Lifecycle.UNKNOWN):
                await self._launches.interrupt()

    async def kill(self) -> bool:
        """Kill the process, as if it had died by itself; False if this server has no process.

        For a kernel that does not heed an interrupt. Bounded by the time that a kill takes. Raises
        `KernelNotStopped`.
        """
        # Without the lock, as this is what helps when a stop waits for code that heeds nothing. The
        # life sees the end of the process, as of one that has died.
        process = self._launches.process
        if process is not None and (why := await process.kill()):
            raise not_stopped(why)
        return process is not None

    async def restart(self, *, now: bool = False, newports: bool = False) -> None:
        """Give the kernel a new process under the same id; returns when it is launched.

        By force when ``now``; with a new connection file, key and addresses when ``newports``. A
        dead kernel can be restarted too. The old process runs until the turn of this start comes.
        It runs on when a new process could not be launched (raises `KernelStartFailed`), or when
        the old one cannot be ended (raises `KernelNotStopped`). When the launch fails after that
        check, this raises `KernelStartFailed` too, and the kernel is dead. Raises
        `KernelNotRunning` when the kernel has been removed, `TooManyStarts` and `ServerStopping`.
        """
        if self._course.phase is Phase.NEW:  # its start will launch a new process anyway
            return
        # The restart takes over the slot of the start that it ends. Should that start be over when
        # the restart gets the lock, the restart has no slot: one start too many runs for a while.
        if not self.came_up.done():
            await self._restart(self.came_up, now=now, newports=newports)
            return
        came_up: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        restart = partial(self._restart, came_up, now=now, newports=newports)
        with self._services.starts.admission():
            await self._services.starts.launch(restart, came_up)

    async def _restart(self, came_up: asyncio.Future[bool], *, now: bool, newports: bool) -> None:
        async with self._alone(), self.reports.action("restart"):
            if self._course.phase is Phase.GONE:
                raise KernelNotRunning(f"Kernel {self.id} is being shut down")
            await self._reach_at_once()
            # While the life goes on: a check that fails has changed nothing.
            await self._launches.check()
            await self._life.end()
            # Read only now that the life is over, which may have changed the state. Nothing is
            # awaited until requests are held: each goes to the old process or to the new, not both.
            before = self.state.lifecycle
            self._life.take_turn(came_up)
            self._course.on(Event.RESTART)
            self.state.begin(Lifecycle.RESTARTING, reason="")
            # Not ``restarting``: JupyterLab shows that word as the death of the kernel, and would
            # show it to the person who has just asked for the restart.
            self.traffic.voice.announce("starting")
            self.traffic.replace_process()
            # The next server launches the process if this one is killed before it can. The same
            # holds if this is cancelled at an await below, which only the end of the server does:
            # `leave` or `stop` comes next, and the table of phases has both for such a kernel.
            await self._registration.save()
            try:
                await self._launches.stop(restart=True, now=now)
            except BaseException as error:
                self._course.on(Event.STOP_FAILED)
                await self._go_on(before, error)
                raise
            if newports:  # jupyter_client's manager would use those again that it has
                await self._launches.release(restart=False)
            self._life.count_anew()
            try:
                await self._life.restart()
            except KernelStartFailed as error:
                await self._life.give_up(error.message)
                raise

    async def stop(self, *, now: bool = False, why: str = "") -> None:
        """End the process, by force when ``now``, and everything that belongs to the kernel.

        ``why`` is the reason that is told of its end, unless it has died before.
        Bounded by `shutdown_seconds`, `TERMINATE_SECONDS` and the time a kill takes. Clients are
        told ``dead`` and their connections end. Raises `KernelNotStopped`, and leaves the kernel as
        it is, when the process cannot be ended; should it end later, the kernel goes with it.
        """
        async with self._alone():
            if self._course.phase is Phase.GONE:
                return
            async with self.reports.action("shutdown"):
                await self._reach_at_once()
                # From here on only this stop sees the end of the process: the life would take that
                # end for a death, and launch the next process.
                await self._life.end()
                before = self.state.lifecycle
                if before is not Lifecycle.DEAD:
                    self._course.on(Event.STOP)
                    self.state.begin(Lifecycle.STOPPING, why or None)
                    try:
                        await self._registration.disown()
                        await self._launches.stop(restart=False, now=now)
                    except BaseException as error:
                        self._course.on(Event.STOP_FAILED)
                        await self._go_on(before, error)
                        raise
                await self._life.retire()

    async def _go_on(self, before: Lifecycle, error: BaseException) -> None:
        """The process could not be stopped: the kernel lives on as before."""
        reason = error.message if isinstance(error, KernelkeepError) else ""
        self.state.begin(before, reason)
        self.traffic.retain_process()
        self.traffic.voice.announce(self.state.greeting)
        if self._course.phase is Phase.RUNNING:
            self._life.settle_start(True)
        self._life.begin()
        # A cancellation comes with the end of the server. The record stays as the stop or restart
        # has left it, and the next server finishes what was begun (`Registration.disown`).
        if isinstance(error, Exception):
            await self._registration.save()
