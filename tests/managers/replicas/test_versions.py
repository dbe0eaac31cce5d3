"""Replicas of two versions side by side, while an upgrade goes through them."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator

import psycopg
import pytest

from tests.support.executions import Executions
from tests.support.processes import eventually
from tests.support.replicas import TAKEOVER_SECONDS, Replicas
from tests.support.rest import RestClient

pytestmark = pytest.mark.timeout(300)

COUNT = "import time\nfor number in range(100):\n    print(number)\n    time.sleep(0.1)\n"


@pytest.fixture
def replicas(url: str) -> Iterator[Replicas]:
    with Replicas(url) as replicas:
        yield replicas


def alter(replicas: Replicas, statement: str) -> None:
    with psycopg.connect(replicas.url, autocommit=True) as connection:
        connection.execute(statement.encode())


async def test_an_upgrade_goes_through_them_and_nobody_notices(replicas: Replicas) -> None:
    old = await asyncio.to_thread(replicas.start, "old")
    async with RestClient(old.url, replicas.token) as rest:
        before = (await rest.start_kernel("python3"))["id"]
        counting = await Executions(rest, before).begin(COUNT)
        # What a later version does to the registry.
        for (table,) in replicas.query(
            "SELECT tablename FROM pg_tables WHERE schemaname = 'kernelkeep'"
        ):
            alter(replicas, f"ALTER TABLE kernelkeep.{table} ADD COLUMN later text DEFAULT 'x'")
        alter(replicas, "INSERT INTO kernelkeep.migration (version) VALUES (99)")
        alter(
            replicas,
            "UPDATE kernelkeep.kernel SET record = jsonb_set(record::jsonb, '{later}', '1')::text",
        )
        new = await asyncio.to_thread(replicas.start, "new", is_newer=True)
        async with RestClient(new.url, replicas.token) as other:
            beside = (await other.start_kernel("python3"))["id"]
            after = (await rest.start_kernel("python3"))["id"]
            # Each is used by the other version.
            for kernel_id in (before, beside, after):
                for each in (rest, other):
                    assert (await each.kernel(kernel_id))["name"] == "python3"
            for each, kernel_id in ((rest, beside), (other, after)):
                ran = await Executions(each, kernel_id).run("kept = 6 * 7; kept")
                assert ran["outputs"][0]["data"]["text/plain"] == "42"
            await asyncio.to_thread(replicas.end, "old", signal.SIGTERM)

            async def are_here() -> bool:
                owners = [
                    await asyncio.to_thread(replicas.owner_of, kernel_id)
                    for kernel_id in (before, beside, after)
                ]
                return owners == ["new"] * 3

            await eventually(are_here, TAKEOVER_SECONDS)
            for kernel_id in (beside, after):
                ran = await Executions(other, kernel_id).run("kept")
                assert ran["outputs"][0]["data"]["text/plain"] == "42"
            ended = await Executions(other, before).ended(counting)
            assert ended["state"] == "ok"
            text = "".join(output["text"] for output in ended["outputs"])
            assert text.split() == [str(number) for number in range(100)], ended
            for kernel_id in (before, beside, after):
                await other.delete(kernel_id)
