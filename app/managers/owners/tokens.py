"""The list of tokens on disk: one SQLite file in the state directory.

Servers and the ``kernelkeep tokens`` command have it open at the same time. Every function here
blocks. A file that cannot be trusted or understood is never put aside or written over, as the
registry is: a new file in its place would lack all revocations. Requests get an error instead.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import msgspec

from ..errors import Unauthorized
from . import credentials
from .errors import TokenNameTaken, TooManyTokens
from .names import confusable
from .principal import ANONYMOUS

__all__ = ["FILE", "NewToken", "TokenRecord", "TokenStore", "UnusableTokens", "file_key"]

FILE: Final = "tokens.sqlite"

SCHEMA_VERSION: Final = 1
"""The version of the database's schema, which SQLite stores as its ``user_version``."""

LOCK_SECONDS: Final = 5.0
"""How long a statement waits for another process that has the file."""

MAX_OF_OWNER: Final = 1000
MAX_TOKENS: Final = 100_000
"""How many tokens may be in force, of one owner and of all."""

REMEMBERED_SECONDS: Final = 30 * 86400
MAX_REMEMBERED: Final = 10_000
"""How many tokens that have ended are remembered, and for how many seconds. So a client that still
shows one is told apart from one that guesses."""

_MIGRATIONS: Final = (
    (
        "CREATE TABLE token (id TEXT PRIMARY KEY, digest BLOB UNIQUE NOT NULL, name, owner, "
        "groups, scopes, made_with, created, expires, revoked, last_used, version INTEGER, "
        "name_key, owner_key) WITHOUT ROWID",
        "CREATE INDEX token_version ON token (version)",
        "CREATE INDEX token_owner ON token (owner_key)",
        "CREATE INDEX token_made_with ON token (made_with)",
    ),
)
"""The statements that bring a database from each version to the next; released, they never change.
"""


class NewToken(msgspec.Struct, frozen=True):
    """What a token is to be. ``made_with`` is the credential of who makes it, or empty."""

    name: str
    owner: str
    scopes: tuple[str, ...]
    groups: tuple[str, ...] = ()
    expires: float | None = None
    made_with: str = ""


