"""The processes of one kernel, one after the other: each is launched, comes up, and is ended."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from jupyter_client.kernelspec import KernelSpec, NoSuchKernel
from jupyter_client.provisioning.local_provisioner import LocalProvisioner
from jupyter_client.provisioning.provisioner_base import KernelProvisionerBase

from ...keeper.hearings import Heard
from ...keeper.limits import ProcessLimits
from ...keeper.output import OUTPUT_BYTES, ProcessOutput
from ...keeper.sockets import ConnectionInfo
from ...log_formats import about
from ..errors import KernelNotStopped, KernelStartFailed, KernelUnreachable
from ..handover.adoption import Gone, adopt_process, note_process
from ..handover.store import KernelRecord
from ..messages.traffic import Traffic
from ..owners.ownership import Ownership
from ..processes.engines.quantities import Value
from ..processes.forking.link import Recipe
from ..processes.forking.provisioner import PROVISIONER, ForkOptions, KernelManager
from ..processes.jupyter_internals import mark_connection_file
from ..processes.keeper.provisioner import is_as_wanted
from ..processes.launch_errors import described, launch_failed
from ..processes.launchable import check_launchable
from ..processes.paths import directory_now, is_below
from ..processes.process import CALL_SECONDS, KernelProcess, bounded
from ..processes.spec_files import shutdown_seconds_of
from ..processes.transports import Transport, ports_taken, sockets_exist
from ..state import KernelState, Lifecycle
from .process_limits import impose_limits, say_limits
from .services import KernelServices
from .shutdown import Shutdown

__all__ = ["Launches", "not_stopped"]

logger = logging.getLogger(__name__)

IPC_PATIENCE: Final = 10.0
"""How long a kernel may take to bind an ipc socket; after that it is taken not to speak ipc."""

PROBE_SECONDS: Final = 5.0
"""The longest pause between two `kernel_info_request`s to a kernel that does not answer."""

LEFT_PROBE_SECONDS: Final = 30.0
"""The longest such pause for a kernel that had come up under an earlier server."""

PORT_ATTEMPTS: Final = 3
"""Starts over tcp before ports that others took meanwhile count as a failure."""


class Launches:
    """Launches and ends the processes of one kernel.

    ``place``, an absolute path, and ``env`` are used for every launch: the process works in
    ``place``, or in the nearest directory above it that exists then. ``given`` are options of its
    engine that were given for this kernel. ``on_reach`` is that of `KernelProcess`.
    """

    def __init__(
        self,
        name: str,
        spec: KernelSpec,
        services: KernelServices,
        traffic: Traffic,
        state: KernelState,
        *,
        kernel_id: str,
        ownership: Ownership,
        place: Path,
        env: Mapping[str, str],
        given: Mapping[str, Value],
        on_reach: Callable[[str], None],
    ) -> None:
        self.process: KernelProcess | None = None
        """The present process, or the last one until `release` has cleaned up after it."""
        self.info: ConnectionInfo = {}
        """The connection info of the present process."""
        self.launched = 0.0
        """When the present process was launched, by the loop's clock."""
        self.place = self.cwd = place
        self.env = env
        self.given = given
        self.ownership = ownership
        self._id = kernel_id
        self._logger = about(logger, kernel_id=kernel_id)
        self._name = name
        self._spec = spec
        self._services = services
        self._traffic = traffic
        self._state = state
        self._on_reach = on_reach
        self._manager: KernelManager | None = None
        self._output = ProcessOutput(services.output_file(kernel_id), OUTPUT_BYTES)
        self._transport: Transport = services.transports.choose(spec)
        self._port_attempts = 0
        # The recipe of a forked process that did not come up, while a process is started instead.
        self._forked_in_vain: Recipe | None = None

    @property
    def pid(self) -> int | None:
        """The process id of a local kernel's present process."""
        return self.process.pid if self.process is not None else None

    @property
    def running(self) -> bool:
        """Whether there is a process."""
        return self.process is not None and self.process.running

    @property
    def provisioner(self) -> KernelProvisionerBase | None:
        """jupyter_client's provisioner of the present process."""
        return self._manager.provisioner if self._manager is not None else None

    @property
    def shutdown_seconds(self) -> float:
        """How long a process may take to end by itself when it is asked to."""
        own = shutdown_seconds_of(self._spec)
        return self._services.settings.shutdown_wait_time if own is None else own

    def hand_over(
        self, services: KernelServices, *, cwd: Path, place: Path, env: Mapping[str, str]
    ) -> None:
        """Use ``services`` from now on; ``cwd`` is the kernel's present directory."""
        self._services = services
        self.cwd, self.place, self.env = cwd, place, env

    def begin_again(self) -> None:
        """A restart was asked for: failures of earlier processes do not count any more."""
        self._port_attempts = 0

    async def resolve_path(self, path: str) -> str | None:
        """The file that the provisioner finds for ``path`` in the directory of the kernel.

        None when there is no such file below that directory, or no provisioner.
        """
        provisioner = self.provisioner
        if provisioner is None:
            return None
        # In threads, for the disk may hang. The bound lets the request go, and not the thread.
        try:
            async with asyncio.timeout(CALL_SECONDS):
                found = await asyncio.to_thread(provisioner.resolve_path, path)
                if not getattr(provisioner, "is_here", True):
                    return found  # a path on the kernel's host, which was checked there
                below = await asyncio.to_thread(is_below, self.cwd, found) if found else False
                return found if below else None
        except (OSError, RuntimeError, ValueError):  # no such user, a loop of links, a NUL
            return None

    async def note(self, record: KernelRecord) -> None:
        """Add to a record what the next server needs to find the process again.

        Raises what a provisioner does.
        """
        if self._manager is not None:
            await note_process(record, self._manager, self.info)

    # A launch

    async def check(self) -> None:
        """Raise `KernelStartFailed` if it can be seen that a launch would fail now.

        Only launches by the provisioners of this server and of jupyter_client are checked, and
        whether the next process can be isolated.
        """
        if self._services.isolation.kind != "none":
            self._services.check_isolation(await self._new_manager())
        provisioner = self.provisioner
        stanza = self._spec.metadata.get("kernel_provisioner") or {}
        name = stanza.get("provisioner_name", "local-provisioner")
        if isinstance(provisioner, ForkOptions):
            try:
                provisioner.check()
            except ValueError as error:
                raise KernelStartFailed(f"The kernel could not be launched: {error}") from None
        is_here = getattr(provisioner, "is_here", True)
        if (isinstance(provisioner, LocalProvisioner) and is_here) or (
            provisioner is None and name in ("local-provisioner", PROVISIONER)
        ):
            cwd = await self._directory_now()
            directory = self._services.files.runtime
            await asyncio.to_thread(check_launchable, self._spec, cwd, self.env, directory)

    async def launch(self, *, is_fallback: bool) -> None:
        """Launch a process, and have it heard; returns before it has come up.

        ``is_fallback`` if it replaces a process that has not come up. Raises `KernelStartFailed`; a
        process that was launched by then is ended, or is still `running` if that failed.
        """
        self.launched = asyncio.get_running_loop().time()
        try:
            if self._manager is not None and not is_as_wanted(self._manager.provisioner):
                # The options have changed: the manager with its connection file is of no use.
                await self.release(restart=False)
            if self._manager is None:
                self._manager = await self._new_manager()
            self._services.check_isolation(self._manager)
            # Before `process` is set: a stop may cancel this await, and asks `process` to end.
            self.cwd = await self._directory_now()
            process = self.process = KernelProcess(self._manager, self._output, self._on_reach)
            await self._launch(process, is_fallback=is_fallback)
        except KernelStartFailed:
            raise
        except Exception as error:
            more = ""
            if self.process is not None and (why := await self.process.kill()):
                more = f". {not_stopped(why).message}"
            raise launch_failed(error, more) from error

    async def _launch(self, process: KernelProcess, *, is_fallback: bool) -> None:
        settings = self._services.settings
        assert self._manager is not None
        say_limits(self._manager, self._process_limits)
        self.info = await process.launch(
            self.cwd,
            self.env,
            settings.kernel_argv,
            max(settings.kernel_info_timeout, CALL_SECONDS),
        )
        self._logger.info("kernel %s (%s): process %s", self._id, self._name, process.pid)
        # Before anything more is awaited: a record of the process before may just be being made,
        # and this number tells that it is out of date (`Registration._record`).
        if not is_fallback:
            self._state.generation += 1
        await self._traffic.connect(self.info)

    async def _directory_now(self) -> Path:
        root = await self._services.isolation.root(self.ownership.owner)
        return await asyncio.to_thread(directory_now, root, self.place)

    async def _new_manager(self) -> KernelManager:
        """A manager of the kernelspec as it is now.

        Raises `KernelSpecInvalid` and `KernelStartFailed`.
        """
        try:
            spec = await asyncio.to_thread(self._services.specs.get_kernel_spec, self._name)
        except NoSuchKernel:
            raise KernelStartFailed(f"Kernel spec {self._name} is not there any more") from None
        except OSError as error:
            raise KernelStartFailed(f"Kernel spec {self._name} cannot be read: {error}") from None
        manager = self._manager_of(spec, may_fork=self._forked_in_vain is None)
        if self._transport == "ipc":
            manager.ip = self._services.new_address(manager)
        return manager

    def _manager_of(self, spec: KernelSpec, *, may_fork: bool = True) -> KernelManager:
        owner, given = self.ownership.owner, self.given
        what = (self._name, self._id, self._transport, spec)
        return self._services.new_manager(*what, given=given, owner=owner, may_fork=may_fork)

    @property
    def _process_limits(self) -> ProcessLimits:
        return self._services.process_limits(self.ownership)

    async def impose_limits(self) -> None:
        """Apply the limits of the kernel's new owner to its process (`impose_limits`)."""
        if self._manager is not None:
            await impose_limits(self._manager, self._process_limits)

    # A process that an earlier server has left

    async def find_again(self, record: KernelRecord) -> Heard:
        """Own the process that an earlier server has left, and have it heard.

        Raises `Gone` when the process is known to have ended; `release` then cleans up after it.
        Raises `KernelUnreachable`, and nothing has changed then.
        """
        self._transport = "ipc" if record.connection.get("transport") == "ipc" else "tcp"
        # The manager and the process are this attempt's own until all has succeeded. A failed
        # attempt is followed by another, and between the two the kernel has no process that could
        # be stopped. A task watches the process: it must end with a failure or a cancellation.
        process: KernelProcess | None = None
        try:
            manager = self._manager_of(self._spec)
            say_limits(manager, self._process_limits)
            process = KernelProcess(manager, self._output, self._on_reach)
            info = await adopt_process(record, manager, self._services.loading)
            exited = await process.adopt()
            if exited is not None:
                text = f"The kernel's process {exited} while no server was there"
                raise Gone(text + process.want_of_memory, exited.code)
            if record.replaced and record.execution_state == Lifecycle.RESTARTING:
                await self._end_replaced(process)
            known = await self._services.handover.furthest(self._id)
            heard = await self._traffic.meet(info, known)
        except Gone:
            self._manager, self.process = manager, process
            raise
        except BaseException as error:
            if process is not None:
                process.close()
            if isinstance(error, KernelUnreachable) or not isinstance(error, Exception):
                raise
            raise KernelUnreachable(described(error)) from error
        self._manager, self.process, self.info = manager, process, info
        if not is_as_wanted(manager.provisioner):
            self._logger.warning(
                "kernel %s was launched under other options: until it is restarted it is isolated "
                "as it was then",
                self._id,
            )
        self.cwd = Path(getattr(manager.provisioner, "cwd", None) or self.cwd)
        self.launched = asyncio.get_running_loop().time()
        return heard

    async def _end_replaced(self, process: KernelProcess) -> None:
        """End the process that the server before this one was about to stop, for a restart.

        The process may have been asked to end already, and requests that are sent to it now would
        be lost with it. Raises `Gone` when it is ended, and `KernelUnreachable` if that fails.
        """
        if why := await process.kill():
            raise KernelUnreachable(f"The kernel's process could not be ended: {why}")
        raise Gone("The kernel was being restarted")

    # Coming up

    async def come_up(self, process: KernelProcess, *, was_up: bool) -> bool:
        """Wait until the kernel answers and its iopub is heard.

        Raises `KernelStartFailed` when the process ends before that, or when nothing at all has
        been heard after ``kernel_info_timeout``. A process that ``was_up`` under an earlier server
        has no such bound: it may be stopped or swapped out, and go on later. Its end is no error:
        the result is False then, and True otherwise.
        """
        loop = asyncio.get_running_loop()
        own, settings = self._traffic.own, self._services.settings
        started = loop.time()
        deadline = started + (float("inf") if was_up else settings.kernel_info_timeout)
        longest = LEFT_PROBE_SECONDS if was_up else PROBE_SECONDS
        pause = 1.0
        # A new process has nothing else to do. Most kernels answer at once, and the keeper opens no
        # socket to control unless something is sent there.
        on_control = was_up
        while not await self._reaches(process, min(pause, deadline - loop.time()), on_control):
            on_control = True
            pause = min(pause * 1.5, longest)
            if process.exited.done() and was_up:
                return False
            if process.exited.done():
                problem = f"The kernel's process {process.exited.result()} before it was ready"
                raise KernelStartFailed(await self.describe(process, problem))
            if loop.time() >= deadline:
                if own.answered or own.heard_iopub:
                    break
                problem = f"The kernel said nothing within {settings.kernel_info_timeout:g} s"
                raise KernelStartFailed(await self.describe(process, problem))
            if not was_up and loop.time() >= started + IPC_PATIENCE and self._has_no_ipc():
                raise KernelStartFailed("The kernel has bound no ipc socket")
        # The process may end while this is awaited: the life waits for its end next.
        await self._traffic.stdin_connected()
        if not (was_up or (own.answered and own.heard_iopub)):
            self._logger.warning(
                "kernel %s: taken for ready although it %s",
                self._id,
                "was not heard on iopub" if own.answered else "does not answer kernel_info",
            )
        return True

    async def _reaches(self, process: KernelProcess, seconds: float, on_control: bool) -> bool:
        """Try to reach the kernel (`OwnRequests.reach`); False when the process ends meanwhile."""
        reaching = asyncio.ensure_future(self._traffic.own.reach(seconds, on_control=on_control))
        try:
            events: set[asyncio.Future[Any]] = {reaching, process.exited}
            await asyncio.wait(events, return_when=asyncio.FIRST_COMPLETED)
            return reaching.done() and reaching.result()
        finally:
            reaching.cancel()

    def remember_transport(self) -> None:
        """The kernel has come up: use this transport for its kernelspec from now on."""
        self._services.transports.remember(self._spec, self._transport)

    def bring_up_forks(self) -> None:
        """The kernel is ready: fork servers for later kernels may be started now."""
        in_vain, self._forked_in_vain = self._forked_in_vain, None
        self._services.forking.came_up(self._manager, in_vain)

    def _has_no_ipc(self) -> bool:
        return (
            self.pid is not None
            and self._services.transports.may_fall_back(self._spec, self._transport)
            and not sockets_exist(self.info)
        )

    def another_way(self, process: KernelProcess) -> str:
        """How to try a failed start again, in words for the server's log; empty if not at all."""
        # The likeliest first: another program can take a port between the moment in which
        # jupyter_client finds it free and that in which the kernel binds it.
        if self._transport == "tcp" and process.pid is not None and ports_taken(self.info):
            self._port_attempts += 1
            return "on other ports" if self._port_attempts < PORT_ATTEMPTS else ""
        if recipe := self._services.forking.forked_by_itself(self._manager):
            self._forked_in_vain = recipe
            return "without forking it"
        if self._services.transports.may_fall_back(self._spec, self._transport):
            self._transport = "tcp"
            return "over tcp"
        self._forked_in_vain = None  # forking was not the reason
        return ""

    async def describe(self, process: KernelProcess, problem: str) -> str:
        """A reason for clients: the problem, the process's last output, and if memory was short."""
        problem += process.want_of_memory
        tail = await process.tail()
        if tail and not self._services.settings.allow_tracebacks:
            # An interpreter that crashes writes a traceback, which clients must not see.
            self._logger.info("kernel %s: the last it wrote:\n%s", self._id, tail)
            return problem
        return f"{problem}. The last it wrote:\n{tail}" if tail else problem

    # The end

    async def interrupt(self) -> None:
        """Interrupt what the kernel runs, by signal or by message as its kernelspec says.

        Raises `KernelUnreachable`.
        """
        self._traffic.interrupts.before()
        if self._spec.interrupt_mode == "message":
            self._traffic.own.send("control", "interrupt_request", {})
        elif self.process is not None:
            await self.process.signal(signal.SIGINT)
        self._traffic.interrupts.after()

    async def stop(self, *, restart: bool, now: bool = False) -> None:
        """End the process: ask, then terminate, then kill; each step has its bound.

        ``restart`` if another process follows. Raises `KernelNotStopped`: the process runs, or may
        run, and its sockets are as before.
        """
        process = self.process
        if process is not None:
            if process.running and not now:
                seconds = self.shutdown_seconds
                shutdown = Shutdown(self._id, process, self._traffic, self._state, seconds)
                await shutdown.run(self.interrupt, restart=restart)
            if why := await process.kill():  # it does nothing to one that has ended
                raise not_stopped(why)
            # What the process said last may end executions well: it is read before `end` ends them.
            await self._traffic.settle()
        await self.end(None, restart=restart)

    async def end(self, reason: str | None, *, restart: bool) -> None:
        """The process has ended: end its requests (`Traffic.close`), and clean up after it."""
        await self._traffic.close(reason)
        await self.release(restart=restart)

    async def release(self, *, restart: bool) -> None:
        """Forget the process and, unless another follows, its connection file and ports."""
        # Before the first await, so that no stop or interrupt finds a process whose files are being
        # removed. If this is cancelled below, the kernel has no process (`Life._come_up_and_die`).
        if self.process is not None:
            self.process.close()
            self.process = None
        if self._manager is not None:
            try:
                await bounded(self._manager.cleanup_resources(restart=restart))
            except Exception as error:  # the process has ended, and that is what matters
                self._logger.warning(
                    "kernel %s is not cleaned up after: %s", self._id, described(error)
                )
        if not restart:
            self._manager = None

    def leave(self) -> None:
        """Forget a process that runs on for the next server."""
        if self.process is not None:
            self.process.close()
        if self._manager is not None:
            # jupyter_client's manager would remove the connection file when it is collected.
            mark_connection_file(self._manager, written=False)

    def remove_output(self) -> None:
        """Remove the file with the output of the processes. Raises `OSError`."""
        self._output.remove()


def not_stopped(why: str) -> KernelNotStopped:
    """The error for a process that could not be ended."""
    return KernelNotStopped(f"The kernel's process could not be ended: {why}")
