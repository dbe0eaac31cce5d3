"""Replicas of a service that keepers dial, in this process, with a real registry.

They have what a server has of the registry and of the keepers, and nothing of the rest.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from app import __version__
from app.managers.handover.store import KernelRecord
from app.managers.processes.keeper.greeting import ReplicaTerms
from app.managers.replicas.authority import shared_authority
from app.managers.replicas.database import Database
from app.managers.replicas.directory import Directory
from app.managers.replicas.keepers import SharedKeepers
from app.managers.replicas.lease import Lease
from app.managers.replicas.member import Member
from app.managers.replicas.membership import Replica
from app.managers.replicas.registry import DIAL
from app.managers.replicas.store import SharedStore
from app.managers.replicas.terms import Terms
from tests.support.joined import JoinedService

__all__ = ["JoinedReplica"]

LEASE_SECONDS = 60.0
"""Nobody is declared dead unless a test has it so."""


class JoinedReplica:
    """A replica, as an asynchronous context manager; ``name`` is its id, too."""

    def __init__(self, url: str, name: str, directory: Path) -> None:
        self.name = name
        self.terms = Terms()
        self.fenced: list[str] = []
        self._url = url
        self._database = Database(url)
        replica = Replica(name, name, f"unix:here:{name}", __version__, "secret")
        self.member = Member(url, replica, Lease(LEASE_SECONDS), self.terms, [DIAL])
        self.directory = Directory(url, self.member.wake)
        self.keepers = SharedKeepers(url, self.member, self.terms, self.directory)
        self.store = SharedStore(
            *(self._database, name, self.terms, lambda _: DIAL),
            lambda kernel_id, _: self.fenced.append(kernel_id),
        )
        self._files = directory / name
        self._port = 0
        self.service: JoinedService

    async def __aenter__(self) -> Self:
        await self.member.join()
        await self.directory.begin()
        self.keepers.authority = await asyncio.to_thread(shared_authority, self._database)
        terms = ReplicaTerms(self.name, self.terms.of)
        self.service = JoinedService(self._files, replicas=self.keepers, terms=terms)
        self.member.agents = self.service.joining.own_addresses
        await self.member.begin()
        return self

    @property
    def address(self) -> str:
        """Where keepers dial it."""
        return f"127.0.0.1:{self.service.port}"

    async def start(self, kernel_id: str) -> None:
        """Begin to have a kernel, as a start does; it is in no row yet."""
        self.terms.begin(kernel_id)

    async def save(self, kernel_id: str) -> None:
        """Store a kernel that was started, or taken."""
        record = KernelRecord(
            id=kernel_id,
            name="fake",
            spec={},
            connection={},
            connection_file="",
            provisioner={"engine": "a test's"},
            argv=[],
            cwd="",
            env={},
            pid=None,
            start_time="",
            created=time.time(),
            last_activity=time.time(),
            generation=1,
            execution_state="idle",
            reason="",
            exclusive=True,
            external=False,
        )
        await asyncio.to_thread(self.store.save, record)

    async def die(self) -> None:
        """End without a word, and be declared dead by the others."""
        await self.service.kill()
        await self.member.close()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.service.close()
        await self.member.close()
        await self.directory.close()
        await self.keepers.close()
        await asyncio.to_thread(self._database.close)