class TokenRecord(msgspec.Struct, frozen=True):
    """A token of the list. ``id`` is its prefix; times are in seconds since the epoch.

    ``version`` grows with each change of any token, but for ``last_used``.
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
_SELECT: Final = f"SELECT {', '.join(_COLUMNS)} FROM token"
_IN_FORCE: Final = "revoked IS NULL AND (expires IS NULL OR expires > ?)"


class UnusableTokens(Exception):
    """The list of tokens cannot be used; the text says why, in one line. Nothing was changed."""


class TokenStore:
    """The list of tokens of a state directory. The constructor and every method may raise
    `UnusableTokens`; without ``create`` a file that is not there is `FileNotFoundError`.
    """

    def __init__(self, state_dir: Path, *, create: bool = False) -> None:
        self.path = state_dir / FILE
        if create:
            _create(self.path)
        _check_private(self.path)
        with self._explained():
            self._connection = sqlite3.connect(
                f"file:{quote(os.fspath(self.path.absolute()))}?mode=rw",
                uri=True,
                timeout=LOCK_SECONDS,
                isolation_level=None,
                check_same_thread=False,
            )
            try:
                self._prepare()
            except BaseException:
                self._connection.close()
                raise

    def _prepare(self) -> None:
        execute = self._connection.execute
        (version,) = execute("PRAGMA user_version").fetchone()
        if version > SCHEMA_VERSION:
            raise UnusableTokens(
                f"{self.path} was written by a newer kernelkeep "
                f"(its schema is {version}, this one knows {SCHEMA_VERSION})"
            )
        (fault,) = execute("PRAGMA quick_check(1)").fetchone()
        if fault != "ok":
            raise sqlite3.DatabaseError(" ".join(fault.split()))
        # A revocation must survive the end of the machine, so nothing is said to be done before it
        # is on the disk. Few writes come.
        execute("PRAGMA synchronous = FULL")
        if version < SCHEMA_VERSION:
            with self._transaction():
                # Another process may have come first.
                (version,) = execute("PRAGMA user_version").fetchone()
                for migration in _MIGRATIONS[version:]:
                    for statement in migration:
                        execute(statement)
                execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        execute("SELECT name_key FROM token LIMIT 1")

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Within, what SQLite complains about is `UnusableTokens`, which names the file."""
        try:
            yield
        except sqlite3.OperationalError as error:
            raise UnusableTokens(f"{self.path} cannot be used: {error}") from None
        except sqlite3.DatabaseError as error:
            raise UnusableTokens(f"{self.path} is damaged: {error}") from None

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            # On a full disk SQLite has rolled back already, and refuses to do so again.
            with contextlib.suppress(sqlite3.Error):
                self._connection.execute("ROLLBACK")
            raise

    # Reading

    def state(self) -> tuple[int, int]:
        """How many tokens there are, ended ones included, and the version of the last change."""
        with self._explained():
            count, version = self._connection.execute(
                "SELECT count(*), ifnull(max(version), 0) FROM token"
            ).fetchone()
        return count, version

    def changes_elsewhere(self) -> int:
        """A number that changes whenever another connection has changed the file."""
        with self._explained():
            (number,) = self._connection.execute("PRAGMA data_version").fetchone()
        return int(number)

    def records(self, after: int = 0) -> list[TokenRecord]:
        """The tokens that have changed since a version, ended ones among them, oldest first."""
        return self._select("WHERE version > ? ORDER BY created, id", after)

    def ids(self) -> frozenset[str]:
        """The ids of all tokens, ended ones included."""
        with self._explained():
            rows = self._connection.execute("SELECT id FROM token").fetchall()
        return frozenset(token_id for (token_id,) in rows)

    def _select(self, condition: str, *values: Any) -> list[TokenRecord]:
        with self._explained():
            rows = self._connection.execute(f"{_SELECT} {condition}", values).fetchall()
        try:
            return [_record(row) for row in rows]
        except (msgspec.MsgspecError, TypeError):
            raise UnusableTokens(f"{self.path} is damaged: a row makes no sense") from None

    # Changing

    def add(
        self, wanted: NewToken, now: float, *, named_by_hand: bool = False
    ) -> tuple[TokenRecord, str]:
        """Make a token; returns its record, and the token itself, which is stored nowhere.

        The name of an owner that is ``named_by_hand`` must not be confusable with another owner's.
        Raises `TokenNameTaken` or `TooManyTokens`, and `Unauthorized` if the token that it is made
        with has ended meanwhile.
        """
        with self._explained(), self._transaction():
            maker = "SELECT 1 FROM token WHERE id = ?"
            execute, made_with = self._connection.execute, wanted.made_with
            if (
                execute(maker, (made_with,)).fetchone()
                and not execute(f"{maker} AND {_IN_FORCE}", (made_with, now)).fetchone()
            ):
                raise Unauthorized("Forbidden")
            self._check_names(wanted, now, named_by_hand=named_by_hand)
            self._check_room(wanted.owner, now)
            # Taken before tokens are forgotten, the newest perhaps, so that no number comes twice.
            version = self._next_version()
            self._forget(now)
            token = credentials.new_token()
            while self._connection.execute(
                "SELECT 1 FROM token WHERE id = ?", (credentials.shown(token),)
            ).fetchone():
                token = credentials.new_token()
            record = TokenRecord(
                credentials.shown(token),
                credentials.digest(token),
                created=now,
                revoked=None,
                last_used=None,
                version=version,
                **msgspec.structs.asdict(wanted),
            )
            values = [
                msgspec.json.encode(value).decode() if name in _LISTS else value
                for name, value in zip(_COLUMNS, msgspec.structs.astuple(record), strict=True)
            ]
            columns = (*_COLUMNS, "name_key", "owner_key")
            marks = ", ".join("?" * len(columns))
            self._connection.execute(
                f"INSERT INTO token ({', '.join(columns)}) VALUES ({marks})",
                (*values, confusable(record.name), confusable(record.owner)),
            )
        return record, token

    def _check_names(self, wanted: NewToken, now: float, *, named_by_hand: bool) -> None:
        rows = self._connection.execute(
            f"SELECT owner, name, name_key FROM token WHERE owner_key = ? AND {_IN_FORCE}",
            (confusable(wanted.owner), now),
        ).fetchall()
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

    def _check_room(self, owner: str, now: float) -> None:
        (of_owner,) = self._connection.execute(
            f"SELECT count(*) FROM token WHERE owner_key = ? AND owner = ? AND {_IN_FORCE}",
            (confusable(owner), owner, now),
        ).fetchone()
        (of_all,) = self._connection.execute(
            f"SELECT count(*) FROM token WHERE {_IN_FORCE}", (now,)
        ).fetchone()
        if of_owner >= MAX_OF_OWNER:
            raise TooManyTokens(f"{owner} has {of_owner} tokens, and may have no more")
        if of_all >= MAX_TOKENS:
            raise TooManyTokens(f"there are {of_all} tokens, and there may be no more")

    def _forget(self, now: float) -> None:
        """Delete tokens that ended long ago, and the oldest of too many that have ended."""
        ended = "min(ifnull(revoked, expires), ifnull(expires, revoked))"
        self._connection.execute(
            f"DELETE FROM token WHERE {ended} <= ?", (now - REMEMBERED_SECONDS,)
        )
        self._connection.execute(
            f"DELETE FROM token WHERE id IN (SELECT id FROM token WHERE {ended} <= ? "
            f"ORDER BY {ended} DESC LIMIT -1 OFFSET {MAX_REMEMBERED})",
            (now,),
        )

    def _next_version(self) -> int:
        (version,) = self._connection.execute(
            "SELECT ifnull(max(version), 0) FROM token"
        ).fetchone()
        return int(version) + 1

    def revoke(self, ids: Iterable[str], now: float) -> list[TokenRecord]:
        """Revoke tokens that are in force, with those that were made with them, and so on.

        Returns what was revoked. Ids of other tokens mean nothing.
        """
        with self._explained(), self._transaction():
            version = self._next_version()
            left, seen = list(ids), set[str]()
            while left:
                token_id = left.pop()
                if token_id in seen:
                    continue
                seen.add(token_id)
                self._connection.execute(
                    f"UPDATE token SET revoked = ?, version = ? WHERE id = ? AND {_IN_FORCE}",
                    (now, version, token_id, now),
                )
                made = self._connection.execute(
                    "SELECT id FROM token WHERE made_with = ?", (token_id,)
                )
                left += [made_id for (made_id,) in made]
            return self._select("WHERE version = ? ORDER BY created, id", version)

    def used(self, uses: Iterable[tuple[str, float]]) -> None:
        """Store when tokens were last used, by id. A clock that was set back changes nothing."""
        rows = [(when, token_id) for token_id, when in uses]
        with self._explained(), self._transaction():
            self._connection.executemany(
                "UPDATE token SET last_used = max(ifnull(last_used, 0), ?) WHERE id = ?", rows
            )

    def close(self) -> None:
        """Close the file; no other method may be called afterwards."""
        self._connection.close()


