"""Places for kernels that replicas start at the same time: as many as there may be."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from app.managers.handover.elsewhere import Used
from app.managers.handover.store import StoreAway
from app.managers.replicas.database import Connection
from app.managers.replicas.errors import KernelElsewhereError, RegistryUnavailable
from app.managers.replicas.membership import beat, declare_dead, leave
from app.managers.replicas.registry import SharedRegistry
from tests.managers.handover.test_registry import record
from tests.managers.replicas.asking import Replica


async def test_the_last_places_are_taken_once_however_many_ask(replicas: list[Replica]) -> None:
    asked = [
        replicas[number % 3].reserve(f"k{number}", owner, 17, 10)
        for number, owner in enumerate(50 * ["anna", "ben"])
    ]
    found = await asyncio.gather(*asked)
    assert found.count(None) == 17
    rows = replicas[0].database.run(
        lambda one: one.execute(
            "SELECT owner, count(*) FROM kernelkeep.reservation GROUP BY owner ORDER BY owner"
        ).fetchall()
    )
    assert sum(count for _, count in rows) == 17
    assert all(count <= 10 for _, count in rows)


async def test_what_there_is_counts_once_and_what_is_dead_not(replicas: list[Replica]) -> None:
    first, second, _ = replicas
    assert await first.reserve("a", most=2) is None
    first.save(record("a", owner="anna"))
    await first.reservations.release("a")
    first.save(record("b", owner="ben", execution_state="dead"))
    assert await second.reserve("c", most=2) is None
    assert await second.reserve("c", most=2) is None  # the answer was lost: it asks again
    assert await first.reserve("d", most=2) == Used(2, 2)
    assert await first.reserve("d", "ben", most_of_owner=1) is None
    # It has died, as its own replica knows before the registry does.
    assert await first.reserve("e", most=3, dead=("a",)) is None
    assert await first.reserve("f", most=3, dead=("a",)) == Used(3, 2)


async def test_a_start_that_fails_gives_its_place_back(replicas: list[Replica]) -> None:
    first, second, _ = replicas
    assert await first.reserve("a", most=1) is None
    await second.reservations.release("a")  # it is not this one's
    assert await second.reserve("b", most=1) == Used(1, 1)
    await first.reservations.release("a")
    assert await second.reserve("b", most=1) is None


async def test_the_places_of_a_replica_that_dies_are_free(replicas: list[Replica]) -> None:
    first, second, third = replicas
    assert await first.reserve("a", most=2) is None
    assert await second.reserve("b", most=2) is None
    first.database.run(lambda one: beat(one, first.replica.id, -1.0))
    assert await third.reserve("c", most=2) == Used(2, 2)  # nobody has declared it dead yet
    third.database.run(lambda one: declare_dead(one, third.replica.id))
    assert await third.reserve("c", most=2) is None
    second.database.run(lambda one: leave(one, second.replica.id))
    assert await third.reserve("d", most=2) is None
    with pytest.raises(RegistryUnavailable):
        await first.reserve("e", most=9)


async def test_one_id_is_started_by_one_replica(replicas: list[Replica]) -> None:
    first, second, _ = replicas
    assert await first.reserve("a") is None
    with pytest.raises(KernelElsewhereError):
        await second.reserve("a")
    first.save(record("a"))
    await first.reservations.release("a")
    with pytest.raises(KernelElsewhereError):
        await second.reserve("a")
    assert await first.reserve("a") is None  # a dead one that is restarted


async def test_what_could_not_be_told_is_told_later(replicas: list[Replica]) -> None:
    first, second, _ = replicas
    first.loses_answers = True
    with pytest.raises(RegistryUnavailable):
        await first.reserve("a", most=1)
    assert await second.reserve("b", most=1) == Used(1, 1)
    first.loses_answers = False
    await first.reservations.clear()
    assert await first.reserve("a", most=1) is None
    first.is_away = True
    await first.reservations.release("a")
    with pytest.raises(RegistryUnavailable):
        await first.reserve("c", most=1)
    first.is_away = False
    await first.reservations.clear()
    assert await second.reserve("b", most=1) is None


async def test_a_kernel_that_is_still_to_be_stored_has_its_place(replicas: list[Replica]) -> None:
    first, second, _ = replicas
    assert await first.reserve("a", most=1) is None
    first.due.add("a")
    await first.reservations.release("a")
    assert await second.reserve("b", most=1) == Used(1, 1)
    first.save(record("a"))
    first.due.clear()
    await first.reservations.clear()
    assert await second.reserve("b", most=1) == Used(1, 0)


async def test_a_kernel_has_its_place_until_its_process_is_gone(replicas: list[Replica]) -> None:
    first, second, _ = replicas
    first.save(record("a"))
    first.save(record("dead", execution_state="dead"))
    first.store.delete("dead")
    first.store.delete("a")
    assert await second.reserve("b", most=1) == Used(1, 0)
    first.save(record("a"))  # it could not be ended
    assert await second.reserve("b", most=2) is None
    first.store.delete("a")
    assert await second.reserve("c", most=2) == Used(2, 1)
    await first.reservations.release("a")
    assert await second.reserve("c", most=2) is None


@pytest.mark.parametrize(
    ("missed", "newest", "counts", "is_due"),
    [
        ({}, {}, False, False),  # it is gone
        ({}, {}, True, True),  # it waits in an engine's queue, and is not stored yet
        ({}, {"k": SimpleNamespace(dead=True)}, True, True),  # the same, for a restart
        ({}, {"k": SimpleNamespace(dead=False)}, True, False),  # its row counts
        ({"k": SimpleNamespace(dead=False)}, {}, False, True),  # it could not be stored
        ({"k": None}, {}, False, True),  # it could not be deleted
    ],
)
def test_how_long_a_place_is_kept(
    missed: dict[str, Any], newest: dict[str, Any], counts: bool, is_due: bool
) -> None:
    registry = SimpleNamespace(_missed=missed, _newest=newest, counts=lambda _: counts)
    assert SharedRegistry._is_due(cast(SharedRegistry, registry), "k") is is_due


async def test_a_place_that_is_reserved_anew_is_not_given_back_with_the_one_before(
    replicas: list[Replica], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = replicas[0]
    await first.reserve("k")
    asked, is_lost = asyncio.Event(), asyncio.Event()

    async def is_away(_: Callable[[Connection], Any]) -> Any:
        asked.set()
        await is_lost.wait()
        raise StoreAway("away")

    with monkeypatch.context() as patch:
        patch.setattr(first.reservations, "_ask", is_away)
        releasing = asyncio.create_task(first.reservations.release("k"))
        await asked.wait()
    assert await first.reserve("k") is None
    is_lost.set()
    await releasing
    await first.reservations.clear()
    rows = first.database.run(
        lambda one: one.execute("SELECT kernel_id FROM kernelkeep.reservation").fetchall()
    )
    assert rows == [("k",)]
