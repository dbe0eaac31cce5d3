"""A kernel provisioner whose processes are the keeper's children, and so outlive the server."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.provisioning.local_provisioner import LocalProvisioner

from ....keeper.processes import start_time
from .client import Keeper, Kept
from .link import KeeperRefuses

__all__ = ["KeeperProvisioner"]


class KeeperProvisioner(LocalProvisioner):
    """Has the keeper launch the kernel, or takes over one that was launched by an earlier server.

    It needs a `KernelManager` with a ``keeper`` as its parent. ``output`` is the file of what the
    process writes.
    """

    output: Path
    start_time = ""

    @property
    def keeper(self) -> Keeper:
        """The keeper of this server."""
        keeper = getattr(self.parent, "keeper", None)
        assert isinstance(keeper, Keeper), "only a server with a keeper makes this provisioner"
        return keeper

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        """Launch a kernel. Raises what `Keeper.launch` does; then none runs."""
        # A kernel with this variable ends when that process does, which process 1 never does. One
        # without it takes itself for an ``ipython kernel`` in a terminal, and writes a long note
        # about Ctrl+C to its output. [ipykernel.kernelapp: init_poller, log_connection_info]
        env = {**kwargs["env"], "JPY_PARENT_PID": "1"}
        self.cwd = kwargs["cwd"]
        kept = await self.launch_process(cmd, env)
        self._take(kept)
        return self.connection_info

    async def launch_process(self, cmd: list[str], env: Mapping[str, str]) -> Kept:
        """A process that the keeper has. What is raised is what `Keeper.launch` raises."""
        return await self.keeper.launch(
            self.kernel_id, cmd, env=env, cwd=str(self.cwd), output=self.output
        )

    @property
    def exited(self) -> asyncio.Future[int]:
        """Done with the exit code when the process has ended; not to be cancelled."""
        return self.keeper.exited(self.kernel_id)

    async def poll(self) -> int | None:
        """The exit code, minus the number of a signal, or None while the process runs."""
        if self.process is None:
            return 0
        exited: asyncio.Future[int] = self.exited
        return exited.result() if exited.done() else None

    async def wait(self) -> int | None:
        """The exit code, when the process has ended. Has no bound of its own."""
        if self.process is None:
            return 0
        code = await asyncio.shield(self.exited)
        self.process = None
        return code

    async def send_signal(self, signum: int) -> None:
        """Send a signal to the process group; nothing happens if it has ended."""
        if self.process is not None:
            await self.keeper.signal(self.kernel_id, signum)

    async def kill(self, restart: bool = False) -> None:  # noqa: ARG002
        """SIGKILL to the process group."""
        await self.send_signal(signal.SIGKILL)

    async def terminate(self, restart: bool = False) -> None:  # noqa: ARG002
        """SIGTERM to the process group."""
        await self.send_signal(signal.SIGTERM)

    async def cleanup(self, restart: bool = False) -> None:
        """Let go of the process; unless another follows, the keeper forgets it.

        One that still runs is ended: nobody else will know of it.
        """
        await super().cleanup(restart)
        if not restart and self.start_time:
            self.process = None
            self.start_time = ""
            await self.keeper.forget(self.kernel_id)

    async def tail(self) -> str:
        """The last lines that the process wrote, for people."""
        return await self.keeper.tail(self.kernel_id)

    async def get_provisioner_info(self) -> dict[str, Any]:
        """What another server needs to take the process over."""
        info: dict[str, Any] = await super().get_provisioner_info()
        own = {"start_time": self.start_time, "output": str(self.output), "cwd": str(self.cwd)}
        return {**info, **own}

    async def load_provisioner_info(self, provisioner_info: Mapping[str, Any]) -> None:
        """Take the process over. Raises `KeeperUnavailable`, or `ProcessLookupError` if it is gone.

        A process that has ended meanwhile is taken over as well while the keeper knows how.
        """
        await super().load_provisioner_info(dict(provisioner_info))
        self.output, self.cwd = Path(provisioner_info["output"]), provisioner_info["cwd"]
        pid, started = provisioner_info["pid"], provisioner_info["start_time"]
        try:
            kept = await self.keeper.adopt(self.kernel_id, pid, started, self.output)
        except KeeperRefuses:
            # It has the process that followed: launched by a server that was killed before it
            # could note that, and so asked for nothing yet.
            if await asyncio.to_thread(start_time, pid) == started:
                raise
            kept = None
        if kept is None:
            raise ProcessLookupError(f"process {pid} is gone")
        self._take(kept)

    def _take(self, kept: Kept) -> None:
        self.process = kept  # type: ignore[assignment]
        self.pid = self.pgid = kept.pid  # it leads a session, and so a group of this number
        self.start_time = kept.start_time
