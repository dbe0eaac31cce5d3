"""Directories of isolated kernels: where each has its connection file and its sockets.

ISOLATION_DIR/.run/RUN/KERNEL        of the service's user; others may pass through, not look
    connection.json                  the kernel's own (0600)
    s/                               the kernel's own (0700), for its ipc sockets
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Final

__all__ = ["MAX_DIRECTORY", "KernelPlace", "kernels_dir"]

MAX_DIRECTORY: Final = 107 - len("/.run/01234567/0123456789abcdef/s/c-5")
"""Bytes of the path of isolation_dir, at most: a unix socket's name has 107 on Linux."""


def kernels_dir(isolation_dir: Path, run: Path) -> Path:
    """The directory of the kernels' own, for the run of a server whose files are in ``run``."""
    return isolation_dir / ".run" / _digest(os.fspath(run), 8)


class KernelPlace:
    """The directory of one kernel, below ``kernels`` (`kernels_dir`)."""

    def __init__(self, kernels: Path, kernel_id: str) -> None:
        self.directory = kernels / _digest(kernel_id, 16)
        self.connection_file = self.directory / "connection.json"
        self.sockets = self.directory / "s"
        self.address = str(self.sockets / "c")
        """What the names of its ipc sockets begin with."""


def _digest(text: str, digits: int) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:digits]
