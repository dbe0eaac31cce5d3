"""Where the files of one run of the server are: sockets, connection files, logs, output.

If kernels outlive the server, the files are in the state directory, for the next server. Otherwise
each run has a directory of its own below ``<state_dir>/run``, so that several servers can share a
state directory. The server removes that directory at its end; if the server is killed, its keeper
does; if both are killed, the next server does.

A server has the lock in its run's directory as long as it lives, and a keeper the lock in its own.
If both locks are free, no process uses the directory any more.

A server has a copy of the log of each of its kernels on other hosts: a mirror, which it alone may
write. Replicas share a state directory: so each has a directory of its own for mirrors, which it
locks.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import secrets
import shutil
import signal
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ...keeper.notes import Notes
from ...keeper.processes import open_process
from ...keeper.protocol import aside_dirs, keeper_dir
from ...settings import Settings
from .isolation.places import kernels_dir

__all__ = ["KEPT", "RunFiles", "UnusableDirectory", "check_directories", "clear_mirrors"]

logger = logging.getLogger(__name__)

KEPT: Final = "kept"
"""The directory of the logs of kernels that outlive the server."""

MIRRORS: Final = "mirrors"
"""The directory of the mirrors of replicas, beside `KEPT`."""

_LOCK: Final = "lock"

_KEPT_DIRECTORIES: Final = ("runtime", "output", "ipc", "logs", f"logs/{KEPT}", f"logs/{MIRRORS}")


class UnusableDirectory(Exception):
    """A path of the state directory cannot be used as a directory; the text says which, and why."""


def check_directories(settings: Settings) -> None:
    """Raise `UnusableDirectory` if a path exists that the server cannot use as a directory.

    Nothing is made.
    """
    state_dir = settings.state_dir
    checked = [state_dir, state_dir / "run", keeper_dir(state_dir), *aside_dirs(state_dir)]
    if settings.keeps:
        checked += [state_dir / name for name in _KEPT_DIRECTORIES]
    if settings.keeps and settings.agent_listen:
        checked.append(state_dir / "invitations")
    for path in checked:
        try:
            if not stat.S_ISDIR(path.stat().st_mode):
                raise UnusableDirectory(f"{path} is no directory")
        except FileNotFoundError:
            if path.is_symlink():
                raise UnusableDirectory(f"{path} is a link to nowhere") from None
            continue
        except OSError as error:
            raise UnusableDirectory(f"{path} cannot be used: {error.strerror}") from None
        if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
            raise UnusableDirectory(f"{path} cannot be written by user {os.geteuid()}")


class RunFiles:
    """The directories of one run.

    Make it before the keeper and any kernel is started, and `close` it when all of them have ended.
    ``replica`` is the id of this process, if it is one of several replicas.
    """

    def __init__(self, settings: Settings, replica: str = "") -> None:
        self._lock: int | None = None
        self._mirrors_lock: int | None = None
        self.path = settings.state_dir
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        runs = settings.state_dir / "run"
        if not settings.keeps:
            runs.mkdir(mode=0o700, exist_ok=True)
        if runs.exists():
            # Between the creation of this run's directory and its lock, another server that starts
            # could take the directory for abandoned. Each server clears away only with this lock of
            # `runs`, so none does.
            with _locked(runs, fcntl.LOCK_EX):
                _clear_away(runs, settings.isolation_dir)
                if not settings.keeps:
                    self.path = self._make_own(runs)
        self.runtime, self.output, self.logs = (
            self.path / name for name in ("runtime", "output", "logs")
        )
        if settings.keeps:
            self.logs /= KEPT
        for directory in (self.runtime, self.output, self.logs.parent, self.logs):
            directory.mkdir(mode=0o700, exist_ok=True)
        self.mirrors = self.logs
        """The directory of the mirrors of logs on other hosts."""
        if replica:
            mirrors = self.logs.parent / MIRRORS
            mirrors.mkdir(mode=0o700, exist_ok=True)
            # As above: no other replica clears away between the creation of this replica's
            # directory and its lock.
            with _locked(mirrors, fcntl.LOCK_EX):
                _clear_mirrors(mirrors)
                self.mirrors = mirrors / replica
                self.mirrors.mkdir(mode=0o700)
                # The directory itself is locked: a file in it could be removed before the rest is.
                self._mirrors_lock = os.open(self.mirrors, os.O_RDONLY | os.O_CLOEXEC)
                fcntl.flock(self._mirrors_lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _make_own(self, parent: Path) -> Path:
        own, self._lock = _make_locked(parent / secrets.token_hex(4))
        return own

    @property
    def own(self) -> list[Path]:
        """The directories that are removed with this run."""
        return [] if self._lock is None else [self.path]

    def close(self) -> None:
        """Remove the files that are not for the next server."""
        # The lock is released after the removal: until then no other server takes the directory for
        # abandoned, and removes it at the same time.
        for directory in self.own:
            shutil.rmtree(directory, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        if self._mirrors_lock is not None:
            shutil.rmtree(self.mirrors, ignore_errors=True)
            os.close(self._mirrors_lock)
            self._mirrors_lock = None


def _make_locked(path: Path) -> tuple[Path, int]:
    """Make a directory and lock it; returns it and the descriptor of the lock, to be closed."""
    path.mkdir(mode=0o700)
    lock = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return path, lock


def clear_mirrors(state_dir: Path) -> None:
    """Remove the mirrors of replicas that have ended. Raises `OSError`."""
    mirrors = state_dir / "logs" / MIRRORS
    with _locked(mirrors, fcntl.LOCK_EX):
        _clear_mirrors(mirrors)


def _clear_mirrors(mirrors: Path) -> None:
    for directory in mirrors.iterdir():
        with contextlib.suppress(OSError), _locked(directory):
            shutil.rmtree(directory, ignore_errors=True)


def _clear_away(parent: Path, isolation_dir: Path | None) -> None:
    """Remove the directories of runs whose server and keeper were both killed."""
    for directory in parent.iterdir():
        # `OSError` is raised if the server has the lock, or if it is dead and its keeper lives,
        # which ends the kernels and removes the files itself. A directory without a lock, or that
        # cannot be removed, is left to the next server.
        with contextlib.suppress(OSError), _locked(directory / _LOCK):
            with contextlib.suppress(FileNotFoundError):
                _end_processes(keeper_dir(directory))
            shutil.rmtree(directory, ignore_errors=True)
            if isolation_dir is not None:
                shutil.rmtree(kernels_dir(isolation_dir, directory), ignore_errors=True)
            logger.info("removed the files of a run that was killed: %s", directory)


def _end_processes(directory: Path) -> None:
    """Kill the processes that a dead keeper has left.

    Raises `BlockingIOError` if the keeper still runs: it will kill them itself.
    """
    with _locked(directory / _LOCK):
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for _, pid, started, _ in Notes(descriptor).read():
                _kill(pid, started)
        finally:
            os.close(descriptor)


def _kill(pid: int, started: str) -> None:
    # The number may be another process's by now; none with another start time is opened.
    process = open_process(pid, started)
    if process is not None:
        with contextlib.suppress(ProcessLookupError):
            process.signal_group(signal.SIGKILL)
        process.close()


@contextlib.contextmanager
def _locked(path: Path, how: int = fcntl.LOCK_EX | fcntl.LOCK_NB) -> Iterator[None]:
    """A block with the lock of a file or directory.

    Raises `OSError` if another process has the lock, or the file is missing. With ``LOCK_EX`` alone
    it waits for the other process to release the lock.
    """
    lock = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, how)
        yield
    finally:
        os.close(lock)
