"""The terms in which a replica has its kernels, its right to its name, and how it leaves."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from pydantic import SecretStr

from app.managers.handover import registry as handover_registry
from app.managers.handover.registry import Registry
from app.managers.handover.store import ExecutionRecord, StoreAway, UnusableRegistry
from app.managers.log.places import Places
from app.managers.replicas import registry
from app.managers.replicas.errors import RegistryUnavailable, ReplicaUnreachable
from app.managers.replicas.keepers import SharedKeepers
from app.managers.replicas.membership import Taken
from app.managers.replicas.registry import (
    DIRECTORY,
    SharedRegistry,
    _NameLock,
    check_shared_registry,
)
from app.managers.replicas.terms import Terms
from app.settings import Settings
from tests.managers.handover.test_registry import record


def test_a_kernel_has_a_term_from_its_start_or_its_take_to_its_end() -> None:
    terms = Terms()
    assert terms.of("k") == 0
    assert "k" not in terms
    terms.begin("k")
    first = terms.of("k")
    assert first > 0
    terms.take("k", first + 100)
    assert terms.of("k") == first + 100
    assert [*terms] == ["k"]
    terms.drop("k", first)
    assert "k" in terms
    terms.drop("k", first + 100)
    terms.drop("k")
    assert terms.of("k") == 0


def test_a_kernel_that_begins_anew_in_the_same_second_has_a_term_of_its_own() -> None:
    terms = Terms()
    terms.begin("k")
    gone = terms.of("k")
    terms.begin("k")
    assert terms.of("k") > gone
    terms.drop("k", gone)  # what was to be dropped later is the term of the one that is gone
    assert terms.of("k") > gone


def test_terms_as_they_were_stay_as_they_were() -> None:
    terms = Terms()
    terms.take("k", 5)
    before = terms.now()
    terms.take("k", 7)
    terms.take("other", 1)
    assert before.of("k") == 5
    assert [*before] == ["k"]


async def test_what_was_stored_in_a_term_that_is_over_may_be_done_by_another() -> None:
    terms = Terms()
    terms.begin("k")

    async def stored() -> bool:
        terms.drop("k")  # the kernel is taken while the execution is being stored
        return True

    keeping = SimpleNamespace(member=SimpleNamespace(is_away=False), terms=terms, stored=stored)
    with pytest.raises(ReplicaUnreachable, match="may have been done"):
        await SharedRegistry.execution_stored(cast("Any", keeping), "k", "e", terms.of("k"))


async def test_an_execution_that_a_later_flush_is_still_writing_is_not_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, go = Registry(tmp_path), threading.Event()
    tries: list[asyncio.Task[None]] = []

    def fail(*_: object) -> None:
        if tries:
            go.wait(30)
        raise sqlite3.OperationalError("disk is full")

    async def stored() -> bool:
        await kept.flush()  # this fails, and the next begins before anybody looks
        tries.append(asyncio.create_task(kept.flush()))
        await asyncio.sleep(0)
        return True

    monkeypatch.setattr(handover_registry, "_write_all", fail)
    terms = Terms()
    terms.begin("k")
    monkeypatch.setattr(kept, "stored", stored)
    monkeypatch.setattr(kept, "terms", terms, raising=False)
    monkeypatch.setattr(kept, "member", SimpleNamespace(is_away=False), raising=False)
    kept.note("k", "e", lambda: ExecutionRecord("k", "e", 1, b""))
    with pytest.raises(RegistryUnavailable):
        await SharedRegistry.execution_stored(cast("Any", kept), "k", "e", terms.of("k"))
    go.set()
    await tries[0]
    await kept.close()


async def test_a_keeper_that_is_to_be_forgotten_is_so_if_no_other_could_be_invited() -> None:
    async def is_away(_: object) -> None:
        raise OSError("the registry is away")

    keepers = SimpleNamespace(_id="this", _late={"k.1"}, _terms=Terms(), _run=is_away)
    with pytest.raises(OSError, match="is away"):
        await SharedKeepers.invite(cast("Any", keepers), "k.1", 60)
    assert keepers._late == {"k.1"}


async def test_a_registry_that_does_not_answer_holds_up_nobody_who_leaves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def never() -> None:
        await asyncio.Event().wait()

    async def close() -> None:
        left.append("member")

    left: list[str] = []
    terms = Terms()
    terms.begin("k")
    monkeypatch.setattr(registry, "CLOSE_SECONDS", 0.05)
    leaving = SimpleNamespace(_make_up=never, member=SimpleNamespace(close=close), terms=terms)
    async with asyncio.timeout(30):
        await SharedRegistry.leave(cast("Any", leaving))
    assert left == ["member"]
    assert "k" not in terms


async def test_only_kernels_that_are_stored_are_handed_over_before_the_end() -> None:
    async def release(asked: dict[str, int]) -> None:
        freed.update(asked)

    async def stored(_seconds: float) -> bool:
        return is_stored

    freed: dict[str, int] = {}
    terms = Terms()
    for kernel_id in ("stored", "new", "waits", "stays"):
        terms.begin(kernel_id)
    ending: Any = SimpleNamespace(
        stored=stored,
        member=SimpleNamespace(release=release),
        terms=terms,
        _missed={"new": None},
        _unwritten={("waits", "e"): 1},
    )
    asked = ["stored", "new", "waits"]
    is_stored = False
    with pytest.raises(StoreAway):
        await SharedRegistry.release(ending, asked)
    assert freed == {}
    is_stored = True
    assert {*await SharedRegistry.release(ending, asked)} == {"stored"}
    assert freed == {"stored": terms.of("stored")}


@pytest.mark.parametrize("name", ["", "identity", "one.lock"])
def test_what_keeps_a_replica_from_its_name_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / DIRECTORY / name
    if name:
        path.mkdir(parents=True)
    else:
        path.touch()
    settings = Settings(_cli_parse_args=False, state_dir=tmp_path)
    with pytest.raises(UnusableRegistry) as raised:
        _NameLock(settings.model_copy(update={"replica_name": "one"}))
    assert str(raised.value).startswith(f"{path} cannot be used: ")


def found_by(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A registry that has nothing but what is found, and answers else with what it is asked for."""

    async def ask(_: Registry, kernel_id: str) -> str:
        return f"asked for {kernel_id}"

    for name in ("executions", "places", "delete"):
        monkeypatch.setattr(Registry, name, ask)
    shared: Any = SharedRegistry.__new__(SharedRegistry)
    empty = ("_newest", "_missed", "_activity", "_places", "_executions_found", "_places_found")
    vars(shared).update({name: {} for name in empty}, terms=Terms(), on_fenced=lambda _: None)
    shared._drop_executions = lambda _: None
    return shared


