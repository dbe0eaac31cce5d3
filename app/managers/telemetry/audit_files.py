"""The files of the audit log: the one that is written, and older ones, from ``.1`` on."""

from __future__ import annotations

import contextlib
import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["AuditFiles", "audit_files", "open_audit_file"]

logger = logging.getLogger(__name__)

HELD: Final = 64
"""How many files, the oldest, `audit_files` leaves open to its end: they are removed first."""


class AuditFiles:
    """Writes to a file of at most so many bytes, of which so many older ones are kept.

    With ``max_bytes`` of 0 nothing is moved. A single write is never divided.
    """

    def __init__(self, path: Path, max_bytes: int, older: int) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._older = older
        self._told = False

    def write(self, data: bytes) -> int:
        """Append; returns how many bytes the disk has taken. Raises `OSError`."""
        # Opened for each write, as logrotate may have moved the file away.
        descriptor = open_audit_file(self._path)
        try:
            if self._is_full(descriptor, len(data)) and self._move(descriptor):
                os.close(descriptor)
                descriptor = open_audit_file(self._path)
            # With O_APPEND, and in one write: what two servers write to one file does not mix. If
            # another server has moved the file since it was opened, the lines are in the older one.
            return os.write(descriptor, data)
        finally:
            os.close(descriptor)

    def _is_full(self, descriptor: int, more: int) -> bool:
        if not self._max_bytes:
            return False
        found = os.fstat(descriptor)
        # A device or a pipe has no size, and is not moved.
        return stat.S_ISREG(found.st_mode) and 0 < found.st_size > self._max_bytes - more

    def _move(self, descriptor: int) -> bool:
        """Give the file, and each older one, the next number; the oldest is gone.

        Returns whether there is another file to write to. If the files cannot be moved, the file
        grows on: no record is lost for that.
        """
        try:
            with _locked(descriptor):
                # Another server that writes to the same file may have moved it since.
                if not os.path.samestat(os.fstat(descriptor), os.stat(self._path)):
                    return True
                for number in range(self._older, 0, -1):
                    with contextlib.suppress(FileNotFoundError):
                        os.replace(_numbered(self._path, number - 1), _numbered(self._path, number))
        except FileNotFoundError:
            return True
        except OSError as error:
            if not self._told:
                self._told = True
                logger.error("the audit log grows on, it cannot be moved: %s", error.strerror)
            return False
        return True


@contextlib.contextmanager
def _locked(descriptor: int) -> Iterator[None]:
    """Within, no other process moves the file. The lock ends with the descriptor."""
    if fcntl is not None:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    yield


def _numbered(path: Path, number: int) -> str:
    return f"{path}.{number}" if number else os.fspath(path)


def audit_files(path: Path) -> Iterator[BinaryIO]:
    """The files that there are, the oldest first; each is open until the next one is asked for."""
    # A server may move the files meanwhile. So a file is known by its device and inode, and not by
    # its name, and all names are looked at anew for each file: none is passed over, none comes
    # twice. While a file is open its inode is given to no other, even if the file is removed, which
    # happens to the oldest first (`HELD`).
    known: set[tuple[int, int]] = set()
    with contextlib.ExitStack() as stack:
        while (file := _oldest_but(path, known)) is not None:
            if len(known) <= HELD:
                yield stack.enter_context(file)
            else:
                with file:
                    yield file


def _oldest_but(path: Path, known: set[tuple[int, int]]) -> BinaryIO | None:
    """The oldest file that is not ``known``, which is added there; None if there is none."""
    names = [os.fspath(path)]
    # While the files are moved, the oldest first, one number has no file for a moment.
    while any(map(os.path.exists, (_numbered(path, len(names)), _numbered(path, len(names) + 1)))):
        names.append(_numbered(path, len(names)))
    for name in reversed(names):
        with contextlib.suppress(FileNotFoundError), contextlib.ExitStack() as stack:
            file = stack.enter_context(open(name, "rb"))
            found = os.fstat(file.fileno())
            if (which := (found.st_dev, found.st_ino)) not in known:
                known.add(which)
                stack.pop_all()
                return file
    return None


def open_audit_file(path: Path) -> int:
    """A descriptor of the file, to append to; mode 0600. Raises `OSError`."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    found = os.fstat(descriptor)
    if stat.S_ISREG(found.st_mode) and found.st_mode & 0o077:
        with contextlib.suppress(OSError):  # the file belongs to another user
            os.fchmod(descriptor, 0o600)
    return descriptor
