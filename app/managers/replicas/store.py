"""The shared registry as one replica writes it: every write names the replica and the term.

A write for a kernel that another replica has taken meanwhile changes nothing, and `on_fenced` is
called: this replica then lets go of the kernel. A take (`membership.py`) and such a write wait for
each other at the kernel's row. So either the other replica reads the write together with the
kernel that it has taken, or the write is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from typing import Final

import msgspec

from ...protocol.messages import format_timestamp
from ..handover.store import ExecutionRecord, KernelRecord, Lease, decode_json, encode_json
from ..log.places import Places
from ..owners.principal import ANONYMOUS
from .database import CHANNEL, Connection, Database
from .terms import Terms

__all__ = ["SharedStore", "decode_record", "executions_of", "places_of", "tell", "which_fit"]

TOLD_AT_ONCE: Final = 150
"""Ids in one notification, which has 8000 bytes at the most."""

_encode = msgspec.json.encode


class SharedStore:
    """A `RegistryStore` in PostgreSQL, for the replica with the id ``replica``.

    ``keeper_of`` tells how the keeper of a recorded kernel is reached. ``on_fenced`` is called, in
    the thread of the write, with the id of a kernel that another replica has, and the term of the
    write. Every method may raise `StoreAway`.
    """

    def __init__(
        self,
        database: Database,
        replica: str,
        terms: Terms,
        keeper_of: Callable[[KernelRecord], str],
        on_fenced: Callable[[str, int], None],
    ) -> None:
        self._database = database
        self._replica = replica
        self._terms = terms
        self._keeper_of = keeper_of
        self._on_fenced = on_fenced

    def at(self, terms: Terms) -> SharedStore:
        """This store, whose writes go with these terms.

        A write may wait in its thread for as long as the registry is away. Meanwhile another
        replica may have taken the kernel, and this one have taken it back: the write has to go with
        the term in which it was asked for, and be refused.
        """
        store = copy(self)
        store._terms = terms
        return store

    def load(self) -> list[KernelRecord]:
        """An empty list: a new replica has no kernels until it takes some (`membership.take`)."""
        return []

    def save(self, record: KernelRecord) -> None:
        """As `RegistryStore.save`."""
        # The term in which the write was asked for (`at`): the registry refuses the write if the
        # kernel has a later one.
        term = self._terms.of(record.id)

        def work(connection: Connection) -> bool:
            # A replica that was declared dead has no row, so that it cannot bring back a kernel
            # that its next owner has removed. The row is locked to the end: whoever declares this
            # replica dead meanwhile waits, and frees this kernel, too.
            alive = connection.execute(
                "SELECT 1 FROM kernelkeep.replica WHERE id = %s FOR SHARE", (self._replica,)
            ).fetchone()
            saved = (
                alive
                and term
                and connection.execute(
                    "INSERT INTO kernelkeep.kernel AS kernel (id, replica, term, keeper, owner, "
                    "created, record, last_activity, execution_state, model) "
                    "VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s) "
                    "ON CONFLICT (id) DO UPDATE SET "
                    "owner = excluded.owner, record = excluded.record, "
                    "last_activity = excluded.last_activity, "
                    "execution_state = excluded.execution_state "
                    "WHERE kernel.replica = excluded.replica AND kernel.term = excluded.term "
                    "RETURNING id",
                    (
                        *(record.id, self._replica, term, self._keeper_of(record), record.owner),
                        *(record.created, encode_json(record), record.last_activity),
                        *(record.execution_state, _first_model(record)),
                    ),
                ).fetchone()
            )
            if saved:
                connection.execute(
                    "INSERT INTO kernelkeep.tenure (kernel_id, term, replica) VALUES (%s, %s, %s) "
                    "ON CONFLICT DO NOTHING",
                    (record.id, term, self._replica),
                )
                tell(connection, "kernels", [record.id])
            return bool(saved)

        # After the transaction, so that the refusal is final.
        if not self._database.run(work):
            self._on_fenced(record.id, term)

    def touch(self, seen: Iterable[tuple[str, float, str, bytes]]) -> None:
        """As `RegistryStore.touch`."""
        # `on_fenced` is not called here for kernels of other replicas: the next write of the
        # record, the executions or the places does that. No row has term 0, which `Terms.of` gives
        # for kernels that this replica does not have.
        rows = [
            (kernel_id, self._terms.of(kernel_id), when, word, model.decode())
            for kernel_id, when, word, model in seen
        ]
        ids, terms, times, words, models = map(list, zip(*rows, strict=True))

        def work(connection: Connection) -> None:
            # The rows are locked in no particular order. Only this replica writes them, and one
            # that declares it dead frees them: should the two transactions wait for each other,
            # PostgreSQL ends one of them, which runs again (`Database.run`).
            connection.execute(
                "UPDATE kernelkeep.kernel AS kernel SET last_activity = seen.at, "
                "execution_state = seen.word, model = seen.model "
                "FROM unnest(%s::text[], %s::bigint[], %s::float8[], %s::text[], %s::text[]) "
                "AS seen (id, term, at, word, model) WHERE kernel.id = seen.id "
                "AND kernel.replica = %s AND kernel.term = seen.term",
                (ids, terms, times, words, models, self._replica),
            )
            tell(connection, "kernels", ids)

        self._database.run(work)

    def delete(self, kernel_id: str) -> None:
        """As `RegistryStore.delete`; executions and places of clients go with the kernel.

        A kernel is deleted before its process is ended. Until that is done a reservation counts for
        the kernel (`reservations.py`), as its process still runs.
        """
        term = self._terms.of(kernel_id)

        def work(connection: Connection) -> None:
            # The replica's row is locked first, then the kernel's, as everywhere: a transaction
            # that declares a replica dead has the replica's row, and waits for its kernels' rows.
            # In the other order the two would wait for each other.
            connection.execute(
                "SELECT 1 FROM kernelkeep.replica WHERE id = %s FOR KEY SHARE", (self._replica,)
            )
            found = connection.execute(
                "SELECT replica, term FROM kernelkeep.kernel WHERE id = %s FOR UPDATE", (kernel_id,)
            ).fetchone()
            if found not in (None, (self._replica, term)):  # it is not this replica's to delete
                return
            connection.execute(
                "WITH gone AS (DELETE FROM kernelkeep.kernel WHERE id = %s "
                "RETURNING id, owner, replica, execution_state) "
                "INSERT INTO kernelkeep.reservation (kernel_id, owner, replica) "
                "SELECT id, owner, replica FROM gone WHERE execution_state <> 'dead' "
                "ON CONFLICT (kernel_id) DO NOTHING",
                (kernel_id,),
            )
            connection.execute(
                "DELETE FROM kernelkeep.execution WHERE kernel_id = %s", (kernel_id,)
            )
            connection.execute("DELETE FROM kernelkeep.places WHERE kernel_id = %s", (kernel_id,))
            tell(connection, "kernels", [kernel_id])

        self._database.run(work)

    def load_executions(self, kernel_id: str) -> list[ExecutionRecord]:
        """As `RegistryStore.load_executions`."""

        found = self._database.run(lambda connection: executions_of(connection, [kernel_id]))
        return found.get(kernel_id, [])

    def save_executions(
        self, changed: Iterable[ExecutionRecord], forgotten: Iterable[tuple[str, str]]
    ) -> None:
        """As `RegistryStore.save_executions`."""
        records, gone = [*changed], [*forgotten]
        ids = {record.kernel_id for record in records} | {key[0] for key in gone}
        terms = {kernel_id: self._terms.of(kernel_id) for kernel_id in ids}

        def work(connection: Connection) -> set[str]:
            # Executions of other kernels are written even if one kernel was taken by another
            # replica.
            others = self._others(connection, terms)
            own = [one for one in records if one.kernel_id not in others]
            with connection.cursor() as cursor:
                cursor.executemany(
                    "INSERT INTO kernelkeep.execution (kernel_id, id, number, data) "
                    "VALUES (%s, %s, %s, %s) ON CONFLICT (kernel_id, id) DO UPDATE SET "
                    "number = excluded.number, data = excluded.data",
                    [msgspec.structs.astuple(one) for one in own],
                )
                cursor.executemany(
                    "DELETE FROM kernelkeep.execution WHERE kernel_id = %s AND id = %s",
                    [key for key in gone if key[0] not in others],
                )
            return others

        for kernel_id in self._database.run(work):
            self._on_fenced(kernel_id, terms[kernel_id])

    def load_places(self, kernel_id: str) -> Places | None:
        """As `RegistryStore.load_places`."""

        found = self._database.run(lambda connection: places_of(connection, [kernel_id]))
        return found.get(kernel_id)

    def save_places(self, changed: Iterable[Places]) -> None:
        """As `RegistryStore.save_places`."""
        # A kernel that this replica has no term for is another's, or gone.
        places = {one.kernel_id: one for one in changed if one.kernel_id in self._terms}
        terms = {kernel_id: self._terms.of(kernel_id) for kernel_id in places}

        def work(connection: Connection) -> set[str]:
            others = self._others(connection, terms)
            # In the order of the ids, so that no two transactions wait for each other.
            own = [places[kernel_id] for kernel_id in sorted(places) if kernel_id not in others]
            with connection.cursor() as cursor:
                cursor.executemany(
                    "INSERT INTO kernelkeep.places (kernel_id, epoch, data) VALUES (%s, %s, %s) "
                    "ON CONFLICT (kernel_id) DO UPDATE SET epoch = excluded.epoch, "
                    "data = excluded.data, noted = clock_timestamp()",
                    [msgspec.structs.astuple(one) for one in own],
                )
            return others

        for kernel_id in self._database.run(work):
            self._on_fenced(kernel_id, terms[kernel_id])

    def _others(self, connection: Connection, terms: Mapping[str, int]) -> set[str]:
        """Those of these kernels that this replica does not have in these terms.

        The rows are locked, so that no kernel is taken before the end of the transaction. A kernel
        without a row is not among the returned: its executions and places may be stored before its
        record.
        """
        rows = connection.execute(
            "SELECT id, replica, term FROM kernelkeep.kernel WHERE id = ANY(%s) "
            "ORDER BY id FOR SHARE",
            ([*terms],),
        )
        return {
            kernel_id
            for kernel_id, replica, term in rows.fetchall()
            if (replica, term) != (self._replica, terms[kernel_id])
        }

    def lease(self) -> Lease | None:
        """None: the lease of a replica is `membership.py`'s."""
        return None

    def take_lease(self, lease: Lease) -> None:
        """Do nothing: see `lease`."""

    def close(self) -> None:
        """Close the connection."""
        self._database.close()


