"""Collaborators fail at random, with all kernels side by side.

That takes 10 seconds, or with ``--full`` a minute.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from uuid import uuid4

import pytest

from tests.faults.table import ASKS, OPERATIONS, Operation, Record, Row, Table, verdict
from tests.support.bench import BOUND, Bench, Who
from tests.support.failing_provisioner import CALLS
from tests.support.faults import Call, Way
from tests.support.processes import eventually
from tests.support.rest import RestError

pytestmark = pytest.mark.timeout(400)

SEED = 20160
SECONDS, FULL_SECONDS = 10, 60
WORKERS = 6


class ChaosTable(Table):
    """Rows during which others fail as well, the keeper of all kernels among them."""

    meet_seconds = 2

    async def prepare(self, operation: Operation) -> None:
        """What the others do may make it fail; then it is done once more."""

        async def anew() -> None:
            try:
                await operation.prepare()
            except Exception:
                await operation.remove()
                raise

        await insist(anew)

    async def again(self, operation: Operation) -> None:
        await insist(operation.again)

    async def remove(self, operation: Operation) -> None:
        await insist(operation.remove)


async def insist(attempt: Callable[[], Awaitable[None]]) -> None:
    """What fails is asked for again, as a client does."""

    async def done() -> bool:
        try:
            await attempt()
        except RestError as error:
            raise AssertionError(str(error)) from error
        return True

    await eventually(done, BOUND, 1)


@pytest.mark.parametrize("who", ["keeper", "provisioner"])
async def test_at_random(who: Who, full: bool, record_property: Record) -> None:
    tables: list[ChaosTable] = []
    ways: Counter[Way] = Counter()
    async with Bench(who) as bench:
        await bench.start()
        for kind in OPERATIONS.values():
            await Table(bench, kind).record()
        before = await bench.holdings()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + (FULL_SECONDS if full else SECONDS)

        async def work(number: int) -> None:
            chance = random.Random(SEED + number)
            while loop.time() < deadline:
                table = ChaosTable(bench, chance.choice([*OPERATIONS.values()]))
                call = Call(chance.choice(ASKS if who == "keeper" else CALLS))
                row = Row(str(uuid4()), call, chance.choice([*Way]))
                tables.append(table)
                await table.try_one(row)
                ways[row.way] += not table.unmet
                table.unmet.clear()  # not every operation comes to every call

        await asyncio.gather(*map(work, range(WORKERS)))
        met = ", ".join(f"{way} {number}" for way, number in sorted(ways.items()))
        what = f"chaos, {who}: seed {SEED}, {len(tables)} operations; {met}"
        record_property("figures", what)
        print(what)  # noqa: T201
        verdict(*tables)
        await eventually(lambda: bench.holds_no_more(before), BOUND, 0.5)
        await bench.check()
