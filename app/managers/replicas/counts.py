"""The registry's counts, for each replica and owner, of open WebSockets and queued executions.

Each replica writes its present counts, and never a difference: a write that is done twice does no
harm, and the next write makes up for one that was lost. When a replica's row is deleted, its counts
are deleted, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from ..limits.counting import NOTHING, Counts
from .database import Connection

__all__ = ["Admitted", "Asked", "admit", "store"]

_ADMITTING: Final = 0x6B656570
"""The class of the advisory locks under which one replica at a time counts for an owner."""


class Asked(NamedTuple):
    """A request for one more WebSocket or queued execution.

    ``limit`` is the limit's name, which is a field of `Counts`, and ``most`` its value.
    """

    limit: str
    most: int


class Admitted(NamedTuple):
    """The result: for each request, the present count if that leaves no room; else None."""

    found: list[int | None]
    stored: Counts | None
    """The counts of this replica in the registry now; None if the replica has no row there."""


def admit(
    connection: Connection, replica_id: str, owner: str, own: Counts, asked: Sequence[Asked]
) -> Admitted:
    """Grant requests of one owner in their order, as far as there is room, and store the counts.

    ``own`` are the replica's counts without these requests.
    """
    execute = connection.execute
    # The replica's row is locked first, then rows that belong to the replica, as everywhere.
    is_joined = _is_joined(connection, replica_id)
    # The lock lasts to the end of the transaction. Without it two replicas would each count the
    # last place as free. Two owners whose names have the same hash wait for each other, which does
    # no harm.
    execute("SELECT pg_advisory_xact_lock(%s, hashtext(%s))", (_ADMITTING, owner))
    row = execute(
        "SELECT coalesce(sum(websockets), 0), coalesce(sum(queued_executions), 0) "
        "FROM kernelkeep.share WHERE owner = %s AND replica <> %s",
        (owner, replica_id),
    ).fetchone()
    others, found = Counts(*row or NOTHING), list[int | None]()
    for limit, most in asked:
        here = getattr(own, limit)
        used = getattr(others, limit) + here
        found.append(None if used < most else used)
        if used < most:
            own = own._replace(**{limit: here + 1})
    # The counts of a replica that was declared dead are not stored: others count nothing of it
    # until it has joined them again.
    if not is_joined:
        return Admitted(found, None)
    _put(connection, replica_id, {owner: own})
    return Admitted(found, own)


def store(
    connection: Connection, replica_id: str, own: Mapping[str, Counts], *, is_all: bool
) -> bool:
    """Store the counts of owners at a replica; False if the replica has no row in the registry.

    With ``is_all`` every other owner's counts there are 0.
    """
    if not _is_joined(connection, replica_id):
        return False
    _put(connection, replica_id, own, is_all=is_all)
    return True


def _is_joined(connection: Connection, replica_id: str) -> bool:
    found = connection.execute(
        "SELECT FROM kernelkeep.replica WHERE id = %s FOR KEY SHARE", (replica_id,)
    )
    return found.fetchone() is not None


def _put(
    connection: Connection, replica_id: str, own: Mapping[str, Counts], *, is_all: bool = False
) -> None:
    there = {owner: counts for owner, counts in own.items() if counts != NOTHING}
    gone = [*(own.keys() - there.keys())]
    if is_all:
        connection.execute(
            "DELETE FROM kernelkeep.share WHERE replica = %s AND NOT owner = ANY(%s)",
            (replica_id, [*there]),
        )
    elif gone:
        connection.execute(
            "DELETE FROM kernelkeep.share WHERE replica = %s AND owner = ANY(%s)",
            (replica_id, gone),
        )
    if there:
        connection.execute(
            "INSERT INTO kernelkeep.share AS share (owner, replica, websockets, queued_executions) "
            "SELECT owner, %s, websockets, queued_executions "
            "FROM unnest(%s::text[], %s::integer[], %s::integer[]) "
            "AS own (owner, websockets, queued_executions) "
            "ON CONFLICT (owner, replica) DO UPDATE SET websockets = excluded.websockets, "
            "queued_executions = excluded.queued_executions "
            "WHERE (share.websockets, share.queued_executions) "
            "<> (excluded.websockets, excluded.queued_executions)",
            (replica_id, [*there], *map(list, zip(*there.values(), strict=True))),
        )
