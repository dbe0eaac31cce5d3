"""The group of replicas as one of them sees it: which kernels it has, and which another has."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection, Container
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from ...agent_options import host_and_port
from ..errors import KeeperUnavailable
from ..handover.elsewhere import KernelElsewhere
from ..processes.keeper.keepers import Keepers
from ..processes.keeper.link import KeeperRefuses
from .lease import Standing
from .registry import DIRECTORY, SharedRegistry
from .wire import Wire

__all__ = ["Group", "Way"]

CHANGE_SECONDS: Final = 0.25
"""How long a request waits for a change of the directory before it looks for its kernel again."""


class Way(NamedTuple):
    """How this replica reaches another: by a unix ``socket`` on this host, or by TLS at ``dial``.

    ``replica`` is the other replica's id.
    """

    replica: str
    name: str
    """The name that the other replica's certificate has to have."""
    socket: Path | None
    dial: tuple[str, int] | None


class Here(Protocol):
    """The kernels of this replica."""

    def __contains__(self, kernel_id: object) -> bool:
        """Whether there is a kernel of this id."""

    @property
    def adopting(self) -> Container[str]:
        """The ids of kernels that are not adopted yet: their clients wait until that is done."""

    @property
    def stopping(self) -> bool:
        """Whether the replica is about to hand over all of its kernels."""


class Group:
    """The group of replicas; ``kernels`` are those of this replica."""

    def __init__(self, registry: SharedRegistry, keepers: Keepers, kernels: Here) -> None:
        self._registry = registry
        self._keepers = keepers
        self._kernels = kernels
        self.id = registry.member.replica.id
        self.directory = registry.directory
        """What the registry has of all replicas."""
        self.patience = registry.lease.seconds + 5.0
        """How long, in seconds, a request waits for its kernel to be taken over."""

    @property
    def wire(self) -> Wire | None:
        """Where replicas of other hosts dial this one, if they do."""
        return self._registry.wire

    @property
    def socket(self) -> Path:
        """Where this replica listens for the others."""
        return self._socket_of(self._registry.member.replica.address) or Path()

    def _socket_of(self, address: str) -> Path | None:
        """The socket of an address; None if it is on another host."""
        kind, _, where = address.partition(":")
        host, _, name = where.partition(":")
        is_here = kind == "unix" and host == self._registry.host
        return self._registry.state_dir / DIRECTORY / f"{name}.sock" if is_here else None

    def problem(self) -> str | None:
        """What keeps this replica from being ready; None if nothing does.

        It is ready although the registry is away: that is so for all replicas at once, which go on
        with the kernels they have. If none were ready, a balancer would send requests to none.
        """
        if self._registry.member.standing is Standing.NONE:
            return "the other replicas have declared this one dead"
        return None

    def is_here(self, kernel_id: str) -> bool:
        """Whether this replica has a kernel, has adopted it, and is not about to leave it.

        A request for a kernel that is handed over waits until another replica has the kernel.
        """
        is_settled = kernel_id not in self._kernels.adopting and not self._kernels.stopping
        return is_settled and kernel_id in self._kernels

    async def is_own(self, kernel_id: str) -> bool:
        """Whether a kernel that this replica has is still its own.

        While the lease is good no other replica can have the kernel. After that the keeper decides.
        """
        # Once the lease has ended, the registry may be away, too. The keeper obeys the replica that
        # has come with the highest term: if it still answers this one, no other has reached it.
        if self._registry.member.standing is Standing.GOOD:
            return True
        try:
            await self._keepers.settle(kernel_id)
        except KeeperRefuses:
            return False
        except KeeperUnavailable:
            pass  # then no other replica has reached the keeper either
        return self.is_here(kernel_id)

    async def find(self, kernel_id: str) -> KernelElsewhere | None:
        """A kernel of whichever replica, as the registry has it. Raises `StoreAway`."""
        # The directory may be a moment old, and the request be forwarded to a replica that has the
        # kernel no more: that one says so, and the caller looks again (`change`). A kernel that the
        # directory does not have may have been stored a moment ago: the database is asked.
        found = self.directory.kernels.get(kernel_id)
        return found or await self.directory.look(kernel_id)

    def kernel_of_session(self, session_id: str) -> str | None:
        """The id of a session's kernel; None if there is no such session."""
        session = self.directory.sessions.get(session_id)
        return None if session is None else session.kernel_id

    def others(self) -> list[Way]:
        """How to reach each other replica that this one can reach."""
        ways = [self.way_to(one) for one in self.directory.addresses if one != self.id]
        return [way for way in ways if way is not None]

    def way_to(self, replica: str) -> Way | None:
        """How to reach a replica; None if none of this id is known, or it cannot be dialled."""
        known = self.directory
        address = known.addresses.get(replica)
        if address is None:
            return None
        socket, dial = self._socket_of(address), known.dials[replica]
        if socket is None and not (dial and self.wire):
            return None
        return Way(replica, known.names[replica], socket, host_and_port(dial, 0) if dial else None)

    def watch(self, on_replicas: Callable[[Collection[str]], None]) -> None:
        """Have ``on_replicas`` called with the ids of all replicas when some have come or gone."""
        known = self.directory
        known.on_replicas.append(lambda: on_replicas(known.addresses.keys()))

    async def change(self) -> None:
        """Return when the directory has changed, but after `CHANGE_SECONDS` at the latest."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CHANGE_SECONDS):
                await self.directory.changed()
