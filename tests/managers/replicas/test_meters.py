"""What owners have used lately, counted at all replicas."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from functools import partial
from typing import Any

import psycopg
import pytest

from app.managers.limits.counting import Taken
from app.managers.replicas.meters import take
from tests.managers.replicas.asking import Replica
from tests.support.processes import eventually


async def start(replica: Replica, owner: str, limit: int) -> float:
    taken: Taken = await replica.ask(
        partial(take, limit="starts_per_minute", owner=owner, amount=1, capacity=limit)
    )
    return taken.wait


async def write(
    replica: Replica, size: float, owner: str = "anna", *, is_used: bool = False
) -> Taken:
    work = partial(
        take,
        limit="contents_bytes_per_day",
        owner=owner,
        amount=size,
        capacity=230,
        is_used=is_used,
    )
    taken: Taken = await replica.ask(work)
    return taken


def later(replica: Replica, table: str, span: str) -> None:
    """Let so much time pass for the rows of a table."""
    statement = (
        f"UPDATE kernelkeep.{table} SET at = at - interval '{span}', dry = dry - interval '{span}'"
    )
    replica.database.run(lambda one: one.execute(statement.encode()))


async def test_starts_of_a_minute_are_counted_at_all_replicas(replicas: list[Replica]) -> None:
    def taken() -> list[Coroutine[Any, Any, float]]:
        return [start(one, "anna", 4) for one in 3 * replicas]

    waits = await asyncio.gather(*taken())
    assert waits.count(0.0) == 4
    assert all(10.0 < wait <= 15.0 for wait in waits if wait)
    (first, *_) = replicas
    assert await start(first, "ben", 1) == 0.0
    assert 50.0 < await start(first, "ben", 1) <= 60.0
    later(first, "starts", "30 seconds")
    assert (await asyncio.gather(*taken())).count(0.0) == 2


async def test_starts_that_were_long_ago_are_forgotten(replicas: list[Replica]) -> None:
    (first, *_) = replicas
    await start(first, "anna", 1)
    later(first, "starts", "61 seconds")
    assert await start(first, "ben", 1) == 0.0
    rows = first.database.run(
        lambda one: one.execute("SELECT owner FROM kernelkeep.starts").fetchall()
    )
    assert rows == [("ben",)]


async def test_the_start_of_an_owner_waits_for_that_of_no_other(
    replicas: list[Replica], url: str
) -> None:
    first, second, _ = replicas
    for owner in ("anna", "ben"):
        await start(first, owner, 1)
    later(first, "starts", "61 seconds")
    with psycopg.connect(url) as another:
        another.execute("SELECT FROM kernelkeep.starts WHERE owner = 'anna' FOR UPDATE")
        anna = asyncio.create_task(start(first, "anna", 1))

        def waiting() -> int:
            return len(another.execute("SELECT FROM pg_locks WHERE NOT granted").fetchall())

        await eventually(waiting, 30)
        ben = asyncio.create_task(start(second, "ben", 1))
        await eventually(lambda: ben.done() or waiting() > 1, 30)
        assert ben.done()
    assert await ben == 0.0
    assert await anna == 0.0


async def test_bytes_of_a_day_are_counted_at_all_replicas(replicas: list[Replica]) -> None:
    asked = [write(replicas[number % 3], 30) for number in range(100)]
    taken = await asyncio.gather(*asked)
    assert [one.wait for one in taken].count(0.0) == 7
    refused = [one for one in taken if one.wait]
    assert all(200.0 < one.used <= 210.0 for one in refused)
    # There was room for twenty bytes: ten have to run off.
    assert all(3600.0 < one.wait <= 86400.0 * 10 / 230 for one in refused)
    (first, *_) = replicas
    later(first, "contents", "12 hours")
    assert (await write(replicas[1], 100)).wait == 0.0


async def test_a_copy_counts_when_it_is_made_and_is_not_forgotten_before_it_has_run_off(
    replicas: list[Replica],
) -> None:
    first, second, _ = replicas
    copied = await write(first, 690, is_used=True)
    assert copied == Taken(0.0, 690)
    assert (await write(second, 0)).wait > 86400.0
    later(first, "contents", "25 hours")
    # Another's request forgets what has run off: this has not.
    assert (await write(second, 1, "ben")).wait == 0.0
    assert 400.0 < (await write(second, 0)).used < 460.0
    later(first, "contents", "72 hours")
    await write(second, 1, "carl")
    rows = first.database.run(
        lambda one: one.execute("SELECT owner FROM kernelkeep.contents").fetchall()
    )
    assert rows == [("carl",)]


async def test_an_amount_that_would_take_for_ever_to_run_off_is_stored(
    replicas: list[Replica],
) -> None:
    (first, *_) = replicas
    assert (await write(first, 1e18, is_used=True)).used == 1e18
    assert (await write(first, 0)).used == pytest.approx(1e18)


async def test_a_replica_of_the_version_before_counts_the_same_starts(
    replicas: list[Replica],
) -> None:
    (first, *_) = replicas
    row = "INSERT INTO kernelkeep.starts (owner, used, at) VALUES ('anna', 1, clock_timestamp())"
    first.database.run(lambda one: one.execute(row))
    assert await start(first, "anna", 1) > 50.0
    later(first, "starts", "61 seconds")
    assert await start(first, "ben", 1) == 0.0
    rows = first.database.run(
        lambda one: one.execute("SELECT owner FROM kernelkeep.starts").fetchall()
    )
    assert rows == [("ben",)]
