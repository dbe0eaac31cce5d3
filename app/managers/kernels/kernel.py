"""One kernel: its process, its sockets and its traffic, from the start to the end.

One task, the kernel's *life*, waits for it to be ready, then for its death, and restarts it as the
policy says. A restart or a stop that is asked for ends that task first, so the two never meet.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Container, Mapping
from functools import partial
from pathlib import Path
from typing import Final

import msgspec
from jupyter_client.kernelspec import KernelSpec

from ...keeper.hearings import Heard
from ...keeper.processes import UNKNOWN_EXIT
from ...keeper.sockets import ConnectionInfo
from ...protocol.messages import format_timestamp
from ..errors import (
    KeeperUnavailable,
    KernelkeepError,
    KernelNotRunning,
    KernelNotStopped,
    KernelStartFailed,
    KernelUnreachable,
    ServerStopping,
)
from ..executions.queue import Executions
from ..handover.adoption import Gone
from ..handover.handover import settle_loss
from ..handover.store import KernelRecord
from ..messages.traffic import Traffic
from ..processes.keeper.provisioner import KeeperProvisioner
from ..processes.process import KernelProcess
from ..state import KernelState, Lifecycle, Restarts
from ..telemetry.reports import LaunchCause
from .kernel_house import KernelHouse
from .launches import Launches, not_stopped
from .restarts import RestartPolicy

__all__ = ["Kernel", "OnGone"]

logger = logging.getLogger(__name__)

CANCEL_SECONDS: Final = 10.0
"""After which what goes on although it was cancelled is cancelled again."""

REACH_SECONDS: Final = (1.0, 30.0)
"""When a kernel that was left, and cannot be reached, is tried again: at first, and at the most."""


class Model(msgspec.Struct, omit_defaults=True):
    """The kernel model of Jupyter's REST API; what has a default is left out where there is none.

    `reason` is why the kernel is dead or has no process just now, `restarts` what is over, and
    `generation` which of its processes this is.
    """

    id: str
    name: str
    last_activity: str
    execution_state: str
    connections: int
    generation: int
    reason: str = ""
    restarts: Restarts | None = None


_encode = msgspec.json.Encoder().encode

OnGone = Callable[["Kernel"], None]


class Kernel:
    """A kernel under one id, through all its processes.

    ``name`` is the kernelspec's name as it was asked for. ``place``, an absolute path, and ``env``
    are for every start of its process: that works in the directory which is then the nearest to
    ``place``. ``on_gone`` is called when the kernel has ended for good: it was stopped, or a client
    asked it to shut down.
    """

    def __init__(
        self,
        kernel_id: str,
        name: str,
        spec: KernelSpec,
        house: KernelHouse,
        *,
        place: Path,
        env: Mapping[str, str],
        on_gone: OnGone,
    ) -> None:
        settings = house.settings
        self.id = kernel_id
        self._logger = logging.LoggerAdapter(logger, {"kernel_id": kernel_id})
        self.name = name
        self.spec = spec
        self.state = KernelState(frozenset(settings.untracked_message_types))
        directory = house.files.logs / kernel_id
        self.traffic = Traffic(
            kernel_id, self.state, directory, house.keeper, settings, house.counters
        )
        self.traffic.on_loss = self._on_loss
        self.executions = Executions(self, self.traffic, self.state, settings)
        self.reports = house.reports(kernel_id, name)
        # Of the start that is or was the last: done when the kernel answers (True), or will not.
        self.came_up: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._house = house
        self._on_gone = on_gone
        self._launches = Launches(
            name,
            spec,
            house,
            self.traffic,
            self.state,
            kernel_id=kernel_id,
            place=place,
            env=env,
            on_reach=self._on_reach,
        )
        self._restarts = RestartPolicy(settings.restart_limit)
        self._lock = asyncio.Lock()
        self._life: asyncio.Task[None] | None = None
        self._was_ready = False
        # What another server has left, as long as it could not be reached.
        self._left: KernelRecord | None = None
        # Why the present process is of no use and should have been ended, which failed.
        self._stranded = ""
        self._removed = False
        self._begun = False
        self.created = time.time()
        self._settling: asyncio.Task[None] | None = None  # what was asked before our time
        self._model = (-1, b"")

    # What others see

    @property
    def model(self) -> bytes:
        """The kernel model as JSON, serialised once per change."""
        traffic, state = self.traffic, self.state
        if self._model[0] != state.changes:
            activity = format_timestamp(traffic.last_activity)
            model = Model(
                self.id,
                self.name,
                activity,
                state.word,
                len(traffic.clients),
                state.generation,
                state.reason,
                state.restarts,
            )
            self._model = (state.changes, _encode(model))
        return self._model[1]

    @property
    def pid(self) -> int | None:
        """The process id of a local kernel's present process."""
        return self._launches.pid

    @property
    def shutdown_seconds(self) -> float:
        """How long it has to end by itself when it is asked to."""
        return self._launches.shutdown_seconds

    @property
    def has_process(self) -> bool:
        """Whether there is a process; when it ends, its last words come before the state tells."""
        return self._launches.running

    @property
    def is_left(self) -> bool:
        """Whether another server has left it, and this one could not reach it yet."""
        return self._left is not None

    @property
    def counts(self) -> bool:
        """Whether it is one of the ``max_kernels`` that there may be."""
        return self.state.lifecycle is not Lifecycle.DEAD

    async def resolve_path(self, path: str) -> str | None:
        """Where ``path`` leads to in the kernel's directory (`Launches.resolve_path`), or None."""
        return await self._launches.resolve_path(path)

    # What others do

    async def relocate(self, place: Path | None, env: Mapping[str, str]) -> None:
        """Change where the next process works, unless None, and variables of its environment."""
        self._launches.place = place or self._launches.place
        self._launches.env = {**self._launches.env, **env}
        # Whoever holds the lock is about to write down what the kernel is then.
        is_known = self.traffic.connected or self.state.lifecycle is Lifecycle.DEAD
        if not self._lock.locked() and is_known:
            async with self._lock:
                if not self._removed:
                    await self._register()

    async def start(self) -> None:
        """Launch the process; returns before it is ready.

        Raises `KernelStartFailed` when there is nothing to launch, and nothing of the kernel stays
        but a process that could not be ended: that one is still this kernel's. Raises
        `KernelNotRunning` when it was shut down before.
        """
        async with self._lock:
            if self._removed:
                raise KernelNotRunning(f"Kernel {self.id} was shut down before it was started")
            self._begun = True
            try:
                await self._open_log()
                await self._launch("start")
            except KernelStartFailed as error:
                await self.traffic.close(error.message)
                if self.has_process:
                    self.traffic.shutdown_asked = True  # so that nothing stays when it ends
                    await self._give_up(error.message)
                else:
                    await self._retire()
                raise
            self._begin_life()

    async def adopt(self, record: KernelRecord) -> None:
        """In place of `start`: own what another process of the server has started or left.

        Where it has ended meanwhile the kernel is dead, with its log.
        """
        async with self._lock:
            self._begun = True
            self.created, self.state.generation = record.created, record.generation
            if record.dead:
                await self._stay_dead(record)
                return
            self._left = record
            self.traffic.last_activity = record.last_activity
            try:
                await self._take_over(record)
            except KernelUnreachable as error:
                self._doubt(error.message)
                self._begin_life()

    async def _take_over(self, record: KernelRecord) -> None:
        """Own the process that was left, or the knowledge that it has ended; and live on.

        Raises `KernelUnreachable`, and nothing has changed then.
        """
        launches = self._launches
        try:
            heard = await launches.find_again(record)
        except Gone as gone:
            self._left = None
            await self._take_over_the_dead(record, str(gone), gone.code)
            return
        self._left = None
        if await self._recover(record, launches.info, heard) is None:
            await self._give_up("The server could not take the kernel over; see its log")
            return
        # What the registry knows is up to a quarter of a second old: it may have come up since.
        ran = any(execution.started_at is not None for execution in self.traffic.tracker)
        has_come_up = ran or record.execution_state in ("busy", "idle")
        if has_come_up:
            launches.remember_transport()
        if heard.opened:
            self.state.reason = record.reason
            self._take_for_ready()
            if heard.again or self.traffic.ends.has_loss:
                self._on_loss()
        elif has_come_up or record.execution_state == Lifecycle.UNKNOWN:
            self._was_ready = True
            self._doubt("It has not answered since this server was started")
        self._begin_life()

    async def _take_over_the_dead(self, record: KernelRecord, why: str, code: int | None) -> None:
        """Its process has ended meanwhile, with this exit code if that is known."""
        unfinished = record.execution_state == Lifecycle.RESTARTING
        await self._recover(record, {}, another=unfinished)
        if not unfinished:
            self.reports.died(UNKNOWN_EXIT if code is None else code)
        await self._launches.end(why, restart=False)
        with contextlib.suppress(KeeperUnavailable):  # one that was launched and not yet noted
            await self._house.keeper.end(self.id)
        if unfinished:
            self.state.begin(Lifecycle.RESTARTING)
            self._begin_life(relaunch=True)
        else:
            await self._bury(why)

    async def _open_log(self) -> None:
        """Have a log. Raises `KernelStartFailed` where that cannot be."""
        try:
            await self.traffic.open_log()
        except (KernelUnreachable, KeeperUnavailable) as error:
            raise KernelStartFailed(f"The kernel cannot have a log: {error.message}") from error

    async def _recover(
        self,
        record: KernelRecord,
        info: ConnectionInfo,
        heard: Heard | None = None,
        *,
        another: bool = False,
    ) -> Heard | None:
        """Have the log and the executions that were left, and how the kernel is heard.

        None, and a line, if that fails. What was not sent is submitted: to this process, or
        ``another`` that follows.
        """
        try:
            heard = await self._house.handover.recover(self, record, info, heard)
        except Exception:
            self._logger.exception("kernel %s: what it has said and done is not known", self.id)
            return None
        if another:
            self.traffic.expect_process()
        self.executions.send_again()
        return heard

    def _on_loss(self) -> None:
        """The keeper was killed, and another hears the kernel."""
        if self._settling is None or self._settling.done():
            loop = asyncio.get_running_loop()
            settling = settle_loss(self.traffic, self.state)
            self._settling = loop.create_task(settling, name=f"settle {self.id}")

    async def _reach(self, record: KernelRecord) -> None:
        """Try to reach what was left until that succeeds: it may run, and is left alone."""
        pause, longest = REACH_SECONDS
        while True:
            await asyncio.sleep(pause)
            try:
                await self._take_over(record)  # it begins the next part of this life
            except KernelUnreachable as error:
                self._doubt(error.message)
            else:
                return
            pause = min(pause * 2, longest)

    async def _reach_at_once(self) -> None:
        """Be able to end the process. Raises `KernelNotStopped` while it cannot be reached."""
        if self._left is None:
            return
        await self._end_life()
        try:
            await self._take_over(self._left)
        except KernelUnreachable as error:
            self._doubt(error.message)
            self._begin_life()
            raise not_stopped(error.message) from error

    def _doubt(self, why: str) -> None:
        """Whether the process runs, or answers ever again, is not known; it is said once."""
        if self.state.lifecycle is not Lifecycle.UNKNOWN or self.state.reason != why:
            self._logger.warning("kernel %s may run or not: %s", self.id, why)
            self.state.begin(Lifecycle.UNKNOWN, why)

    def _on_reach(self, why: str) -> None:
        """The process cannot be reached, for this reason; or can again."""
        self.state.reason = f"The kernel's process cannot be reached: {why}" if why else ""
        self.state.changes += 1

    async def _stay_dead(self, record: KernelRecord) -> None:
        """It was dead before our time."""
        await self._recover(record, {})
        self._settle_start(False)
        await self.traffic.close(record.reason)
        self.state.begin(Lifecycle.DEAD)
        self.traffic.refuse_waiting()

    def _take_for_ready(self) -> None:
        """It was ready before our time."""
        self._was_ready = self._launches.is_up = True
        self._settle_start(True)
        self._restarts.on_ready(asyncio.get_running_loop().time())
        self.traffic.ready()
        self.executions.resume()

    async def leave(self) -> bool:
        """Let the process go on without this server, for the next one; False if it cannot be.

        A dead kernel is left as well, to be looked at.
        """
        async with self._lock:
            if self._removed or self.state.lifecycle not in self._leavable:
                return False
            self._removed = True
            await self._end_life()
            traffic = self.traffic
            traffic.leave()
            if self._left is not None:  # what is written of it holds, and nothing was said
                return True
            await self._register()
            # The journal stays open: connections that end only now tell how far they have come.
            self._launches.leave()
            return True

    @property
    def _leavable(self) -> Container[Lifecycle]:
        # The next server goes on to wait for a kernel that starts, and restarts one that has no
        # process just now.
        return [lifecycle for lifecycle in Lifecycle if lifecycle is not Lifecycle.STOPPING]

    async def keep(self) -> None:
        """Have the next process of the server know of this one, if kernels are kept."""
        if self.traffic.connected:
            self._house.handover.begin(self)
            await self._register()

    async def _register(self) -> None:
        await self._house.handover.save(self.id, self._record)

    async def _record(self) -> KernelRecord | None:
        """The kernel as the next server is to know it; None if its process is replaced meanwhile.

        Raises what a provisioner does.
        """
        record = KernelRecord(
            id=self.id,
            name=self.name,
            spec={**self.spec.to_dict(), "resource_dir": self.spec.resource_dir},
            connection={},
            connection_file="",
            provisioner={},
            argv=list(self.spec.argv),
            cwd="",
            env={},
            pid=None,
            start_time="",
            created=self.created,
            last_activity=self.traffic.last_activity,
            generation=self.state.generation,
            execution_state=self.state.word,
            reason=self.state.reason,
            exclusive=True,
            external=False,
            restarts=self.state.restarts,
        )
        await self._note_process(record)
        # `relocate` may have come between; and with another process there is another record.
        record.cwd, record.env = str(self._launches.place), dict(self._launches.env)
        return record if record.generation == self.state.generation else None

    async def _note_process(self, record: KernelRecord) -> None:
        await self._launches.note(record)

    async def _disown(self) -> None:
        """Have the next server end the kernel, if it comes before the end does.

        Of those that the keeper has it ends what it does not know.
        """
        if isinstance(self._launches.provisioner, KeeperProvisioner):
            await self._house.handover.delete(self.id)

    def hand_over(
        self,
        house: KernelHouse,
        *,
        cwd: Path,
        place: Path,
        env: Mapping[str, str],
        on_gone: OnGone,
    ) -> None:
        """From now on it is a kernel of ``house`` like any other, and restarts with these.

        ``cwd`` is the directory that it works in.
        """
        self._house = house
        self._on_gone = on_gone
        self._launches.hand_over(house, cwd=cwd, place=place, env=env)
        self.reports = house.reports(self.id, self.name)
        self.traffic.touch()

    async def interrupt(self) -> None:
        """Interrupt what the kernel runs, by signal or by message as its kernelspec says.

        A kernel that is not ready runs nothing: a signal would only hit its start. Raises
        `KernelNotRunning` for one that is dead, and `KernelUnreachable`.
        """
        async with self.reports.action("interrupt"):
            if self.state.lifecycle in (Lifecycle.DEAD, Lifecycle.STOPPING):
                raise KernelNotRunning(f"Kernel {self.id} is not running")
            if self._left is not None:
                raise KernelUnreachable(self.state.reason)
            if self.state.lifecycle in (Lifecycle.RUNNING, Lifecycle.UNKNOWN):
                await self._launches.interrupt()

    async def kill(self) -> bool:
        """Kill the process; what follows is what follows any other death. False if it is not ours.

        For a kernel that does not heed an interrupt. Bounded by the time that a kill takes. Raises
        `KernelNotStopped`.
        """
        process = self._launches.process
        if process is not None and (why := await process.kill()):
            raise not_stopped(why)
        return process is not None

    async def restart(self, *, now: bool = False, newports: bool = False) -> None:
        """Give the kernel a new process under the same id; returns when it is launched.

        By force when ``now``; with a new connection file, key and addresses when ``newports``. A
        dead kernel can be restarted too. The old process goes on until it is the turn of this
        start, and beyond if the new one is known not to start, or the old one cannot be ended.
        Raises `KernelStartFailed` in the first case and `KernelNotStopped` in the second. Raises
        `KernelStartFailed`, and leaves the kernel dead, when the launch fails all the same,
        `KernelNotRunning` when it has been removed, `TooManyStarts` and `ServerStopping`.
        """
        if not self._begun:  # it waits for its turn, and gets a new process anyway
            return
        if not self.came_up.done():  # this takes the place of the start that it ends
            await self._restart(self.came_up, now=now, newports=newports)
            return
        came_up: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        restart = partial(self._restart, came_up, now=now, newports=newports)
        with self._house.starts.admission():
            await self._house.starts.launch(restart, came_up)

    async def _restart(self, came_up: asyncio.Future[bool], *, now: bool, newports: bool) -> None:
        async with self._lock, self.reports.action("restart"):
            if self._removed:
                raise KernelNotRunning(f"Kernel {self.id} is being shut down")
            await self._reach_at_once()
            await self._launches.check()
            await self._end_life()
            before = self.state.lifecycle
            self._take_turn(came_up)
            self.state.begin(Lifecycle.RESTARTING, reason="")
            # Not ``restarting``: from that word JupyterLab concludes that the kernel has died, and
            # would tell so the person who has just asked for the restart.
            self.traffic.voice.announce("starting")
            self.traffic.replace_process()
            await self._register()  # so that the next server restarts it if this one cannot
            try:
                await self._launches.stop(restart=True, now=now)
            except BaseException as error:
                self.traffic.restart_asked = True  # should it end after all
                await self._go_on(before, error)
                raise
            if newports:
                await self._launches.release(restart=False)
            self._restarts = RestartPolicy(self._house.settings.restart_limit)
            self._launches.begin_again()
            try:
                await self._launch("restart")
            except KernelStartFailed as error:
                await self._give_up(error.message)
                raise
            self._begin_life()

    async def stop(self, *, now: bool = False) -> None:
        """End the process, by force when ``now``, and everything that belongs to the kernel.

        Bounded by `shutdown_seconds`, `TERMINATE_SECONDS` and the time a kill takes. Clients are
        told ``dead`` and their connections end. Raises `KernelNotStopped`, and leaves the kernel as
        it is, when the process cannot be ended; should it end later, the kernel goes with it.
        """
        async with self._lock:
            if self._removed:
                return
            async with self.reports.action("shutdown"):
                await self._reach_at_once()
                await self._end_life()
                before = self.state.lifecycle
                if before is not Lifecycle.DEAD:
                    self.state.begin(Lifecycle.STOPPING)
                    try:
                        await self._disown()
                        await self._launches.stop(restart=False, now=now)
                    except BaseException as error:
                        self.traffic.shutdown_asked = True  # should it end after all
                        await self._go_on(before, error)
                        raise
                await self._retire()

    async def _go_on(self, before: Lifecycle, error: BaseException) -> None:
        """The process that was to be stopped is not: the kernel lives on as before."""
        reason = error.message if isinstance(error, KernelkeepError) else ""
        self.state.begin(before, reason)
        self.traffic.keep_process()
        self.traffic.voice.announce(self.state.greeting)
        if self._launches.is_up:
            self._settle_start(True)
        self._begin_life()
        if isinstance(error, Exception):
            await self._register()

    # Its life

    def _begin_life(self, *, relaunch: bool = False) -> None:
        if self._left is not None:
            life = self._reach(self._left)
        else:
            life = self._live_again() if relaunch else self._live()
        self._life = asyncio.get_running_loop().create_task(life, name=f"kernel {self.id}")

    async def _end_life(self) -> None:
        if self._settling is not None:
            self._settling.cancel()
            self._settling = None
        life, self._life = self._life, None
        while life is not None and not life.done():
            life.cancel()  # once more if a provisioner has swallowed it
            await asyncio.wait({life}, timeout=CANCEL_SECONDS)

    async def _live(self) -> None:
        try:
            if self._stranded:
                await self._see_it_end()
                return
            while await self._live_once():
                pass
        except (KernelStartFailed, KernelNotStopped) as error:
            await self._give_up(error.message)
        except ServerStopping:  # while it waited for its turn: it is left or stopped now
            pass
        except Exception:
            self._logger.exception("kernel %s: its supervision failed", self.id)
            await self._end_unsupervised()

    async def _live_once(self) -> bool:
        """See one process through its life; whether there is another."""
        reason = await self._come_up_and_die()
        if self.traffic.shutdown_asked:
            self._logger.info("kernel %s: shut down as a client asked it to", self.id)
            self.reports.shut_down_by_client()
            await self._retire()
            return False
        if self.traffic.restart_asked:
            self._logger.info("kernel %s: restarted as a client asked it to", self.id)
            await self._restart_as_asked()
            return True
        delay = self._restarts.on_death(asyncio.get_running_loop().time())
        if not self._was_ready or not self._house.settings.autorestart or delay is None:
            await self._bury(reason)
            return False
        self._logger.warning("kernel %s: %s; it is restarted", self.id, reason)
        self.reports.restarting(reason, self._restarts.deaths)
        self.state.on_restart(reason)
        self.traffic.voice.announce("restarting")
        async with self.reports.action("restart"):
            await asyncio.sleep(delay)
            await self._launch_again("automatic_restart")
        return True

    async def _end_unsupervised(self) -> None:
        """End the process of a kernel that the server does not see through its life."""
        reason = "The server failed to supervise the kernel; see its log"
        process = self._launches.process
        why = await process.kill() if process is not None else ""
        await self._give_up(f"{reason}. {not_stopped(why).message}" if why else reason)

    async def _give_up(self, reason: str) -> None:
        """The kernel has no process that is of any use, and none will come unless asked for.

        One that could not be ended is still this kernel's: it is shown, and can be stopped.
        """
        if not self.has_process:
            await self._bury(reason)
            return
        self._stranded = reason
        await self.traffic.close(reason)
        self._doubt(reason)
        self._settle_start(False)
        await self._register()
        self._begin_life()

    async def _see_it_end(self) -> None:
        """Wait, without a bound, for the end of a process that could not be ended."""
        assert self._launches.process is not None
        await asyncio.shield(self._launches.process.exited)
        reason, self._stranded = self._stranded, ""
        if self.traffic.shutdown_asked:
            await self._retire()
        else:
            await self._bury(reason)

    async def _live_again(self) -> None:
        """Finish what a server before this one was about to do."""
        try:
            await self._restart_as_asked()
        except KernelStartFailed as error:
            await self._give_up(error.message)
        except ServerStopping:
            pass
        else:
            await self._live()

    async def _restart_as_asked(self) -> None:
        """The process has ended to be restarted: that is no death."""
        self._restarts = RestartPolicy(self._house.settings.restart_limit)
        self._launches.begin_again()
        self.state.begin(Lifecycle.RESTARTING, reason="")
        self.traffic.voice.announce("starting")
        async with self.reports.action("restart"):
            await self._launch_again("restart")

    async def _launch_again(self, cause: LaunchCause) -> None:
        """Launch the next process when its turn comes; there is none meanwhile."""
        came_up: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

        async def launch() -> None:
            self._take_turn(came_up)
            await self._launch(cause)

        with self._house.starts.admission(always=True):
            await self._house.starts.launch(launch, came_up)

    def _take_turn(self, came_up: asyncio.Future[bool]) -> None:
        """The start that is under way from now on; one that was is over."""
        if self.came_up is not came_up:
            self._settle_start(False)
            self.came_up = came_up

    async def _come_up_and_die(self) -> str:
        """Wait for readiness, then for death; return why it died, its requests ended."""
        launches, process = self._launches, self._launches.process
        assert process is not None
        try:
            if not launches.is_up:
                await self._come_up(process)
        except KernelStartFailed as error:
            self.reports.start_failed()
            if why := await process.kill():
                raise KernelNotStopped(f"{error.message}. {not_stopped(why).message}") from error
            way = launches.another_way(process)
            if not way:
                await launches.end(error.message, restart=True)
                return error.message
            self._logger.info("kernel %s: %s; starting it %s", self.id, error.message, way)
            await self.traffic.disconnect()
            await launches.release(restart=False)
            await self._launch("fallback")
            return await self._come_up_and_die()
        exited = await asyncio.shield(process.exited)
        if self._settling is not None:
            self._settling.cancel()
            self._settling = None
        await self.traffic.settle()
        reason = await launches.describe(process, f"The kernel's process {exited}")
        asked = self.traffic.shutdown_asked or self.traffic.restart_asked
        if not asked:
            self.reports.died(exited.code)
        await launches.end(None if asked else reason, restart=True)
        return reason

    async def _come_up(self, process: KernelProcess) -> None:
        """Wait until the kernel is ready. Raises `KernelStartFailed` (`Launches.come_up`)."""
        launches, was_up = self._launches, self.state.lifecycle is Lifecycle.UNKNOWN
        if not await launches.come_up(process, was_up=was_up):
            return
        if was_up:
            self.state.reason = ""
            self._take_for_ready()
            return
        now = asyncio.get_running_loop().time()
        self._was_ready = True
        self._settle_start(True)
        launches.remember_transport()
        self._restarts.on_ready(now)
        self.traffic.active_since = time.monotonic()
        self.traffic.ready()
        self.reports.ready(now - launches.launched)
        launches.bring_up_forks()

    async def _retire(self) -> None:
        """The kernel has ended as it was asked to: nothing of it stays."""
        self._removed = True
        self._settle_start(False)
        await self._launches.release(restart=False)
        self.state.begin(Lifecycle.DEAD)
        try:
            await self._house.handover.forget(self)
            self._launches.remove_output()
        except Exception:  # of the disk: the kernel is gone all the same
            self._logger.exception(
                "kernel %s: something of it stays in the state directory", self.id
            )
        await self.traffic.remove_log()
        self._on_gone(self)

    async def _bury(self, reason: str) -> None:
        """There is no process any more, and none will come unless it is asked for."""
        self._logger.error("kernel %s is dead: %s", self.id, reason)
        self.reports.dead(reason)
        await self._launches.release(restart=False)
        await self.traffic.close(reason)
        self.state.begin(Lifecycle.DEAD, reason)
        self.traffic.refuse_waiting()
        self._settle_start(False)  # who waits for that asks for the reason
        self.traffic.voice.announce("dead")
        await self._register()

    def _settle_start(self, came_up: bool) -> None:
        if not self.came_up.done():
            self.came_up.set_result(came_up)

    async def _launch(self, cause: LaunchCause) -> None:
        """Launch a process, and note it for the next server. Raises `KernelStartFailed`."""
        self.reports.launching(cause)
        self._stranded = ""  # the process before is gone
        try:
            await self._launches.launch(is_fallback=cause == "fallback")
        except KernelStartFailed:
            self.reports.start_failed()
            raise
        await self.keep()
