"""Who had which kernel when, as the registry notes it: a trigger writes every change down."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from typing import NamedTuple

import psycopg

__all__ = ["Change", "check_history", "note_history", "read_history"]

NOTING = """
CREATE SCHEMA drill;
CREATE TABLE drill.history (
    number bigserial PRIMARY KEY, kernel_id text, replica text, term bigint, is_gone boolean
);
CREATE FUNCTION drill.note() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' THEN
        INSERT INTO drill.history (kernel_id, replica, term, is_gone)
        VALUES (OLD.id, NULL, OLD.term, true);
    ELSIF TG_OP = 'INSERT' OR (OLD.replica, OLD.term) IS DISTINCT FROM (NEW.replica, NEW.term) THEN
        INSERT INTO drill.history (kernel_id, replica, term, is_gone)
        VALUES (NEW.id, NEW.replica, NEW.term, false);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER drill AFTER INSERT OR UPDATE OR DELETE ON kernelkeep.kernel
    FOR EACH ROW EXECUTE FUNCTION drill.note();
"""


class Change(NamedTuple):
    """A kernel's row after a change; without a ``replica`` the kernel is nobody's."""

    kernel_id: str
    replica: str | None
    term: int
    is_gone: bool = False


def note_history(connection: psycopg.Connection[tuple[object, ...]]) -> None:
    """Have the registry note every change of an owner from now on."""
    connection.execute(NOTING)


def read_history(connection: psycopg.Connection[tuple[object, ...]]) -> list[Change]:
    """All changes so far, in order."""
    rows = connection.execute(
        "SELECT kernel_id, replica, term, is_gone FROM drill.history ORDER BY number"
    ).fetchall()
    return [Change(*row) for row in rows]  # type: ignore[arg-type]  # as the table has them


def check_history(changes: Iterable[Change]) -> int:
    """A kernel passes from one owner to nobody, and from there to the next, in the next term.

    Returns how often a kernel was taken. Raises `AssertionError`.
    """
    taken = 0
    ordered = sorted(changes, key=lambda change: change.kernel_id)  # which keeps their order
    for _, group in groupby(ordered, lambda change: change.kernel_id):
        own = [*group]
        for before, after in zip([None, *own], own, strict=False):
            assert _is_right(before, after), own
            taken += before == (after.kernel_id, None, after.term - 1, False)
    return taken


def _is_right(before: Change | None, after: Change) -> bool:
    if before is None or before.is_gone:
        return after.replica is not None and (before is None or after.term > before.term)
    if after.is_gone or after.replica is None:
        return after.term == before.term and (after.is_gone or before.replica is not None)
    return before.replica is None and after.term == before.term + 1
