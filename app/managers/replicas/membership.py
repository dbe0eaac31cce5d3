"""The statements by which one replica joins the others, renews its lease, and takes kernels.

Each function here is the work of one transaction (`Database.run`), and does no harm if it runs
twice.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final

import msgspec

from ..handover.store import ExecutionRecord, KernelRecord, UnusableRegistry
from ..log.places import Places
from ..processes.hosts.authority import takes
from .database import Connection
from .store import decode_record, executions_of, places_of, tell, which_fit

__all__ = [
    "Replica",
    "Taken",
    "announce",
    "beat",
    "declare_dead",
    "everybodys",
    "forget_gone",
    "gone",
    "join",
    "leave",
    "mine",
    "release",
    "take",
]


READ_BYTES: Final = 2**23
"""How many bytes of executions are read together with the records of taken kernels. The queued code
of one kernel alone may have 32 MiB, and while it is read no lease is renewed."""


class Replica(msgspec.Struct, frozen=True):
    """One process among those that share a registry.

    ``address`` is where the others of its host reach it, ``dial`` where those of other hosts do. A
    host is a state directory. ``secret`` is a digest of the server's token. ``certificates`` are
    its own and those that it trusts, as PEM (`Wire`); empty for a replica of an earlier version.
    """

    id: str
    name: str
    address: str
    version: str
    secret: str
    dial: str = ""
    certificates: str = ""

    @property
    def host(self) -> str:
        """The identity of its state directory, as the registry has it from the address."""
        return self.address.split(":")[1]


class Taken(msgspec.Struct, frozen=True):
    """A kernel that this replica has taken, with the term, and what the registry has of the kernel.

    ``executions`` are None if they were too large to be read together with the record
    (`READ_BYTES`): then the kernel's adoption reads them.
    """

    term: int
    record: KernelRecord
    executions: list[ExecutionRecord] | None = []
    places: Places | None = None


def join(
    connection: Connection, replica: Replica, seconds: float, *, replaces: Sequence[str]
) -> None:
    """Join the others with a lease of so many ``seconds``.

    Replicas of this host with a name among ``replaces`` are known to have ended: their kernels are
    freed at once, without waiting for the ends of their leases. Raises `UnusableRegistry` as
    `check` does.
    """
    execute = connection.execute
    # The lock lets one replica at a time join: of two with one name, or with different tokens, the
    # second is refused. Renewals of leases wait for this transaction, which takes milliseconds.
    execute("LOCK TABLE kernelkeep.replica IN SHARE ROW EXCLUSIVE MODE")
    check(connection, replica, replaces=replaces)
    execute(
        _noting("(name = %s OR name = ANY(%s) AND host = %s) AND id <> %s"),
        (replica.name, [*replaces], replica.host, replica.id),
    )
    execute(
        "INSERT INTO kernelkeep.replica "
        "(id, name, address, version, secret, dial, certificates, expires) "
        "VALUES (%s, %s, %s, %s, %s, %s, %s, clock_timestamp() + make_interval(secs => %s)) "
        "ON CONFLICT (id) DO UPDATE SET expires = excluded.expires",
        (*msgspec.structs.astuple(replica), seconds),
    )
    # A replica that was declared dead, and lives, is here again: the kernels that it has launched
    # must not be ended as a dead replica's.
    execute("DELETE FROM kernelkeep.gone WHERE id = %s", (replica.id,))
    _remove_old(connection)
    tell(connection, "replicas")


def _noting(which: str) -> bytes:
    """A statement that deletes the replicas for which ``which`` is true, and returns their names.

    It inserts their ids into the table ``gone``. When a replica's row is deleted, its kernels
    become free (ON DELETE SET NULL), and its reservations are deleted.
    """
    # One statement, so that both come into effect together: no replica finds a free kernel whose
    # replica is not in ``gone``.
    return (
        f"WITH left_ AS (DELETE FROM kernelkeep.replica WHERE {which} RETURNING id, name, host), "
        "noted AS (INSERT INTO kernelkeep.gone (id, host) SELECT id, host FROM left_ "
        "ON CONFLICT (id) DO NOTHING) SELECT name FROM left_"
    ).encode()


def _remove_old(connection: Connection) -> None:
    """Delete rows that no replica will ask for."""
    # After a day only: executions and places may be stored moments before their kernel is.
    connection.execute(
        "DELETE FROM kernelkeep.execution AS old "
        "WHERE noted < clock_timestamp() - interval '1 day' "
        "AND NOT EXISTS (SELECT 1 FROM kernelkeep.kernel WHERE id = old.kernel_id)"
    )
    connection.execute(
        "DELETE FROM kernelkeep.places AS old "
        "WHERE noted < clock_timestamp() - interval '1 day' "
        "AND NOT EXISTS (SELECT 1 FROM kernelkeep.kernel WHERE id = old.kernel_id)"
    )
    connection.execute(
        "DELETE FROM kernelkeep.tenure AS old "
        "WHERE began < clock_timestamp() - interval '1 day' "
        "AND NOT EXISTS (SELECT 1 FROM kernelkeep.kernel WHERE id = old.kernel_id)"
    )
    connection.execute(
        "DELETE FROM kernelkeep.gone WHERE since < clock_timestamp() - interval '90 days'"
    )
    _forget_uninvited(connection)


def _forget_uninvited(connection: Connection) -> None:
    """Delete the invitations for kernels that a replica was about to start, and never stored."""
    connection.execute(
        "DELETE FROM kernelkeep.invitation AS old WHERE "
        "NOT EXISTS (SELECT 1 FROM kernelkeep.kernel WHERE id = old.kernel_id) "
        "AND NOT EXISTS (SELECT 1 FROM kernelkeep.replica WHERE id = old.replica)"
    )


def check(connection: Connection, replica: Replica, *, replaces: Sequence[str]) -> None:
    """Raise `UnusableRegistry` if a replica may not `join` the others.

    It may not if another replica has its name, if the others have another token, or if there is a
    replica of another host and one of the two does not listen for the other, or does not take the
    other's certificate.
    """
    rows = connection.execute(
        "SELECT name, secret, host, dial, certificates FROM kernelkeep.replica "
        "WHERE id <> %s AND NOT (name = ANY(%s) AND host = %s) AND expires > clock_timestamp()",
        (replica.id, [*replaces], replica.host),
    ).fetchall()
    if any(name == replica.name for name, *_ in rows):
        raise UnusableRegistry(f"another replica of the registry has the name {replica.name}")
    if any(secret != replica.secret for _, secret, *_ in rows):
        raise UnusableRegistry("the other replicas of the registry have another token")
    for name, _, host, dial, certificates in rows:
        if host == replica.host:
            continue
        if not replica.dial:
            raise UnusableRegistry(
                f"replica {name} of the registry has another state directory, and so is of another "
                "host: it takes replica_listen, where that one dials this"
            )
        if not dial:
            raise UnusableRegistry(
                f"replica {name} of the registry has another state directory, and so is of another "
                "host: it was started without replica_listen"
            )
        if not _take_each_other(replica.certificates, certificates):
            raise UnusableRegistry(
                f"replica {name} of the registry and this one do not take each other's "
                "certificates: the same authority has to vouch for both (replica_certificate)"
            )


def _take_each_other(one: str, other: str) -> bool:
    return not (one and other) or (takes(one, other) and takes(other, one))


def announce(connection: Connection, replica_id: str, agents: Sequence[str]) -> None:
    """Tell the others where keepers dial a replica."""
    connection.execute(
        "UPDATE kernelkeep.replica SET agents = %s WHERE id = %s", ([*agents], replica_id)
    )
    tell(connection, "replicas")


def beat(connection: Connection, replica_id: str, seconds: float) -> bool:
    """Renew a lease; False if the replica was declared dead, or never joined."""
    renewed = connection.execute(
        "UPDATE kernelkeep.replica SET expires = clock_timestamp() + make_interval(secs => %s) "
        "WHERE id = %s RETURNING id",
        (seconds, replica_id),
    ).fetchone()
    return renewed is not None


def declare_dead(connection: Connection, replica_id: str) -> list[str]:
    """Delete all other replicas whose leases have ended, which frees their kernels.

    Returns the names of those replicas. A renewal and this statement meet at the replica's row. A
    row that the renewal has locked is skipped here; if this comes first, the renewal waits for the
    deletion, and then finds no row (`beat`).
    """
    rows = connection.execute(
        _noting(
            "id IN (SELECT id FROM kernelkeep.replica "
            "WHERE id <> %s AND expires < clock_timestamp() FOR UPDATE SKIP LOCKED)"
        ),
        (replica_id,),
    ).fetchall()
    if rows:
        _forget_uninvited(connection)
        tell(connection, "replicas")
    return [name for (name,) in rows]


def gone(connection: Connection, host: str) -> list[str]:
    """The ids of replicas of a host that are gone, and whose unregistered kernels may run."""
    rows = connection.execute("SELECT id FROM kernelkeep.gone WHERE host = %s", (host,)).fetchall()
    return [replica_id for (replica_id,) in rows]


def forget_gone(connection: Connection, ids: Collection[str]) -> None:
    """Forget these dead replicas, whose unregistered kernels were ended."""
    connection.execute("DELETE FROM kernelkeep.gone WHERE id = ANY(%s)", ([*ids],))


def take(
    connection: Connection, replica_id: str, keepers: Collection[str], at_most: int
) -> tuple[int, int]:
    """Take a share of the free kernels; returns how many were taken, and how many are still free.

    Only kernels whose keepers this replica reaches (``keepers``) are taken. The share is one among
    all replicas that live, so that replicas which do this at the same time spread the kernels among
    them.
    """
    # The two counts may be out of date by the time of the UPDATE: a replica may take more or less
    # than its share, which does no harm. FOR UPDATE SKIP LOCKED lets no two replicas take a kernel.
    (living,) = connection.execute(
        "SELECT count(*) FROM kernelkeep.replica WHERE expires > clock_timestamp()"
    ).fetchone() or (1,)
    (free,) = connection.execute(
        "SELECT count(*) FROM kernelkeep.kernel WHERE replica IS NULL AND keeper = ANY(%s)",
        ([*keepers],),
    ).fetchone() or (0,)
    if not free:
        return 0, 0
    share = min(at_most, -(-free // max(living, 1)))
    rows = connection.execute(
        # A replica that was declared dead meanwhile takes nothing: the row that it had is gone.
        "WITH free AS (SELECT id FROM kernelkeep.kernel WHERE replica IS NULL "
        "AND keeper = ANY(%s) AND EXISTS (SELECT 1 FROM kernelkeep.replica WHERE id = %s) "
        "ORDER BY created LIMIT %s FOR UPDATE SKIP LOCKED) "
        "UPDATE kernelkeep.kernel AS kernel SET replica = %s, term = term + 1 FROM free "
        "WHERE kernel.id = free.id RETURNING kernel.id, kernel.term",
        ([*keepers], replica_id, share, replica_id),
    ).fetchall()
    # Without ON CONFLICT: two replicas with a kernel in one term would be a bug, and then this
    # transaction fails.
    with connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO kernelkeep.tenure (kernel_id, term, replica) VALUES (%s, %s, %s)",
            [(kernel_id, term, replica_id) for kernel_id, term in rows],
        )
    if rows:
        tell(connection, "kernels", [kernel_id for kernel_id, _ in rows])
    return len(rows), free - len(rows)


def mine(
    connection: Connection, replica_id: str, known: Collection[str]
) -> tuple[list[Taken], dict[str, str]]:
    """The kernels that a replica has in the registry, except those that it has already (``known``).

    No other replica writes rows of these kernels any more: its term is over. Also returns the ids
    of kernels whose records this version cannot decode, each with the reason.
    """
    rows = connection.execute(
        "SELECT id, term, record, last_activity, execution_state FROM kernelkeep.kernel "
        "WHERE replica = %s AND NOT id = ANY(%s) ORDER BY created",
        (replica_id, [*known]),
    ).fetchall()
    records, terms, senseless = [], [], {}
    for kernel_id, term, record, last_activity, execution_state in rows:
        try:
            decoded = decode_record(record)
        except (msgspec.MsgspecError, TypeError, ValueError) as error:
            senseless[kernel_id] = str(error)
            continue
        # These two columns are written more often than the record (`SharedStore.touch`).
        decoded.last_activity, decoded.execution_state = last_activity, execution_state
        records.append(decoded)
        terms.append(term)
    # The executions of all kernels are read by one statement: one for each kernel would take longer
    # than the kernel's whole adoption. But the statement has a bound in time, and a replica for
    # which it always fails would never adopt its kernels. So it reads no more than `READ_BYTES`,
    # and the rest is left to the adoptions.
    ids = [record.id for record in records]
    fit = which_fit(connection, ids, READ_BYTES)
    executions = {kernel_id: list[ExecutionRecord]() for kernel_id in fit}
    executions |= executions_of(connection, fit)
    places = places_of(connection, ids)
    taken = [
        Taken(term, record, executions.get(record.id), places.get(record.id))
        for term, record in zip(terms, records, strict=True)
    ]
    return taken, senseless


def everybodys(connection: Connection) -> list[str]:
    """The ids of all kernels that the registry knows."""
    rows = connection.execute("SELECT id FROM kernelkeep.kernel").fetchall()
    return [kernel_id for (kernel_id,) in rows]


def release(connection: Connection, replica_id: str, terms: Mapping[str, int]) -> None:
    """Free kernels that a replica has left, and has in these ``terms``; it keeps its others.

    The row of a kernel that another replica has by now, or none, does not change.
    """
    connection.execute(
        "UPDATE kernelkeep.kernel AS kernel SET replica = NULL "
        "FROM unnest(%s::text[], %s::bigint[]) AS left_ (id, term) WHERE kernel.id = left_.id "
        "AND kernel.replica = %s AND kernel.term = left_.term",
        ([*terms], [*terms.values()], replica_id),
    )
    tell(connection, "kernels", [*terms])


def leave(connection: Connection, replica_id: str) -> None:
    """Leave the group: the other replicas may take the kernels from now on."""
    connection.execute(_noting("id = %s"), (replica_id,))
    tell(connection, "replicas")
