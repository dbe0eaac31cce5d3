"""A PostgreSQL server for the tests of a worker, with a new database for each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from app.managers.replicas.database import Database, migrate
from tests.managers.replicas.asking import Replica
from tests.support.postgresql import PostgreSQL


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    """A server that tests may not stop."""
    with PostgreSQL() as server:
        yield server


@pytest.fixture
def url(postgresql: PostgreSQL) -> str:
    """The URL of an empty database."""
    return postgresql.new_database()


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    """A database with the registry's tables."""
    database = Database(url)
    migrate(database)
    yield database
    database.close()


@pytest.fixture
def replicas(url: str, database: Database) -> Iterator[list[Replica]]:
    """Three replicas of one registry, without a server."""
    made = [Replica(url, name) for name in ("first", "second", "third")]
    yield made
    for one in made:
        one.close()
