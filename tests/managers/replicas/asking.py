"""Replicas of one registry that ask it what there is, and may take."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from app.managers.handover.elsewhere import ReservationRequest, Used
from app.managers.handover.store import StoreAway
from app.managers.replicas.counting import SharedCounting
from app.managers.replicas.database import Connection, Database
from app.managers.replicas.reservations import SharedReservations
from tests.managers.replicas.test_store import Member

__all__ = ["Replica"]


class Replica(Member):
    """A replica with reservations; ``due`` are kernels that could not be stored yet."""

    def __init__(self, url: str, name: str) -> None:
        super().__init__(Database(url), name)
        self.is_away = False
        self.loses_answers = False
        self.due: set[str] = set()
        self.thread = ThreadPoolExecutor(1)  # one thread at a time has a database
        self.reservations = SharedReservations(
            self.replica.id, self.ask, lambda kernel_id: kernel_id in self.due
        )
        self.counting = SharedCounting(self.replica.id, self.ask)
        self.asked = 0

    async def ask(self, work: Callable[[Connection], Any], /) -> Any:
        self.asked += 1
        if self.is_away:
            raise StoreAway("away")
        found = await asyncio.get_running_loop().run_in_executor(
            self.thread, self.database.run, work
        )
        if self.loses_answers:
            raise StoreAway("lost")
        return found

    def close(self) -> None:
        self.thread.shutdown()
        self.database.close()

    async def reserve(
        self,
        kernel_id: str,
        owner: str = "anna",
        most: int = 0,
        most_of_owner: int | None = None,
        dead: tuple[str, ...] = (),
    ) -> Used | None:
        return await self.reservations.reserve(
            ReservationRequest(kernel_id, owner, most, most_of_owner, [*dead])
        )