async def test_an_adoption_finds_what_was_read_when_its_kernel_was_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shared = found_by(monkeypatch)
    execution, places = ExecutionRecord("k", "e", 1, b"x"), Places("k", "epoch", b"1")
    for taken in (Taken(2, record("k"), [execution], places), Taken(2, record("none"))):
        shared.found(taken)
    assert (await shared.executions("k"), await shared.places("k")) == ([execution], places)
    assert (await shared.executions("none"), await shared.places("none")) == ([], None)
    # An adoption that is tried again asks, and so does one in a later term.
    assert await shared.executions("k") == await shared.places("k") == "asked for k"
    shared.found(Taken(2, record("lost"), [execution], places))
    shared.fence("lost")
    assert await shared.executions("lost") == await shared.places("lost") == "asked for lost"
    # What was too much to be read along is asked for by the adoption.
    shared.found(Taken(2, record("much"), None, places))
    assert await shared.executions("much") == "asked for much"
    assert await shared.places("much") == places


async def test_executions_are_asked_for_again_while_the_registry_is_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(registry, "READ_AGAIN_SECONDS", (0.0, 0.0, 0.0))
    shared = found_by(monkeypatch)
    shared._store = SimpleNamespace(load_executions=None)
    shared.terms.take("k", 2)
    shared.terms.take("lost", 2)
    asked: list[str] = []

    async def call(_: object, kernel_id: str) -> list[ExecutionRecord]:
        asked.append(kernel_id)
        if kernel_id == "lost":
            shared.terms.drop("lost")
        if len(asked) != 3:
            raise StoreAway("for a moment")
        return [execution]

    execution = ExecutionRecord("k", "e", 1, b"x")
    shared._call = call
    assert await shared.executions("k") == [execution]
    assert asked == ["k", "k", "k"]
    # One that stays away is told of (`Registry.executions`), and another's kernel is another's.
    assert await shared.executions("k") == "asked for k"
    assert await shared.executions("lost") == "asked for lost"
    assert asked[3:] == ["k", "k", "k", "lost"]


async def test_what_was_read_of_a_kernel_that_is_never_adopted_goes_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shared = found_by(monkeypatch)
    shared.found(Taken(2, record("k"), [ExecutionRecord("k", "e", 1, b"x")]))
    await shared.delete("k")
    assert shared._executions_found == shared._places_found == {}


def test_a_state_directory_on_a_network_file_system_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "network_file_system", lambda path: path == tmp_path and "nfs4")
    settings = Settings(
        _cli_parse_args=False,
        state_dir=tmp_path,
        on_shutdown="keep",
        token=SecretStr("a token of some length"),
        registry_url=SecretStr("postgresql://nobody@127.0.0.1:1/nothing"),
    )
    with pytest.raises(UnusableRegistry) as raised:
        check_shared_registry(settings)
    assert str(raised.value) == (
        f"the state directory {tmp_path} is on a network file system (nfs4), whose locks cannot be "
        "relied on"
    )
    assert [*tmp_path.iterdir()] == []
