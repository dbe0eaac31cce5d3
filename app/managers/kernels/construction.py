"""Building the kernels' part of a server: everything that a `MultiKernelManager` works with."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial

from ...settings import Settings
from ..handover.handover import Handover
from ..limits.processes import process_limits
from ..limits.shares import Shares
from ..processes.engines.defaults import defaults_of
from ..processes.engines.engines import Engines
from ..processes.environment import QUIET, kernel_environment
from ..processes.forking.provisioner import Forking
from ..processes.forking.servers import ForkServers
from ..processes.hosts.host_choice import HostChoice
from ..processes.isolation.isolation import new_isolation
from ..processes.keeper.new_keepers import new_keepers
from ..processes.run_files import RunFiles
from ..processes.specs import Specs, kernel_spec_manager
from ..processes.starts import Starts
from ..processes.transports import Transports
from ..telemetry.audit import AuditLog
from ..telemetry.counters import Counters
from ..telemetry.events import Events
from .multikernel import MultiKernelManager
from .services import KernelServices
from .ties import NO_TIES, Ties
from .warm import WarmKernels

__all__ = ["multi_kernel_manager"]


def multi_kernel_manager(
    settings: Settings,
    events: Events,
    counters: Counters,
    audit: AuditLog | None = None,
    ties: Ties = NO_TIES,
    shares: Shares | None = None,
) -> MultiKernelManager:
    """The manager of a server's kernels, with its collaborators, built in order.

    The ``ties`` say whether the kernels outlive the server; ``shares`` are those of their owners.
    Directories are made, and tasks begin: call this inside a running event loop, and
    `MultiKernelManager.close` there, which takes all of it down.
    """
    files = RunFiles(settings, ties.replica)
    kind = "ipc" if settings.only_ipc else settings.transport
    transports = Transports(kind, settings.state_dir, files.path, lasting=settings.keeps)
    spec_manager = kernel_spec_manager(settings.allowed_kernelspecs, defaults_of(settings.engines))
    specs = Specs(spec_manager, settings.default_kernel_name, f"{settings.root_path}/")
    isolation = new_isolation(settings, files.path)
    own = [*files.own, *transports.own, *isolation.own]
    keepers = new_keepers(settings, files.path, own, ties.terms)
    joining, service = ties.joining(settings, files.path), ties.service(files.path)
    env = {**QUIET, **kernel_environment(os.environ, settings.kernel_env_allow, {})}
    forks = ForkServers(keepers, on_forked=counters.on_forked)
    shares = Shares() if shares is None else shares
    handover = ties.handover(keepers, settings.state_dir, isolation)
    services = KernelServices(
        settings=settings,
        specs=spec_manager,
        transports=transports,
        files=files,
        events=events,
        counters=counters,
        forking=Forking(forks, settings.fork_kernels, env),
        starts=Starts(settings.max_concurrent_starts, settings.start_queue_limit),
        keepers=keepers,
        joining=joining,
        service=service,
        engines=Engines(joining, keepers.remote, service),
        hosts=HostChoice(keepers.remote, service),
        isolation=isolation,
        audit=audit,
        handover=handover,
        shares=shares,
        process_limits=partial(process_limits, shares),
        begin_term=ties.begin_term,
        check_start=ties.check_start,
    )
    for name in settings.forked_by_name:
        services.prepare_forks(name)
    warm = WarmKernels(settings.warm_kernels, _parking(services), specs, settings.root_dir, env)
    manager = MultiKernelManager(services, specs, warm)
    # Nothing is awaited in here: the tasks that have been made begin when all is wired together.
    handover.let_go = manager.let_go
    ties.join(manager, shares)
    return manager


def _parking(services: KernelServices) -> KernelServices:
    """The services of parked kernels: no events, no audit, no handover, and no restarts.

    A parked kernel that its server has not stopped is unknown to the next one, which ends it.
    """
    return replace(
        services,
        settings=services.settings.model_copy(update={"autorestart": False}),
        events=Events(),
        audit=None,
        handover=Handover(),
        parks=True,
    )
