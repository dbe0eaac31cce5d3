"""The life of a kernel: its processes, one after the other, from each launch to each end.

One task waits until the process is ready, then until it ends, and launches the next one if the
policy says so (`phases.after_end`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, Protocol

from ...log_formats import about
from ..errors import (
    KeeperUnavailable,
    KernelNotStopped,
    KernelStartFailed,
    KernelUnreachable,
    ServerStopping,
)
from ..handover.handover import HandedOver
from ..processes.launch_errors import start_failed
from ..processes.process import KernelProcess
from ..state import Lifecycle
from ..telemetry.reports import KernelReports, LaunchCause
from .departures import BY_CLIENT
from .launches import Launches, not_stopped
from .losses import Losses
from .phases import Course, EndAsked, Event, Next, Phase, after_end
from .registration import Registration
from .restarts import RestartPolicy
from .services import KernelServices

__all__ = ["Life"]


logger = logging.getLogger(__name__)

QUEUE_SECONDS: Final = 15.0
"""How long a start waits for a slow engine before it is answered; the launch then goes on."""

REST_SECONDS: Final = 30.0
LONGEST_REST_SECONDS: Final = 600.0
"""How long a kernel that has died keeps its engine's job, for a restart that comes soon; and the
longest pause before the next attempt to end the job."""

CANCEL_SECONDS: Final = 10.0
"""After how many seconds a task that goes on although it was cancelled is cancelled again."""


class LivingKernel(HandedOver, Protocol):
    """What `Life` needs of a kernel."""

    @property
    def reports(self) -> KernelReports:
        """The reports of the kernel."""


class Life:
    """The life of one kernel.

    Methods of the kernel that launch or end a process themselves (`Kernel.restart` and others) end
    the task before they call anything else here, and begin it again when they are done.
    ``on_gone`` is called when the kernel is removed.
    """

    def __init__(
        self,
        kernel: LivingKernel,
        launches: Launches,
        course: Course,
        registration: Registration,
        services: KernelServices,
        on_gone: Callable[[], None],
    ) -> None:
        # Belongs to the latest start, which may be over. The result is True when the kernel
        # answers, and False when it is known that it will not.
        self.came_up: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._on_gone = on_gone
        self._kernel = kernel
        self._traffic = kernel.traffic
        self._state = kernel.state
        self._launches = launches
        self._course = course
        self._registration = registration
        self._services = services
        self._logger = about(logger, kernel_id=kernel.id)
        self._restarts = RestartPolicy(services.settings.restart_limit)
        self._losses = Losses(kernel.id, kernel.traffic, kernel.state)
        self._traffic.reading.on_loss = self.settle_loss
        self._task: asyncio.Task[None] | None = None
        self._launching: asyncio.Task[None] | None = None  # for which the life waits
        self._why_stranded = ""  # in the phase `Phase.STRANDED`

    def hand_over(self, services: KernelServices, on_gone: Callable[[], None]) -> None:
        """Use ``services`` and ``on_gone`` from now on."""
        self._services = services
        self._on_gone = on_gone

    def settle_loss(self) -> None:
        """Give requests that a killed keeper has lost their end (`Losses.settle`)."""
        self._losses.settle()

    # The task

    def begin(self, life: Coroutine[Any, Any, None] | None = None) -> None:
        """Begin the task: ``life``, or to see the present process, and those after it, through."""
        # Often called by the task itself, and then it is the last that the task does: `end` finds
        # the new one, and the old one awaits nothing any more.
        life = life or self._live()
        self._task = asyncio.get_running_loop().create_task(life, name=f"kernel {self._kernel.id}")

    async def end(self) -> None:
        """End the task; returns when it is over. The process goes on as it is."""
        self._losses.cancel()
        # A life that is cancelled before its first step never awaits its launch, so that the
        # cancellation does not reach that: it would launch a process for a kernel that is gone.
        tasks = [task for task in (self._task, self._launching) if task is not None]
        self._task = self._launching = None
        while left := {task for task in tasks if not task.done()}:
            for task in left:
                task.cancel()  # once more if a provisioner has swallowed it
            await asyncio.wait(left, timeout=CANCEL_SECONDS)

    async def end_job(self, why: str) -> None:
        """End the task; then have the engine end the job, and with it a process out of reach.

        Raises `KernelNotStopped`, with the reason ``why``, if no engine can.
        """
        # First the task: it would see the end of the process, and take it for a death.
        await self.end()
        try:
            if await self._services.engines.end(self._kernel.id):
                return
        except KeeperUnavailable as error:
            why = f"{why}; {error.message}"
        self.begin()
        raise not_stopped(why)

    async def _live(self, launch: Awaitable[None] | None = None) -> None:
        """See the process through, and those after it; first wait for ``launch``, if given."""
        try:
            if launch is not None:
                await launch  # however long it takes
            if self._course.phase is Phase.STRANDED:
                await self._see_it_end()
                return
            while await self._live_once():
                pass
        except (KernelStartFailed, KernelNotStopped) as error:
            await self.give_up(error.message)
        except ServerStopping:  # while a launch waited for its turn; `stop` or `leave` comes next
            pass
        except Exception:
            # A bug of the server's. A process without a life would run on unseen, and the requests
            # that it was sent would never have an end.
            self._logger.exception("kernel %s: its supervision failed", self._kernel.id)
            reason = "The server failed to supervise the kernel; see its log"
            process = self._launches.process
            why = await process.kill() if process is not None else ""
            await self.give_up(f"{reason}. {not_stopped(why).message}" if why else reason)

    async def _live_once(self) -> bool:
        """See one process from its launch to its end; return whether another one follows."""
        reason = await self._come_up_and_die()
        delay = None
        if self._course.asked is EndAsked.NOTHING:  # a death: it counts
            delay = self._restarts.on_death(asyncio.get_running_loop().time())
        match self._what_follows(delay):
            case Next.RETIRE:
                self._logger.info("kernel %s: shut down as a client asked it to", self._kernel.id)
                self._kernel.reports.shut_down_by_client()
                await self.retire(BY_CLIENT)
                return False
            case Next.RESTART_AS_ASKED:
                self._logger.info("kernel %s: restarted as a client asked it to", self._kernel.id)
                await self._restart_as_asked()
                return True
            case Next.BURY:
                await self.bury(reason)
                return False
            case Next.RESTART:
                assert delay is not None
                await self._restart_after(delay, reason)
                return True

    def _what_follows(self, delay: float | None = None) -> Next:
        """What follows the end of the process; ``delay`` as `RestartPolicy.on_death` returns it."""
        autorestart = self._services.settings.autorestart
        return after_end(self._course, autorestart=autorestart, within_limit=delay is not None)

    async def _see_it_end(self) -> None:
        """Wait, without a bound, for the end of a process that could not be ended."""
        assert self._launches.process is not None
        await asyncio.shield(self._launches.process.exited)
        if self._what_follows() is Next.RETIRE:
            await self.retire()
        else:
            await self.bury(self._why_stranded)

    async def relaunch(self) -> None:
        """Launch the process that an earlier server was about to launch, and see it through."""
        await self._live(self._restart_as_asked())

    # Launches and restarts

    async def start(self) -> None:
        """Launch the first process, and begin the task. Raises `KernelStartFailed`.

        Returns before the launch if an engine takes long for that: the task sees it through then.
        """

        async def start() -> None:
            await self._have_keeper()
            try:
                await self._traffic.open_log()
            except (KernelUnreachable, KeeperUnavailable) as error:
                text = f"The kernel cannot have a log: {error.message}"
                raise start_failed(text, error) from error
            await self.launch("start")

        await self._bring_up(start())

    async def restart(self) -> None:
        """As `start`, for the next process."""
        await self._bring_up(self.launch("restart"))

    async def _bring_up(self, launch: Coroutine[Any, Any, None]) -> None:
        if not self._services.engines.has(self._kernel.id):
            await launch
            self.begin()
            return
        launching = asyncio.get_running_loop().create_task(launch, name="launch")
        self._launching = launching
        try:
            await asyncio.wait({launching}, timeout=QUEUE_SECONDS)
        except asyncio.CancelledError:
            await self.end()
            raise
        if launching.done():
            launching.result()
            self.begin()
        else:
            self.begin(self._live(launching))

    async def _have_keeper(self) -> None:
        """Wait until the engine has a keeper for the kernel. Raises `KernelStartFailed`."""
        try:
            await self._services.engines.prepare(self._kernel.id)
        except KeeperUnavailable as error:
            text = f"The kernel could not be launched: {error.message}"
            raise KernelStartFailed(text, cause=error) from error

    async def launch(self, cause: LaunchCause) -> None:
        """Launch a process, and have the next server know it. Raises `KernelStartFailed`."""
        self._kernel.reports.launching(cause)
        self._course.on(Event.LAUNCHING)
        try:
            await self._have_keeper()
            await self._launches.launch(is_fallback=cause == "fallback")
        except KernelStartFailed:
            self._kernel.reports.start_failed()
            raise
        # Nothing is awaited between the moment when the process is heard (`Traffic.on_launch`) and
        # this: a client's request to end the new process is not taken for one to the old process.
        self._course.on(Event.LAUNCHED)
        await self._registration.register()

    async def _launch_again(self, cause: LaunchCause) -> None:
        """Launch the next process when its turn comes; the kernel has none meanwhile."""
        came_up: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

        async def launch() -> None:
            self.take_turn(came_up)
            await self.launch(cause)

        # `take_turn` is called when the start has its slot, and not before. A client's restart
        # takes over that slot (`Kernel.restart`); a start that still waits has none to take over.
        with self._services.starts.admission(always=True):
            await self._services.starts.launch(launch, came_up)

    async def _restart_as_asked(self) -> None:
        """Launch the next process after one that has ended for a restart: that is no death."""
        self._course.on(Event.RESTARTS)
        self.count_anew()
        self._state.begin(Lifecycle.RESTARTING, reason="")
        self._traffic.voice.announce("starting")
        async with self._kernel.reports.action("restart"):
            await self._launch_again("restart")

    async def _restart_after(self, delay: float, reason: str) -> None:
        """Launch the next process after a death, ``delay`` seconds later."""
        self._course.on(Event.RESTARTS)
        self._logger.warning("kernel %s: %s; it is restarted", self._kernel.id, reason)
        self._kernel.reports.restarting(reason, self._restarts.deaths)
        self._state.on_restart(reason)
        self._traffic.voice.announce("restarting")
        async with self._kernel.reports.action("restart"):
            await asyncio.sleep(delay)
            await self._launch_again("automatic_restart")

    def count_anew(self) -> None:
        """A restart was asked for: deaths and failures of earlier processes do not count."""
        self._restarts = RestartPolicy(self._services.settings.restart_limit)
        self._launches.begin_again()

    def take_turn(self, came_up: asyncio.Future[bool]) -> None:
        """Make ``came_up`` the future of the start under way; the future before gets False."""
        if self.came_up is not came_up:
            self.settle_start(False)
            self.came_up = came_up

    def settle_start(self, came_up: bool) -> None:
        """Note the result of the start that is under way, if one is: whether the kernel answers."""
        if not self.came_up.done():
            self.came_up.set_result(came_up)

    # One process

    async def _come_up_and_die(self) -> str:
        """Wait until the process is ready, then until it ends; return why it has ended.

        Every request that the process has not finished is given an end. Raises
        `KernelStartFailed`, and `KernelNotStopped` for one that neither comes up nor can be killed.
        """
        launches, process = self._launches, self._launches.process
        if process is None:
            # A stop or a restart was cancelled after the process had ended, and before the kernel
            # was gone or had the next process (`Kernel._go_on`). That end is seen here.
            await launches.release(restart=True)
            return "The kernel's process has ended"
        try:
            if self._course.phase is not Phase.RUNNING:
                await self._come_up(process)
        except KernelStartFailed as error:
            self._kernel.reports.start_failed()
            if why := await process.kill():
                raise KernelNotStopped(f"{error.message}. {not_stopped(why).message}") from error
            way = launches.another_way(process)
            if not way:
                await launches.end(error.message, restart=True)
                return error.message
            self._logger.info("kernel %s: %s; starting it %s", self._kernel.id, error.message, way)
            await self._traffic.disconnect()
            await launches.release(restart=False)
            await self.launch("fallback")
            return await self._come_up_and_die()
        # Shielded: others wait for this future, too, and the end of this life is not that of the
        # process.
        exited = await asyncio.shield(process.exited)
        # The keeper tells the end of a process over the link, and what the process said last is in
        # the log: read that first, for an execution that it ends has not been lost.
        self._losses.cancel()
        await self._traffic.settle()
        reason = await launches.describe(process, f"The kernel's process {exited}")
        words = await self._services.engines.words(self._kernel.id)
        if words and words not in reason:
            reason = f"{words}. {reason}"
        # Looked at only now: a client may have asked for the end while the above was awaited.
        is_death = self._course.asked is EndAsked.NOTHING
        if is_death:
            self._kernel.reports.died(exited.code, of_memory=process.out_of_memory)
        await launches.end(reason if is_death else None, restart=True)
        return reason

    async def _come_up(self, process: KernelProcess) -> None:
        """Wait until the kernel is ready. Raises `KernelStartFailed` (`Launches.come_up`)."""
        launches, was_up = self._launches, self._state.lifecycle is Lifecycle.UNKNOWN
        if not await launches.come_up(process, was_up=was_up):
            return
        if was_up:
            self._state.reason = ""
            self.take_for_ready()
            return
        # Nothing is awaited from here on: whoever awaits `came_up` finds the kernel ready.
        now = asyncio.get_running_loop().time()
        self._course.on(Event.CAME_UP)
        self.settle_start(True)
        launches.remember_transport()
        self._restarts.on_ready(now)
        self._traffic.activity.idle_since = time.monotonic()
        self._traffic.ready()
        self._kernel.reports.ready(now - launches.launched)
        launches.bring_up_forks()

    def take_for_ready(self) -> None:
        """The kernel was ready under an earlier server, and takes requests again."""
        self._course.on(Event.CAME_UP)
        self.settle_start(True)
        self._restarts.on_ready(asyncio.get_running_loop().time())
        self._traffic.ready()
        self._kernel.executions.resume()

    # Ends

    def doubt(self, why: str) -> None:
        """Note that the process may run or not, for this reason; logged once per reason."""
        if self._state.lifecycle is not Lifecycle.UNKNOWN or self._state.reason != why:
            self._logger.warning("kernel %s may run or not: %s", self._kernel.id, why)
            self._state.begin(Lifecycle.UNKNOWN, why)

    async def give_up(self, reason: str) -> None:
        """The kernel has no process of any use, and gets another one only if that is asked for.

        A process that could not be ended is still this kernel's: it is listed, and can be stopped.
        """
        if not self._launches.running:
            await self.bury(reason)
            return
        # First the phase: should a stop cancel this at an await below, and fail, the next life only
        # waits for the end of the process.
        self._course.on(Event.STRANDED)
        self._why_stranded = reason
        await self._traffic.close(reason)
        self.doubt(reason)
        self.settle_start(False)
        await self._registration.save()
        self.begin()

    async def bury(self, reason: str) -> None:
        """The kernel is dead: it has no process, and gets one only if a restart is asked for."""
        self._logger.error("kernel %s is dead: %s", self._kernel.id, reason)
        self._kernel.reports.dead(reason)
        await self._launches.release(restart=False)
        await self._traffic.close(reason)
        self._course.on(Event.BURIED)
        self._state.begin(Lifecycle.DEAD, reason)
        self._traffic.refuse_waiting()
        self.settle_start(False)  # after the reason, which those who await `came_up` read next
        self._traffic.voice.announce("dead")
        await self._registration.save()
        self._rest_later()

    async def stay_dead(self, reason: str) -> None:
        """The kernel died under an earlier server, for this reason: its log can be read."""
        self._course.on(Event.BURIED)
        self.settle_start(False)
        await self._traffic.close(reason)
        self._state.begin(Lifecycle.DEAD)
        self._traffic.refuse_waiting()
        self._rest_later()

    def _rest_later(self) -> None:
        # With replicas the job stays: it has the log, of which another replica has no copy.
        has_log_here = not self._services.settings.replicated
        if has_log_here and self._services.engines.has(self._kernel.id):
            self.begin(self._rest())

    async def _rest(self) -> None:
        """Have the engine end the job of a dead kernel that nobody has restarted meanwhile."""
        engines, kernel_id, trouble = self._services.engines, self._kernel.id, ""
        pause = REST_SECONDS
        while True:
            if engines.is_out(kernel_id):
                await asyncio.sleep(pause)
            try:
                await engines.rest(kernel_id)
                break
            except (KeeperUnavailable, KernelUnreachable) as error:
                if error.message != trouble:
                    self._logger.warning("kernel %s: its job stays: %s", kernel_id, error.message)
                trouble, pause = error.message, min(2 * pause, LONGEST_REST_SECONDS)
                if not engines.is_out(kernel_id):
                    break  # no job is left that could send more of the log
            except Exception:  # an engine may raise anything
                self._logger.exception("kernel %s: its job stays until it is deleted", kernel_id)
                return
        await self._registration.save()

    async def retire(self, why: str = "") -> None:
        """The kernel has ended as it was asked to: remove all that belongs to it.

        ``why`` is the reason that is told of its end; by default, the one that it has.
        """
        # First the phase: the next holder of the lock finds that the kernel is gone, even if this
        # is cancelled at an await below. The kernel stays listed until the end, so that no kernel
        # of its id is started while its log and its record are being removed.
        self._course.on(Event.RETIRED)
        self.settle_start(False)
        await self._launches.release(restart=False)
        self._state.begin(Lifecycle.DEAD, why or None)
        try:
            await self._registration.forget()
            self._launches.remove_output()
        except Exception:  # the disk failed: the kernel is gone all the same
            self._logger.exception(
                "kernel %s: something of it stays in the state directory", self._kernel.id
            )
        await self._traffic.remove_log()
        self._on_gone()
