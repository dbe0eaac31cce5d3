"""The database of sessions: what it keeps, and which files it refuses."""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from app.managers.sessions import store as session_store
from app.managers.sessions.store import (
    SCHEMA_VERSION,
    Session,
    SessionStore,
    UnusableDatabase,
    check_database,
)

FIRST = Session("id-1", "a/b.ipynb", "b.ipynb", "notebook", "kernel-1")
SECOND = Session("id-2", "c", None, "console", "kernel-2")
THIRD = Session("id-3", "d", "", "file", "kernel-1")


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "sessions.db"


@pytest.fixture
def store(database: Path) -> Iterator[SessionStore]:
    store = SessionStore(str(database))
    yield store
    store.close()


def _reopened(database: Path) -> list[Session]:
    store = SessionStore(str(database))
    try:
        return store.load()
    finally:
        store.close()


def _execute(database: Path, *statements: str) -> None:
    with closing(sqlite3.connect(database)) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()


def test_a_new_database_is_empty(store: SessionStore) -> None:
    assert store.load() == []


def test_what_is_saved_is_there_for_the_next_in_the_order_in_which_it_came(
    store: SessionStore, database: Path
) -> None:
    for session in (SECOND, FIRST, THIRD):
        store.save(session)
    assert store.load() == [SECOND, FIRST, THIRD]
    assert _reopened(database) == [SECOND, FIRST, THIRD]


def test_a_change_replaces_and_keeps_the_place(store: SessionStore, database: Path) -> None:
    store.save(FIRST)
    store.save(SECOND)
    changed = Session("id-1", "moved", None, "file", "kernel-9")
    store.save(changed)
    assert _reopened(database) == [changed, SECOND]


def test_what_is_deleted_is_gone(store: SessionStore, database: Path) -> None:
    for session in (FIRST, SECOND, THIRD):
        store.save(session)
    store.delete(["id-1", "id-3", "never there"])
    assert _reopened(database) == [SECOND]


def test_the_file_is_for_its_owner_only(store: SessionStore, database: Path) -> None:
    assert stat.S_IMODE(database.stat().st_mode) == 0o600


def test_a_file_that_others_could_read_is_closed_to_them(database: Path) -> None:
    SessionStore(str(database)).close()
    database.chmod(0o644)
    SessionStore(str(database)).close()
    assert stat.S_IMODE(database.stat().st_mode) == 0o600


def test_the_schema_has_a_version(store: SessionStore, database: Path) -> None:
    with closing(sqlite3.connect(database)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)


def test_in_memory_there_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = SessionStore(":memory:")
    store.save(FIRST)
    assert store.load() == [FIRST]
    store.close()
    assert list(tmp_path.iterdir()) == []


def test_an_empty_file_becomes_a_database(database: Path) -> None:
    database.touch()
    assert _reopened(database) == []


def test_a_database_of_jupyter_server_is_read(database: Path) -> None:
    _execute(
        database,
        "CREATE TABLE session (session_id, path, name, type, kernel_id)",
        "INSERT INTO session VALUES ('id-2', 'c', NULL, 'console', 'kernel-2')",
    )
    assert _reopened(database) == [SECOND]


def test_a_row_that_makes_no_sense_is_left_out(store: SessionStore, database: Path) -> None:
    store.save(FIRST)
    _execute(
        database,
        "INSERT INTO session VALUES ('id', 'path', 'name', 'notebook', NULL)",
        "INSERT INTO session VALUES ('id', 5, 'name', 'notebook', 'kernel')",
        "INSERT INTO session VALUES (x'00', 'path', 'name', 'notebook', 'kernel')",
    )
    assert store.load() == [FIRST]


def _text(database: Path) -> None:
    database.write_text("This is no database, but a letter to a friend.\n" * 40)


def _damaged(database: Path) -> None:
    _execute(database, "CREATE TABLE session (session_id, path, name, type, kernel_id)")
    content = bytearray(database.read_bytes())
    content[100:] = os.urandom(len(content) - 100)
    database.write_bytes(content)


