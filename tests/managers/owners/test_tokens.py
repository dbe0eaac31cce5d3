"""The list of tokens on disk."""

from __future__ import annotations

import contextlib
import os
import resource
import sqlite3
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from app.managers.owners import tokens as module
from app.managers.owners.credentials import digest, shown
from app.managers.owners.errors import TokenNameTaken, TooManyTokens
from app.managers.owners.tokens import (
    FILE,
    REMEMBERED_SECONDS,
    SCHEMA_VERSION,
    NewToken,
    TokenStore,
    UnusableTokens,
)

NOW = 1_800_000_000.0
DAY = 86400.0


def wanted(name: str = "laptop", owner: str = "anna", **more: Any) -> NewToken:
    return NewToken(name, owner, ("kernels:read",), **more)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[TokenStore]:
    with contextlib.closing(TokenStore(tmp_path, create=True)) as opened:
        yield opened


def ids(store: TokenStore) -> list[str]:
    return [record.id for record in store.records() if record.in_force(NOW)]


def test_what_is_made_comes_back_and_the_token_is_not_in_the_file(
    store: TokenStore, tmp_path: Path
) -> None:
    record, token = store.add(
        wanted(groups=("physics",), expires=NOW + DAY, made_with="kk_01234567"), NOW
    )
    assert store.records() == [record]
    assert (record.id, record.digest) == (shown(token), digest(token))
    assert (record.created, record.revoked, record.last_used) == (NOW, None, None)
    assert record.groups == ("physics",)
    path = tmp_path / FILE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert token.encode() not in path.read_bytes()
    with contextlib.closing(TokenStore(tmp_path)) as again:
        assert again.records() == [record]


def test_one_that_is_revoked_ends_with_those_that_were_made_with_it(store: TokenStore) -> None:
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


def test_one_that_has_expired_is_not_revoked_as_well(store: TokenStore) -> None:
    record, _ = store.add(wanted(expires=NOW + 1), NOW)
    assert record.state(NOW) == "valid"
    assert store.revoke([record.id], NOW + 1) == []
    assert store.records()[0].state(NOW + 1) == "expired"


def test_changes_have_growing_versions_and_uses_have_none(store: TokenStore) -> None:
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


def test_another_connection_s_changes_are_noticed(store: TokenStore, tmp_path: Path) -> None:
    before = store.changes_elsewhere()
    store.add(wanted("own"), NOW)
    assert store.changes_elsewhere() == before
    with contextlib.closing(TokenStore(tmp_path)) as other:
        other.add(wanted("other's"), NOW)
    assert store.changes_elsewhere() != before


@pytest.mark.parametrize("name", ["laptop", "LapTop", "ｌａｐｔｏｐ", "LAPTOP"])
def test_a_name_that_would_be_taken_for_another_is_refused(store: TokenStore, name: str) -> None:
    first, _ = store.add(wanted(), NOW)
    with pytest.raises(TokenNameTaken, match="laptop"):
        store.add(wanted(name), NOW)
    store.add(wanted(name, owner="ben"), NOW)
    store.revoke([first.id], NOW)
    store.add(wanted(name), NOW)


@pytest.mark.parametrize(("first", "then"), [("José", "JOSÉ"), ("anna", "Anna"), ("ﬁ", "fi")])
def test_an_owner_that_would_be_taken_for_another_is_refused_by_hand_only(
    store: TokenStore, first: str, then: str
) -> None:
    store.add(wanted(owner=first), NOW)
    with pytest.raises(TokenNameTaken, match=first):
        store.add(wanted(owner=then), NOW, named_by_hand=True)
    store.add(wanted(owner=then), NOW)  # an identity provider has named both
    store.add(wanted("second", owner=then), NOW, named_by_hand=True)


def test_nobody_is_taken_for_the_owner_of_the_server_s_own_token(store: TokenStore) -> None:
    with pytest.raises(TokenNameTaken):
        store.add(wanted(owner="Anonymous"), NOW, named_by_hand=True)
    store.add(wanted(owner="anonymous"), NOW, named_by_hand=True)


