"""The keeper's notes of its processes, on disk: if it is killed, the next keeper reads them."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Iterable
from typing import Final

__all__ = ["LAUNCHING", "Note", "Notes"]

logger = logging.getLogger(__name__)

FILE: Final = "kept"
MAX_BYTES: Final = 2**24

Note = tuple[str, int, str, str]
"""A kernel's id, its process id, the start time of the process, and the file of its output."""

LAUNCHING: Final = 0
"""Stands in place of the id of a process that is about to be launched.

A keeper that is killed between the launch and the next note leaves a process whose id is nowhere.
The next keeper knows by this note that it may be there, and finds it by its output's named pipe.
"""


class Notes:
    """The file ``kept`` (0600) in the directory whose descriptor is given."""

    def __init__(self, directory: int) -> None:
        self._directory = directory
        self._failed = False

    def read(self) -> list[Note]:
        """The notes that were written last; empty if there are none, or they cannot be read."""
        try:
            with open(self._open(FILE, os.O_RDONLY | os.O_NOFOLLOW), encoding="utf-8") as file:
                rows = json.loads(file.read(MAX_BYTES))
            return [
                (str(kernel_id), int(pid), str(started), str(output))
                for kernel_id, pid, started, output in rows
            ]
        except FileNotFoundError:
            pass
        except (OSError, ValueError, TypeError, RecursionError) as error:
            logger.warning("what the keeper before this one had is not known: %r", error)
        return []

    def write(self, notes: Iterable[Note]) -> None:
        """Write all notes anew. A failure is logged once; the next call tries again."""
        rows = list(notes)
        try:
            if rows:
                self._write(rows)
            else:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(FILE, dir_fd=self._directory)
            self._failed = False
        except OSError as error:
            if not self._failed:
                logger.error("a keeper after this one will not know the processes: %s", error)
            self._failed = True

    def _write(self, rows: list[Note]) -> None:
        # A keeper that is killed here leaves the old notes whole: rename(2) is atomic.
        new = f"{FILE}.new"
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
        with open(self._open(new, flags), "w", encoding="utf-8") as file:
            json.dump(rows, file)
        os.rename(new, FILE, src_dir_fd=self._directory, dst_dir_fd=self._directory)

    def _open(self, name: str, flags: int) -> int:
        return os.open(name, flags | os.O_CLOEXEC, 0o600, dir_fd=self._directory)
