"""What one replica at a time does: done once, whichever replica is asked, and whoever dies."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from app.managers.errors import (
    ExecutionNotFound,
    IdempotencyConflict,
    KernelkeepError,
    KernelNotFound,
)
from app.managers.replicas import claims as module
from app.managers.replicas.claims import Claim, SharedClaims
from app.managers.replicas.database import Database
from app.managers.replicas.directory import Directory
from app.managers.replicas.errors import RegistryUnavailable, ReplicaUnreachable, RequestUnderway
from app.managers.replicas.membership import leave
from tests.managers.replicas.asking import Replica as _Replica


class Known:
    """What a replica knows of the others: everything, or nothing more."""

    def __init__(self) -> None:
        self.is_deaf = False
        self.expected: list[str] = []

    def expect(self, mark: str) -> asyncio.Future[None]:
        self.expected.append(mark)
        future = asyncio.get_running_loop().create_future()
        if not self.is_deaf:
            future.set_result(None)
        return future


class Replica(_Replica):
    def __init__(self, url: str, name: str) -> None:
        super().__init__(url, name)
        self.known = Known()
        self.is_known_away = False
        self.claims = SharedClaims(
            self.replica.id, self.ask, self.known, lambda: self.is_known_away
        )
        self.made = 0
        self.attempts: list[str] = []
        self.left: dict[str, str] = {}
        self.go_on = asyncio.Event()
        self.begun = asyncio.Event()
        self.unsure: KernelkeepError | None = None
        self.undone: list[str] = []

    async def make(self, attempt: str) -> str:
        self.made += 1
        self.attempts.append(attempt)
        self.begun.set()
        await self.go_on.wait()
        return f"made by {self.replica.name}"

    async def confirm(self, made: str) -> None:
        assert made.startswith("made by")
        if self.unsure is not None:
            raise self.unsure

    async def undo(self, made: str) -> None:
        self.undone.append(made)

    async def once(self, key: str = "key", request: bytes = b"r", *, is_vital: bool = True) -> str:
        asked = ("anna", "kernels", key, request, self.make, self.left.get, self.confirm, self.undo)
        return await self.claims.once(*asked, is_vital=is_vital)

    def die(self) -> None:
        self.database.run(lambda one: leave(one, self.replica.id))


@pytest.fixture
def replicas(url: str, database: Database) -> Iterator[list[Replica]]:
    made = [Replica(url, name) for name in ("first", "second", "third")]
    yield made
    for one in made:
        one.close()


async def test_one_replica_makes_it_and_the_others_wait_for_that(replicas: list[Replica]) -> None:
    first, second, third = replicas
    making = asyncio.create_task(first.once())
    await first.begun.wait()
    waiting = [asyncio.create_task(one.once()) for one in (second, third)]
    with pytest.raises(IdempotencyConflict):
        await third.once(request=b"another")
    first.go_on.set()
    assert await asyncio.gather(making, *waiting) == 3 * ["made by first"]
    assert [one.made for one in replicas] == [1, 0, 0]
    assert await second.once() == "made by first"
    with pytest.raises(IdempotencyConflict):
        await second.once(request=b"another")
    second.go_on.set()
    assert await second.once("another key") == "made by second"


async def test_what_has_failed_is_made_again(replicas: list[Replica]) -> None:
    first, second, _ = replicas
    making = asyncio.create_task(first.once())
    await first.begun.wait()
    waiting = asyncio.create_task(second.once(request=b"r"))
    making.cancel()
    with pytest.raises(asyncio.CancelledError):
        await making
    second.go_on.set()
    assert await waiting == "made by second"


async def test_what_a_replica_was_at_that_died_is_made_by_another(
    replicas: list[Replica],
) -> None:
    first, second, _ = replicas
    making = asyncio.create_task(first.once())
    await first.begun.wait()
    waiting = asyncio.create_task(second.once())
    first.die()
    second.go_on.set()
    assert await waiting == "made by second"
    first.go_on.set()  # it was only stopped; what it says now is too late
    assert await making == "made by first"
    third = replicas[2]
    assert await third.once() == "made by second"
    with pytest.raises(RegistryUnavailable):
        await first.once("another")


async def test_what_a_replica_had_made_that_died_is_found_and_not_made_again(
    replicas: list[Replica],
) -> None:
    first, second, third = replicas
    making = asyncio.create_task(first.once())
    await first.begun.wait()
    waiting = asyncio.create_task(second.once())
    second.left = {first.attempts[0]: "made by first"}  # it was stored, and then its replica died
    first.die()
    assert await waiting == "made by first"
    assert await third.once() == "made by first"
    assert (second.made, third.made) == (0, 0)
    with pytest.raises(IdempotencyConflict):
        await third.once(request=b"another")
    first.go_on.set()
    await making


async def test_what_a_dead_replica_has_left_is_made_as_soon_as_all_is_known(
    replicas: list[Replica], url: str
) -> None:
    first, second, _ = replicas
    making = asyncio.create_task(first.once())
    await first.begun.wait()
    first.die()
    directory = Directory(url, lambda: None)
    await directory.begin()
    try:
        second.claims._known = directory
        second.go_on.set()
        assert await second.once(is_vital=False) == "made by second"
        assert directory._marks == {}
    finally:
        await directory.close()
    first.go_on.set()
    await making


async def test_what_was_asked_of_a_replica_that_died_is_no_conflict(
    replicas: list[Replica],
) -> None:
    first, second, third = replicas
    making = asyncio.create_task(first.once())
    await first.begun.wait()
    first.die()
    second.go_on.set()
    assert await second.once(request=b"another") == "made by second"
    with pytest.raises(IdempotencyConflict):
        await third.once()
    first.go_on.set()
    await making


async def test_what_a_dead_replica_says_it_has_made_does_not_count(
    replicas: list[Replica],
) -> None:
    first, second, _ = replicas
    making = asyncio.create_task(first.once())
    await first.begun.wait()
    first.die()
    first.go_on.set()
    await making
    second.go_on.set()
    assert await second.once() == "made by second"


async def test_what_may_not_be_stored_is_confirmed_when_it_is_asked_for_again(
    replicas: list[Replica],
) -> None:
    first, second, _ = replicas
    first.go_on.set()
    first.unsure = RegistryUnavailable()
    for _ in range(2):
        with pytest.raises(RegistryUnavailable):
            await first.once()
        first.left = {"made by first": "made by first"}  # it is there
    with pytest.raises(IdempotencyConflict):
        await first.once(request=b"another")
    waiting = asyncio.create_task(second.once())
    first.unsure = None
    assert await first.once() == "made by first"
    assert await waiting == "made by first"
    assert (first.made, second.made) == (1, 0)


async def test_what_may_not_be_stored_is_confirmed_when_nobody_asks(
    replicas: list[Replica],
) -> None:
    first, second, _ = replicas
    first.go_on.set()
    first.unsure = RegistryUnavailable()
    with pytest.raises(RegistryUnavailable):
        await first.once()
    await first.claims.confirm()  # not yet
    first.unsure = None
    await first.claims.confirm()
    assert await second.once() == "made by first"


@pytest.mark.parametrize("is_stored", [True, False])
async def test_what_was_not_confirmed_is_found_by_the_next_replica_or_made(
    replicas: list[Replica],
    is_stored: bool,
) -> None:
    first, second, _ = replicas
    first.go_on.set()
    second.go_on.set()
    first.unsure = RegistryUnavailable()
    with pytest.raises(RegistryUnavailable):
        await first.once()
    first.die()
    if is_stored:
        second.left = {first.attempts[0]: "made by first"}
    assert await second.once() == f"made by {'first' if is_stored else 'second'}"
    # It has the kernel again, and what it had made is there or is not.
    first.left = {"made by first": "made by first"} if is_stored else {}
    first.unsure = None
    await first.claims.confirm()
    assert await second.once() == f"made by {'first' if is_stored else 'second'}"


async def test_what_was_not_confirmed_and_is_not_there_is_made_again(
    replicas: list[Replica],
) -> None:
    first, second, _ = replicas
    for one in (first, second):
        one.go_on.set()
    first.unsure = RegistryUnavailable()
    with pytest.raises(RegistryUnavailable):
        await first.once()
    first.unsure = None  # and it finds nothing: the kernel was another's meanwhile
    assert await first.once() == await second.once() == "made by first"
    assert (first.made, second.made) == (2, 0)


@pytest.mark.parametrize(
    "error", [ReplicaUnreachable(), ExecutionNotFound("e"), KernelNotFound("k")]
)
@pytest.mark.parametrize("is_stored", [True, False])
async def test_what_is_not_here_any_more_is_not_tried_for_ever(
    replicas: list[Replica], error: KernelkeepError, is_stored: bool
) -> None:
    first, second, _ = replicas
    first.go_on.set()
    second.go_on.set()
    first.unsure = RegistryUnavailable()
    with pytest.raises(RegistryUnavailable):
        await first.once()
    first.unsure = error
    await first.claims.confirm()
    assert first.claims._open == {}
    if is_stored:
        second.left = {first.attempts[0]: "made by first"}
    assert await second.once() == f"made by {'first' if is_stored else 'second'}"


async def test_of_too_many_that_are_not_confirmed_the_oldest_is_left_for_who_asks(
    replicas: list[Replica], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, _ = replicas
    first.go_on.set()
    first.unsure = RegistryUnavailable()
    with monkeypatch.context() as patch:
        patch.setattr(module, "MAX_CLAIMS", 1)
        for key in ("oldest", "newest"):
            with pytest.raises(RegistryUnavailable):
                await first.once(key)
    second.left = {first.attempts[0]: "made by first"}
    assert await second.once("oldest") == "made by first"
    assert second.made == 0


async def test_a_caller_that_goes_while_another_claim_makes_room_leaves_none_at_work(
    replicas: list[Replica], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, *_ = replicas
    first.go_on.set()
    first.unsure = RegistryUnavailable()
    monkeypatch.setattr(module, "MAX_CLAIMS", 1)
    with pytest.raises(RegistryUnavailable):
        await first.once("oldest")
    begun = asyncio.Event()

    async def hang(*_: object) -> None:
        begun.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(first.claims, "_drop", hang)
    making = asyncio.create_task(first.once("newest"))
    await begun.wait()
    making.cancel()
    await asyncio.wait({making})
    assert [one.made for one in first.claims._open.values()] == 2 * ["made by first"]


async def test_the_wait_for_another_replica_ends(
    replicas: list[Replica], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WAIT_SECONDS", 0.01)
    first, second, _ = replicas
    making = asyncio.create_task(first.once())
    await first.begun.wait()
    with pytest.raises(RequestUnderway):
        await second.once()
    assert second.claims._done == {}
    first.go_on.set()
    assert await making == await second.once() == "made by first"


async def test_what_is_made_stays_known_when_its_replica_dies(replicas: list[Replica]) -> None:
    first, second, _ = replicas
    first.go_on.set()
    await first.once()
    first.die()
    assert await second.once() == "made by first"


async def test_nothing_is_made_when_the_registry_turns_out_to_be_away(
    replicas: list[Replica],
) -> None:
    first, second, _ = replicas
    first.go_on.set()
    first.is_away = True
    for is_vital in (True, False):
        with pytest.raises(RegistryUnavailable):
            await first.once(is_vital=is_vital)
    first.is_away = False
    first.loses_answers = True
    for is_vital in (True, False):
        with pytest.raises(RegistryUnavailable):
            await first.once(is_vital=is_vital)
    assert first.made == 0
    first.loses_answers = False
    await first.claims.clear()
    second.go_on.set()
    assert await second.once() == "made by second"


async def test_a_registry_that_is_known_to_be_away_is_not_asked(replicas: list[Replica]) -> None:
    first, second, _ = replicas
    first.go_on.set()
    first.is_known_away = True
    with pytest.raises(RegistryUnavailable):
        await first.once()
    first.is_away, first.unsure = True, RegistryUnavailable()
    with pytest.raises(RegistryUnavailable):
        await first.once(is_vital=False)
    assert first.undone == ["made by first"]
    first.unsure = None
    assert await first.once(is_vital=False) == "made by first"
    assert first.known.expected == []
    # It is remembered when the registry is back.
    first.is_away = False
    await first.claims.clear()
    assert await second.once() == "made by first"


@pytest.mark.parametrize("is_told", [True, False], ids=["confirmed", "stored-too-late"])
async def test_what_was_made_without_the_registry_is_found_when_its_replica_has_died(
    replicas: list[Replica], *, is_told: bool
) -> None:
    first, second, third = replicas
    first.go_on.set()
    first.is_known_away = first.is_away = True
    first.unsure = None if is_told else RegistryUnavailable()
    with contextlib.nullcontext() if is_told else pytest.raises(RegistryUnavailable):
        await first.once(is_vital=False)
    first.die()  # it was alone without the registry, and others have its kernels now
    second.go_on.set()
    second.left = {first.attempts[0]: "made by first"}
    assert await second.once(is_vital=False) == "made by first"
    assert second.made == 0
    # That is noted, for whoever does not know the attempt; another request is another attempt.
    assert await third.once(is_vital=False) == "made by first"
    assert await second.once("another key", is_vital=False) == "made by second"


async def test_what_a_claim_has_made_is_found_while_the_registry_that_has_the_claim_is_away(
    replicas: list[Replica],
) -> None:
    first, second, third = replicas
    first.go_on.set()
    first.unsure = RegistryUnavailable()
    with pytest.raises(RegistryUnavailable):
        await first.once(is_vital=False)
    first.die()
    second.is_known_away = True
    third.left = second.left = {first.attempts[0]: "made by first"}
    assert await second.once(is_vital=False) == "made by first"
    assert second.made == 0
    assert await third.once(is_vital=False) == "made by first"
    assert third.made == 0
    with pytest.raises(IdempotencyConflict):
        await third.once(request=b"another", is_vital=False)


async def test_what_was_stored_too_late_is_not_undone_when_it_is_asked_for_again(
    replicas: list[Replica],
) -> None:
    first = replicas[0]
    first.go_on.set()
    first.is_known_away, first.unsure = True, RegistryUnavailable()
    with pytest.raises(RegistryUnavailable):
        await first.once(is_vital=False)
    first.left = {first.attempts[0]: "made by first"}  # the kernel came back with it
    with pytest.raises(RegistryUnavailable):
        await first.once(is_vital=False)
    assert (first.made, first.undone) == (1, ["made by first"])
    first.unsure = None
    assert await first.once(is_vital=False) == "made by first"
    assert first.made == 1


async def test_what_was_made_is_not_made_again_because_it_is_not_heard_of(
    replicas: list[Replica], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CATCH_UP_SECONDS", 0.01)
    first, second, _ = replicas
    second.go_on.set()
    assert await second.once(is_vital=False) == "made by second"
    first.known.is_deaf = True
    assert await first.once(is_vital=False) == "made by second"
    assert first.made == 0


async def test_a_claim_that_could_not_be_settled_is_settled_later(
    replicas: list[Replica],
) -> None:
    first, second, _ = replicas
    making = asyncio.create_task(first.once())
    await first.begun.wait()
    first.is_away = True
    first.go_on.set()
    assert await making == "made by first"
    waiting = asyncio.create_task(second.once())
    first.is_away = False
    await first.claims.clear()
    assert await waiting == "made by first"


async def test_nothing_is_begun_before_what_others_have_stored_is_known(
    replicas: list[Replica], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CATCH_UP_SECONDS", 0.01)
    first, second, _ = replicas
    first.known.is_deaf = True
    with pytest.raises(RegistryUnavailable):
        await first.once()
    assert first.made == 0
    await first.claims.clear()
    second.go_on.set()
    assert await second.once() == "made by second"


async def test_one_replica_at_a_time_has_the_turn(replicas: list[Replica]) -> None:
    inside = 0
    most = 0

    async def work(replica: Replica) -> None:
        nonlocal inside, most
        async with replica.claims.turn("anna", "session", "a\0path"):
            inside += 1
            most = max(most, inside)
            await replica.claims.clear()  # it awaits, and settles nothing
            inside -= 1

    await asyncio.gather(*(work(replica) for replica in 3 * replicas))
    assert (inside, most) == (0, 1)
    rows = replicas[0].database.run(
        lambda one: one.execute("SELECT count(*) FROM kernelkeep.idempotency").fetchone()
    )
    assert rows == (0,)


def test_the_names_of_claims_do_not_run_together() -> None:
    names = {
        Claim.of(*words).name
        for words in (("a", "b", "c"), ("ab", "", "c"), ("a", "bc", ""), ("a", "b", "\udcff"))
    }
    assert len(names) == 4


def test_claims_are_bounded_and_forgotten(
    replicas: list[Replica], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = replicas[0]

    def run(work: Any) -> Any:
        return first.database.run(work)

    def make(owner: str, key: str) -> None:
        one = Claim.of(owner, "kernels", key)
        assert run(lambda connection: module.claim(connection, first.replica.id, one)) is None
        run(lambda connection: module.settle(connection, first.replica.id, {one: "made"}))

    def known() -> dict[str, int]:
        rows = run(
            lambda connection: connection.execute(
                "SELECT owner, count(*) FROM kernelkeep.idempotency GROUP BY owner"
            ).fetchall()
        )
        return dict(rows)

    monkeypatch.setattr(module, "MAX_CLAIMS", 4)
    make("ben", "1")
    for number in range(6):
        make("anna", f"{number}")
    assert known() == {"anna": 3, "ben": 1}
    run(
        lambda one: one.execute(
            "UPDATE kernelkeep.idempotency SET noted = noted - interval '25 hours'"
        )
    )
    make("ben", "1")  # the key is anybody's again
    assert known() == {"ben": 1}