def which_fit(connection: Connection, kernel_ids: Sequence[str], at_most: int) -> list[str]:
    """As many of the kernels as have no more than ``at_most`` bytes of executions all together."""
    rows = connection.execute(
        "SELECT kernel_id, sum(octet_length(data)) FROM kernelkeep.execution "
        "WHERE kernel_id = ANY(%s) GROUP BY kernel_id",
        ([*kernel_ids],),
    )
    sizes = {kernel_id: int(size) for kernel_id, size in rows.fetchall()}
    fit, left = [], at_most
    # The kernels with the fewest bytes first, so that one with many does not displace all others.
    for kernel_id in sorted(kernel_ids, key=lambda one: sizes.get(one, 0)):
        if (size := sizes.get(kernel_id, 0)) > left:
            break
        left -= size
        fit.append(kernel_id)
    return fit


def executions_of(
    connection: Connection, kernel_ids: Sequence[str]
) -> dict[str, list[ExecutionRecord]]:
    """The executions of those kernels that have any, in the order in which they were asked for."""
    rows = connection.execute(
        "SELECT kernel_id, id, number, data FROM kernelkeep.execution "
        "WHERE kernel_id = ANY(%s) ORDER BY number",
        ([*kernel_ids],),
    )
    found: dict[str, list[ExecutionRecord]] = {}
    for row in rows.fetchall():
        record = ExecutionRecord(*row)
        found.setdefault(record.kernel_id, []).append(record)
    return found