def file_key(state_dir: Path) -> tuple[int, int] | None:
    """What tells the file of the list from another that takes its place; None if there is none.

    Raises `UnusableTokens` for one that others can read.
    """
    try:
        status = _check_private(state_dir / FILE)
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def _create(path: Path) -> None:
    """Make an empty file of mode 0600, unless there is one. Raises `UnusableTokens`."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        owner = path.parent.stat().st_uid
        if owner != os.geteuid():
            # The server, which runs as that user, could not read a file of this one.
            raise UnusableTokens(f"{path.parent} belongs to another user ({owner}): be that one")
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        os.close(os.open(path, flags, 0o600))
    except FileExistsError:
        pass
    except OSError as error:
        raise UnusableTokens(f"{path} cannot be used: {error.strerror}") from None


def _check_private(path: Path) -> os.stat_result:
    """Raise `UnusableTokens` unless the file is this user's alone.

    Another user who could read it would learn owners and scopes, and one who could write it could
    act as anybody.
    """
    try:
        status = path.lstat()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UnusableTokens(f"{path} cannot be used: {error.strerror}") from None
    if not stat.S_ISREG(status.st_mode):
        raise UnusableTokens(f"{path} is not a file")
    if status.st_uid != os.geteuid():
        raise UnusableTokens(f"{path} belongs to another user ({status.st_uid})")
    if status.st_mode & 0o077:
        mode = stat.S_IMODE(status.st_mode)
        raise UnusableTokens(f"{path} is open to others (mode {mode:04o}): chmod 0600 {path}")
    return status


def _record(row: tuple[Any, ...]) -> TokenRecord:
    fields = {
        name: msgspec.json.decode(value) if name in _LISTS else value
        for name, value in zip(_COLUMNS, row, strict=True)
    }
    return msgspec.convert(fields, TokenRecord)
