"""What the kernels of one server share: options, keeper, files, events and the like."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from jupyter_client.kernelspec import KernelSpec, KernelSpecManager, NoSuchKernel

from ...keeper.limits import NO_LIMITS, ProcessLimits
from ...keeper.open_files import OpenFiles
from ...settings import Settings
from ..errors import KernelSpecInvalid
from ..handover.handover import Handover
from ..owners.ownership import NOBODYS, Ownership
from ..processes.forking.provisioner import Forking, KernelManager, new_provisioner
from ..processes.jupyter_internals import use_spec
from ..processes.keeper.keepers import Keepers
from ..processes.keeper.provisioner import KeeperProvisioner
from ..processes.run_files import RunFiles
from ..processes.starts import Starts
from ..processes.transports import Transport, Transports
from ..telemetry.audit import AuditLog
from ..telemetry.counters import Counters
from ..telemetry.events import Events
from ..telemetry.reports import KernelReports
from .usage import UsageSampler

__all__ = ["KernelServices"]

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class KernelServices:
    """What the kernels of one server share: its options and the collaborators that they call."""

    settings: Settings
    specs: KernelSpecManager
    transports: Transports
    files: RunFiles
    events: Events
    counters: Counters
    forking: Forking
    starts: Starts
    keepers: Keepers
    audit: AuditLog | None = None
    handover: Handover = field(default_factory=Handover)
    process_limits: Callable[[Ownership], ProcessLimits] = lambda _: NO_LIMITS
    """What the processes of a kernel may take of the machine, by whose the kernel is."""
    usage: UsageSampler = field(default_factory=UsageSampler)
    open_files: OpenFiles = field(default_factory=OpenFiles)
    loading: dict[str, threading.Thread] = field(default_factory=dict, init=False)
    """The threads that look for left processes, in provisioners that may block; by kernel id."""

    def new_manager(
        self,
        name: str,
        kernel_id: str,
        transport: Transport = "tcp",
        spec: KernelSpec | None = None,
        *,
        may_fork: bool = True,
    ) -> KernelManager:
        """jupyter_client's manager for one kernel, not started.

        ``spec`` is used in place of the kernelspec that is installed now. Unless the kernel
        ``may_fork``, its processes are forked only if the kernelspec or an option asks for that.
        """
        manager = KernelManager(
            kernel_name=name,
            kernel_id=kernel_id,
            kernel_spec_manager=self.specs,
            transport=transport,
            connection_file=str(self.files.runtime / f"kernel-{kernel_id}.json"),
            transport_encryption=self._encryption(transport),
        )
        manager.forking = self.forking
        if spec is not None:
            use_spec(manager, spec)
        spec = manager.kernel_spec
        assert spec is not None
        manager.keepers = self.keepers
        forks = self.forking.choose(name, spec)
        if forks == "automatic" and not may_fork:
            forks = "nothing"
        provisioner = new_provisioner(kernel_id, spec, manager, forks)
        if isinstance(provisioner, KeeperProvisioner):
            provisioner.output = self.output_file(kernel_id)
        if provisioner is not None:
            manager.provisioner = provisioner
        return manager

    def _encryption(self, transport: Transport) -> str:
        """The option, if it is set; else encryption where a kernel can, over TCP alone.

        Other users of a host can listen to TCP on loopback, and not to ipc sockets.
        """
        settings = self.settings
        if "transport_encryption" in settings.model_fields_set:
            return settings.transport_encryption
        return "auto" if transport == "tcp" else "disabled"

    def output_file(self, kernel_id: str) -> Path:
        """The file with the output of a kernel's processes."""
        return self.files.output / f"kernel-{kernel_id}.log"

    def prepare_forks(self, name: str) -> None:
        """Start the fork servers for a kernelspec; logs one line if it cannot be used."""
        try:
            self.forking.prepare(name, self.new_manager(name, ""))
        except (NoSuchKernel, KernelSpecInvalid) as error:
            logger.warning("fork_kernels: kernelspec %s cannot be used: %s", name, error)

    def reports(
        self, kernel_id: str, name: str, kind: str = "", *, ownership: Ownership = NOBODYS
    ) -> KernelReports:
        """The reports of one kernel: its events, counters and audit records."""
        return KernelReports(
            self.events, self.counters, kernel_id, name, self.audit, kind, ownership
        )

    async def close(self) -> None:
        """Close what was made for this run of the server, when all its kernels are gone or left."""
        await self.usage.close()
        await self.forking.servers.close()
        await self.keepers.close()
        self.transports.close()
        self.files.close()
