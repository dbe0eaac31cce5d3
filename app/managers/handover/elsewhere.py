"""What the registry tells of kernels and sessions, whichever replica has them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from ..owners.ownership import Ownership

__all__ = ["KernelElsewhere", "Known", "Nowhere", "SharedSession"]


class KernelElsewhere(NamedTuple):
    """A kernel of any replica, as the registry has it; ``replica`` is None while nobody has it."""

    id: str
    replica: str | None
    term: int
    created: float
    model: bytes
    """As the API shows it, a moment ago."""
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
    """What is known of the registry's content."""

    kernels: dict[str, KernelElsewhere]
    sessions: dict[str, SharedSession]
    changes: int
    """Counted up when kernels change."""
    on_sessions: Callable[[], None]
    """Called when sessions have changed."""

    async def give_up(self, kernel_id: str, /) -> bool:
        """Forget a kernel that no replica has; whether it was so. Raises `StoreAway`."""


class Nowhere:
    """What a server knows of others that is the only one: nothing."""

    def __init__(self) -> None:
        self.kernels: dict[str, KernelElsewhere] = {}
        self.sessions: dict[str, SharedSession] = {}
        self.changes = 0
        self.on_sessions: Callable[[], None] = lambda: None

    async def give_up(self, _kernel_id: str, /) -> bool:
        """There is none."""
        return False
