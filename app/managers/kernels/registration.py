"""The record of one kernel, by which the next server finds it."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

from jupyter_client.kernelspec import KernelSpec

from ..handover.handover import HandedOver, Handover
from ..handover.store import KernelRecord
from ..owners.ownership import Ownership
from ..processes.keeper.provisioner import KeeperProvisioner
from .launches import Launches
from .services import KernelServices

__all__ = ["Registration"]

Note = Callable[[KernelRecord], Awaitable[None]]


class Registration:
    """Has the next server know one kernel, if kernels outlive the server.

    ``note`` adds to a record what the next server needs to find the process again; it may raise
    what a provisioner does.
    """

    def __init__(
        self,
        kernel: HandedOver,
        name: str,
        spec: KernelSpec,
        launches: Launches,
        services: KernelServices,
        note: Note,
        ownership: Ownership,
    ) -> None:
        self.created = time.time()
        """When the kernel was created, in seconds since the epoch."""
        self._kernel = kernel
        self._name = name
        self._spec = spec
        self._launches = launches
        self._handover = services.handover
        self._note = note
        self.ownership = ownership
        # How many changes of directory, environment or shares there were, and how many of them are
        # in the stored record.
        self._changes = self._stored = 0

    def hand_over(self, services: KernelServices) -> None:
        """Use ``services`` from now on."""
        self._handover = services.handover

    def lose(self) -> None:
        """Store nothing more: another replica has the kernel."""
        self._handover = Handover()

    async def save_again(self, record: KernelRecord) -> None:
        """Store the record that an earlier server has written, with what has changed since.

        The kernel's process is not reached yet, so nothing else in the record can be newer.
        """
        self._note_changes(record)
        self._stored = self._changes

        async def describe() -> KernelRecord:
            return record

        await self._handover.save(self._kernel.id, describe)

    def _note_changes(self, record: KernelRecord) -> None:
        record.cwd, record.env = str(self._launches.place), dict(self._launches.env)
        record.given = dict(self._launches.given)
        record.owner, record.owner_groups = self.ownership.owner, sorted(self.ownership.groups)
        record.shares = [*self.ownership]

    def changed(self) -> None:
        """Note that the kernel's directory, environment or shares have changed."""
        self._changes += 1

    async def register(self) -> None:
        """Have the next server know the kernel, and from now on its clients and executions too."""
        # A record by which no process can be found would be of no use to the next server.
        if self._kernel.traffic.connected:
            self._handover.begin(self._kernel)
            await self.save()

    async def save(self) -> None:
        """Have the next server know the kernel as it is now."""
        # A change that comes while the record is being written is not in that record, and
        # `Kernel.save` leaves it to the writer: so the record is written once more.
        while True:
            changes = self._changes
            await self._handover.save(self._kernel.id, self._record)
            self._stored = changes
            if self._changes == changes:
                return

    async def catch_up(self) -> None:
        """Store the changes that `Kernel.save` could not store when they came."""
        if self._stored != self._changes:
            await self.save()

    async def _record(self) -> KernelRecord | None:
        """The record by which the next server finds the kernel; None if it is out of date already.

        Raises what a provisioner does.
        """
        state = self._kernel.state
        record = KernelRecord(
            id=self._kernel.id,
            name=self._name,
            spec={**self._spec.to_dict(), "resource_dir": self._spec.resource_dir},
            connection={},
            connection_file="",
            provisioner={},
            argv=list(self._spec.argv),
            cwd="",
            env={},
            pid=None,
            start_time="",
            created=self.created,
            last_activity=self._kernel.traffic.activity.last,
            generation=state.generation,
            execution_state=state.last_word,
            reason=state.reason,
            exclusive=True,
            external=False,
            restarts=state.restarts,
            replaced=self._kernel.traffic.is_replaced,
        )
        await self._note(record)
        # While the provisioner was asked, `Kernel.relocate` or a new share may have changed the
        # kernel: their changes are read only now. And the process may have been replaced: then the
        # launch saves a record of its own, which this one must not overwrite.
        self._note_changes(record)
        return record if record.generation == state.generation else None

    async def disown(self) -> None:
        """Have the next server end the kernel, should this one be killed before the stop is done.

        The next server ends every process of the keeper that the registry does not know.
        """
        if isinstance(self._launches.provisioner, KeeperProvisioner):
            await self._handover.delete(self._kernel.id)

    async def forget(self) -> None:
        """The kernel is gone: remove its record. Raises what the disk does."""
        await self._handover.forget(self._kernel)
