"""Every call of a collaborator fails in every way while a server adopts what another has left."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from uuid import uuid4

import pytest

from tests.faults.table import (
    Operation,
    Record,
    Row,
    Table,
    calls_of,
    rows_of,
    tell,
    verdict,
)
from tests.support.bench import BOUND, Bench, Who, processes_of
from tests.support.processes import eventually

pytestmark = pytest.mark.timeout(600)

SIDE_BY_SIDE = 4  # homes, each with servers that come one after the other


class Adoption(Operation):
    """A kernel that is left by one server and found by the next."""

    async def prepare(self) -> None:
        await super().prepare()
        # What is seen of processes may be older than the start.
        self.processes = await eventually(lambda: processes_of(self.kernel_id))

    async def again(self) -> None:
        """It has the process that it had, in which code runs."""
        await self.works()
        assert processes_of(self.kernel_id) == self.processes, "it has another process"


class Adoptions(Table):
    """Rows that begin together: one server is killed, and the next adopts all of their kernels."""

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench, Adoption)

    async def recorded(self) -> list[str]:
        key = str(uuid4())
        operation = Adoption(self.bench, key)
        await operation.prepare()
        await self.bench.crash()
        self.bench.faulty.record(key)
        await self.bench.start_server()
        await operation.again()
        calls = [*self.bench.faulty.recorded(key)]  # before the kernel is removed
        await self.bench.faulty.heal(key)
        await operation.remove()
        return calls

    async def together(self, rows: Iterable[Row]) -> None:
        rows = list(rows)
        operations = [Adoption(self.bench, row.key) for row in rows]
        await asyncio.gather(*(operation.prepare() for operation in operations))
        await self.bench.crash()
        for row in rows:
            self.bench.faulty.order(row.key, row.call, row.way)
        await self.bench.start_server()
        await asyncio.gather(*map(self.try_after, rows, operations))

    async def try_after(self, row: Row, operation: Operation) -> None:
        async with self.gathered(row):
            await self.after(row, operation)

    async def after(self, row: Row, operation: Operation) -> None:
        bench = self.bench
        await self.meet(row)
        await eventually(lambda: bench.is_honest(row.key), BOUND, 0.2)
        await bench.faulty.heal(row.key)
        await eventually(lambda: bench.is_true(row.key), BOUND, 0.2)
        await operation.again()
        await operation.remove()


@pytest.mark.parametrize("who", ["keeper", "provisioner"])
async def test_adoption_fails_for_one_kernel_alone(
    who: Who, full: bool, record_property: Record
) -> None:
    """Rows whose call is for one kernel are together; the others have a server each."""
    async with Bench(who) as bench:
        await bench.start()
        table = Adoptions(bench)
        tables = [table]
        calls = calls_of(await table.recorded())
        rows = rows_of(calls, full)
        tell(record_property, f"adoption, {who}", calls, rows)
        alone = [
            row for row in rows if table.is_deadly(row) or row.call.name in bench.faulty.common
        ]
        await table.together(row for row in rows if row not in alone)
        left = iter(alone)

        async def work() -> None:
            async with Bench(who) as other:
                await other.start()
                for row in left:
                    tables.append(Adoptions(other))
                    await tables[-1].together([row])
                # A keeper that dies before a server has asked it takes what it has heard with it.
                if not any(table.failures for table in tables):
                    await other.check(lossy=other.faulty.shared)

        async with asyncio.TaskGroup() as tasks:
            for _ in range(SIDE_BY_SIDE if alone else 0):
                tasks.create_task(work())
        verdict(*tables)
        await bench.check()
