"""The ties of a replica to the others. What PostgreSQL takes is loaded with this module."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from ...settings import Settings
from ..limits.shares import Shares
from ..processes.hosts.joining import Joining
from ..processes.hosts.new_joining import new_joining
from ..processes.keeper.greeting import ReplicaTerms
from ..replicas.group import Group
from ..replicas.handover import SharedHandover
from ..replicas.registry import SharedRegistry
from .multikernel import MultiKernelManager
from .ties import Ties

__all__ = ["shared"]


def shared(registry: SharedRegistry) -> Ties:
    """The ties of a replica to the others, by the registry that they share."""
    replica = registry.member.replica.id
    return Ties(
        handover=partial(SharedHandover, registry),
        close=registry.close,
        replica=replica,
        terms=ReplicaTerms(replica, registry.terms.of),
        begin_term=registry.terms.begin,
        check_start=registry.check_start,
        joining=partial(_joining, registry),
        service=lambda _: registry.shared_keepers,
        join=partial(_join, registry),
        group=lambda manager: Group(registry, manager.keepers, manager),
        claims=registry.claims,
    )


def _joining(registry: SharedRegistry, settings: Settings, directory: Path) -> Joining:
    joining = new_joining(settings, directory, registry.shared_keepers)
    if joining.is_on:
        registry.listens(joining.own_addresses)
    return joining


def _join(registry: SharedRegistry, manager: MultiKernelManager, shares: Shares) -> None:
    manager.elsewhere = manager.shares.elsewhere = registry.directory
    manager.shares.reservations = registry.reservations
    shares.counting = registry.counting
    shares.counting.watch(manager.shares)
    registry.counts = lambda kernel_id: kernel_id in manager and manager.get(kernel_id).counts
