"""The database of the shared registry: migrations, lost connections, and no password anywhere."""

from __future__ import annotations

import asyncio
import logging
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

import psycopg
import pytest

from app.managers.handover.store import StoreAway, UnusableRegistry
from app.managers.replicas.database import (
    STATEMENT_SECONDS,
    Connection,
    Database,
    _migrations,
    migrate,
    newest_version,
)
from app.managers.replicas.directory import Directory
from tests.support.postgresql import PASSWORD, PostgreSQL, tells_password


def test_an_empty_database_is_brought_to_the_newest_version_by_one_of_many(url: str) -> None:
    databases = [Database(url) for _ in range(6)]
    with ThreadPoolExecutor(len(databases)) as threads:
        done = [*threads.map(migrate, databases)]
    assert sorted(done) == [(0, newest_version())] + 5 * [(newest_version(),) * 2]
    for database in databases:
        database.close()


def test_text_is_text_whatever_the_encoding_of_the_database(postgresql: PostgreSQL) -> None:
    database = Database(postgresql.new_database(encoding="SQL_ASCII"))
    migrate(database)

    def work(connection: Connection) -> object:
        connection.execute(
            "INSERT INTO kernelkeep.session (id, path, type, kernel_id, owner) "
            "VALUES ('1', 'a.ipynb', 'notebook', '', 'Анна')"
        )
        return connection.execute("SELECT id, owner FROM kernelkeep.session").fetchone()

    assert database.run(work) == ("1", "Анна")
    database.close()


def test_a_database_that_cannot_store_every_name_is_refused(postgresql: PostgreSQL) -> None:
    database = Database(postgresql.new_database(encoding="LATIN1"))
    with pytest.raises(UnusableRegistry, match="the encoding LATIN1, in which not every name"):
        migrate(database)
    database.close()


def later(connection: Connection) -> None:
    """What a migration of a later version does, at the least."""
    connection.execute("INSERT INTO kernelkeep.migration VALUES (99)")


def test_a_registry_of_a_newer_version_is_used_if_that_allows_it(database: Database) -> None:
    database.run(later)
    assert migrate(database) == (99, 99)


ADDS = re.compile(
    r"CREATE (TABLE|INDEX|UNIQUE INDEX) |INSERT INTO "
    r"|ALTER TABLE \S+ ADD COLUMN (?=.* DEFAULT |(?!.* NOT NULL))",
    re.DOTALL,
)
"""What the servers of an earlier version do not notice."""


def is_usable_before(statements: str) -> bool:
    """Whether a migration only adds, or says whose servers can use the registry then."""
    plain = re.sub(r"--.*", "", statements)
    each = [statement.strip() for statement in plain.split(";") if statement.strip()]
    return "UPDATE kernelkeep.usable SET least" in plain or all(map(ADDS.match, each))


@pytest.mark.parametrize(
    ("statements", "is_usable"),
    [
        ("CREATE TABLE kernelkeep.more (id text); CREATE INDEX i ON kernelkeep.more (id);", True),
        ("ALTER TABLE kernelkeep.kernel ADD COLUMN more text;", True),
        ("ALTER TABLE kernelkeep.kernel ADD COLUMN more text NOT NULL DEFAULT '';", True),
        ("ALTER TABLE kernelkeep.kernel ADD COLUMN more text NOT NULL;", False),
        ("ALTER TABLE kernelkeep.kernel DROP COLUMN model;", False),
        ("DROP TABLE kernelkeep.kernel; UPDATE kernelkeep.usable SET least = 9;", True),
    ],
)
def test_which_migrations_servers_of_an_earlier_version_live_with(
    statements: str, is_usable: bool
) -> None:
    assert is_usable_before(statements) is is_usable


def test_migrations_add_or_say_which_servers_can_use_the_registry_then() -> None:
    found = {version: is_usable_before(statements) for version, statements in _migrations()}
    assert all(is_usable for version, is_usable in found.items() if version > 7), found


