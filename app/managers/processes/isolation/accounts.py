"""The user of the system that an owner's kernels run as: each owner has one of its own, for good.

A user id is allotted to one owner and never to another: files of the first owner may be anywhere.
So the list of ids lies where the homes are, and lasts as long as these.
"""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import pwd
import re
import sqlite3
import threading
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from ...errors import IsolationUnavailable
from .names import directory_name

__all__ = ["Account", "Accounts", "first_free", "least_uid"]

FILE: Final = ".owners.sqlite"
"""The list of allotted ids, in the directory of the homes. No home's name begins with a dot."""

LOCK_SECONDS: Final = 5.0
"""How long a statement waits for another server that is allotting an id."""

NOBODY: Final = frozenset({65534, 65535})
"""Ids that stand for the user ``nobody``, or for any user that is not known."""

_UID_MIN: Final = re.compile(r"^\s*UID_MIN\s+([0-9]+)", re.MULTILINE)


class Account(NamedTuple):
    """The user that an owner's kernels run as. ``own`` says that the service makes its home."""

    uid: int
    gid: int
    name: str
    home: Path
    own: bool


class Accounts:
    """Finds the account of an owner, and allots ids of ``ids`` to owners that have none.

    The homes are below ``directory``. With ``by_name`` the system's account of an owner's name
    comes first. Methods block.
    """

    def __init__(self, directory: Path, ids: range, *, by_name: bool) -> None:
        self._directory = directory
        self._ids = ids
        self._by_name = by_name
        self._least = least_uid(Path("/etc/login.defs"))

    def find(self, owner: str) -> Account:
        """The account of an owner. Raises `IsolationUnavailable`."""
        account = self._of_system(owner) if self._by_name else None
        if account is None and not self._ids:
            raise IsolationUnavailable("the system has no account of the owner's name")
        if account is None:
            uid = self._allotted(owner)
            name = directory_name(owner)
            account = Account(uid, uid, name, self._directory / name, own=True)
        if account.uid in {0, os.geteuid(), *NOBODY} or account.gid in {0, *NOBODY}:
            raise IsolationUnavailable(f"no kernel runs as the user with the id {account.uid}")
        return account

    def is_of_system(self, owner: str) -> bool:
        """Whether an owner's kernels run as the system's account of the owner's name."""
        try:
            return self._by_name and self._of_system(owner) is not None
        except IsolationUnavailable:
            return False

    def _of_system(self, owner: str) -> Account | None:
        try:
            entry = pwd.getpwnam(owner)
        except (KeyError, ValueError):  # a name that no account can have
            return None
        except OSError as error:
            raise IsolationUnavailable(f"the system's accounts cannot be read: {error}") from None
        if entry.pw_uid < self._least:
            raise IsolationUnavailable(
                f"the account of the owner's name is one of the system's own: "
                f"its id {entry.pw_uid} is below {self._least}"
            )
        if entry.pw_uid in self._ids:
            raise IsolationUnavailable(
                f"the account of the owner's name has the id {entry.pw_uid}, which is in "
                "isolation_uids"
            )
        return Account(entry.pw_uid, entry.pw_gid, entry.pw_name, Path(entry.pw_dir), own=False)

    def _allotted(self, owner: str) -> int:
        try:
            with self._open() as connection, _transaction(connection):
                row = connection.execute("SELECT uid FROM owner WHERE name = ?", (owner,))
                if (found := row.fetchone()) is not None:
                    return int(found[0])
                taken = {uid for (uid,) in connection.execute("SELECT uid FROM owner")}
                # Within the transaction, so that ids which other servers have allotted are seen.
                # `first_free` asks the system, whose directory of users may be slow: other servers
                # wait for that, `LOCK_SECONDS` at the most.
                uid = first_free(self._ids, taken)
                if uid is None:
                    raise IsolationUnavailable("every id of isolation_uids is taken")
                connection.execute("INSERT INTO owner (name, uid) VALUES (?, ?)", (owner, uid))
                return uid
        except (sqlite3.Error, OSError) as error:
            raise IsolationUnavailable(
                f"the list of ids, {self._directory / FILE}, cannot be used: {error}"
            ) from None

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        path = self._directory / FILE
        _make(path)
        connection = sqlite3.connect(path, timeout=LOCK_SECONDS, isolation_level=None)
        with contextlib.closing(connection):
            connection.execute(
                "CREATE TABLE IF NOT EXISTS owner "
                "(name TEXT PRIMARY KEY, uid INTEGER NOT NULL UNIQUE) WITHOUT ROWID"
            )
            yield connection


_making: Final = threading.Lock()  # for all threads: locks on files belong to the process


def _make(path: Path) -> None:
    """Make the list if it is not there: SQLite has no mode for it, and follows links."""
    # If a process closes any descriptor of a file, all its locks on the file are dropped
    # [fcntl(2)], also those that SQLite has in other threads. So a list that is there is not opened
    # here; and with the lock `_making` no thread opens a list before its maker has closed it.
    with _making:
        if path.is_symlink():
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        if not path.exists():
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            with contextlib.suppress(FileExistsError):  # another server has made it just now
                os.close(os.open(path, flags, 0o600))


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[Any]:
    """A transaction that overlaps with no other process's: otherwise both could allot one id."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        with contextlib.suppress(sqlite3.Error):  # on a full disk it was rolled back already
            connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def first_free(ids: range, taken: Collection[int]) -> int | None:
    """The first of these ids that no owner has had, nor any user or group of the system."""
    for one in ids:
        if one not in taken and one not in NOBODY and not _is_known(one):
            return one
    return None


def _is_known(number: int) -> bool:
    """Whether the system has a user or a group with this id."""
    for look_up in (pwd.getpwuid, grp.getgrgid):
        # The system may give an id to a new user later, and this service is not told. So
        # `isolation_uids` has to be a range from which the system gives no ids.
        with contextlib.suppress(KeyError):
            look_up(number)
            return True
    return False


def least_uid(login_defs: Path) -> int:
    """The least user id of a person's account (UID_MIN): lower ids are of system services."""
    try:
        match = _UID_MIN.search(login_defs.read_text(errors="replace"))
    except OSError:
        match = None
    return int(match[1]) if match is not None else 1000
