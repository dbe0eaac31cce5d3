"""The right to a state directory: a lock that belongs to the process, and ends with it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from .store import UnusableRegistry

try:
    import fcntl
except ImportError:  # Windows, where no kernel can be kept
    fcntl = None  # type: ignore[assignment]

__all__ = ["Lock"]

LOCK: Final = "registry.lock"


class Lock:
    """The right to a state directory, until it is closed or this process ends.

    A ``shared`` right is one that other replicas have, too. Raises `UnusableRegistry` when another
    process has it.
    """

    def __init__(self, state_dir: Path, *, shared: bool = False) -> None:
        path = state_dir / LOCK
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise UnusableRegistry(f"{path} cannot be used: {error.strerror}") from None
        if fcntl is None:
            return
        # A replica's shared lock and a single server's exclusive one keep each other out. The id in
        # the file is for people: it is of a server that may have ended, or not have signed yet.
        try:
            how = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
            fcntl.flock(self._descriptor, how | fcntl.LOCK_NB)
        except OSError:
            holder = os.pread(self._descriptor, 20, 0).decode("ascii", "replace").strip()
            os.close(self._descriptor)
            raise UnusableRegistry(
                f"{state_dir} is in use by another server (process {holder or 'unknown'}), which "
                "keeps its kernels there: stop that one, give this one a state directory of its "
                "own, start it with on_shutdown=stop, or both with one registry_url"
            ) from None

    def sign(self) -> None:
        """Write this process's id into the lock file. Raises `OSError`."""
        os.pwrite(self._descriptor, f"{os.getpid():<20}".encode(), 0)

    def close(self) -> None:
        """Release the lock."""
        os.close(self._descriptor)
