"""Where the logs of one server run are: a directory that goes when the run ends."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from app.managers.log import LogBudget, MessageLog
from app.managers.segments import Segments
from app.settings import Settings

try:
    import fcntl
except ImportError:  # Windows: what a crash leaves there stays until somebody removes it
    fcntl = None  # type: ignore[assignment]

__all__ = ["KEPT", "LOCK", "LogFiles"]

logger = logging.getLogger(__name__)

LOCK = "lock"

THREADS: Final = 4
"""Of a disk that hangs in one kernel's files, others have threads left."""

KEPT = "kept"
"""The directory of kernels that outlive the server."""


class LogFiles:
    """Makes the logs of kernels, with their bounds.

    Each run has a directory of its own below ``<state_dir>/logs``, locked for as long as it lives,
    so that the directories of runs that crashed can be told and removed.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._budget = LogBudget(settings.log_total_bytes)
        self._executor = ThreadPoolExecutor(THREADS, thread_name_prefix="log")
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

    def log(self, kernel_id: str) -> MessageLog:
        """A log for a kernel."""
        settings = self._settings
        segments = None
        if settings.log_disk_bytes:
            segments = Segments(
                self._directory / kernel_id,
                self._executor,
                max_bytes=settings.log_disk_bytes,
                max_age=settings.log_disk_age,
            )
        return MessageLog(settings.log_bytes, segments, self._budget)

    def close(self) -> None:
        """Remove the directory, unless it is for the next server. The logs must be closed."""
        self._executor.shutdown(wait=False)  # what is written has been waited for
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
