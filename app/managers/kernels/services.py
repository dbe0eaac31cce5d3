"""What the kernels of one server share: options, keeper, files, events and the like."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jupyter_client.kernelspec import KernelSpec, KernelSpecManager, NoSuchKernel

from ...keeper.limits import NO_LIMITS, ProcessLimits
from ...keeper.open_files import OpenFiles
from ...settings import Settings
from ..errors import (
    IsolationUnavailable,
    KeeperUnavailable,
    KernelSpecInvalid,
    KernelStartFailed,
)
from ..handover.handover import Handover
from ..limits.queues import ANY_QUEUE, Queues
from ..limits.shares import Shares
from ..owners.ownership import NOBODYS, Ownership
from ..owners.principal import ANONYMOUS
from ..processes.engines.caller_options import settled
from ..processes.engines.engines import Engines
from ..processes.engines.provisioner import EngineProvisioner
from ..processes.engines.quantities import Value
from ..processes.environment import kernel_environment
from ..processes.forking.provisioner import Forking, KernelManager, new_provisioner
from ..processes.hosts.host_choice import HostChoice
from ..processes.hosts.joining import Joining
from ..processes.hosts.options import options_of
from ..processes.hosts.provisioner import RemoteProvisioner, assign_host, elsewhere
from ..processes.hosts.service import Service
from ..processes.isolation.isolation import Isolation
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
    joining: Joining
    service: Service
    engines: Engines
    hosts: HostChoice
    isolation: Isolation
    audit: AuditLog | None = None
    handover: Handover = field(default_factory=Handover)
    process_limits: Callable[[Ownership], ProcessLimits] = lambda _: NO_LIMITS
    """How much of the machine the processes of a kernel with this ownership may take."""
    shares: Shares = field(default_factory=Shares)
    begin_term: Callable[[str], None] = lambda _: None
    """Called with the id of a kernel that is about to be started, by one of several replicas."""
    parks: bool = False
    """Whether kernels are started without an owner, and parked until a start claims one."""
    check_start: Callable[[], None] = lambda: None
    """Raises an error if no kernel can be started just now."""
    queues: Queues = ANY_QUEUE
    """The places for executions that wait at the kernels of each owner."""
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
        given: Mapping[str, Value] | None = None,
        owner: str = ANONYMOUS,
        may_fork: bool = True,
    ) -> KernelManager:
        """jupyter_client's manager for one kernel of this owner, not started.

        ``spec`` is used in place of the kernelspec that is installed now. ``given`` has the options
        of its engine that were given for this kernel. Unless the kernel ``may_fork``, its processes
        are forked only if the kernelspec or an option asks for that.
        """
        confinement = self.isolation.confine(owner, kernel_id)
        file = self.files.runtime / f"kernel-{kernel_id}.json"
        if confinement is not None:
            file = confinement.place.connection_file
        manager = KernelManager(
            kernel_name=name,
            kernel_id=kernel_id,
            kernel_spec_manager=self.specs,
            transport=transport,
            connection_file=str(file),
            transport_encryption=self._encryption(transport),
        )
        manager.forking = self.forking
        if spec is not None:
            use_spec(manager, settled(spec, given or {}))
        spec = manager.kernel_spec
        assert spec is not None
        manager.keepers = self.keepers
        forks = self.forking.choose(name, spec)
        if forks == "automatic" and not (may_fork and confinement is None):
            forks = "nothing"
        provisioner = new_provisioner(kernel_id, spec, manager, forks)
        if isinstance(provisioner, KeeperProvisioner):
            provisioner.output = self.output_file(kernel_id)
            provisioner.confinement = confinement
        if isinstance(provisioner, RemoteProvisioner):
            allowed = self.settings.kernel_env_allow
            provisioner.inherited = kernel_environment(os.environ, allowed, {})
            provisioner.root_dir = self.settings.root_dir
        if isinstance(provisioner, EngineProvisioner):
            provisioner.engines = self.engines
        if provisioner is not None:
            manager.provisioner = provisioner
        return manager

    def assign(
        self,
        kernel_id: str,
        spec: KernelSpec,
        left: Mapping[str, Any] | None = None,
        *,
        given: Mapping[str, Value],
        ownership: Ownership,
        on_words: Callable[[str], None],
    ) -> None:
        """Assign a kernel to the host or to the engine that its kernelspec names, if any.

        Call this before the kernel's log is opened. ``left`` is what the provisioner has noted of a
        process that an earlier server has left. ``given`` has the options that were given for this
        kernel. ``on_words`` is called with what the engine says of the job. Raises
        `KernelStartFailed` if the options are wrong.
        """
        spec = settled(spec, given)
        # Before the keeper is told of the kernel: all that it is told goes with the term.
        if left is None:
            self.begin_term(kernel_id)
        left = left or {}
        owner = "" if self.parks else ownership.owner
        limits = self.process_limits(ownership)
        has_engine = self.engines.assign(
            kernel_id, spec, left, owner=owner, on_words=on_words, limits=limits
        )
        if not has_engine:
            assign_host(self.keepers.remote, kernel_id, spec, self.service, left)

    def log_of(self, kernel_id: str, spec: KernelSpec) -> Path:
        """The directory of a kernel's log, or of its mirror if the kernel is on another host."""
        files = self.files
        return (files.mirrors if elsewhere(spec.metadata) else files.logs) / kernel_id

    async def choose_host(
        self, spec: KernelSpec, given: Mapping[str, Value]
    ) -> Mapping[str, Value]:
        """The given options of a kernel that is to be started, with the host chosen for it, if any.

        Call `assign` with it before anything else is awaited. Raises `KernelStartFailed`.
        """
        options = options_of(settled(spec, given))
        if options is None or isinstance(options.host, str):
            return given
        try:
            return {**given, "host": await self.hosts.choose(options)}
        except KeeperUnavailable as error:
            text = f"The kernel could not be launched: {error.message}"
            raise KernelStartFailed(text, cause=error) from error

    def new_address(self, manager: KernelManager) -> str:
        """The path with which the names of a kernel's ipc sockets begin, for the next launch."""
        confinement = getattr(manager.provisioner, "confinement", None)
        return self.transports.new_address() if confinement is None else confinement.place.address

    def check_isolation(self, manager: KernelManager) -> None:
        """Raise `IsolationUnavailable` for a kernel that would not be as isolated as is wanted.

        Another package's provisioner launches processes by its own rules. Without encryption, the
        kernels of all owners could listen to each other's messages over TCP.
        """
        if self.isolation.kind == "none":
            return
        if not isinstance(manager.provisioner, KeeperProvisioner):
            raise IsolationUnavailable("its kernelspec names a provisioner of another package")
        if not manager.provisioner.is_here:
            raise IsolationUnavailable("it runs on another host, where kernels share a user")
        spec = manager.kernel_spec
        assert spec is not None
        if manager.transport == "tcp" and not _declares_encryption(spec):
            raise IsolationUnavailable(
                "it is reached over TCP, and its kernelspec declares no encryption"
            )

    def _encryption(self, transport: Transport) -> str:
        """As `Settings.transport_encryption`: required over TCP with isolation, else the option.

        Other users of a host can listen to TCP on loopback, and not to ipc sockets.
        """
        settings = self.settings
        if transport == "tcp" and self.isolation.kind != "none":
            return "required"
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
        # Closed from the last to the first: the collaborators that ask the keepers, then the
        # keepers, at last the files that both use. One that cannot be closed keeps no other open.
        async with AsyncExitStack() as stack:
            stack.callback(self.files.close)
            stack.callback(self.isolation.close)
            stack.callback(self.transports.close)
            stack.push_async_callback(self.joining.close)
            stack.push_async_callback(self.engines.close)
            stack.push_async_callback(self.keepers.close)
            stack.push_async_callback(self.forking.servers.close)
            stack.push_async_callback(self.usage.close)


def _declares_encryption(spec: KernelSpec) -> bool:
    """Whether a kernelspec declares CurveZMQ, as jupyter_client reads it."""
    declared = spec.metadata.get("supported_encryption") or ()
    words = [declared] if isinstance(declared, str) else declared
    return any(str(word).strip().lower() == "curve" for word in words)
