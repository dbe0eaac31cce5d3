"""Sessions in the registry that replicas share: PostgreSQL notifies all replicas of a change."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractAsyncContextManager

from ..handover.elsewhere import SharedSession
from ..replicas.claims import SharedClaims
from ..replicas.database import Connection, Database
from ..replicas.store import tell
from .store import Session

__all__ = ["SharedSessions"]


class SharedSessions:
    """A `SessionKeeping` in PostgreSQL. ``known`` are the sessions as the directory has them."""

    def __init__(self, url: str, known: Mapping[str, SharedSession], claims: SharedClaims) -> None:
        self._database = Database(url)
        self._known = known
        self._claims = claims

    def turn(self, owner: str, path: str) -> AbstractAsyncContextManager[None]:
        """As `SessionStore.turn`, among all replicas. Raises `RegistryUnavailable`."""
        return self._claims.turn(owner, "session", path)

    def load(self) -> list[Session]:
        """As `SessionStore.load`."""
        # From memory, and so without blocking: the event loop calls `SessionBook.read_again`.
        found = sorted(self._known.values(), key=lambda session: session.number)
        return [
            Session(one.id, one.path, one.name, one.type, one.kernel_id, one.owner) for one in found
        ]

    def save(self, session: Session) -> None:
        """As `SessionStore.save`. Raises `StoreAway`."""

        def work(connection: Connection) -> None:
            connection.execute(
                "INSERT INTO kernelkeep.session (id, path, name, type, kernel_id, owner) "
                "VALUES (%s, %s, %s, %s, %s, %s) ON CONFLICT (id) DO UPDATE SET "
                "path = excluded.path, name = excluded.name, type = excluded.type, "
                "kernel_id = excluded.kernel_id",
                (
                    *(session.id, session.path, session.name, session.type),
                    *(session.kernel_id, session.owner),
                ),
            )
            # In the transaction: PostgreSQL notifies the replicas when it is committed, not before.
            tell(connection, "sessions", [session.id])

        self._database.run(work)

    def delete(self, session_ids: Iterable[str]) -> None:
        """As `SessionStore.delete`. Raises `StoreAway`."""
        ids = [*session_ids]

        def work(connection: Connection) -> None:
            connection.execute("DELETE FROM kernelkeep.session WHERE id = ANY(%s)", (ids,))
            tell(connection, "sessions", ids)

        self._database.run(work)

    def abort(self) -> None:
        """As `SessionStore.abort`."""
        self._database.abort()

    def close(self) -> None:
        """As `SessionStore.close`."""
        self._database.close()
