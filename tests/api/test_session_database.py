"""Sessions in a file: what the next server finds, and which files stop the start."""

from __future__ import annotations

import asyncio
import sqlite3
import stat
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tests.api.errors import error_of
from tests.conftest import MakeServer
from tests.support.commands import Commands
from tests.support.home import Home
from tests.support.processes import eventually
from tests.support.rest import RestClient
from tests.support.sessions import Sessions


def _rows(database: Path) -> list[tuple[str | None, ...]]:
    with closing(sqlite3.connect(database)) as connection:
        rows = connection.execute("SELECT session_id, path, name, type, kernel_id FROM session")
        return rows.fetchall()


async def test_a_session_is_in_the_file_when_the_answer_comes(
    make_server: MakeServer, home: Home
) -> None:
    database = home.path / "sessions.db"
    server = make_server("--database-filepath", str(database), home=home)
    assert stat.S_IMODE(database.stat().st_mode) == 0o600
    async with RestClient(server.url, server.token) as rest:
        sessions = Sessions(rest)
        session = await sessions.create("a", name="a")
        kernel_id = session["kernel"]["id"]
        assert _rows(database) == [(session["id"], "a", "a", "notebook", kernel_id)]
        await sessions.change(session["id"], path="b", name=None, type="console")
        assert _rows(database) == [(session["id"], "b", None, "console", kernel_id)]
        await sessions.delete(session["id"])
        assert _rows(database) == []


async def test_the_next_server_knows_what_became_of_the_sessions(
    make_server: MakeServer, home: Home
) -> None:
    database = home.path / "sessions.db"
    first = make_server("--database-filepath", str(database), home=home)
    async with RestClient(first.url, first.token) as rest:
        session = await Sessions(rest).create("a")
    first.stop()
    second = make_server("--database-filepath", str(database), home=home)
    async with RestClient(second.url, second.token) as rest:
        path = f"/api/sessions/{session['id']}"
        told, forgotten = [await rest.http.get(path) for _ in range(2)]
        farewell = f"Session not found: \"Kernel '{session['kernel']['id']}' appears to have been"
        assert error_of(told, 404, "session_not_found").startswith(farewell)
        short = f"Session not found: session_id='{session['id']}'"
        assert error_of(forgotten, 404, "session_not_found") == short
    assert _rows(database) == []


async def test_by_default_sessions_end_with_the_server(make_server: MakeServer, home: Home) -> None:
    first = make_server(home=home)
    async with RestClient(first.url, first.token) as rest:
        session = await Sessions(rest).create("a")
    first.stop()
    second = make_server(home=home)
    async with RestClient(second.url, second.token) as rest:
        response = await rest.http.get(f"/api/sessions/{session['id']}")
    short = f"Session not found: session_id='{session['id']}'"
    assert error_of(response, 404, "session_not_found") == short


async def test_a_file_that_cannot_be_written_takes_no_session_away(
    make_server: MakeServer, home: Home
) -> None:
    database = home.path / "sessions.db"
    server = make_server("--database-filepath", str(database), home=home)
    async with RestClient(server.url, server.token) as rest:
        sessions = Sessions(rest)
        # Until this connection is closed nobody else can write.
        with closing(sqlite3.connect(database, isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            creation = asyncio.create_task(sessions.create("a"))
            # The server answers everything else while it waits for the file.
            await eventually(rest.kernels)
            assert not creation.done()
            session = await creation
        assert await sessions.get(session["id"])
        assert _rows(database) == []
        await eventually(lambda: "could not be stored: database is locked" in server.output())
        await sessions.change(session["id"], path="b")
        assert [row[1] for row in _rows(database)] == ["b"]


def _text(database: Path) -> None:
    database.write_text("This is no database, but a letter to a friend.\n")


def _newer(database: Path) -> None:
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("CREATE TABLE session (session_id, path, name, type, kernel_id)")
        connection.execute("PRAGMA user_version = 99")
        connection.commit()


def _directory(database: Path) -> None:
    database.mkdir()


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (_text, "file is not a database"),
        (_newer, "was written by a newer kernelkeep (its schema is 99, this one knows 1)"),
        (_directory, "is not a file"),
    ],
)
def test_a_file_that_is_no_database_of_sessions_stops_the_start(
    commands: Commands, home: Home, make: Callable[[Path], None], reason: str
) -> None:
    database = home.path / "sessions.db"
    make(database)
    content = database.read_bytes() if database.is_file() else None
    done = commands.run(
        *("--port", "0", "--token", "t", "--database-filepath", str(database)), home=home
    )
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"kernelkeep: --database-filepath: {database} ")
    assert line.endswith(reason)
    assert (database.read_bytes() if database.is_file() else None) == content
