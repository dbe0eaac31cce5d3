"""The list of tokens as a table of a database, SQLite's or PostgreSQL's.

Servers and the ``kernelkeep tokens`` command change the table at the same time. Every function here
blocks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, Final, Protocol, TypeVar

import msgspec

from ..errors import Unauthorized
from . import credentials
from .errors import TokenNameTaken, TooManyTokens
from .names import confusable
from .principal import ANONYMOUS

__all__ = [
    "BY_COMMAND",
    "Execute",
    "NewToken",
    "TokenPlace",
    "TokenRecord",
    "TokenTable",
    "UnusableTokens",
]

T = TypeVar("T")

MAX_OF_OWNER: Final = 1000
MAX_TOKENS: Final = 100_000
"""How many tokens may be in force, of one owner and of all."""

REMEMBERED_SECONDS: Final = 30 * 86400
MAX_REMEMBERED: Final = 10_000
"""How many tokens that have ended are remembered, and for how many seconds. So the service tells a
client that still shows an ended token from one that guesses."""


BY_COMMAND: Final = "uid:"
"""The prefix of the name of a system's user who has made or revoked a token with the command."""


class NewToken(msgspec.Struct, frozen=True):
    """A token that is to be made. ``made_with`` is the credential of its maker, or empty.

    For a user of the system who makes it with the command, that is `BY_COMMAND` and the user.
    """

    name: str
    owner: str
    scopes: tuple[str, ...]
    groups: tuple[str, ...] = ()
    expires: float | None = None
    made_with: str = ""


class TokenRecord(msgspec.Struct, frozen=True):
    """A token of the list. ``id`` is its prefix; times are in seconds since the epoch.

    ``version`` grows with each change of any token, but for ``last_used``. ``revoked_by`` is the
    user of the system who has revoked it with the command, or empty.
    """

    id: str
    digest: bytes
    name: str
    owner: str
    groups: tuple[str, ...]
    scopes: tuple[str, ...]
    made_with: str
    created: float
    expires: float | None
    revoked: float | None
    last_used: float | None
    version: int
    revoked_by: str = ""

    def in_force(self, now: float) -> bool:
        """Whether the token is neither revoked nor expired."""
        return self.revoked is None and (self.expires is None or self.expires > now)

    def state(self, now: float) -> str:
        """The word for people: ``valid``, ``revoked`` or ``expired``."""
        if self.in_force(now):
            return "valid"
        return "expired" if self.revoked is None else "revoked"


_COLUMNS: Final = tuple(field.name for field in msgspec.structs.fields(TokenRecord))
_LISTS: Final = frozenset({"groups", "scopes"})
_IN_FORCE: Final = "revoked IS NULL AND (expires IS NULL OR expires > ?)"
_ENDED: Final = "CASE WHEN revoked < expires THEN revoked ELSE coalesce(expires, revoked) END"
"""When a token ended, or will end; NULL for one that does neither."""


class UnusableTokens(Exception):
    """The list of tokens cannot be used; the text says why, in one line. Nothing was changed."""


class Execute(Protocol):
    """Runs a statement, with ``?`` for each value, and returns the rows that are found."""

    def __call__(self, statement: str, *values: Any) -> list[tuple[Any, ...]]: ...


class TokenPlace(Protocol):
    """Where a list of tokens is."""

    def key(self) -> Hashable | None:
        """A key that another list in the same place does not have; None if there is no list.

        Raises `UnusableTokens`.
        """

    def open(self, *, create: bool = False) -> TokenTable:
        """The list. Raises `UnusableTokens`, and without ``create`` `FileNotFoundError`."""


