"""Where the files of one run of the server are: sockets, connection files, logs, output.

Where kernels outlive the server they are in the state directory, for the next one. Otherwise each
run has a directory of its own below ``<state_dir>/run``, which goes with it: several servers can
share a state directory. The server removes it at its end, and the keeper where the server is
killed; a run of which neither is left is cleared away by the next.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import secrets
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ...keeper.notes import Notes
from ...keeper.processes import open_process
from ...keeper.protocol import keeper_dir
from ...settings import Settings

__all__ = ["KEPT", "RunFiles"]

logger = logging.getLogger(__name__)

KEPT: Final = "kept"
"""The directory of the logs of kernels that outlive the server."""

_LOCK: Final = "lock"


class RunFiles:
    """Make it before anything of the run is started, and `close` it when all of it has ended."""

    def __init__(self, settings: Settings) -> None:
        self._lock: int | None = None
        self.path = settings.state_dir
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        runs = settings.state_dir / "run"
        if not settings.keeps:
            runs.mkdir(mode=0o700, exist_ok=True)
        if runs.exists():
            with _locked(runs, fcntl.LOCK_EX):  # no other that starts takes ours for abandoned
                _clear_away(runs)
                if not settings.keeps:
                    self.path = self._make_own(runs)
        self.runtime, self.output, self.logs = (
            self.path / name for name in ("runtime", "output", "logs")
        )
        if settings.keeps:
            self.logs /= KEPT
        for directory in (self.runtime, self.output, self.logs.parent, self.logs):
            directory.mkdir(mode=0o700, exist_ok=True)

    def _make_own(self, parent: Path) -> Path:
        own = parent / secrets.token_hex(4)
        own.mkdir(mode=0o700)
        self._lock = os.open(own / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return own

    @property
    def own(self) -> list[Path]:
        """What is to go with this run."""
        return [] if self._lock is None else [self.path]

    def close(self) -> None:
        """Remove what is not for the next server."""
        for directory in self.own:
            shutil.rmtree(directory, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _clear_away(parent: Path) -> None:
    """Remove the directories of runs that were killed, and their keepers with them."""
    for directory in parent.iterdir():
        with contextlib.suppress(OSError), _locked(directory / _LOCK):
            with contextlib.suppress(FileNotFoundError):
                _end_processes(keeper_dir(directory))
            shutil.rmtree(directory, ignore_errors=True)
            logger.info("removed the files of a run that was killed: %s", directory)


def _end_processes(directory: Path) -> None:
    """Kill what a keeper has left. Raises `BlockingIOError` if it runs: it will do so itself."""
    with _locked(directory / _LOCK):
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for _, pid, started, _ in Notes(descriptor).read():
                _kill(pid, started)
        finally:
            os.close(descriptor)


def _kill(pid: int, started: str) -> None:
    process = open_process(pid, started)
    if process is not None:
        with contextlib.suppress(ProcessLookupError):
            process.signal_group(signal.SIGKILL)
        process.close()


@contextlib.contextmanager
def _locked(path: Path, how: int = fcntl.LOCK_EX | fcntl.LOCK_NB) -> Iterator[None]:
    """Within, nobody else has the lock. Raises `OSError` where somebody has, or there is none."""
    lock = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, how)
        yield
    finally:
        os.close(lock)
