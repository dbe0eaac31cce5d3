"""The database of the shared registry: migrations, lost connections, and no password anywhere."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from app.managers.handover.store import StoreAway, UnusableRegistry
from app.managers.replicas.database import (
    STATEMENT_SECONDS,
    Connection,
    Database,
    migrate,
    newest_version,
)
from tests.support.postgresql import PASSWORD, PostgreSQL


def test_an_empty_database_is_brought_to_the_newest_version_by_one_of_many(url: str) -> None:
    databases = [Database(url) for _ in range(6)]
    with ThreadPoolExecutor(len(databases)) as threads:
        done = [*threads.map(migrate, databases)]
    assert sorted(done) == [(0, newest_version())] + 5 * [(newest_version(),) * 2]
    for database in databases:
        database.close()


def test_a_registry_of_a_newer_version_is_refused_in_one_line(database: Database, url: str) -> None:
    database.run(
        lambda connection: connection.execute("INSERT INTO kernelkeep.migration VALUES (99)")
    )
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
        ("127.0.0.1", "no-such-host.invalid"),
        ("/test", "/none"),
    ],
)
def test_no_error_tells_the_password(url: str, before: str, after: str) -> None:
    database = Database(url.replace(before, after))
    with pytest.raises(StoreAway) as away:
        database.run(lambda connection: None)
    assert PASSWORD.lower() not in str(away.value).lower()
    assert "\n" not in str(away.value)


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
