"""The bounds on the number of kernels, of all owners and of each, and counts for each owner.

Kernels are counted at the moment when a number is needed. So adopted kernels count, and dead ones
do not. Only the places of kernels that are about to start are stored here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from ..errors import KernelkeepError, TooManyKernels
from ..handover.elsewhere import Alone, Known, Nowhere, ReservationRequest, Reservations
from ..limits.counting import Counts
from ..limits.errors import ExecutionsLimit
from ..limits.queues import QueuePlace
from ..limits.shares import Shares
from ..owners.ownership import Ownership
from .kernel import Kernel
from .table import KernelTable

__all__ = ["KernelShares"]


class KernelShares:
    """Counts the kernels of ``table``, and holds them to ``max_kernels`` (0: any number) and to
    their owners' limits (``shares``)."""

    def __init__(self, table: KernelTable, max_kernels: int, shares: Shares) -> None:
        self._table = table
        self._max = max_kernels
        self._shares = shares
        self._reserved: dict[str, str] = {}
        """The owners of kernels that are starting, by the kernels' ids."""
        self.elsewhere: Known = Nowhere()
        """The kernels and sessions of other replicas, as far as they are known."""
        self.reservations: Reservations = Alone()
        """The reservations that all replicas share."""
        self._asked: Counter[str] = Counter()
        """The number of executions, by owner, whose admission is being decided."""

    @asynccontextmanager
    async def place(
        self, kernel_id: str, ownership: Ownership, *, is_chosen: bool = False
    ) -> AsyncIterator[None]:
        """Reserve a place for a kernel, for the time of a ``with`` block in which it starts.

        Two starts cannot both take the last place: here there is no await between the check and the
        reservation, and the registry that replicas share has one at a time. ``is_chosen``: the id
        is a client's, and another replica may have it. Raises `TooManyKernels`, `KernelsLimit` or
        `BeyondLimit`, and with replicas `KernelElsewhereError` or `RegistryUnavailable`.
        """
        # Two restarts of one dead kernel share a place. The first may give it back while the second
        # goes on: the kernel counts by itself as soon as either has begun (`Kernel._restart`).
        if kernel_id in self._reserved:
            yield
            return
        if self._max and self._count() >= self._max:
            raise TooManyKernels(self._max)
        self._shares.check_kernels(ownership, lambda: len(self._here_of(ownership.owner)))
        self._reserved[kernel_id] = ownership.owner
        try:
            of_owner = self._shares.limits(ownership).kernels
            if not (self._max or of_owner is not None or is_chosen):
                yield
                return
            # Dead kernels hold no place, and the registry may not know yet which have died.
            dead = [kernel.id for kernel in self._table.values() if not kernel.counts]
            asked = ReservationRequest(kernel_id, ownership.owner, self._max, of_owner, dead)
            await self._reserve(asked, ownership)
            try:
                yield
            finally:
                await self.reservations.release(kernel_id)
        finally:
            self._reserved.pop(kernel_id, None)

    async def _reserve(self, asked: ReservationRequest, ownership: Ownership) -> None:
        used = await self.reservations.reserve(asked)
        if used is None:
            return
        self._shares.check_kernels(ownership, lambda: used.of_owner)
        raise TooManyKernels(self._max)

    def taken(self, kernel_id: str) -> None:
        """Give a place back early: a warm kernel, with another id, is listed in its stead."""
        # With replicas, the registry counts the place and the kernel until the start is over. For
        # that moment it may refuse a start that would fit; it never grants one that would not.
        self._reserved.pop(kernel_id, None)

    async def take_start(self, ownership: Ownership) -> None:
        """Count a start or a restart (`Shares.take_start`)."""
        await self._shares.take_start(ownership)

    # Executions that wait (the methods of `Queues`)

    def check_queue(self, ownership: Ownership) -> None:
        """Raise `ExecutionsLimit` if no further execution may wait at the owner's kernels."""
        limit = self._shares.limits(ownership).queued_executions
        if limit is not None:
            waiting = self.waiting_of(ownership.owner) + self._asked[ownership.owner]
            self._shares.check(ExecutionsLimit, limit, waiting)

    def queue_place(self, ownership: Ownership) -> AbstractAsyncContextManager[QueuePlace] | None:
        """As `Queues.queue_place`."""
        if not self._shares.counting.is_shared:
            return None
        limit = self._shares.limits(ownership).queued_executions
        return None if limit is None else self._queue_place(ownership, limit)

    @asynccontextmanager
    async def _queue_place(self, ownership: Ownership, limit: int) -> AsyncIterator[QueuePlace]:
        owner = ownership.owner
        try:
            self.check_queue(ownership)
        except KernelkeepError as error:
            yield QueuePlace(error)
            return
        # Nothing is awaited between the check and this line: no two executions get the last place.
        # Nor is anything awaited in the caller's block: when the execution counts no more here, it
        # waits at its kernel, and counts there.
        self._asked[owner] += 1
        try:
            try:
                await self._shares.admit_together(ExecutionsLimit, owner, limit)
                place = QueuePlace()
            except KernelkeepError as error:
                place = QueuePlace(error)
            yield place
        finally:
            self._asked[owner] -= 1
            if not self._asked[owner]:
                del self._asked[owner]
            self._shares.counting.changed(owner)

    def queue_changed(self, ownership: Ownership) -> None:
        """As `Queues.queue_changed`."""
        counting = self._shares.counting
        if counting.is_shared and self._shares.limits(ownership).queued_executions is not None:
            counting.changed(ownership.owner)

    # What others have to know (the methods of `Here`)

    def counts_of(self, owner: str) -> Counts:
        """As `Here.counts_of`."""
        waiting = self.waiting_of(owner) + self._asked[owner]
        return Counts(self._shares.websockets_of(owner), waiting)

    def counted(self) -> set[str]:
        """As `Here.counted`, by the kernels: owners with other counts have called `admit`."""
        if ExecutionsLimit.limit not in self._shares.policy.named:
            return set()
        return {
            kernel.ownership.owner
            for kernel in self._table.values()
            if self._shares.limits(kernel.ownership).queued_executions is not None
            and _waiting_at(kernel)
        }

    # Counting

    def _count(self) -> int:
        living = {kernel.id for kernel in self._table.values() if kernel.counts}
        return len(living | self._reserved.keys())

    def of(self, owner: str) -> list[Kernel]:
        """An owner's kernels, dead ones included."""
        return self._table.found_by([("owner", owner)])

    def kernels_of(self, owner: str) -> int:
        """How many kernels count for an owner, those that start included."""
        others = {
            one.id
            for one in self.elsewhere.kernels.values()
            if one.counts and one.ownership.owner == owner and one.id not in self._table
        }
        return len(self._here_of(owner) | others)

    def _here_of(self, owner: str) -> set[str]:
        living = {kernel.id for kernel in self.of(owner) if kernel.counts}
        starting = {kernel_id for kernel_id, whose in self._reserved.items() if whose == owner}
        return living | starting

    def waiting_of(self, owner: str) -> int:
        """How many executions wait for an owner's kernels, or for their next processes."""
        return sum(_waiting_at(kernel) for kernel in self.of(owner))

    def log_bytes_of(self, owner: str) -> int:
        """How many bytes of messages of an owner's kernels are on disk."""
        return sum(kernel.traffic.log.bytes for kernel in self.of(owner))

    @property
    def owners(self) -> frozenset[str]:
        """The names of the owners who have kernels."""
        return self._table.owners | frozenset(self._reserved.values())


def _waiting_at(kernel: Kernel) -> int:
    return kernel.executions.waiting + kernel.traffic.submissions.executions_held
