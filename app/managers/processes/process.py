"""One kernel's process, over jupyter_client's kernel manager and its provisioners.

jupyter_client writes the connection file and formats the command. The keeper launches the process,
or a provisioner of another package does. This module learns when the process ends, and stops it in
steps that each have a bound.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from jupyter_client.manager import AsyncKernelManager
from jupyter_client.provisioning.local_provisioner import LocalProvisioner
from jupyter_client.provisioning.provisioner_base import KernelProvisionerBase

from ...keeper.oom import OOMWatch
from ...keeper.output import ProcessOutput
from ...keeper.processes import UNKNOWN_EXIT, Process, child_process, states_of_group
from ...keeper.sockets import ConnectionInfo
from ..errors import (
    IsolationUnavailable,
    KernelUnreachable,
)
from .keeper.provisioner import KeeperProvisioner
from .launch_errors import described, launch_failed

__all__ = ["CALL_SECONDS", "Exit", "KernelProcess", "bounded"]

logger = logging.getLogger(__name__)

POLL_SECONDS: Final = 0.5
"""How often a process that cannot be seen here (a remote one) is asked whether it still runs."""

MAX_POLL_SECONDS: Final = 2.0
"""The longest pause between two questions about a process that cannot be reached."""

KILL_SECONDS: Final = 5.0
"""How long the operating system, or a remote provisioner, may take to kill a process."""

CALL_SECONDS: Final = 12.0
"""How long a provisioner may take for one call. The bound of a request to the keeper is shorter, so
that a silent keeper is noticed, and handled, by the code that asked it."""


T = TypeVar("T")


async def bounded(call: Awaitable[T], seconds: float = CALL_SECONDS) -> T:
    """The result of a provisioner's call. Raises what the call raises, or `TimeoutError`.

    A call that is late is cancelled, and not waited for: it may catch the cancellation and go on.
    """
    task = asyncio.ensure_future(call)
    # A call may fail when nobody asks for its error any more, as it is late or the caller is
    # cancelled.
    task.add_done_callback(_discard)
    try:
        await asyncio.wait({task}, timeout=seconds)
        if task.done():
            return task.result()
    finally:
        if not task.done():
            task.cancel()
    raise TimeoutError(f"no answer within {seconds:g} s")


def _discard(task: asyncio.Future[Any]) -> None:
    """Fetch the error of a call that nobody waits for, so that asyncio does not log it."""
    if not task.cancelled():
        task.exception()


class Exit(NamedTuple):
    """How a process ended: its exit code, or minus the number of the signal that killed it.

    It is `UNKNOWN_EXIT` if neither is known.
    """

    code: int

    def __str__(self) -> str:
        if self.code == UNKNOWN_EXIT:
            return "ended; how is not known"
        if self.code >= 0:
            return f"exited with code {self.code}"
        try:
            name = signal.Signals(-self.code).name
        except ValueError:
            name = "unknown"
        return f"was killed by signal {-self.code} ({name})"


class KernelProcess:
    """A kernel's process, from one launch to its end.

    ``exited`` is done when the process has ended and was reaped, and its process group was killed.
    ``on_reach`` is called with a reason when the provisioner can no longer tell whether the process
    runs, and with an empty text when it can again. A process out of reach has not ended.
    """

    def __init__(
        self,
        manager: AsyncKernelManager,
        output: ProcessOutput,
        on_reach: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._manager = manager
        self._output = output
        self._on_reach = on_reach
        self._loop = asyncio.get_running_loop()
        self._process: Process | None = None
        self._poller: asyncio.Task[None] | None = None
        self._undoing: asyncio.Task[None] | None = None
        self._pgid: int | None = None
        self._oom = OOMWatch(None)
        self.pid: int | None = None
        self.exited: asyncio.Future[Exit] = self._loop.create_future()

    async def launch(
        self, cwd: Path, env: Mapping[str, str], arguments: Sequence[str], seconds: float
    ) -> ConnectionInfo:
        """Launch the process, within so many seconds; returns its connection information.

        ``arguments`` are added to the kernelspec's command. Raises `KernelStartFailed` if there is
        no program to execute or the provisioner refuses, and `IsolationUnavailable`. A process
        that was started by then is killed; if that fails, it is still `running`.
        """
        try:
            streams: dict[str, int] = {}
            if not isinstance(self._manager.provisioner, KeeperProvisioner):
                streams["stdout"] = streams["stderr"] = self._output.open()
            try:
                info = await bounded(self._launch(cwd, env, arguments, streams), seconds)
            # Also after a launch that has failed: otherwise this process's copy of the pipe's end
            # would keep the pipe open for good.
            finally:
                self._output.started()
            self._watch()
        except BaseException as error:
            # The launch may be cancelled again while it is undone. So the undoing is a task of its
            # own, which is not cancelled then: otherwise a process could stay that nothing refers
            # to.
            self._undoing = self._loop.create_task(self._undo(), name="undo launch")
            await asyncio.shield(self._undoing)
            if isinstance(error, IsolationUnavailable) or not isinstance(error, Exception):
                raise
            more = "; and what was started could not be ended" if self.running else ""
            raise launch_failed(error, more) from error
        return info

    async def _launch(
        self,
        cwd: Path,
        env: Mapping[str, str],
        arguments: Sequence[str],
        streams: Mapping[str, int],
    ) -> ConnectionInfo:
        command, options = await self._manager.pre_start_kernel(
            cwd=str(cwd),
            env=dict(env),
            extra_arguments=list(arguments),
            **streams,
        )
        info: ConnectionInfo = await self._provisioner.launch_kernel(command, **options)
        await self._provisioner.post_launch(**options)
        return info

    async def _undo(self) -> None:
        """End the process that a failed launch may have started."""
        provisioner = self._manager.provisioner
        if isinstance(provisioner, KeeperProvisioner):
            # If `Keeper.launch` has raised, no process runs. If a later step has, one may run.
            await provisioner.keepers.forget(provisioner.kernel_id)
            if not self.exited.done():
                self.exited.set_result(Exit(UNKNOWN_EXIT))
        if self.running:
            # The launch may have failed between the start of the process and `_watch`: then its end
            # would not be seen, and `kill` would wait in vain.
            if self._poller is None and self._process is None:
                with contextlib.suppress(Exception):
                    self._watch()
            await self.kill()

    async def adopt(self) -> Exit | None:
        """Watch the process that the manager's provisioner has found again.

        Returns None if the process runs, or how it ended. Raises `KernelUnreachable` if the
        provisioner cannot tell.
        """
        try:
            # If the provisioner raises, it is not known whether the process runs. If it counted as
            # dead then, another could be launched beside it.
            code = await bounded(self._provisioner.poll())
            if code is None:
                self._watch()
                return None
        except Exception as error:
            raise KernelUnreachable(described(error)) from error
        self.exited.set_result(Exit(code))
        return Exit(code)

    @property
    def _provisioner(self) -> KernelProvisionerBase:
        provisioner = self._manager.provisioner
        assert provisioner is not None, "launch() comes first"
        return provisioner

    def _watch(self) -> None:
        provisioner = self._provisioner
        pid = getattr(provisioner, "pid", None)
        if isinstance(provisioner, KeeperProvisioner):
            self.pid = pid  # None on another host
            name = f"process {pid}"
            # The future is fetched now: later the same property could give that of the kernel's
            # next process.
            awaiting = self._await(provisioner, provisioner.exited)
            self._poller = self._loop.create_task(awaiting, name=name)
            return
        if isinstance(provisioner, LocalProvisioner) and isinstance(pid, int):
            self.pid = pid
            self._pgid = provisioner.pgid
            self._oom = OOMWatch(pid)
            try:
                self._process = child_process(pid)
            except OSError as error:
                logger.debug("process %d is polled: %s", pid, error)
            else:
                self._process.watch(self._on_end)
                return
        self._poller = self._loop.create_task(self._poll(), name=f"poll process {pid}")

    def _on_end(self) -> None:
        assert self._process is not None
        self._process.close()
        self._process = None
        # The process is a zombie until it is polled: so no other group can have its number yet.
        self._kill_group()
        self._poller = self._loop.create_task(self._poll(), name=f"reap process {self.pid}")

    def _kill_group(self) -> None:
        """Kill the processes that the kernel has left running in its process group."""
        # A provisioner of another package need not make a group of its own for the process: this
        # server's group is then the process's, too.
        if self._pgid is not None and self._pgid != os.getpgrp():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._pgid, signal.SIGKILL)

    async def _poll(self) -> None:
        provisioner = self._provisioner
        pause, failing = POLL_SECONDS, False
        while True:
            try:
                code = await bounded(provisioner.poll())
            # The loop goes on without a bound, as a process out of reach has not ended. The pauses
            # bound its cost, and `close` ends it.
            except Exception as error:
                if not failing:
                    logger.warning("cannot tell whether a kernel's process runs: %s", error)
                    self._on_reach(described(error))
                code, failing, pause = None, True, min(pause * 2, MAX_POLL_SECONDS)
            else:
                if failing:
                    logger.warning("a kernel's process can be reached again")
                    self._on_reach("")
                failing, pause = False, POLL_SECONDS
            if code is not None:
                break
            await asyncio.sleep(pause)
        # This reaps the process; how it ended is known already. A provisioner whose `wait` hangs or
        # fails leaves a zombie at the most.
        with contextlib.suppress(Exception):
            await bounded(provisioner.wait(), KILL_SECONDS)
        if not self.exited.done():
            self.exited.set_result(Exit(code))

    async def _await(self, provisioner: KeeperProvisioner, exited: asyncio.Future[int]) -> None:
        """Wait until the keeper tells that the process has ended; it has killed the group, too."""
        # The keeper's future is shared, so a cancellation of this task must not reach it. `_undo`,
        # which does not wait for the keeper, may have set `self.exited` before.
        code = provisioner.exit_code(await asyncio.shield(exited))
        if not self.exited.done():
            self.exited.set_result(Exit(code))

    @property
    def out_of_memory(self) -> bool:
        """Whether the process has ended, and was killed for want of memory as far as is known."""
        provisioner = self._manager.provisioner
        if not self.exited.done():
            return False
        if isinstance(provisioner, KeeperProvisioner):
            return provisioner.out_of_memory
        return self.exited.result().code == -signal.SIGKILL and self._oom.struck

    @property
    def want_of_memory(self) -> str:
        """The explanation for users that the process ran out of memory, or an empty text."""
        if not self.out_of_memory:
            return ""
        provisioner = self._manager.provisioner
        if isinstance(provisioner, KeeperProvisioner):
            limit = provisioner.process_limits.memory
            if limit is not None and provisioner.enforced.get("memory") == "cgroup":
                mebibytes = f"{limit / 2**20:.10g} MiB"
                return f"; out of memory (oom): its owner's kernels may take {mebibytes} together"
        return "; out of memory (oom): its control group had none left"

    @property
    def running(self) -> bool:
        """Whether the process has been launched and not ended."""
        return self._manager.has_kernel and not self.exited.done()

    async def signal(self, number: int) -> None:
        """Send a signal to the process group, if the process runs. Raises `KernelUnreachable`."""
        if self.running:
            await self._ask(self._provisioner.send_signal(number))

    async def _ask(self, call: Awaitable[None]) -> None:
        try:
            await bounded(call)
        # The process has ended meanwhile, and `exited` is about to be done.
        except ProcessLookupError:
            pass
        except Exception as error:
            text = f"The kernel's process cannot be reached: {described(error)}"
            raise KernelUnreachable(text) from error

    async def wait(self, seconds: float) -> bool:
        """Whether the process ends within so many seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                # The life, a stop and `kill` may wait for the future at the same time: when the
                # time of one is over, the future must not be cancelled for the others.
                await asyncio.shield(self.exited)
        return self.exited.done()

    async def children(self) -> set[int]:
        """The ids of the other processes in its process group, zombies included.

        Empty if the group cannot be seen from here.
        """
        return {*(await self._children())}

    async def has_dead_only(self, children: Collection[int]) -> bool:
        """Whether the rest of its process group are zombies, some of ``children`` among them."""
        states = await self._children()
        return not states.keys().isdisjoint(children) and {*states.values()} <= {"Z", "X"}

    async def _children(self) -> dict[int, str]:
        if self.pid is None:
            return {}
        # All processes of the machine are looked at, which may take tens of milliseconds.
        states = await asyncio.to_thread(states_of_group, self.pid)
        states.pop(self.pid, None)
        return states

    async def terminate(self, seconds: float) -> bool:
        """Send SIGTERM to the process group, and wait; whether the process ended within the time.

        Raises `KernelUnreachable`.
        """
        if self.running:
            await self._ask(self._provisioner.terminate())
        return await self.wait(seconds)

    async def tail(self) -> str:
        """The last lines that the process wrote to stdout and stderr."""
        provisioner = self._manager.provisioner
        if isinstance(provisioner, KeeperProvisioner):
            return await provisioner.tail()
        return self._output.tail()

    async def kill(self) -> str:
        """Send SIGKILL to the process group; returns why the process still runs, or an empty text.

        Takes at most `CALL_SECONDS` and `KILL_SECONDS` together.
        """
        if not self.running:
            return ""
        why = "it was killed, and still runs"
        try:
            # If no answer comes, the signal may have been sent all the same: only the end of the
            # process counts.
            await self._ask(self._provisioner.kill())
        except KernelUnreachable as error:
            why = error.message
        if await self.wait(KILL_SECONDS):
            return ""
        logger.error("process %s could not be ended: %s", self.pid, why)
        return why

    def close(self) -> None:
        """Stop watching the process, and close the descriptors."""
        if self._process is not None:
            self._process.close()
            self._process = None
        if self._poller is not None:
            self._poller.cancel()
            self._poller = None
        self._output.close()
