"""A server's ties to other servers: to the one that has its kernels next, and to its replicas.

They are made once, by the options. Whoever works with them never asks which they are.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ...settings import Settings
from ..handover.handover import Handover, RegisteredHandover
from ..handover.registry import Registry
from ..limits.shares import Shares
from ..processes.hosts.joining import Joining
from ..processes.hosts.new_joining import new_joining
from ..processes.hosts.service import OwnService, Service
from ..processes.isolation.isolation import Isolation
from ..processes.keeper.greeting import ReplicaTerms
from ..processes.keeper.keepers import Keepers
from .multikernel import MultiKernelManager

if TYPE_CHECKING:
    from ..replicas.claims import SharedClaims
    from ..replicas.group import Group

__all__ = ["NO_TIES", "Ties", "registered"]


async def _nothing() -> None:
    """There is nothing to close."""


@dataclass(frozen=True, kw_only=True)
class Ties:
    """The ties of one server. Without any it is the only one, and its kernels end with it."""

    handover: Callable[[Keepers, Path, Isolation], Handover] = lambda *_: Handover()
    """Makes what hands the kernels over to the next server; the path is the state directory."""
    close: Callable[[], Awaitable[None]] = _nothing
    """Called when nothing uses the kernels here any more: other servers have them from then on."""
    replica: str = ""
    """The id of this process, if it is one of several replicas."""
    terms: ReplicaTerms | None = None
    """Which of several replicas this server is, and the terms of its kernels."""
    begin_term: Callable[[str], None] = lambda _: None
    """Begins the first term of a kernel that is about to be started here."""
    check_start: Callable[[], None] = lambda: None
    """Raises an error if no kernel can be started just now."""
    joining: Callable[[Settings, Path], Joining] = new_joining
    """Makes what keepers dial in to; the path is this run's. Raises `HostUnusable`."""
    service: Callable[[Path], Service] = OwnService
    """Makes what hosts and engines know this server as; the path is this run's."""
    join: Callable[[MultiKernelManager, Shares], None] = lambda *_: None
    """Has the manager know of other replicas, and share with them what owners may use."""
    group: Callable[[MultiKernelManager], Group | None] = lambda _: None
    """Makes the group of replicas as the one sees it that has the manager."""
    claims: SharedClaims | None = None
    """The claims of a replica."""


NO_TIES: Final = Ties()


def registered(registry: Registry) -> Ties:
    """The ties to the next server of this state directory, by its registry."""
    return Ties(handover=partial(RegisteredHandover, registry), close=registry.close)
