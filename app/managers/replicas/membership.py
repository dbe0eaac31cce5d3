"""The statements by which one replica joins the others, lives among them, and takes kernels.

Each function here is the work of one transaction (`Database.run`), and does no harm twice.
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
"""Bytes of executions that are read along with the records of kernels. The code that waits at one
kernel alone may have 32 MiB, and while all of it is read no lease is renewed."""


class Replica(msgspec.Struct, frozen=True):
    """One process among those that share a registry.

    ``address`` is where the others of its host reach it, ``dial`` where those of other hosts do. A
    host is a state directory. ``secret`` is a digest of the server's token. ``certificates`` are
    its own and those that it trusts, as PEM (`Wire`); a replica of an earlier version tells none.
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
    """A kernel that this replica has, in which term, and what the registry has of it besides.

    Without ``executions`` these were too much to be read along: whoever adopts the kernel asks.
    """

    term: int
    record: KernelRecord
    executions: list[ExecutionRecord] | None = []
    places: Places | None = None


def join(
    connection: Connection, replica: Replica, seconds: float, *, replaces: Sequence[str]
) -> None:
    """Join the others with a lease of so many ``seconds``.

    A process of this host before this one, with a name among ``replaces``, is known to have ended:
    its kernels need not wait for its lease to end. Raises `UnusableRegistry` as `check` does.
    """
    execute = connection.execute
    # Two replicas with one name, or with different tokens, join one after the other: the second is
    # refused. Leases are renewed meanwhile only when this is done, which takes milliseconds.
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
    # It was declared dead, and lives: what it has launched is not to be ended as a dead one's.
    execute("DELETE FROM kernelkeep.gone WHERE id = %s", (replica.id,))
    _remove_old(connection)
    tell(connection, "replicas")


def _noting(which: str) -> bytes:
    """A statement that removes the replicas for which ``which`` is true, and returns their names.

    It notes that they are gone.

    With a replica's row its kernels become free (ON DELETE SET NULL), and its reservations go.
    """
    # One statement, and so one moment: nobody finds free kernels of a replica that is not noted.
    return (
        f"WITH left_ AS (DELETE FROM kernelkeep.replica WHERE {which} RETURNING id, name, host), "
        "noted AS (INSERT INTO kernelkeep.gone (id, host) SELECT id, host FROM left_ "
        "ON CONFLICT (id) DO NOTHING) SELECT name FROM left_"
    ).encode()


def _remove_old(connection: Connection) -> None:
    """Remove rows that no replica will ask for."""
    # A day: executions and places may be stored before their kernel is, if only by moments.
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
    """Forget the keepers of kernels that a replica was about to start, and never stored."""
    connection.execute(
        "DELETE FROM kernelkeep.invitation AS old WHERE "
        "NOT EXISTS (SELECT 1 FROM kernelkeep.kernel WHERE id = old.kernel_id) "
        "AND NOT EXISTS (SELECT 1 FROM kernelkeep.replica WHERE id = old.replica)"
    )


def check(connection: Connection, replica: Replica, *, replaces: Sequence[str]) -> None:
    """Raise `UnusableRegistry` if a replica may not `join` the others.

    It may not if its name is another's, if the others have another token, or if there are replicas
    of other hosts and either side does not listen for the other, or does not take its certificate.
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
    """Free the kernels of all others whose leases have ended; returns their names.

    A renewal and this wait for each other at the replica's row: whichever comes first, counts.
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
    """Forget these replicas: their unregistered kernels were ended."""
    connection.execute("DELETE FROM kernelkeep.gone WHERE id = ANY(%s)", ([*ids],))


def take(
    connection: Connection, replica_id: str, keepers: Collection[str], at_most: int
) -> tuple[int, int]:
    """Take a share of the kernels that no replica has; returns how many were taken, and are left.

    Only kernels whose keepers this replica reaches are taken. The share is that of one among the
    replicas that live, so that those which look at the same time spread the kernels among them.
    """
    # The counts are a moment old: a replica may take more or less than its share, which is no
    # fault. SKIP LOCKED lets no kernel be taken by two.
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
    # Without ON CONFLICT: two owners in one term would be a fault, and end this transaction.
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
    """The kernels that a replica has in the registry, without those that it knows to have.

    Nobody else writes what belongs to them from the term on in which the replica has them. With
    them come the kernels whose records make no sense to this version, and why.
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
        # Written more often than the record (`SharedStore.touch`), and so newer.
        decoded.last_activity, decoded.execution_state = last_activity, execution_state
        records.append(decoded)
        terms.append(term)
    # Of all of them at once: a question for each kernel takes longer than its whole adoption. But
    # this question has a bound, and a replica that could never read what it has would never adopt
    # it: so as much as it may be is left to the adoptions.
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
    """Free kernels that a replica has left, and has in these ``terms``; it goes on with the rest.

    Nothing is changed of a kernel that is another replica's, or nobody's, by now.
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
