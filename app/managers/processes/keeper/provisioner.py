"""A kernel provisioner whose processes are the keeper's children, and so outlive the server."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.provisioning.local_provisioner import LocalProvisioner

from ....keeper.limits import NO_LIMITS, ProcessLimits
from ....keeper.processes import start_time
from ....log_formats import about
from ...errors import IsolationUnavailable
from ..isolation.confinement import Confinement, kernels_exit_code
from .keepers import Keepers
from .kept import Kept, ProcessUsage
from .link import KeeperRefuses

__all__ = ["KeeperProvisioner", "is_as_wanted"]

logger = logging.getLogger(__name__)


class KeeperProvisioner(LocalProvisioner):
    """Has the keeper launch the kernel, or adopts one that an earlier server has left.

    Its parent must be a `KernelManager` with ``keepers``. ``output`` is the file to which the
    process's stdout and stderr go. ``process_limits`` hold for what is launched or adopted next.
    """

    output: Path
    process_limits: ProcessLimits = NO_LIMITS
    enforced: Mapping[str, str] = {}
    """How each limit of the process is enforced (`Kept`)."""
    start_time = ""
    is_here = True
    """Whether the processes are on this machine."""
    confinement: Confinement | None = None
    """How processes are kept apart from those of other owners; None if they are not."""
    isolated = "none"
    """How the present process is isolated: a value of the option ``isolation``."""

    @property
    def keepers(self) -> Keepers:
        """The keepers of this server."""
        keepers = getattr(self.parent, "keepers", None)
        assert isinstance(keepers, Keepers), "only a server with keepers makes this provisioner"
        return keepers

    async def pre_launch(self, **kwargs: Any) -> dict[str, Any]:
        """Prepare a launch; returns its options, as jupyter_client has them.

        Raises `IsolationUnavailable`, and what jupyter_client raises.
        """
        confinement = self.confinement
        if confinement is None:
            options: dict[str, Any] = await super().pre_launch(**kwargs)
            return options
        # The steps of a launch come one after the other, and a kernel has one launch at a time: so
        # the later steps use what `prepare` has found for this launch.
        await asyncio.to_thread(confinement.prepare)
        # Before `super`: jupyter_client replaces names in the kernelspec's variables by these.
        kwargs["env"] = confinement.environment(kwargs["env"], os.environ)
        options = await super().pre_launch(**kwargs)
        await asyncio.to_thread(confinement.hand_over)
        return options

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        """Launch a kernel. Raises what `Keepers.launch` raises; then no process runs."""
        # A kernel with this variable ends when the process of that id ends; process 1 never does. A
        # kernel without it takes itself for an ``ipython kernel`` in a terminal, and writes a long
        # note about Ctrl+C to its output. [ipykernel.kernelapp: init_poller, log_connection_info]
        env = {**kwargs["env"], "JPY_PARENT_PID": "1"}
        self.cwd = kwargs["cwd"]
        kept = await self.launch_process(cmd, env)
        self._take(kept)
        return self.connection_info

    async def launch_process(self, cmd: list[str], env: Mapping[str, str]) -> Kept:
        """Have the keeper launch a process. Raises what `Keepers.launch` raises."""
        confinement = self.confinement
        if confinement is None:
            self.isolated = "none"
            return await self.keepers.launch(
                self.kernel_id,
                cmd,
                env=env,
                cwd=str(self.cwd),
                output=self.output,
                limits=self.process_limits,
            )
        resources = self.kernel_spec.resource_dir
        launch = await asyncio.to_thread(confinement.launch, cmd, env, str(self.cwd), resources)
        # If this is cancelled, `Keepers.launch` sees to it that no process is left.
        try:
            kept = await self.keepers.launch(
                self.kernel_id,
                launch.command,
                env=launch.env,
                cwd=launch.cwd,
                output=self.output,
                limits=self.process_limits,
                **launch.fields,
            )
        except OSError as error:
            if why := await asyncio.to_thread(confinement.explain, error, cmd, env):
                raise IsolationUnavailable(why) from error
            raise
        self.isolated = confinement.kind
        return kept

    @property
    def exited(self) -> asyncio.Future[int]:
        """The exit code, once the process has ended. All who wait share it: do not cancel it."""
        return self.keepers.exited(self.kernel_id)

    async def poll(self) -> int | None:
        """None while the process runs; then its exit code, or minus the number of a signal."""
        if self.process is None:
            return 0
        exited: asyncio.Future[int] = self.exited
        return self.exit_code(exited.result()) if exited.done() else None

    def exit_code(self, code: int) -> int:
        """The kernel's exit code, given that of its process, which may be a sandbox's."""
        return kernels_exit_code(self.isolated, code)

    async def wait(self) -> int | None:
        """Wait until the process has ended; returns its exit code. It has no bound of its own."""
        if self.process is None:
            return 0
        # jupyter_client takes a ``process`` of None for one that is gone.
        code = self.exit_code(await asyncio.shield(self.exited))
        self.process = None
        return code

    async def send_signal(self, signum: int) -> None:
        """Send a signal to the process group; does nothing if the process has ended."""
        if self.process is not None:
            await self.keepers.signal(self.kernel_id, signum)

    async def kill(self, restart: bool = False) -> None:  # noqa: ARG002
        """Send SIGKILL to the process group."""
        await self.send_signal(signal.SIGKILL)

    async def terminate(self, restart: bool = False) -> None:  # noqa: ARG002
        """Send SIGTERM to the process group."""
        await self.send_signal(signal.SIGTERM)

    async def cleanup(self, restart: bool = False) -> None:
        """Let go of the process. Unless a restart follows, the keeper forgets it.

        The keeper then kills the process if it still runs, as no server would know of it.
        """
        await super().cleanup(restart)
        if not restart and self.start_time:
            self.process = None
            self.start_time = ""
            await self.keepers.forget(self.kernel_id)
        if not restart and self.confinement is not None:
            await asyncio.to_thread(self.confinement.remove)

    async def tail(self) -> str:
        """The last lines that the process wrote, for people."""
        return await self.keepers.tail(self.kernel_id)

    async def get_provisioner_info(self) -> dict[str, Any]:
        """The data that the next server needs to adopt the process."""
        info: dict[str, Any] = await super().get_provisioner_info()
        own = {"start_time": self.start_time, "output": str(self.output), "cwd": str(self.cwd)}
        return {**info, **own, "isolation": self.isolated}

    async def load_provisioner_info(self, provisioner_info: Mapping[str, Any]) -> None:
        """Adopt the process. Raises `KeeperUnavailable`, or `ProcessLookupError` if it is gone.

        A process that has ended is adopted, too, if the keeper still knows its exit code.
        """
        await super().load_provisioner_info(dict(provisioner_info))
        self.output, self.cwd = Path(provisioner_info["output"]), provisioner_info["cwd"]
        self.isolated = provisioner_info.get("isolation", "none")
        pid, started = provisioner_info["pid"], provisioner_info["start_time"]
        try:
            kept = await self.keepers.adopt(
                self.kernel_id, pid, started, self.output, self.process_limits
            )
        except KeeperRefuses:
            # The keeper has another process of this kernel: the server before has launched that in
            # place of this one, and was killed before it could store the launch. So the new process
            # has run nothing yet, and may go; but if the old one still runs, the refusal stands.
            if await asyncio.to_thread(start_time, pid) == started:
                raise
            kept = None
        if kept is None:
            raise ProcessLookupError(f"process {pid} is gone")
        self._take(kept)

    async def impose(self) -> None:
        """Have ``process_limits`` hold for the present process. Raises `OSError` if they do not."""
        pid = getattr(self.process, "pid", 0)  # `self.pid` is None on another host
        kept = await self.keepers.adopt(
            *(self.kernel_id, pid, self.start_time, self.output, self.process_limits)
        )
        if kept is None:
            raise ProcessLookupError(f"process {pid} is gone")
        if kept.unlimited:
            raise OSError(kept.unlimited)
        self._note_enforced(kept)

    async def usage(self) -> ProcessUsage | None:
        """What the processes use; None if there is none, or the keeper is too old to tell.

        Raises `KeeperUnavailable`.
        """
        try:
            return await self.keepers.usage(self.kernel_id)
        except KeeperRefuses:
            return None

    @property
    def out_of_memory(self) -> bool:
        """Whether the process, which has ended, was killed for want of memory."""
        return self.keepers.was_out_of_memory(self.kernel_id)

    def _note_enforced(self, kept: Kept) -> None:
        self.enforced = kept.enforced
        missing = sorted(self.process_limits.limited - kept.enforced.keys())
        if missing or kept.unlimited:
            why = kept.unlimited or "its keeper is of the time before there were limits"
            text, names = "kernel %s has no limit of %s: %s", ", ".join(missing) or "its owner's"
            about(logger, kernel_id=self.kernel_id).warning(text, self.kernel_id, names, why)

    def _take(self, kept: Kept) -> None:
        self._note_enforced(kept)
        self.process = kept  # type: ignore[assignment]
        self.pid = self.pgid = kept.pid  # it leads a session, so its group has the same number
        self.start_time = kept.start_time


def is_as_wanted(provisioner: object) -> bool:
    """Whether a provisioner's process is isolated as its next one would be."""
    if not isinstance(provisioner, KeeperProvisioner):
        return True
    confinement = provisioner.confinement
    return provisioner.isolated == ("none" if confinement is None else confinement.kind)
