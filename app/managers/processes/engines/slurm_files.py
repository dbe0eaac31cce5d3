"""The directory that a service and its Slurm jobs share: the files with their stdin and output.

Each job has two files there, which are named as the job: ``.in`` is its stdin, and is removed when
its keeper has joined; ``.out`` is its output. As long as ``.out`` is there, the job was submitted,
and no server has seen to its end.
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

    All methods block, as the directory may be on a network file system. Raises `HostUnusable`.
    """

    def __init__(self, directory: str, prefix: str) -> None:
        self.directory = directory
        self._prefix = prefix

    def path(self, name: str, end: str) -> str:
        """The path of a job's file; ``end`` is ``in`` or ``out``."""
        return f"{self.directory}/{name}.{end}"

    def write(self, name: str, stdin: bytes) -> None:
        """Make the files of a new job, which no other user can read; none is left if that fails."""
        try:
            with self._opened(make=True) as directory:
                # ``.out`` first: if the server is killed between the two, the next one looks for
                # the job, and removes its file. The other way round a secret would be left that no
                # server removes.
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
                for end in ends or ("in", "out"):  # the secret first, for the reason in `write`
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(f"{name}.{end}", dir_fd=directory)
        except FileNotFoundError:
            pass  # the directory is gone, and the files with it
        except OSError as error:
            raise HostUnusable(f"A job's files stay in {self.directory}: {error}") from error

    def names(self) -> list[str]:
        """The names of the jobs that were submitted, and whose end no server has seen to."""
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
        """The last `TAIL_BYTES` of a job's output; empty if it cannot be read."""
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
            # The open directory is checked, and all files are opened relative to it: its path may
            # lead elsewhere meanwhile.
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