def test_a_registry_of_a_newer_version_is_refused_in_one_line(database: Database, url: str) -> None:
    database.run(later)
    database.run(lambda connection: connection.execute("UPDATE kernelkeep.usable SET least = 98"))
    with pytest.raises(UnusableRegistry) as refused:
        migrate(database)
    assert "newer kernelkeep (its version is 99" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_connection_that_was_lost_is_made_again(database: Database, url: str) -> None:
    pid = database.run(lambda connection: connection.info.backend_pid)
    with psycopg.connect(url, autocommit=True) as other:
        other.execute("SELECT pg_terminate_backend(%s)", (pid,))
    assert database.run(lambda connection: connection.info.backend_pid) != pid


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("s3cret%20word@", "s3cret%20Word@"),
        ("s3cret%20word@", "s3cret%20word%zz@"),
        ("127.0.0.1", "no-such-host.invalid"),
        ("/test", "/none"),
    ],
)
def test_no_error_tells_the_password(url: str, before: str, after: str) -> None:
    database = Database(url.replace(before, after))
    with pytest.raises(StoreAway) as away:
        database.run(lambda connection: None)
    assert not tells_password(str(away.value))
    assert "\n" not in str(away.value)


@pytest.mark.parametrize("told", ["a  long", "a%20%20long", "postgresql://u:a%20%20long@h/d"])
def test_both_forms_of_the_password_are_masked(told: str) -> None:
    database = Database("postgresql://u:a%20%20long@h/d")
    plain = database.plain(psycopg.OperationalError(f"no:\n{told}"))
    assert plain == "no: " + told.replace("a%20%20long", "***").replace("a  long", "***")


def test_no_error_tells_what_is_in_a_row(database: Database) -> None:
    def insert(connection: Connection) -> None:
        connection.execute(
            "INSERT INTO kernelkeep.session (id, path, type, kernel_id, owner) "
            "VALUES ('1', 'a secret', NULL, '', '')"
        )

    with pytest.raises(StoreAway, match="null value in column") as away:
        database.run(insert)
    assert "a secret" not in str(away.value)


def test_work_on_a_database_that_hangs_can_be_ended() -> None:
    with PostgreSQL() as server:
        database = Database(server.url())
        database.run(lambda connection: None)
        server.pause()
        failed = threading.Event()

        def ask() -> None:
            with pytest.raises(StoreAway):
                database.run(_one)
            failed.set()

        thread = threading.Thread(target=ask)
        thread.start()
        while not failed.wait(0.2):  # the second attempt ends by itself
            database.abort()
        thread.join(30)
        server.resume()
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                assert database.run(_one) == (1,)
                break
            except StoreAway:
                time.sleep(0.1)
        database.close()


def test_who_is_stopped_in_a_transaction_holds_up_nobody_for_long(
    url: str, database: Database
) -> None:
    lock = "SELECT version FROM kernelkeep.migration WHERE version = 1 FOR UPDATE"
    stopped = Database(url)
    stopped.run(lambda connection: None)
    has_it, goes_on = threading.Event(), threading.Event()
    told: list[object] = []

    def work(connection: Connection) -> object:
        connection.execute(lock)
        has_it.set()
        goes_on.wait(60)
        return connection.execute("SELECT 2").fetchone()

    thread = threading.Thread(target=lambda: told.append(stopped.run(work)))
    thread.start()
    assert has_it.wait(30)
    began = time.monotonic()
    database.run(lambda connection: connection.execute(lock))
    assert time.monotonic() - began < STATEMENT_SECONDS - 1
    goes_on.set()
    thread.join(30)
    assert told == [(2,)]  # it has lost its connection, and did it again
    stopped.close()


def _one(connection: Connection) -> object:
    return connection.execute("SELECT 1").fetchone()


async def test_a_connection_that_hears_of_changes_logs_no_password(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    encoded = quote(PASSWORD)
    directory = Directory(f"postgresql://kernelkeep:{encoded}@127.0.0.1:1/nothing", lambda: None)

    def fail(_: Connection) -> None:
        directory._ends.set()
        raise psycopg.OperationalError(f"lost: {PASSWORD}, {encoded}")

    monkeypatch.setattr(directory._database, "open", lambda: None)
    monkeypatch.setattr(directory, "_listen_once", fail)
    await asyncio.to_thread(directory._listen)
    assert "the registry's changes are not heard: lost: ***, ***" in caplog.text
    assert not tells_password(caplog.text)
