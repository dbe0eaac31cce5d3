"""One kernel's process, over jupyter_client's kernel manager and its provisioners.

jupyter_client writes the connection file, formats the command and launches; this module knows at
once when the process ends (by its pidfd), and stops it with bounded steps.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from jupyter_client.manager import AsyncKernelManager
from jupyter_client.provisioning.local_provisioner import LocalProvisioner
from jupyter_client.provisioning.provisioner_base import KernelProvisionerBase

from app.keeper.output import ProcessOutput
from app.keeper.processes import UNKNOWN_EXIT
from app.managers.channels import ConnectionInfo
from app.managers.errors import KernelStartFailed
from app.managers.keeper_provisioner import KeeperProvisioner

__all__ = ["Exit", "KernelProcess"]

logger = logging.getLogger(__name__)

POLL_SECONDS: Final = 0.5
"""How often a process that has no pidfd here (a remote one) is asked whether it still runs."""

KILL_SECONDS: Final = 5.0
"""How long the operating system, or a remote provisioner, may take to kill a process."""


class Exit(NamedTuple):
    """How a process ended: its exit code, or minus the number of the signal that killed it.

    `UNKNOWN_EXIT` stands for both where nobody can tell.
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

    ``exited`` is done when the process is gone and reaped, and its process group with it.
    """

    def __init__(self, manager: AsyncKernelManager, output: ProcessOutput) -> None:
        self._manager = manager
        self._output = output
        self._loop = asyncio.get_running_loop()
        self._pidfd: int | None = None
        self._poller: asyncio.Task[None] | None = None
        self._pgid: int | None = None
        self.pid: int | None = None
        self.exited: asyncio.Future[Exit] = self._loop.create_future()

    async def launch(
        self, cwd: Path, env: Mapping[str, str], arguments: Sequence[str] = ()
    ) -> ConnectionInfo:
        """Start the process; the connection information that its provisioner gives.

        ``arguments`` are added to the kernelspec's command.
        Raises `KernelStartFailed` when there is nothing to execute or the provisioner refuses.
        """
        descriptor = self._output.open()
        try:
            command, options = await self._manager.pre_start_kernel(
                cwd=str(cwd),
                env=dict(env),
                stdout=descriptor,
                stderr=descriptor,
                extra_arguments=list(arguments),
            )
            info: ConnectionInfo = await self._provisioner.launch_kernel(command, **options)
            await self._provisioner.post_launch(**options)
        except Exception as error:
            text = f"{type(error).__name__}: {error}" if not isinstance(error, OSError) else error
            raise KernelStartFailed(f"The kernel could not be launched: {text}") from error
        finally:
            self._output.started()
        self._watch()
        return info

    async def adopt(self) -> Exit | None:
        """Watch the process that the manager's provisioner has found; how it ended, if it has."""
        async with asyncio.timeout(KILL_SECONDS):
            code = await self._provisioner.poll()
        if code is None:
            self._watch()
            return None
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
        if isinstance(provisioner, LocalProvisioner) and isinstance(pid, int):
            self.pid = pid
            if isinstance(provisioner, KeeperProvisioner):
                exited = provisioner.exited
                self._poller = self._loop.create_task(self._await(exited), name=f"process {pid}")
                return
            self._pgid = provisioner.pgid
            if hasattr(os, "pidfd_open"):
                try:
                    self._pidfd = os.pidfd_open(pid)
                except OSError as error:
                    logger.debug("no pidfd for process %d: %s", pid, error)
                else:
                    self._loop.add_reader(self._pidfd, self._on_pidfd)
                    return
        self._poller = self._loop.create_task(self._poll(), name=f"poll process {pid}")

    def _on_pidfd(self) -> None:
        assert self._pidfd is not None
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._pidfd = None
        # The process is a zombie until it is polled for, so its group's number is still its own.
        self._kill_group()
        self._poller = self._loop.create_task(self._poll(), name=f"reap process {self.pid}")

    def _kill_group(self) -> None:
        """End what the kernel left running in its process group."""
        if self._pgid is not None and self._pgid != os.getpgrp():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._pgid, signal.SIGKILL)

    async def _poll(self) -> None:
        provisioner = self._provisioner
        failures = 0
        while True:
            try:
                code = await provisioner.poll()
            except Exception as error:
                failures += 1
                logger.warning("cannot tell whether a kernel's process runs: %s", error)
                code = -signal.SIGKILL if failures >= 10 else None
            if code is not None:
                break
            await asyncio.sleep(POLL_SECONDS)
        with contextlib.suppress(Exception):
            async with asyncio.timeout(KILL_SECONDS):
                await provisioner.wait()
        if not self.exited.done():
            self.exited.set_result(Exit(code))

    async def _await(self, exited: asyncio.Future[int]) -> None:
        """The keeper tells when the process has ended, and has ended its process group."""
        code = await asyncio.shield(exited)
        if not self.exited.done():
            self.exited.set_result(Exit(code))

    @property
    def running(self) -> bool:
        """Whether the process has been launched and not ended."""
        return self._manager.has_kernel and not self.exited.done()

    async def signal(self, number: int) -> None:
        """Send a signal to the process group."""
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                await self._provisioner.send_signal(number)

    async def wait(self, seconds: float) -> bool:
        """Whether the process ends within so many seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await asyncio.shield(self.exited)
        return self.exited.done()

    async def terminate(self, seconds: float) -> bool:
        """SIGTERM to the process group, then up to so many seconds; whether it ended."""
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                await self._provisioner.terminate()
        return await self.wait(seconds)

    async def tail(self) -> str:
        """The last lines that it wrote."""
        provisioner = self._manager.provisioner
        if isinstance(provisioner, KeeperProvisioner):
            return await provisioner.tail()
        return self._output.tail()

    async def kill(self) -> None:
        """SIGKILL to the process group. Returns when it is gone, or after `KILL_SECONDS`."""
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                await self._provisioner.kill()
        if self._manager.has_kernel and not await self.wait(KILL_SECONDS):
            logger.error("process %s does not end although it was killed", self.pid)

    def close(self) -> None:
        """Stop watching, and let go of the descriptors."""
        if self._pidfd is not None:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None
        if self._poller is not None:
            self._poller.cancel()
            self._poller = None
        self._output.close()
