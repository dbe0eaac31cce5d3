"""One kernel: its process, its sockets and its traffic, from the start to the end.

One task, the kernel's *life*, waits for it to be ready, then for its death, and restarts it as the
policy says. A restart or a stop that is asked for ends that task first, so the two never meet.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
from collections.abc import Callable, Container, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
from jupyter_client.kernelspec import KernelSpec, NoSuchKernel
from jupyter_client.provisioning.local_provisioner import LocalProvisioner

from app.keeper.hearings import Heard
from app.keeper.output import ProcessOutput
from app.keeper.processes import UNKNOWN_EXIT
from app.keeper.sockets import ConnectionInfo
from app.managers.adoption import (
    Gone,
    adopt_process,
    furthest,
    keep_journal,
    note_process,
    record_of,
    recover,
    settle_loss,
    was_being_replaced,
)
from app.managers.errors import (
    KeeperUnavailable,
    KernelkeepError,
    KernelNotRunning,
    KernelNotStopped,
    KernelStartFailed,
    KernelUnreachable,
    ServerStopping,
)
from app.managers.executions import Executions
from app.managers.fork_link import Recipe
from app.managers.fork_provisioner import PROVISIONER, ForkOptions, KernelManager
from app.managers.keeper_provisioner import KeeperProvisioner
from app.managers.kernel_house import KernelHouse
from app.managers.launchable import check_launchable
from app.managers.oom import OOMWatch
from app.managers.paths import directory_now, is_below
from app.managers.process import CALL_SECONDS, KernelProcess, bounded, described
from app.managers.registry_store import KernelRecord
from app.managers.reports import LaunchCause
from app.managers.restarts import RestartPolicy
from app.managers.spec_files import shutdown_seconds_of
from app.managers.state import KernelState, Lifecycle, Restarts
from app.managers.traffic import Traffic
from app.managers.transports import Transport, ports_taken, sockets_exist
from app.protocol.messages import format_timestamp

__all__ = ["Kernel", "OnGone"]

logger = logging.getLogger(__name__)

IPC_PATIENCE: Final = 10.0
"""Seconds after which a kernel that has bound no ipc socket is taken not to speak ipc."""

CANCEL_SECONDS: Final = 10.0
"""After which what goes on although it was cancelled is cancelled again."""

REACH_SECONDS: Final = (1.0, 30.0)
"""When a kernel that was left, and cannot be reached, is tried again: at first, and at the most."""

PROBE_SECONDS: Final = 5.0
"""The longest pause between two questions to a kernel that does not answer."""

LOOK_SECONDS: Final = 0.5
"""How often is looked for what a kernel that shuts down waits for."""

IPYKERNEL: Final = "ipython"
"""The implementation that ipykernel names in its `kernel_info_reply`."""

CHILDREN_SECONDS: Final = 30.0
"""How long ipykernel waits for its children, at the most, when it shuts down."""

IGNORED: Final = "ignores its shutdown request"

TERMINATE_SECONDS: Final = 2.0
"""How long a process may take from SIGTERM to its end, before SIGKILL."""

PORT_ATTEMPTS: Final = 3
"""Starts over tcp before ports that others took meanwhile count as a failure."""


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
        self.name = name
        self.spec = spec
        self.state = KernelState(frozenset(settings.untracked_message_types))
        directory = house.logs.directory(kernel_id)
        self.traffic = Traffic(
            kernel_id, self.state, directory, house.hearer, settings, house.counters
        )
        self.traffic.on_loss = self._on_loss
        self.executions = Executions(self, self.traffic, self.state, settings)
        self.reports = house.reports(kernel_id, name)
        # Of the start that is or was the last: done when the kernel answers (True), or will not.
        self.came_up: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._house = house
        self._on_gone = on_gone
        self._place = self._cwd = place  # and the directory of the present process
        self._env = env
        self._restarts = RestartPolicy(settings.restart_limit)
        self._output = ProcessOutput(house.output_file(kernel_id), settings.output_log_bytes)
        self._lock = asyncio.Lock()
        self._life: asyncio.Task[None] | None = None
        self._process: KernelProcess | None = None
        self._manager: KernelManager | None = None
        self._transport: Transport = house.transports.choose(spec)
        self._info: ConnectionInfo = {}
        self._oom = OOMWatch(None)
        self._launched = 0.0  # by the loop's clock
        self._was_ready = False
        self._is_up = False  # the present process
        # What another server has left, as long as it could not be reached.
        self._left: KernelRecord | None = None
        # Why the present process is of no use and should have been ended, which failed.
        self._stranded = ""
        self._port_attempts = 0
        # What it was forked from, if that did not come up and it is started now.
        self._forked_in_vain: Recipe | None = None
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
                traffic.connections,
                state.generation,
                state.reason,
                state.restarts,
            )
            self._model = (state.changes, _encode(model))
        return self._model[1]

    @property
    def pid(self) -> int | None:
        """The process id of a local kernel's present process."""
        return self._process.pid if self._process is not None else None

    @property
    def shutdown_seconds(self) -> float:
        """How long it has to end by itself when it is asked to."""
        own = shutdown_seconds_of(self.spec)
        return self._house.settings.shutdown_wait_time if own is None else own

    @property
    def has_process(self) -> bool:
        """Whether there is a process; when it ends, its last words come before the state tells."""
        return self._process is not None and self._process.running

    @property
    def is_left(self) -> bool:
        """Whether another server has left it, and this one could not reach it yet."""
        return self._left is not None

    @property
    def counts(self) -> bool:
        """Whether it is one of the ``max_kernels`` that there may be."""
        return self.state.lifecycle is not Lifecycle.DEAD

    async def resolve_path(self, path: str) -> str | None:
        """Where ``path`` leads to from the directory the kernel works in, if its provisioner says.

        None when there is no such file below that directory, or nobody to tell.
        """
        provisioner = self._manager.provisioner if self._manager is not None else None
        if provisioner is None:
            return None
        try:
            async with asyncio.timeout(CALL_SECONDS):
                found = await asyncio.to_thread(provisioner.resolve_path, path)
                below = await asyncio.to_thread(is_below, self._cwd, found) if found else False
                return found if below else None
        except (OSError, RuntimeError, ValueError):  # no such user, a loop of links, a NUL
            return None

    # What others do

    async def relocate(self, place: Path | None, env: Mapping[str, str]) -> None:
        """Change where the next process works, unless None, and variables of its environment."""
        self._place = place or self._place
        self._env = {**self._env, **env}
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
        self._transport = "ipc" if record.connection.get("transport") == "ipc" else "tcp"
        code: int | None = None
        try:
            manager = self._house.new_manager(self.name, self.id, self._transport, self.spec)
            process = KernelProcess(manager, self._output, self._on_reach)
            info = await adopt_process(record, manager, self._house.loading)
            exited = await process.adopt()
            if exited is not None:
                code = exited.code
                raise Gone(f"The kernel's process {exited} while no server was there")
            if record.execution_state == Lifecycle.RESTARTING:
                await self._end_replaced(process)
            heard = await self._meet(process, info)
        except Gone as gone:
            # They clean up after the process.
            self._left, self._manager, self._process = None, manager, process
            await self._take_over_the_dead(record, str(gone), code)
            return
        except KernelUnreachable:
            raise
        except Exception as error:
            raise KernelUnreachable(described(error)) from error
        self._left, self._manager, self._process, self._info = None, manager, process, info
        self._cwd = Path(getattr(manager.provisioner, "cwd", None) or self._cwd)
        self._oom = OOMWatch(process.pid)
        if await self._recover(record, info, heard) is None:
            await self._give_up("The server could not take the kernel over; see its log")
            return
        self._launched = asyncio.get_running_loop().time()
        # What the registry knows is up to a quarter of a second old: it may have come up since.
        ran = any(execution.started_at is not None for execution in self.traffic.tracker)
        has_come_up = ran or record.execution_state in ("busy", "idle")
        if has_come_up:
            self._house.transports.remember(self.spec, self._transport)
        if heard.opened:
            self.state.reason = record.reason
            self._take_for_ready()
            if heard.again or self.traffic.has_loss:
                self._on_loss()
        elif has_come_up or record.execution_state == Lifecycle.UNKNOWN:
            self._was_ready = True
            self._doubt("It has not answered since this server was started")
        self._begin_life()

    async def _end_replaced(self, process: KernelProcess) -> None:
        """End the process that the server before this one was about to stop, for a restart.

        It may have been asked to end: what is sent to it now would be lost with it. Raises `Gone`
        then, and `KernelUnreachable` if it cannot be ended.
        """
        if not await asyncio.to_thread(was_being_replaced, self._house, self.id):
            return
        if why := await process.kill():
            raise KernelUnreachable(f"The kernel's process could not be ended: {why}")
        raise Gone("The kernel was being restarted")

    async def _take_over_the_dead(self, record: KernelRecord, why: str, code: int | None) -> None:
        """Its process has ended meanwhile, with this exit code if that is known."""
        unfinished = record.execution_state == Lifecycle.RESTARTING
        await self._recover(record, {}, another=unfinished)
        if not unfinished:
            self.reports.died(UNKNOWN_EXIT if code is None else code)
        await self._end_process(why, restart=False)
        if self._house.keeper is not None:  # one that was launched and not yet noted
            with contextlib.suppress(KeeperUnavailable):
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

    async def _meet(self, process: KernelProcess, info: ConnectionInfo) -> Heard:
        """Have the log, and the process heard. Raises what `Traffic.meet` does."""
        try:
            known = await asyncio.to_thread(furthest, self._house, self.id)
            return await self.traffic.meet(info, known)
        except BaseException:
            process.close()
            raise

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
            heard = await recover(self._house, self, record, info, heard)
        except Exception:
            logger.exception("kernel %s: what it has said and done is not known", self.id)
            return None
        if another:
            self.traffic.expect_process()
        self.executions.send_again()
        return heard

    def _on_loss(self) -> None:
        """The keeper was killed, and another hears the kernel."""
        if self._settling is None or self._settling.done():
            loop = asyncio.get_running_loop()
            self._settling = loop.create_task(settle_loss(self), name=f"settle {self.id}")

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
            raise _not_stopped(error.message) from error

    def _doubt(self, why: str) -> None:
        """Whether the process runs, or answers ever again, is not known; it is said once."""
        if self.state.lifecycle is not Lifecycle.UNKNOWN or self.state.reason != why:
            logger.warning("kernel %s may run or not: %s", self.id, why)
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
        self._was_ready = self._is_up = True
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
            if self._process is not None:
                self._process.close()
            if self._manager is not None:
                # It would remove the file at its own end.
                self._manager._connection_file_written = False
            return True

    @property
    def _leavable(self) -> Container[Lifecycle]:
        # The next server goes on to wait for a kernel that starts, and restarts one that has no
        # process just now.
        return [lifecycle for lifecycle in Lifecycle if lifecycle is not Lifecycle.STOPPING]

    async def keep(self) -> None:
        """Have the next process of the server know of this one, if kernels are kept."""
        if self._house.registry is not None and self.traffic.connected:
            keep_journal(self._house, self)
            await self._register()

    async def _register(self) -> None:
        if self._house.registry is None:
            return
        record = record_of(
            self,
            cwd=self._place,
            env=self._env,
            created=self.created,
            generation=self.state.generation,
        )
        try:
            await self._note_process(record)
            record.cwd, record.env = str(self._place), dict(self._env)  # it may have moved by now
            if record.generation == self.state.generation:  # else another process is noted already
                await self._house.registry.save(record)
        except Exception:  # of a provisioner of somebody else's making, or of the disk
            logger.exception("kernel %s: the next server will not know it", self.id)

    async def _note_process(self, record: KernelRecord) -> None:
        if self._manager is not None:
            await note_process(record, self._manager, self._info)

    async def _disown(self) -> None:
        """Have the next server end the kernel, if it comes before the end does.

        Of those that the keeper has it ends what it does not know.
        """
        provisioner = self._manager.provisioner if self._manager is not None else None
        if self._house.registry is not None and isinstance(provisioner, KeeperProvisioner):
            await self._house.registry.delete(self.id)

    async def _unregister(self) -> None:
        if self._house.registry is not None:
            # What is still asked of the kernel is not written down any more.
            self.traffic.tracker.keeping = None
            await self._house.registry.delete(self.id)
            journal, self.traffic.journal = self.traffic.journal, None
            if journal is not None:
                journal.remove()

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
        self._cwd, self._place, self._env = cwd, place, env
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
                await self._interrupt()

    async def _interrupt(self) -> None:
        self.traffic.before_interrupt()
        if self.spec.interrupt_mode == "message":
            self.traffic.request("control", "interrupt_request", {})
        elif self._process is not None:
            await self._process.signal(signal.SIGINT)
        self.traffic.after_interrupt()

    async def kill(self) -> bool:
        """Kill the process; what follows is what follows any other death. False if it is not ours.

        For a kernel that does not heed an interrupt. Bounded by the time that a kill takes. Raises
        `KernelNotStopped`.
        """
        process = self._process
        if process is not None and (why := await process.kill()):
            raise _not_stopped(why)
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
            await self._look()
            await self._end_life()
            before = self.state.lifecycle
            self._take_turn(came_up)
            self.state.begin(Lifecycle.RESTARTING, reason="")
            # Not ``restarting``: from that word JupyterLab concludes that the kernel has died, and
            # would tell so the person who has just asked for the restart.
            self.traffic.announce("starting")
            self.traffic.replace_process()
            await self._register()  # so that the next server restarts it if this one cannot
            try:
                await self._stop_process(restart=True, now=now)
            except BaseException as error:
                self.traffic.restart_asked = True  # should it end after all
                await self._go_on(before, error)
                raise
            if newports:
                await self._release(restart=False)
            self._restarts = RestartPolicy(self._house.settings.restart_limit)
            self._port_attempts = 0
            try:
                await self._launch("restart")
            except KernelStartFailed as error:
                await self._give_up(error.message)
                raise
            self._begin_life()

    async def _look(self) -> None:
        """Raise `KernelStartFailed` if the next process could not be launched, as far as is seen.

        What a provisioner of somebody else's can launch nobody here knows.
        """
        provisioner = self._manager.provisioner if self._manager is not None else None
        stanza = self.spec.metadata.get("kernel_provisioner") or {}
        name = stanza.get("provisioner_name", "local-provisioner")
        if isinstance(provisioner, ForkOptions):
            try:
                provisioner.check()
            except ValueError as error:
                raise KernelStartFailed(f"The kernel could not be launched: {error}") from None
        if isinstance(provisioner, LocalProvisioner) or (
            provisioner is None and name in ("local-provisioner", PROVISIONER)
        ):
            cwd = await self._directory_now()
            await asyncio.to_thread(
                check_launchable, self.spec, cwd, self._env, self._house.connection_dir
            )

    async def _directory_now(self) -> Path:
        root = self._house.settings.root_dir
        return await asyncio.to_thread(directory_now, root, self._place)

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
                        await self._stop_process(restart=False, now=now)
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
        self.traffic.announce(self.state.greeting)
        if self._is_up:
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
            logger.exception("kernel %s: its supervision failed", self.id)
            await self._end_unsupervised()

    async def _live_once(self) -> bool:
        """See one process through its life; whether there is another."""
        reason = await self._come_up_and_die()
        if self.traffic.shutdown_asked:
            logger.info("kernel %s: shut down as a client asked it to", self.id)
            self.reports.shut_down_by_client()
            await self._retire()
            return False
        if self.traffic.restart_asked:
            logger.info("kernel %s: restarted as a client asked it to", self.id)
            await self._restart_as_asked()
            return True
        delay = self._restarts.on_death(asyncio.get_running_loop().time())
        if not self._was_ready or not self._house.settings.autorestart or delay is None:
            await self._bury(reason)
            return False
        logger.warning("kernel %s: %s; it is restarted", self.id, reason)
        self.reports.restarting(reason, self._restarts.deaths)
        self.state.on_restart(reason)
        self.traffic.announce("restarting")
        async with self.reports.action("restart"):
            await asyncio.sleep(delay)
            await self._launch_again("automatic_restart")
        return True

    async def _end_unsupervised(self) -> None:
        """End the process of a kernel that the server does not see through its life."""
        reason = "The server failed to supervise the kernel; see its log"
        why = await self._process.kill() if self._process is not None else ""
        await self._give_up(f"{reason}. {_not_stopped(why).message}" if why else reason)

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
        assert self._process is not None
        await asyncio.shield(self._process.exited)
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
        self._port_attempts = 0
        self.state.begin(Lifecycle.RESTARTING, reason="")
        self.traffic.announce("starting")
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
        process = self._process
        assert process is not None
        try:
            if not self._is_up:
                await self._come_up(process)
        except KernelStartFailed as error:
            self.reports.start_failed()
            if why := await process.kill():
                raise KernelNotStopped(f"{error.message}. {_not_stopped(why).message}") from error
            way = self._another_way(process)
            if not way:
                await self._end_process(error.message, restart=True)
                return error.message
            logger.info("kernel %s: %s; starting it %s", self.id, error.message, way)
            await self.traffic.disconnect()
            await self._release(restart=False)
            await self._launch("fallback")
            return await self._come_up_and_die()
        exited = await asyncio.shield(process.exited)
        if self._settling is not None:
            self._settling.cancel()
            self._settling = None
        await self.traffic.settle()
        reason = await self._describe(process, f"The kernel's process {exited}")
        asked = self.traffic.shutdown_asked or self.traffic.restart_asked
        if not asked:
            self.reports.died(exited.code)
        await self._end_process(None if asked else reason, restart=True)
        return reason

    async def _come_up(self, process: KernelProcess) -> None:
        """Wait until the kernel answers and its iopub is heard.

        Raises `KernelStartFailed` when the process ends before that, or when nothing at all has
        been heard after ``kernel_info_timeout``. One that had come up for an earlier server has no
        such bound: it may be stopped or swapped out, and go on.
        """
        loop = asyncio.get_running_loop()
        traffic, settings = self.traffic, self._house.settings
        started = loop.time()
        had_come_up = self.state.lifecycle is Lifecycle.UNKNOWN
        patience = float("inf") if had_come_up else settings.kernel_info_timeout
        deadline = started + patience
        reachable = loop.create_task(traffic.reachable())
        pause = 1.0
        try:
            while not reachable.done():
                traffic.probe()
                # A kernel that has answered but was not heard on iopub (it sends no welcome, and
                # its first status came before our subscription) only needs another question.
                wait = 0.05 if traffic.answered else pause
                pause = min(pause * 1.5, REACH_SECONDS[1] if had_come_up else PROBE_SECONDS)
                events: set[asyncio.Future[Any]] = {reachable, process.exited}
                await asyncio.wait(
                    events,
                    timeout=max(min(wait, deadline - loop.time()), 0.001),
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if reachable.done():
                    break
                if process.exited.done() and had_come_up:
                    return
                if process.exited.done():
                    problem = f"The kernel's process {process.exited.result()} before it was ready"
                    raise KernelStartFailed(await self._describe(process, problem))
                if loop.time() >= deadline:
                    if traffic.answered or traffic.heard_iopub:
                        break
                    problem = f"The kernel said nothing within {settings.kernel_info_timeout:g} s"
                    raise KernelStartFailed(await self._describe(process, problem))
                if had_come_up:
                    continue
                if loop.time() >= started + IPC_PATIENCE and self._has_no_ipc():
                    raise KernelStartFailed("The kernel has bound no ipc socket")
        finally:
            reachable.cancel()
        await traffic.stdin_connected()
        if had_come_up:
            self.state.reason = ""
            self._take_for_ready()
            return
        if not (traffic.answered and traffic.heard_iopub):
            logger.warning(
                "kernel %s: taken for ready although it %s",
                self.id,
                "was not heard on iopub" if traffic.answered else "does not answer kernel_info",
            )
        self._was_ready = self._is_up = True
        self._settle_start(True)
        self._house.transports.remember(self.spec, self._transport)
        self._restarts.on_ready(loop.time())
        traffic.active_since = time.monotonic()
        traffic.ready()
        self.reports.ready(loop.time() - self._launched)
        in_vain, self._forked_in_vain = self._forked_in_vain, None
        self._house.forking.came_up(self._manager, in_vain)

    def _has_no_ipc(self) -> bool:
        return self._house.transports.may_fall_back(
            self.spec, self._transport
        ) and not sockets_exist(self._info)

    def _another_way(self, process: KernelProcess) -> str:
        """How a start that failed should be tried again, for the log; empty if it should not."""
        if self._transport == "tcp" and process.pid is not None and ports_taken(self._info):
            self._port_attempts += 1
            return "on other ports" if self._port_attempts < PORT_ATTEMPTS else ""
        if recipe := self._house.forking.forked_by_itself(self._manager):
            self._forked_in_vain = recipe
            return "without forking it"
        if self._house.transports.may_fall_back(self.spec, self._transport):
            self._transport = "tcp"
            return "over tcp"
        self._forked_in_vain = None  # that was not the reason
        return ""

    async def _describe(self, process: KernelProcess, problem: str) -> str:
        killed = process.exited.done() and process.exited.result().code == -signal.SIGKILL
        if killed and self._oom.struck:
            problem += "; its control group ran out of memory meanwhile"
        tail = await process.tail()
        if tail and not self._house.settings.allow_tracebacks:
            # Interpreters that crash write one. It is for the log, not for clients.
            logger.info("kernel %s: the last it wrote:\n%s", self.id, tail)
            return problem
        return f"{problem}. The last it wrote:\n{tail}" if tail else problem

    async def _retire(self) -> None:
        """The kernel has ended as it was asked to: nothing of it stays."""
        self._removed = True
        self._settle_start(False)
        await self._release(restart=False)
        self.state.begin(Lifecycle.DEAD)
        try:
            await self._unregister()
            self._output.remove()
        except Exception:  # of the disk: the kernel is gone all the same
            logger.exception("kernel %s: something of it stays in the state directory", self.id)
        await self.traffic.remove_log()
        self._on_gone(self)

    async def _bury(self, reason: str) -> None:
        """There is no process any more, and none will come unless it is asked for."""
        logger.error("kernel %s is dead: %s", self.id, reason)
        self.reports.dead(reason)
        await self._release(restart=False)
        await self.traffic.close(reason)
        self.state.begin(Lifecycle.DEAD, reason)
        self.traffic.refuse_waiting()
        self._settle_start(False)  # who waits for that asks for the reason
        self.traffic.announce("dead")
        if self._house.registry is not None:
            await self._register()

    def _settle_start(self, came_up: bool) -> None:
        if not self.came_up.done():
            self.came_up.set_result(came_up)

    # Its process

    async def _launch(self, cause: LaunchCause) -> None:
        """Start a process and open the sockets to it."""
        self.reports.launching(cause)
        self._launched = asyncio.get_running_loop().time()
        self._is_up = False
        try:
            if self._manager is None:
                self._manager = await self._new_manager()
            # Before there is a process that could be asked to end: this may be cancelled.
            self._cwd = await self._directory_now()
            process = self._process = KernelProcess(self._manager, self._output, self._on_reach)
            self._stranded = ""  # that was the process before
            await self._launch_process(process, cause)
        except Exception as error:
            self.reports.start_failed()
            if isinstance(error, KernelStartFailed):
                raise
            text = f"The kernel could not be launched: {described(error)}"
            if self._process is not None and (why := await self._process.kill()):
                text = f"{text}. {_not_stopped(why).message}"
            raise KernelStartFailed(text) from error

    async def _launch_process(self, process: KernelProcess, cause: LaunchCause) -> None:
        settings = self._house.settings
        self._info = await process.launch(
            self._cwd,
            self._env,
            settings.kernel_argv,
            max(settings.kernel_info_timeout, CALL_SECONDS),
        )
        logger.info("kernel %s (%s): process %s", self.id, self.name, process.pid)
        self._oom = OOMWatch(process.pid)
        if cause != "fallback":  # that takes the place of one that has never come up
            self.state.generation += 1
        await self.traffic.connect(self._info)
        await self.keep()

    async def _new_manager(self) -> KernelManager:
        """Of the kernelspec as it is now. Raises `KernelSpecInvalid` and `KernelStartFailed`."""
        try:
            spec = await asyncio.to_thread(self._house.specs.get_kernel_spec, self.name)
        except NoSuchKernel:
            raise KernelStartFailed(f"Kernel spec {self.name} is not there any more") from None
        except OSError as error:
            raise KernelStartFailed(f"Kernel spec {self.name} cannot be read: {error}") from None
        may_fork = self._forked_in_vain is None
        manager = self._house.new_manager(
            self.name, self.id, self._transport, spec, may_fork=may_fork
        )
        if self._transport == "ipc":
            manager.ip = self._house.transports.new_address()
        return manager

    async def _stop_process(self, *, restart: bool, now: bool = False) -> None:
        """Ask, then terminate, then kill; each step has its bound.

        Raises `KernelNotStopped`: the process runs, or may run, and its sockets are as before.
        """
        process = self._process
        if process is not None:
            if process.running and not now:
                await self._shut_down(process, restart=restart)
            if why := await process.kill():
                raise _not_stopped(why)
            await self.traffic.settle()
        await self._end_process(None, restart=restart)

    async def _shut_down(self, process: KernelProcess, *, restart: bool) -> None:
        try:
            if self.traffic.answered:
                if self.state.execution_state == "busy":
                    # A kernel that runs something looks at its shutdown only when that is done.
                    await self._interrupt()
                if await self._end_by_itself(process, restart=restart):
                    return
            if not await process.terminate(TERMINATE_SECONDS):
                logger.warning("kernel %s ignores SIGTERM", self.id)
        except KernelUnreachable as error:  # the kill comes next, and may find another way
            logger.warning("kernel %s cannot be shut down: %s", self.id, error.message)

    async def _end_by_itself(self, process: KernelProcess, *, restart: bool) -> bool:
        """Ask the kernel to shut down; whether it does within the time that it has for that."""
        if not self.traffic.connected:  # it cannot be asked
            return False
        loop, seconds = asyncio.get_running_loop(), self.shutdown_seconds
        children = await process.children() if self._may_wait_in_vain else set()
        deadline = loop.time() + seconds
        asked = {"restart": restart}
        answer = loop.create_task(self.traffic.ask("shutdown_request", asked, seconds, "control"))
        in_vain = 0
        try:
            while (left := deadline - loop.time()) > 0:
                if await process.wait(min(left, LOOK_SECONDS)):
                    return True
                has_agreed = answer.done() and answer.result() is not None
                # What was started since then its exit hooks have started: they run.
                if has_agreed and children:
                    in_vain = in_vain + 1 if await process.has_dead_only(children) else 0
                if in_vain == 2:  # at two looks in a row: they may just be about to be reaped
                    logger.info("kernel %s waits for children that have ended", self.id)
                    return False
            has_agreed = answer.done() and answer.result() is not None
            what = "has agreed to shut down, and runs" if has_agreed else IGNORED
            logger.info("kernel %s %s after %g s", self.id, what, seconds)
            return False
        finally:
            answer.cancel()

    @property
    def _may_wait_in_vain(self) -> bool:
        """Whether the kernel goes on to wait for children that have ended until it is terminated.

        ipykernel looks for children before it runs its exit hooks, counts those that have ended
        and that nobody has waited for, and gives up only after half a minute.
        """
        is_python = self.traffic.implementation == IPYKERNEL
        return is_python and self.shutdown_seconds < CHILDREN_SECONDS

    async def _end_process(self, reason: str | None, *, restart: bool) -> None:
        """End what was asked of the process, close the sockets, clean up after it."""
        await self.traffic.close(reason)
        await self._release(restart=restart)

    async def _release(self, *, restart: bool) -> None:
        """Let go of the process and, unless another follows, of its connection file and ports."""
        if self._process is not None:
            self._process.close()
            self._process = None
        if self._manager is not None:
            try:
                await bounded(self._manager.cleanup_resources(restart=restart))
            except Exception as error:  # the process has ended, and that is what matters
                logger.warning("kernel %s is not cleaned up after: %s", self.id, described(error))
        if not restart:
            self._manager = None


def _not_stopped(why: str) -> KernelNotStopped:
    return KernelNotStopped(f"The kernel's process could not be ended: {why}")
