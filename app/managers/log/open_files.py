"""How many segment files the readers of all logs have open."""

from __future__ import annotations

import errno
import os
import weakref
from pathlib import Path
from typing import Final, Protocol

__all__ = ["OPEN_FILES", "Holder", "OpenFiles"]

OPEN_FILES: Final = 256
"""How many logs have the file open that was read last. Logs that nobody reads need none."""


class Holder(Protocol):
    """Who has a file open, and can open it again."""

    def close(self) -> None:
        """Close the file."""


class OpenFiles:
    """The open files of all logs of a server: ``most`` at the most, for the rest is opened again.

    It keeps no holder in memory.
    """

    def __init__(self, most: int = OPEN_FILES) -> None:
        self._most = most
        # The holders whose file is open, the longest open first.
        self._holders: dict[weakref.ref[Holder], None] = {}

    def open(self, holder: weakref.ref[Holder], path: Path, flags: int) -> int:
        """Open a file to be read; the holder whose file is open for longest may lose its own.

        So it does if no descriptors are left, too. Raises `OSError`.
        """
        try:
            descriptor = os.open(path, flags)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE) or not self._holders:
                raise
            self._close_until(len(self._holders) // 2)
            descriptor = os.open(path, flags)
        self._close_until(self._most - 1)
        self._holders[holder] = None
        return descriptor

    def closed(self, holder: weakref.ref[Holder]) -> None:
        """Note that a holder has closed its file."""
        self._holders.pop(holder, None)

    def _close_until(self, count: int) -> None:
        while len(self._holders) > count:
            first = next(iter(self._holders))
            del self._holders[first]
            holder = first()
            if holder is not None:
                holder.close()
