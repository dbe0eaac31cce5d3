"""Where the logs of one server run are: a directory that goes when the run ends."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
from pathlib import Path

from app.settings import Settings

try:
    import fcntl
except ImportError:  # Windows: what a crash leaves there stays until somebody removes it
    fcntl = None  # type: ignore[assignment]

__all__ = ["KEPT", "LOCK", "LogFiles"]

logger = logging.getLogger(__name__)

LOCK = "lock"

KEPT = "kept"
"""The directory of kernels that outlive the server."""


class LogFiles:
    """Where the logs of kernels are.

    Each run has a directory of its own below ``<state_dir>/logs``, locked for as long as it lives,
    so that the directories of runs that crashed can be told and removed.
    """

    def __init__(self, settings: Settings) -> None:
        parent = settings.state_dir / "logs"
        parent.mkdir(mode=0o700, exist_ok=True)
        _remove_abandoned(parent)
        # Where kernels outlive the server, the next one goes on with their logs.
        self._lasts = settings.keeps
        own = KEPT if self._lasts else f"{os.getpid()}-{secrets.token_hex(4)}"
        self._directory = parent / own
        self._directory.mkdir(mode=0o700, exist_ok=self._lasts)
        self._lock = os.open(self._directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if fcntl is not None:
            # Whoever may keep kernels here has the state directory's lock, and so this one is free.
            # Were it not, to wait would stop the whole server without a word.
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def directory(self, kernel_id: str) -> Path:
        """Where a kernel's log is."""
        return self._directory / kernel_id

    def close(self) -> None:
        """Remove the directory, unless it is for the next server. The logs must be closed."""
        os.close(self._lock)
        if self._lasts:
            return
        shutil.rmtree(self._directory, ignore_errors=True)


def _remove_abandoned(parent: Path) -> None:
    if fcntl is None:
        return
    for directory in parent.iterdir():
        if directory.name == KEPT:
            continue
        try:
            lock = os.open(directory / LOCK, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            continue  # another run is just making it, or it is not of our making
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(directory, ignore_errors=True)
            logger.info("removed the logs of a run that has crashed: %s", directory)
        except OSError:
            pass  # its server is alive
        finally:
            os.close(lock)
