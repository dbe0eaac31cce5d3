"""The list of tokens on disk."""

from __future__ import annotations

import contextlib
import os
import resource
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.managers.owners import tokens as module
from app.managers.owners.credentials import digest, shown
from app.managers.owners.token_table import UnusableTokens
from app.managers.owners.tokens import FILE, SCHEMA_VERSION, TokenStore
from tests.support.tokens import DAY, NOW, wanted


@pytest.fixture
def store(tmp_path: Path) -> Iterator[TokenStore]:
    with contextlib.closing(TokenStore(tmp_path, create=True)) as opened:
        yield opened


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


def test_a_file_of_before_is_used_and_left_to_the_version_before(
    store: TokenStore, tmp_path: Path
) -> None:
    record, _ = store.add(wanted(), NOW)
    path = tmp_path / FILE
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("ALTER TABLE token DROP COLUMN revoked_by")
    with contextlib.closing(TokenStore(tmp_path)) as again:
        assert again.records() == [record]
        (revoked,) = again.revoke([record.id], NOW, "uid:0 (root)")
        assert revoked.revoked_by == "uid:0 (root)"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (1,)


def test_another_connection_s_changes_are_noticed(store: TokenStore, tmp_path: Path) -> None:
    before = store.changes_elsewhere()
    store.add(wanted("own"), NOW)
    assert store.changes_elsewhere() == before
    with contextlib.closing(TokenStore(tmp_path)) as other:
        other.add(wanted("other's"), NOW)
    assert store.changes_elsewhere() != before


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