class TokenTable(ABC):
    """A list of tokens. Every method may raise `UnusableTokens`."""

    table: str
    """The name of the table."""

    name: str
    """Where the list is, for people."""

    @abstractmethod
    def _read(self, work: Callable[[Execute], T]) -> T:
        """What ``work`` returns, in one transaction."""

    @abstractmethod
    def _write(self, work: Callable[[Execute], T]) -> T:
        """As `_read`, while no other process changes the list. ``work`` may run twice."""

    @abstractmethod
    def _repeat(self, statement: str, rows: Sequence[tuple[Any, ...]]) -> None:
        """Run a statement with the values of each row. Others may change the list meanwhile."""

    @abstractmethod
    def changes_elsewhere(self) -> Hashable:
        """A value that changes whenever another connection has changed the list."""

    @abstractmethod
    def close(self) -> None:
        """Close the list; no other method may be called afterwards."""

    # What is read

    def state(self) -> tuple[int, int]:
        """How many tokens there are, ended ones included, and the version of the last change."""
        statement = f"SELECT count(*), coalesce(max(version), 0) FROM {self.table}"
        [(count, version)] = self._read(lambda execute: execute(statement))
        return count, version

    def records(self, after: int = 0) -> list[TokenRecord]:
        """The tokens that have changed since a version, ended ones among them, oldest first."""
        return self._read(
            lambda execute: self._select(execute, "WHERE version > ? ORDER BY created, id", after)
        )

    def ids(self) -> frozenset[str]:
        """The ids of all tokens, ended ones included."""
        rows = self._read(lambda execute: execute(f"SELECT id FROM {self.table}"))
        return frozenset(token_id for (token_id,) in rows)

    def _select(self, execute: Execute, condition: str, *values: Any) -> list[TokenRecord]:
        rows = execute(f"SELECT {', '.join(_COLUMNS)} FROM {self.table} {condition}", *values)
        try:
            return [_record(row) for row in rows]
        except (msgspec.MsgspecError, TypeError):
            raise UnusableTokens(f"{self.name} is damaged: a row makes no sense") from None

    # What is changed

    def add(
        self, wanted: NewToken, now: float, *, named_by_hand: bool = False
    ) -> tuple[TokenRecord, str]:
        """Make a token; returns its record, and the token itself, which is stored nowhere.

        The name of an owner that is ``named_by_hand`` must not be confusable with another owner's.
        Raises `TokenNameTaken` or `TooManyTokens`, and `Unauthorized` if the token that it is made
        with has ended meanwhile.
        """
        tried = [credentials.new_token()]

        def work(execute: Execute) -> tuple[TokenRecord, str]:
            # `_write` may call this again, when the answer to the first transaction was lost: then
            # the token may be there already.
            [*there] = self._select(execute, "WHERE digest = ?", credentials.digest(tried[-1]))
            if there:
                return there[0], tried[-1]
            maker = f"SELECT 1 FROM {self.table} WHERE id = ?"
            made_with = wanted.made_with
            if execute(maker, made_with) and not execute(
                f"{maker} AND {_IN_FORCE}", made_with, now
            ):
                raise Unauthorized("Forbidden")
            self._check_names(execute, wanted, now, named_by_hand=named_by_hand)
            self._check_room(execute, wanted.owner, now)
            # Before tokens are forgotten, perhaps the newest: so no version is given twice.
            version = self._next_version(execute)
            self._forget(execute, now)
            while execute(maker, credentials.shown(tried[-1])):
                tried.append(credentials.new_token())
            record = TokenRecord(
                credentials.shown(tried[-1]),
                credentials.digest(tried[-1]),
                created=now,
                revoked=None,
                last_used=None,
                version=version,
                **msgspec.structs.asdict(wanted),
            )
            self._insert(execute, record)
            return record, tried[-1]

        return self._write(work)

    def _insert(self, execute: Execute, record: TokenRecord) -> None:
        values = [
            msgspec.json.encode(value).decode() if name in _LISTS else value
            for name, value in zip(_COLUMNS, msgspec.structs.astuple(record), strict=True)
        ]
        columns = (*_COLUMNS, "name_key", "owner_key")
        marks = ", ".join("?" * len(columns))
        execute(
            f"INSERT INTO {self.table} ({', '.join(columns)}) VALUES ({marks})",
            *(*values, confusable(record.name), confusable(record.owner)),
        )

    def _check_names(
        self, execute: Execute, wanted: NewToken, now: float, *, named_by_hand: bool
    ) -> None:
        rows = execute(
            f"SELECT owner, name, name_key FROM {self.table} WHERE owner_key = ? AND {_IN_FORCE}",
            *(confusable(wanted.owner), now),
        )
        names = {key: name for owner, name, key in rows if owner == wanted.owner}
        taken = names.get(confusable(wanted.name))
        if taken is not None:
            raise TokenNameTaken(f"{wanted.owner} has a token that is called {taken}")
        if named_by_hand:
            others = {owner for owner, *_ in rows} | {ANONYMOUS}
            alike = {other for other in others if confusable(other) == confusable(wanted.owner)}
            if alike and wanted.owner not in alike:
                raise TokenNameTaken(
                    f"the owner's name would be taken for that of another: {min(alike)}"
                )

    def _check_room(self, execute: Execute, owner: str, now: float) -> None:
        count = f"SELECT count(*) FROM {self.table} WHERE"
        [(of_owner,)] = execute(
            f"{count} owner_key = ? AND owner = ? AND {_IN_FORCE}", confusable(owner), owner, now
        )
        [(of_all,)] = execute(f"{count} {_IN_FORCE}", now)
        if of_owner >= MAX_OF_OWNER:
            raise TooManyTokens(f"{owner} has {of_owner} tokens, and may have no more")
        if of_all >= MAX_TOKENS:
            raise TooManyTokens(f"there are {of_all} tokens, and there may be no more")

    def _forget(self, execute: Execute, now: float) -> None:
        """Delete tokens that ended long ago, and the oldest of too many that have ended."""
        ended = f"{self.table} WHERE {_ENDED} <= ?"
        execute(f"DELETE FROM {ended}", now - REMEMBERED_SECONDS)
        oldest = execute(
            f"SELECT {_ENDED} AS ended FROM {ended} ORDER BY ended DESC "
            f"LIMIT 1 OFFSET {MAX_REMEMBERED - 1}",
            now,
        )
        if oldest:
            execute(f"DELETE FROM {self.table} WHERE {_ENDED} < ?", *oldest[0])

    def _next_version(self, execute: Execute) -> int:
        [(version,)] = execute(f"SELECT coalesce(max(version), 0) FROM {self.table}")
        return int(version) + 1

    def revoke(self, ids: Iterable[str], now: float, by: str = "") -> list[TokenRecord]:
        """Revoke tokens that are in force, with those that were made with them, and so on.

        Returns the revoked tokens. Ids of tokens that are not in force are ignored. ``by`` is
        `BY_COMMAND` and the user of the system, or empty.
        """
        revoked = [*ids]

        def work(execute: Execute) -> list[TokenRecord]:
            # One transaction keeps other writers away. A token that is being made with one of these
            # is stored before, and found here; or after, when `add` finds that its maker has ended.
            version = self._next_version(execute)
            end = (
                f"UPDATE {self.table} SET revoked = ?, version = ?, revoked_by = ? "
                f"WHERE id = ? AND {_IN_FORCE}"
            )
            # Ended tokens are followed, too: tokens made with them may be in force.
            left, seen = [*revoked], set[str]()
            while left:
                token_id = left.pop()
                if token_id in seen:  # another program may have written tokens that made each other
                    continue
                seen.add(token_id)
                execute(end, now, version, by, token_id, now)
                made = execute(f"SELECT id FROM {self.table} WHERE made_with = ?", token_id)
                left += [made_id for (made_id,) in made]
            ended = self._select(execute, "WHERE revoked = ? ORDER BY created, id", now)
            return [record for record in ended if record.id in seen]

        return self._write(work)

    def used(self, uses: Iterable[tuple[str, float]]) -> None:
        """Store when tokens were last used, by id. A clock that was set back changes nothing."""
        self._repeat(
            f"UPDATE {self.table} SET last_used = ? WHERE id = ? AND coalesce(last_used, 0) < ?",
            [(when, token_id, when) for token_id, when in sorted(uses)],
        )


def _record(row: tuple[Any, ...]) -> TokenRecord:
    fields = {
        name: msgspec.json.decode(value) if name in _LISTS else value
        for name, value in zip(_COLUMNS, row, strict=True)
    }
    return msgspec.convert(fields, TokenRecord)