def test_there_is_a_bound_of_each_owner_and_of_all(
    store: TokenStore, monkeypatch: pytest.MonkeyPatch
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
    store: TokenStore, monkeypatch: pytest.MonkeyPatch
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


def test_no_version_comes_twice_even_if_the_newest_is_forgotten(store: TokenStore) -> None:
    record, _ = store.add(wanted(expires=NOW + 1), NOW)
    later, _ = store.add(wanted(), NOW + 2 + REMEMBERED_SECONDS)
    assert store.records() == [later]
    assert later.version > record.version


def test_many_at_once_each_get_one(tmp_path: Path) -> None:
    def make(number: int) -> str:
        with contextlib.closing(TokenStore(tmp_path, create=True)) as own:
            return own.add(wanted(f"{number}"), NOW)[0].id

    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(make, range(24)))
    with contextlib.closing(TokenStore(tmp_path)) as store:
        assert sorted(record.id for record in store.records()) == sorted(made)
        versions = [record.version for record in store.records()]
    assert len(set(versions)) == 24


# What cannot be used


def unusable(state_dir: Path) -> str:
    with pytest.raises(UnusableTokens) as raised:
        TokenStore(state_dir)
    (line,) = str(raised.value).splitlines()
    assert str(state_dir / FILE) in line
    return line


@pytest.fixture
def path(store: TokenStore, tmp_path: Path) -> Path:
    store.add(wanted(), NOW)
    store.close()
    return tmp_path / FILE


def test_no_file_is_no_fault(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        TokenStore(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o666])
def test_a_file_that_others_can_read_or_write_is_refused(path: Path, mode: int) -> None:
    path.chmod(mode)
    assert f"chmod 0600 {path}" in unusable(path.parent)


def test_a_link_a_directory_and_another_user_s_file_are_refused(path: Path) -> None:
    moved = path.with_name("moved")
    path.rename(moved)
    path.symlink_to(moved)
    assert "is not a file" in unusable(path.parent)
    path.unlink()
    path.mkdir()
    assert "is not a file" in unusable(path.parent)
    path.rmdir()
    moved.rename(path)
    if os.geteuid() == 0:
        os.chown(path, 12345, 12345)
        assert "belongs to another user (12345)" in unusable(path.parent)


@pytest.mark.parametrize("garbage", [b"no database" * 100, b"\0" * 4096])
def test_a_file_that_is_damaged_is_left_as_it_is(path: Path, garbage: bytes) -> None:
    path.write_bytes(garbage)
    assert "damaged" in unusable(path.parent)
    assert path.read_bytes() == garbage


def test_a_page_that_is_damaged_is_noticed(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[4096:8192] = b"\xff" * 4096
    path.write_bytes(data)
    unusable(path.parent)


def test_a_row_that_makes_no_sense_is_noticed(path: Path) -> None:
    for column, value in (("scopes", "{"), ("owner", None), ("scopes", '"a"'), ("created", "x")):
        with contextlib.closing(sqlite3.connect(path)) as connection, connection:
            before = connection.execute(f"SELECT {column} FROM token").fetchone()
            connection.execute(f"UPDATE token SET {column} = ?", (value,))
        no_sense = pytest.raises(UnusableTokens, match="a row makes no sense")
        with contextlib.closing(TokenStore(path.parent)) as store, no_sense:
            store.records()
        with contextlib.closing(sqlite3.connect(path)) as connection, connection:
            connection.execute(f"UPDATE token SET {column} = ?", before)


def test_another_database_is_not_written_over(tmp_path: Path) -> None:
    path = tmp_path / FILE
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE cooking (recipe)")
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    path.chmod(0o600)
    before = path.read_bytes()
    assert "no such table" in unusable(tmp_path)
    assert path.read_bytes() == before


def test_a_newer_schema_is_told(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    before = path.read_bytes()
    assert "newer kernelkeep" in unusable(path.parent)
    assert path.read_bytes() == before


def test_a_lock_of_another_process_is_waited_for_for_a_while(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOCK_SECONDS", 0.1)
    with contextlib.closing(TokenStore(path.parent)) as store:
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            with pytest.raises(UnusableTokens, match="locked"):
                store.add(wanted("second"), NOW)
            with pytest.raises(UnusableTokens, match="locked"):
                store.records()
            other.execute("ROLLBACK")
        store.add(wanted("second"), NOW)


def fill(store: TokenStore) -> None:
    for number in range(100):
        store.add(wanted(f"{number}" + "x" * 200), NOW)


def test_a_disk_that_is_full_is_told_and_nothing_is_half_made(path: Path) -> None:
    with contextlib.closing(TokenStore(path.parent)) as store:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size, hard))
        try:
            with pytest.raises(UnusableTokens):
                fill(store)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        made = store.state()[0]
        store.add(wanted("now there is room"), NOW)
        assert store.state()[0] == made + 1
