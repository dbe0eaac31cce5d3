"""The kernels and sessions of all replicas, as the registry has them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from ..owners.ownership import Ownership

__all__ = [
    "Alone",
    "KernelElsewhere",
    "Known",
    "Nowhere",
    "ReservationRequest",
    "Reservations",
    "SharedSession",
    "Used",
]


class KernelElsewhere(NamedTuple):
    """A kernel of any replica, as the registry has it; ``replica`` is None while none has it."""

    id: str
    replica: str | None
    term: int
    created: float
    model: bytes
    """The kernel's model as its replica last stored it."""
    counts: bool
    """Whether the kernel counts towards ``max_kernels``."""
    ownership: Ownership
    is_reachable: bool = True
    """Whether a replica has the kernel, or there is one that could take it over."""


class SharedSession(NamedTuple):
    """A session, as the registry has it."""

    id: str
    number: int
    path: str
    name: str | None
    type: str
    kernel_id: str
    owner: str


class Known(Protocol):
    """What this server knows of the kernels and sessions of other replicas."""

    kernels: dict[str, KernelElsewhere]
    sessions: dict[str, SharedSession]
    changes: int
    """The number of changes of kernels so far."""
    on_sessions: Callable[[], None]
    """Called when sessions have changed."""

    async def give_up(self, kernel_id: str, /) -> bool:
        """Delete a kernel from the registry if no replica has it; returns whether that was so.

        Raises `StoreAway`.
        """


class Nowhere:
    """The `Known` of a server without replicas: it has no kernels and no sessions."""

    def __init__(self) -> None:
        self.kernels: dict[str, KernelElsewhere] = {}
        self.sessions: dict[str, SharedSession] = {}
        self.changes = 0
        self.on_sessions: Callable[[], None] = lambda: None

    async def give_up(self, _kernel_id: str, /) -> bool:
        """Return False: there is no other replica's kernel."""
        return False


class ReservationRequest(NamedTuple):
    """A kernel that is to be started, its owner, and the limits on the number of kernels."""

    kernel_id: str
    owner: str
    most: int
    """How many kernels all owners together may have; 0 for any number."""
    most_of_owner: int | None
    """How many kernels the owner may have; None for any number."""
    dead: list[str]
    """The dead kernels of this server, which the registry may not know to be dead yet."""


class Used(NamedTuple):
    """How many kernels there are, those that are about to start included."""

    kernels: int
    of_owner: int


class Reservations(Protocol):
    """Places for kernels that are about to be started by one of several servers."""

    async def reserve(self, asked: ReservationRequest) -> Used | None:
        """Reserve a place and return None; or return how many are used, if no place is free.

        Raises `KernelkeepError`.
        """

    async def release(self, kernel_id: str) -> None:
        """Give the place back: the kernel counts by itself now, or its start has failed."""


class Alone:
    """The reservations of a server without replicas, whose own count decides."""

    async def reserve(self, asked: ReservationRequest) -> Used | None:  # noqa: ARG002
        """As `Reservations.reserve`."""
        return None

    async def release(self, kernel_id: str) -> None:
        """As `Reservations.release`."""
