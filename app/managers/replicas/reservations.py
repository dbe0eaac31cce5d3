"""Reservations for kernels that replicas are about to start, so that limits hold for all together.

The kernels in the registry count, and so do the reservations there. A reservation is made before
the start, under a lock that one replica at a time has, and ends when the kernel is stored, when its
start has failed, or with its replica.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, Protocol

from ..handover.elsewhere import ReservationRequest, Used
from ..handover.store import StoreAway
from .database import Connection
from .errors import KernelElsewhereError, RegistryUnavailable

__all__ = ["Asks", "NotJoined", "SharedReservations", "release", "reserve"]

logger = logging.getLogger(__name__)

_RESERVING: Final = 0x6B65726E656C6B66
"""The key of the advisory lock under which one replica at a time reserves."""


class Elsewhere(Exception):
    """Another replica has the kernel, or is about to start it."""


class NotJoined(Exception):
    """The replica was declared dead."""


def reserve(connection: Connection, replica_id: str, asked: ReservationRequest) -> Used | None:
    """Make a reservation and return None; or return how many kernels there are, if no more may be.

    Raises `Elsewhere` and `NotJoined`.
    """
    # The lock ends with the transaction. Without it two replicas could each find room for one more
    # kernel: there is no row that both would have to lock.
    execute = connection.execute
    execute("SELECT pg_advisory_xact_lock(%s)", (_RESERVING,))
    if not execute("SELECT 1 FROM kernelkeep.replica WHERE id = %s", (replica_id,)).fetchone():
        raise NotJoined
    others = execute(
        "SELECT 1 FROM kernelkeep.kernel WHERE id = %s AND replica IS DISTINCT FROM %s "
        "UNION ALL SELECT 1 FROM kernelkeep.reservation WHERE kernel_id = %s AND replica <> %s",
        2 * (asked.kernel_id, replica_id),
    ).fetchone()
    if others is not None:
        raise Elsewhere
    # UNION, not UNION ALL: a kernel that was just stored still has its reservation, and must count
    # once. `SharedStore.delete` replaces a kernel's row by a reservation, in one transaction.
    used = Used(
        *execute(
            "SELECT count(*), count(*) FILTER (WHERE owner = %s) FROM ("
            "SELECT id, owner FROM kernelkeep.kernel "
            "WHERE execution_state <> 'dead' AND NOT id = ANY(%s) "
            "UNION SELECT kernel_id, owner FROM kernelkeep.reservation"
            ") AS living WHERE id <> %s",
            (asked.owner, asked.dead, asked.kernel_id),
        ).fetchone()
        or (0, 0)
    )
    if asked.most and used.kernels >= asked.most:
        return used
    if asked.most_of_owner is not None and used.of_owner >= asked.most_of_owner:
        return used
    execute(
        "INSERT INTO kernelkeep.reservation (kernel_id, owner, replica) VALUES (%s, %s, %s) "
        "ON CONFLICT (kernel_id) DO NOTHING",
        (asked.kernel_id, asked.owner, replica_id),
    )
    return None


def release(connection: Connection, replica_id: str, kernel_ids: Sequence[str]) -> None:
    """End reservations of a replica."""
    connection.execute(
        "DELETE FROM kernelkeep.reservation WHERE replica = %s AND kernel_id = ANY(%s)",
        (replica_id, kernel_ids),
    )


class Asks(Protocol):
    """A function that runs work with the connection to the database, in its thread."""

    async def __call__(self, work: Callable[[Connection], Any], /) -> Any:
        """Run ``work`` and return its result. Raises `StoreAway`."""


class SharedReservations:
    """The reservations of one replica.

    ``is_due`` tells whether a kernel is still to be stored: then its reservation stays.
    """

    def __init__(self, replica_id: str, ask: Asks, is_due: Callable[[str], bool]) -> None:
        self._replica = replica_id
        self._ask = ask
        self._is_due = is_due
        self._ended: set[str] = set()  # to be ended by the next `clear`
        self._ending: set[str] = set()  # by the one that is under way
        self._turn = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    async def reserve(self, asked: ReservationRequest) -> Used | None:
        """As `Reservations.reserve`. Raises `KernelElsewhereError`, `RegistryUnavailable`."""
        # An earlier reservation for this id may be about to be ended. The thread does that before
        # this statement; but if it has failed, `clear` must not try again, and end the new one.
        self._ended.discard(asked.kernel_id)
        self._ending.discard(asked.kernel_id)
        try:
            used: Used | None = await self._ask(
                partial(reserve, replica_id=self._replica, asked=asked)
            )
        except Elsewhere:
            raise KernelElsewhereError(asked.kernel_id) from None
        except (NotJoined, StoreAway):
            self._ended.add(asked.kernel_id)  # it may be in the registry: the answer may be lost
            raise RegistryUnavailable from None
        except asyncio.CancelledError:
            self._ended.add(asked.kernel_id)
            raise
        return used

    async def release(self, kernel_id: str) -> None:
        """As `Reservations.release`; what fails is tried again by `clear`."""
        self._ended.add(kernel_id)
        # A task of its own: a client that goes away cancels the caller, and the reservation would
        # stay.
        task = asyncio.get_running_loop().create_task(self.clear(), name="end reservations")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        await asyncio.wait({task})

    async def clear(self) -> None:
        """End the reservations that are over, except of kernels that are still to be stored."""
        # One call at a time: there is one `_ending`, out of which `reserve` takes ids.
        async with self._turn:
            self._ending = {kernel_id for kernel_id in self._ended if not self._is_due(kernel_id)}
            self._ended -= self._ending
            if not self._ending:
                return
            work = partial(release, replica_id=self._replica, kernel_ids=[*self._ending])
            try:
                await self._ask(work)
            except StoreAway as error:
                logger.debug("places of kernels that were started stay reserved: %s", error)
                self._ended |= self._ending