def _damaged_inside(database: Path) -> None:
    store = SessionStore(str(database))
    for number in range(200):
        store.save(Session(f"id-{number}", "x" * 100, None, "notebook", "kernel"))
    store.close()
    content = bytearray(database.read_bytes())
    content[4096 * 2 :] = bytes(len(content) - 4096 * 2)
    database.write_bytes(content)


def _newer(database: Path) -> None:
    SessionStore(str(database)).close()
    _execute(database, f"PRAGMA user_version = {SCHEMA_VERSION + 1}")


def _newer_and_different(database: Path) -> None:
    _execute(
        database,
        "CREATE TABLE session (id, document)",
        f"PRAGMA user_version = {SCHEMA_VERSION + 1}",
    )


def _of_others(database: Path) -> None:
    _execute(database, "CREATE TABLE bookmarks (url)", "PRAGMA user_version = 78")


def _with_other_columns(database: Path) -> None:
    _execute(database, "CREATE TABLE session (id, cookie)")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (_text, "file is not a database"),
        (_damaged, "cannot be used: "),
        (_damaged_inside, "is damaged: "),
        (_newer, f"written by a newer kernelkeep (its schema is {SCHEMA_VERSION + 1}"),
        (_newer_and_different, "written by a newer kernelkeep"),
        (_of_others, "is not a database of sessions"),
        (_with_other_columns, "is not a database of sessions"),
    ],
)
def test_a_file_that_is_no_database_of_ours_is_refused_and_not_touched(
    database: Path, make: Callable[[Path], None], reason: str
) -> None:
    make(database)
    database.chmod(0o640)
    content, before = database.read_bytes(), database.stat()
    for opened in (SessionStore, check_database):
        with pytest.raises(UnusableDatabase) as refused:
            opened(str(database))
        assert str(refused.value).startswith(f"{database} ")
        assert reason in str(refused.value)
        assert "\n" not in str(refused.value)
    after = database.stat()
    assert database.read_bytes() == content
    assert (after.st_mtime_ns, after.st_mode) == (before.st_mtime_ns, before.st_mode)
    assert list(database.parent.iterdir()) == [database]


def test_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnusableDatabase, match="is not a file"):
        SessionStore(str(tmp_path))


def test_a_pipe_is_refused(database: Path) -> None:
    os.mkfifo(database)
    with pytest.raises(UnusableDatabase, match="is not a file"):
        SessionStore(str(database))


def test_a_name_that_is_too_long_is_refused(database: Path) -> None:
    with pytest.raises(UnusableDatabase, match="File name too long"):
        check_database(f"{database}{'x' * 300}")


def test_a_file_that_another_process_is_writing_to_is_refused(
    store: SessionStore, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_store, "LOCK_SECONDS", 0.01)
    with closing(sqlite3.connect(database, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(UnusableDatabase, match="cannot be used: database is locked"):
            SessionStore(str(database))


def test_a_directory_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnusableDatabase, match=f"there is no directory {tmp_path}/nowhere"):
        SessionStore(str(tmp_path / "nowhere" / "sessions.db"))


def test_looking_at_a_file_that_is_not_there_does_not_make_it(database: Path) -> None:
    check_database(str(database))
    assert not database.exists()


def test_what_a_crash_left_half_done_does_not_stop_the_start(
    store: SessionStore, database: Path
) -> None:
    store.save(FIRST)
    # A transaction that reached the file and was never committed, as after kill -9.
    with closing(sqlite3.connect(database, isolation_level=None)) as crashed:
        crashed.execute("PRAGMA cache_size = 1")
        crashed.execute("BEGIN")
        crashed.executemany(
            "INSERT INTO session VALUES (?, ?, 'n', 't', 'k')",
            ((str(number), "x" * 2000) for number in range(200)),
        )
        journal = database.with_name(f"{database.name}-journal")
        copies = {path: path.read_bytes() for path in (database, journal)}
        crashed.execute("ROLLBACK")
    store.close()
    for path, content in copies.items():
        path.write_bytes(content)
    check_database(str(database))
    assert _reopened(database) == [FIRST]
