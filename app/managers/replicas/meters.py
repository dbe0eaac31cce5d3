"""What owners have used lately at all replicas: one row of the registry for each meter."""

from __future__ import annotations

from typing import Final

from ..limits.counting import SPANS, Taken
from ..limits.meters import Meter
from .database import Connection

__all__ = ["take"]

_TABLES: Final = {"starts_per_minute": "starts", "contents_bytes_per_day": "contents"}

MAX_SECONDS: Final = 10 * 365 * 86400.0
"""How long a row is stored at the most, even if its amount would take longer to run off."""


def take(
    connection: Connection,
    limit: str,
    owner: str,
    amount: float,
    capacity: float,
    *,
    is_used: bool = False,
) -> Taken:
    """As `Counting.take`."""
    # The statement locks the owner's row: each replica waits here until the one before has
    # committed, and no other replica changes or deletes the row before this one commits. If the
    # answer is lost, and this runs again, the amount counts twice: the owner's next request has to
    # wait a little longer than need be.
    seconds, table = SPANS[limit], f"kernelkeep.{_TABLES[limit]}"
    execute = connection.execute
    row = execute(
        f"INSERT INTO {table} (owner, used, at) VALUES (%s, 0, clock_timestamp()) "
        "ON CONFLICT (owner) DO UPDATE SET owner = excluded.owner RETURNING used, at".encode(),
        (owner,),
    ).fetchone()
    assert row is not None
    used, at = row
    (now,) = execute("SELECT clock_timestamp()").fetchone() or (at,)
    elapsed = max(0.0, (now - at).total_seconds())
    meter, wait = Meter(used), 0.0
    if is_used:
        meter.add(amount, capacity, seconds, elapsed)
    else:
        wait = meter.take(amount, capacity, seconds, elapsed)
    used = meter.used(capacity, seconds, elapsed)
    if not wait:
        execute(
            f"UPDATE {table} SET used = %s, at = %s, dry = %s + make_interval(secs => %s) "
            "WHERE owner = %s".encode(),
            (used, now, now, min(used * seconds / capacity, MAX_SECONDS), owner),
        )
    # Rows that have run dry are deleted last, after the only statement that waits: two replicas
    # that each had deleted the other's row would wait for each other. A row that another replica
    # has locked is left to that replica. An amount beyond the capacity takes longer to run dry
    # (``dry``); replicas of the version before leave ``dry`` NULL, and use nothing beyond the
    # capacity.
    execute(
        f"DELETE FROM {table} WHERE owner IN (SELECT owner FROM {table} "
        "WHERE at < clock_timestamp() - %s * interval '1 second' "
        "AND (dry IS NULL OR dry < clock_timestamp()) FOR UPDATE SKIP LOCKED)".encode(),
        (seconds,),
    )
    return Taken(wait, used)
