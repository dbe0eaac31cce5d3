"""The directory that a service and its jobs share: what jobs read, and what they write.

Of each job there are two files, which are named as the job: ``.in`` is its stdin, and goes when its
keeper has joined; ``.out`` is what it writes, and says as long as it is there that the job was
submitted, and that nobody has seen to its end.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from typing import Final

from ..hosts.errors import HostFull, HostUnusable

__all__ = ["JobFiles"]

TAIL_BYTES: Final = 2**13

FULL: Final = (28, 122)
"""ENOSPC, EDQUOT."""


class JobFiles:
    """The files of jobs whose names begin with ``prefix``, in one directory.

    All of it blocks, as a network's file system does. Raises `HostUnusable`.
    """

    def __init__(self, directory: str, prefix: str) -> None:
        self.directory = directory
        self._prefix = prefix

    def path(self, name: str, end: str) -> str:
        """A file of a job, as the job has it."""
        return f"{self.directory}/{name}.{end}"

    def write(self, name: str, stdin: bytes) -> None:
        """Have the files of a new job, which nobody else can read. Leaves none if that fails."""
        try:
            with self._opened(make=True) as directory:
                # ``.out`` first: a server that is killed between the two leaves a job that the next
                # one looks for, and removes, and no secret that nobody knows.
                for end, data in (("out", b""), ("in", stdin)):
                    _write(directory, f"{name}.{end}", data)
        except OSError as error:
            with contextlib.suppress(HostUnusable):
                self.remove(name)
            kind = HostFull if error.errno in FULL else HostUnusable
            text = f"The directory {self.directory}, which jobs share, cannot be written: {error}"
            raise kind(text) from error

    def remove(self, name: str, *ends: str) -> None:
        """Remove files of a job: all, or those with these ends."""
        try:
            with self._opened() as directory:
                for end in ends or ("in", "out"):  # the secret first, for the same reason
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(f"{name}.{end}", dir_fd=directory)
        except FileNotFoundError:
            pass  # and so is the directory
        except OSError as error:
            raise HostUnusable(f"A job's files stay in {self.directory}: {error}") from error

    def names(self) -> list[str]:
        """The jobs that were submitted, and whose end nobody has seen to."""
        try:
            with self._opened() as directory:
                found = os.listdir(directory)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise HostUnusable(f"{self.directory} cannot be read: {error}") from error
        own = (name for name in found if name.startswith(self._prefix))
        return [name.removesuffix(".out") for name in own if name.endswith(".out")]

    def tail(self, name: str) -> str:
        """The last that a job has written; empty if that cannot be read."""
        try:
            with self._opened() as directory:
                # The job's processes may put anything in its place: a link, or a pipe that nobody
                # writes to.
                flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
                descriptor = os.open(f"{name}.out", flags, dir_fd=directory)
                with os.fdopen(descriptor, "rb") as file:
                    file.seek(max(0, os.fstat(descriptor).st_size - TAIL_BYTES))
                    return file.read(TAIL_BYTES).decode(errors="replace").strip()
        except (OSError, HostUnusable):
            return ""

    @contextlib.contextmanager
    def _opened(self, *, make: bool = False) -> Iterator[int]:
        """The directory, which is this user's alone. Raises `OSError`, too."""
        if make:
            os.makedirs(self.directory, mode=0o700, exist_ok=True)
        directory = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            # Of the open directory, below which all files are opened then: what its name leads to
            # may change meanwhile.
            status = os.fstat(directory)
            if status.st_uid != os.geteuid():
                raise HostUnusable(f"{self.directory}, which jobs share, is another user's")
            if mode := stat.S_IMODE(status.st_mode) & 0o077:
                raise HostUnusable(
                    f"{self.directory}, which jobs share, is open to others "
                    f"({mode:03o}): chmod 700 {self.directory}"
                )
            yield directory
        finally:
            os.close(directory)


def _write(directory: int, name: str, data: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(name, flags, 0o600, dir_fd=directory)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(descriptor)  # another machine reads it
