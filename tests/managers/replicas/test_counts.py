"""What each replica has of an owner's, in the registry."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import psycopg
import pytest

from app.managers.limits.counting import NOTHING, Counts
from app.managers.replicas.counts import Admitted, Asked, admit, store
from app.managers.replicas.membership import beat, declare_dead, leave
from tests.managers.replicas.asking import Replica
from tests.support.processes import eventually

SOCKET, EXECUTION = Asked("websockets", 3), Asked("queued_executions", 2)


async def ask(replica: Replica, own: Counts, *asked: Asked, owner: str = "anna") -> Admitted:
    work = partial(admit, replica_id=replica.replica.id, owner=owner, own=own, asked=asked)
    found: Admitted = await replica.ask(work)
    return found


async def put(replica: Replica, own: dict[str, Counts], *, is_all: bool = False) -> bool:
    work = partial(store, replica_id=replica.replica.id, own=own, is_all=is_all)
    found: bool = await replica.ask(work)
    return found


def rows(replica: Replica) -> set[tuple[Any, ...]]:
    statement = "SELECT owner, replica, websockets, queued_executions FROM kernelkeep.share"
    return {*replica.database.run(lambda one: one.execute(statement.encode()).fetchall())}


async def test_what_is_asked_for_has_a_place_while_there_is_room_at_all_of_them(
    replicas: list[Replica],
) -> None:
    first, second, _ = replicas
    found = await ask(first, NOTHING, SOCKET, EXECUTION, SOCKET)
    assert found == Admitted([None, None, None], Counts(2, 1))
    assert rows(first) == {("anna", "id-first", 2, 1)}
    found = await ask(second, NOTHING, SOCKET, SOCKET, EXECUTION, EXECUTION)
    assert found == Admitted([None, 3, None, 2], Counts(1, 1))
    # Once more, as if the answer was lost: nothing is added to what is there.
    assert await ask(second, NOTHING, SOCKET, SOCKET, EXECUTION, EXECUTION) == found
    assert rows(first) == {("anna", "id-first", 2, 1), ("anna", "id-second", 1, 1)}
    # Another owner, and another limit: that of the one who asks counts.
    assert await ask(second, NOTHING, SOCKET, owner="ben") == Admitted([None], Counts(1, 0))
    assert (await ask(first, Counts(2, 1), SOCKET._replace(most=4))).found == [None]


async def test_what_is_there_no_more_makes_room(replicas: list[Replica]) -> None:
    first, second, _ = replicas
    await ask(first, Counts(2, 0), SOCKET)
    await put(first, {"ben": Counts(1, 1)})
    assert (await ask(second, NOTHING, SOCKET)).found == [3]
    assert await put(first, {"anna": Counts(2, 0), "ben": NOTHING})
    assert rows(first) == {("anna", "id-first", 2, 0)}
    assert (await ask(second, NOTHING, SOCKET)).found == [None]
    # What is told of all owners is all that there is.
    assert await put(first, {"carl": Counts(5, 0), "ben": NOTHING}, is_all=True)
    assert rows(first) == {("carl", "id-first", 5, 0), ("anna", "id-second", 1, 0)}
    assert await put(first, {}, is_all=True)
    assert rows(first) == {("anna", "id-second", 1, 0)}


async def test_the_places_of_a_replica_that_is_gone_are_free(replicas: list[Replica]) -> None:
    first, second, third = replicas
    await ask(first, NOTHING, SOCKET)
    await ask(second, NOTHING, SOCKET, SOCKET)
    second.database.run(lambda one: beat(one, second.replica.id, -1.0))
    assert (await ask(third, NOTHING, SOCKET)).found == [3]  # nobody has declared it dead yet
    third.database.run(lambda one: declare_dead(one, third.replica.id))
    assert (await ask(third, NOTHING, SOCKET)).found == [None]
    first.database.run(lambda one: leave(one, first.replica.id))
    assert rows(third) == {("anna", "id-third", 1, 0)}


async def test_one_that_was_declared_dead_is_told_what_there_is_and_stores_nothing(
    replicas: list[Replica],
) -> None:
    first, second, _ = replicas
    await ask(second, NOTHING, SOCKET, SOCKET)
    first.database.run(lambda one: leave(one, first.replica.id))
    assert await ask(first, NOTHING, SOCKET, SOCKET) == Admitted([None, 3], None)
    assert not await put(first, {"anna": Counts(1, 0)})
    assert rows(first) == {("anna", "id-second", 2, 0)}
    first.join()
    assert await put(first, {"anna": Counts(1, 0)})
    assert (await ask(second, Counts(2, 0), SOCKET)).found == [3]


async def test_an_owner_s_place_waits_for_that_of_no_other(
    replicas: list[Replica], url: str
) -> None:
    first, second, _ = replicas
    with psycopg.connect(url) as another:
        admit(another, "id-third", "anna", NOTHING, [SOCKET])
        anna = asyncio.create_task(ask(first, NOTHING, SOCKET))

        def waiting() -> int:
            return len(another.execute("SELECT FROM pg_locks WHERE NOT granted").fetchall())

        await eventually(waiting, 30)
        assert (await ask(second, NOTHING, SOCKET, owner="ben")).found == [None]
        # A lease is renewed meanwhile.
        assert second.database.run(lambda one: beat(one, first.replica.id, 60.0))
    assert (await anna).found == [None]
    assert rows(first) >= {("anna", "id-first", 1, 0), ("anna", "id-third", 1, 0)}


@pytest.mark.parametrize("owner", ["", "ö ñ", "a'; --", 300 * "x"])
async def test_whatever_an_owner_is_called(replicas: list[Replica], owner: str) -> None:
    (first, *_) = replicas
    assert (await ask(first, NOTHING, SOCKET, owner=owner)).found == [None]
    assert rows(first) == {(owner, "id-first", 1, 0)}
