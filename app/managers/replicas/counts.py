"""What each replica has of what owners have a number of at each moment: the rows of the registry.

Each replica writes how many there are at it, and never how many more or fewer: a write that is done
twice does no harm, and the next one makes up for one that was lost. The rows of a replica go with
it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from ..limits.counting import NOTHING, Counts
from .database import Connection

__all__ = ["Admitted", "Asked", "admit", "store"]

_ADMITTING: Final = 0x6B656570
"""The class of the locks under which one replica at a time admits something of an owner."""


class Asked(NamedTuple):
    """One more is asked for of what has this limit, of which there may be so many."""

    limit: str
    most: int


class Admitted(NamedTuple):
    """What was found: of each that was asked for, how many there are if there is no room for it."""

    found: list[int | None]
    stored: Counts | None
    """What the registry has of this replica now; None if it knows the replica no more."""


def admit(
    connection: Connection, replica_id: str, owner: str, own: Counts, asked: Sequence[Asked]
) -> Admitted:
    """Count what is asked for, one after the other, as far as there is room.

    ``own`` is what the replica has without that.
    """
    execute = connection.execute
    # First the replica, then what belongs to it, as everywhere.
    is_joined = _is_joined(connection, replica_id)
    # To the end of the transaction. Without the lock two replicas would each count the last place
    # as free. Two owners with one number wait for each other, which does no harm.
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
    # One that was declared dead has nothing that others count, until it has joined them again.
    if not is_joined:
        return Admitted(found, None)
    _put(connection, replica_id, {owner: own})
    return Admitted(found, own)


def store(
    connection: Connection, replica_id: str, own: Mapping[str, Counts], *, is_all: bool
) -> bool:
    """Store what owners have at a replica; False if the registry does not know the replica.

    With ``is_all`` no other owner has anything there.
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
