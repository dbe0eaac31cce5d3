"""The authority in the registry: made once, whoever asks first, and the same for all."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from app.managers.processes.hosts.authority import Signer
from app.managers.replicas.authority import shared_authority
from app.managers.replicas.database import Database, migrate


def test_all_who_ask_at_once_get_the_same(url: str) -> None:
    databases = [Database(url) for _ in range(6)]
    migrate(databases[0])
    with ThreadPoolExecutor(len(databases)) as threads:
        found = {*threads.map(shared_authority, databases)}
    (pem,) = found
    assert "BEGIN CERTIFICATE" in Signer(pem).own
    assert shared_authority(databases[0]) == pem
    for database in databases:
        database.close()
