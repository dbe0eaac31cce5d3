"""The list of tokens, in a file and in the registry that replicas share: what holds for both."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from app.managers.owners import token_table as module
from app.managers.owners.credentials import digest, shown
from app.managers.owners.errors import TokenNameTaken, TooManyTokens
from app.managers.owners.token_table import (
    REMEMBERED_SECONDS,
    TokenPlace,
    TokenTable,
    UnusableTokens,
)
from app.managers.owners.tokens import TokenFile
from app.managers.replicas import tokens as shared_tokens
from app.managers.replicas.database import Connection, Database
from app.managers.replicas.tokens import SharedTokensPlace
from tests.support.postgresql import PostgreSQL, tells_password
from tests.support.tokens import DAY, NOW, wanted


@pytest.fixture(params=["file", "registry"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> TokenPlace:
    if request.param == "file":
        return TokenFile(tmp_path)
    return SharedTokensPlace(request.getfixturevalue("url"))


@pytest.fixture
def store(place: TokenPlace) -> Iterator[TokenTable]:
    with contextlib.closing(place.open(create=True)) as opened:
        yield opened


def test_what_is_made_comes_back(store: TokenTable, place: TokenPlace) -> None:
    record, token = store.add(
        wanted(groups=("physics",), expires=NOW + DAY, made_with="kk_01234567"), NOW
    )
    assert (record.id, record.digest) == (shown(token), digest(token))
    assert (record.created, record.revoked, record.last_used) == (NOW, None, None)
    with contextlib.closing(place.open()) as again:
        assert again.records() == [record]
        assert again.ids() == {record.id}
        assert again.state() == (1, record.version)


def test_another_connection_s_changes_are_noticed(store: TokenTable, place: TokenPlace) -> None:
    before = store.changes_elsewhere()
    assert store.changes_elsewhere() == before
    with contextlib.closing(place.open()) as other:
        other.add(wanted("other's"), NOW)
    assert store.changes_elsewhere() != before


def test_who_has_revoked_one_by_the_command_is_known(store: TokenTable, place: TokenPlace) -> None:
    first, _ = store.add(wanted("first", made_with="uid:1000 (anna)"), NOW)
    second, _ = store.add(wanted("second", made_with=first.id), NOW)
    third, _ = store.add(wanted("third"), NOW)
    store.revoke([third.id], NOW)
    store.revoke([first.id], NOW, "uid:0 (root)")
    with contextlib.closing(place.open()) as again:
        found = {record.id: record.revoked_by for record in again.records()}
        assert found == {first.id: "uid:0 (root)", second.id: "uid:0 (root)", third.id: ""}


def ids(store: TokenTable) -> list[str]:
    return [record.id for record in store.records() if record.in_force(NOW)]


def test_one_that_is_revoked_ends_with_those_that_were_made_with_it(store: TokenTable) -> None:
    first, _ = store.add(wanted("first"), NOW)
    second, _ = store.add(wanted("second", made_with=first.id), NOW)
    third, _ = store.add(wanted("third", made_with=second.id), NOW)
    other, _ = store.add(wanted("other"), NOW)
    ended = store.revoke([first.id, "kk_nobodys"], NOW + 1)
    assert {record.id for record in ended} == {first.id, second.id, third.id}
    assert all(record.revoked == NOW + 1 for record in ended)
    assert ids(store) == [other.id]
    assert store.revoke([first.id], NOW + 2) == []
    assert {record.state(NOW + 2) for record in ended} == {"revoked"}


def test_one_that_has_expired_is_not_revoked_as_well(store: TokenTable) -> None:
    record, _ = store.add(wanted(expires=NOW + 1), NOW)
    assert record.state(NOW) == "valid"
    assert store.revoke([record.id], NOW + 1) == []
    assert store.records()[0].state(NOW + 1) == "expired"


def test_changes_have_growing_versions_and_uses_have_none(store: TokenTable) -> None:
    first, _ = store.add(wanted("first"), NOW)
    second, _ = store.add(wanted("second"), NOW + 1)
    assert store.records(after=first.version) == [second]
    store.used([(first.id, NOW + 5), ("kk_nobodys", NOW)])
    store.used([(first.id, NOW + 4)])
    assert store.records(after=second.version) == []
    assert store.records()[0].last_used == NOW + 5
    (ended,) = store.revoke([first.id], NOW)
    assert ended.version > second.version
    assert store.records(after=second.version) == [ended]


@pytest.mark.parametrize("name", ["laptop", "LapTop", "ｌａｐｔｏｐ", "LAPTOP"])
def test_a_name_that_would_be_taken_for_another_is_refused(store: TokenTable, name: str) -> None:
    first, _ = store.add(wanted(), NOW)
    with pytest.raises(TokenNameTaken, match="laptop"):
        store.add(wanted(name), NOW)
    store.add(wanted(name, owner="ben"), NOW)
    store.revoke([first.id], NOW)
    store.add(wanted(name), NOW)


@pytest.mark.parametrize(("first", "then"), [("José", "JOSÉ"), ("anna", "Anna"), ("ﬁ", "fi")])
def test_an_owner_that_would_be_taken_for_another_is_refused_by_hand_only(
    store: TokenTable, first: str, then: str
) -> None:
    store.add(wanted(owner=first), NOW)
    with pytest.raises(TokenNameTaken, match=first):
        store.add(wanted(owner=then), NOW, named_by_hand=True)
    store.add(wanted(owner=then), NOW)  # an identity provider has named both
    store.add(wanted("second", owner=then), NOW, named_by_hand=True)


def test_nobody_is_taken_for_the_owner_of_the_server_s_own_token(store: TokenTable) -> None:
    with pytest.raises(TokenNameTaken):
        store.add(wanted(owner="Anonymous"), NOW, named_by_hand=True)
    store.add(wanted(owner="anonymous"), NOW, named_by_hand=True)


def test_there_is_a_bound_of_each_owner_and_of_all(
    store: TokenTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_OF_OWNER", 2)
    monkeypatch.setattr(module, "MAX_TOKENS", 3)
    first, _ = store.add(wanted("1"), NOW)
    store.add(wanted("2"), NOW)
    with pytest.raises(TooManyTokens):
        store.add(wanted("3"), NOW)
    store.add(wanted("1", owner="ben"), NOW)
    with pytest.raises(TooManyTokens):
        store.add(wanted("2", owner="ben"), NOW)
    store.revoke([first.id], NOW)
    store.add(wanted("2", owner="ben"), NOW)


def test_ended_ones_are_forgotten_after_a_while_and_beyond_a_number(
    store: TokenTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_REMEMBERED", 2)
    expired, _ = store.add(wanted("expired", expires=NOW + 1), NOW)
    revoked, _ = store.add(wanted("revoked"), NOW)
    store.revoke([revoked.id], NOW)
    store.add(wanted("a"), NOW + 2)
    assert {expired.id, revoked.id} <= {record.id for record in store.records()}
    third, _ = store.add(wanted("third"), NOW + 3)
    (ended,) = store.revoke([third.id], NOW + 3)
    newer, _ = store.add(wanted("b"), NOW + 4)
    left = {record.id for record in store.records()}
    assert third.id in left
    assert len({expired.id, revoked.id} & left) == 1
    assert newer.version > ended.version
    last, _ = store.add(wanted("c"), NOW + 4 + REMEMBERED_SECONDS)
    assert {record.name for record in store.records()} == {"a", "b", "c"}
    assert last.version > newer.version


def test_no_version_comes_twice_even_if_the_newest_is_forgotten(store: TokenTable) -> None:
    record, _ = store.add(wanted(expires=NOW + 1), NOW)
    later, _ = store.add(wanted(), NOW + 2 + REMEMBERED_SECONDS)
    assert store.records() == [later]
    assert later.version > record.version


def test_many_at_once_each_get_one(place: TokenPlace) -> None:
    def make(number: int) -> str:
        with contextlib.closing(place.open(create=True)) as own:
            return own.add(wanted(f"{number}"), NOW)[0].id

    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(make, range(24)))
    with contextlib.closing(place.open()) as store:
        assert sorted(record.id for record in store.records()) == sorted(made)
        versions = [record.version for record in store.records()]
    assert len(set(versions)) == 24


# In the registry


def test_a_registry_without_the_list_is_no_fault(url: str) -> None:
    place = SharedTokensPlace(url)
    with pytest.raises(FileNotFoundError):
        place.open()
    place.open(create=True).close()
    with contextlib.closing(place.open()) as store:
        assert store.records() == []


def test_a_token_is_made_once_although_the_answer_was_lost(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with contextlib.closing(SharedTokensPlace(url).open(create=True)) as store:
        run = Database._run
        lost = iter([True])

        def run_and_lose(self: Database, work: Callable[[Connection], object]) -> object:
            result = run(self, work)
            if next(lost, False):
                assert self._connection is not None
                self._connection.close()
                self._connection.execute("SELECT 1")
            return result

        store.state()
        monkeypatch.setattr(Database, "_run", run_and_lose)
        record, token = store.add(wanted(), NOW)
        assert record.id == shown(token)
        assert store.records() == [record]
        lost = iter([True])
        assert [ended.id for ended in store.revoke([record.id], NOW + 1)] == [record.id]


def test_thousands_of_uses_are_stored_at_once(url: str) -> None:
    place = SharedTokensPlace(url)
    with contextlib.closing(place.open(create=True)) as store:
        record, _ = store.add(wanted(), NOW)
        store.used([(f"kk_{number:08}", NOW) for number in range(5000)] + [(record.id, NOW + 1)])
        assert store.records()[0].last_used == NOW + 1


def test_a_row_of_the_registry_that_makes_no_sense_is_noticed(database: Database) -> None:
    with contextlib.closing(SharedTokensPlace(database.url).open()) as store:
        store.add(wanted(), NOW)
        database.run(lambda one: one.execute("UPDATE kernelkeep.token SET scopes = '{'"))
        with pytest.raises(UnusableTokens, match="a row makes no sense"):
            store.records()


def test_a_registry_that_is_away_or_does_not_answer_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shared_tokens, "ANSWER_SECONDS", 0.5)
    with PostgreSQL() as server:
        place = SharedTokensPlace(server.new_database())
        with contextlib.closing(place.open(create=True)) as store:
            record, _ = store.add(wanted(), NOW)
            server.pause()
            with pytest.raises(UnusableTokens, match="the list of tokens in the registry"):
                store.records()
            # A connection that is being made is given up, too.
            with pytest.raises(UnusableTokens, match="the list of tokens in the registry"):
                place.open()
            server.resume()
            assert store.records() == [record]
            server.stop()
            with pytest.raises(UnusableTokens) as raised:
                store.add(wanted("second"), NOW)
            assert not tells_password(str(raised.value))
            with pytest.raises(UnusableTokens):
                place.open()
            server.start()
            assert store.records() == [record]


def test_a_registry_of_a_newer_version_is_left_alone(database: Database, url: str) -> None:
    database.run(lambda one: one.execute("DROP TABLE kernelkeep.token"))
    database.run(lambda one: one.execute("INSERT INTO kernelkeep.migration VALUES (9999)"))
    database.run(lambda one: one.execute("UPDATE kernelkeep.usable SET least = 9999"))
    with pytest.raises(UnusableTokens, match="newer kernelkeep"):
        SharedTokensPlace(url).open(create=True)
