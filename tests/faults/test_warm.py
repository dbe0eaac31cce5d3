"""The calls of a collaborator fail while kernels are parked, and handed out.

Where the keeper ends, all kernels have to do with it: that is for the other tables.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from itertools import count

import pytest

from tests.faults.table import USELESS, Record, Row, Start, Table, rows_of, tell, verdict
from tests.support.bench import BOUND, Bench, Who, processes_with
from tests.support.failing_keeper import KEY
from tests.support.faults import Call
from tests.support.processes import eventually

pytestmark = pytest.mark.timeout(600)

PARK_SECONDS = 240
"""For a kernel to be parked: one that could not be started is tried again after a minute. On a slow
machine the second start may fail, too, and the third comes another minute later."""


class WarmTable(Table):
    """Rows that have a kernelspec each, of which one kernel is to be parked."""

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench, Start)

    async def parked(self, name: str) -> None:
        """Returns when a kernel is parked, and no other process of its kind is there."""

        async def one() -> bool:
            found = await self.bench.parked()
            assert found.get(name) == 1, found
            running = processes_with(f"{KEY}={name}")
            assert len(running) == 1, f"one is parked, but {running} run"
            return True

        await eventually(one, PARK_SECONDS, 0.5)

    async def claim(self, name: str) -> str:
        """Ask for a kernel; its id, or an empty text if it fails."""
        response = await self.bench.ask("POST", "/api/kernels", json={"name": name})
        if response.status_code != 201:
            return ""
        kernel_id: str = response.json()["id"]
        await self.bench.rest.wait_for_state(kernel_id, "idle", *USELESS, timeout=BOUND)
        return kernel_id

    async def recorded(self, name: str) -> list[str]:
        self.bench.faulty.record(name)
        await self.bench.start()
        await self.parked(name)
        claimed = Start(self.bench, await self.claim(name))
        calls = [*self.bench.faulty.recorded(name)]  # before the kernel is removed
        await self.bench.faulty.heal(name)
        await claimed.remove()
        return calls

    async def together(self, rows: Iterable[Row]) -> None:
        rows = list(rows)
        for row in rows:
            self.bench.faulty.order(row.key, row.call, row.way)
        await self.bench.start()
        await asyncio.gather(*map(self.try_one, rows))

    async def one(self, row: Row) -> None:
        bench, faulty = self.bench, self.bench.faulty

        async def met_or_parked() -> bool:
            return faulty.met(row.key) or (await bench.parked()).get(row.key) == 1

        await eventually(met_or_parked, PARK_SECONDS, 0.5)
        claimed = await self.claim(row.key)
        await self.meet(row)
        await faulty.heal(row.key)
        if claimed:
            await self.remove(Start(bench, claimed))
        await self.parked(row.key)
        response = await bench.ask("POST", "/api/kernels", json={"name": row.key})
        assert response.status_code == 201, response.text
        start = Start(bench, response.json()["id"])
        await start.works()
        await start.remove()


def bench_for(who: Who, names: Iterable[str]) -> Bench:
    names = list(names)
    bench = Bench(who, "--warm-kernels", ",".join(f"{name}=1" for name in names))
    for name in names:
        bench.add_spec(name, env={KEY: name})
    return bench


@pytest.mark.parametrize("who", ["keeper", "provisioner"])
async def test_a_pool_is_filled_in_the_end(who: Who, full: bool, record_property: Record) -> None:
    async with bench_for(who, [f"warm-{who}"]) as bench:
        table = WarmTable(bench)
        recorded = await table.recorded(f"warm-{who}")
        # What is asked of no kernel in particular is asked when a server starts, or any kernel.
        calls = [Call(name) for name in dict.fromkeys(recorded) if name not in bench.faulty.common]
        await bench.check()
    # Processes are known by these names, and the other one of these tests may run beside this one.
    names = count()
    rows = rows_of(calls, full, key=lambda: f"warm-{who}-{next(names)}")
    rows = [row for row in rows if not table.is_deadly(row)]
    tell(record_property, f"warm, {who}", calls, rows)
    async with bench_for(who, (row.key for row in rows)) as bench:
        table = WarmTable(bench)
        await table.together(rows)
        verdict(table)
        await bench.check()