def places_of(connection: Connection, kernel_ids: Sequence[str]) -> dict[str, Places]:
    """The places of the clients of those kernels that have any."""
    rows = connection.execute(
        "SELECT kernel_id, epoch, data FROM kernelkeep.places WHERE kernel_id = ANY(%s)",
        ([*kernel_ids],),
    )
    found = [Places(*row) for row in rows.fetchall()]
    return {places.kernel_id: places for places in found}


def decode_record(text: str) -> KernelRecord:
    """The record of a row."""
    return decode_json(text, KernelRecord)


def _first_model(record: KernelRecord) -> str:
    """The first model of a kernel, as JSON, until its replica stores the next one (`touch`)."""
    model = {
        "id": record.id,
        "name": record.name,
        "last_activity": format_timestamp(record.last_activity),
        "execution_state": record.execution_state,
        "connections": 0,
        "generation": record.generation,
    }
    if record.owner != ANONYMOUS:
        model["owner"] = record.owner
    return _encode(model).decode()


def tell(connection: Connection, what: str, ids: Sequence[str] = ()) -> None:
    """Notify all replicas, when the transaction is committed, that rows have changed.

    ``what`` is ``kernels`` or ``sessions``, with the ids of the rows, ``replicas`` without ids, or
    ``mark`` with the names of marks (`Directory.expect`).
    """
    for start in range(0, max(len(ids), 1), TOLD_AT_ONCE):
        some = ids[start : start + TOLD_AT_ONCE]
        connection.execute("SELECT pg_notify(%s, %s)", (CHANNEL, " ".join((what, *some))))
