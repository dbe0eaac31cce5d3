"""The keeper's notes of its processes, on disk: if it is killed, the next keeper reads them.

Each line of the file is a note, and the last one of a kernel counts. So a launch costs the same
however many kernels there are; now and then the file is written anew.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
from collections.abc import Iterable
from typing import Final

import msgspec

__all__ = ["GONE", "LAUNCHING", "Note", "Notes"]

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


GONE: Final = -1
"""Stands in place of a process id: the keeper has forgotten the kernel."""

SPARE_LINES: Final = 64
"""How many more lines than twice the kernels the file may have."""


class Notes:
    """The file ``kept`` (0600) in the directory whose descriptor is given."""

    def __init__(self, directory: int) -> None:
        self._directory = directory
        self._failed = False
        self._lines = self._most = 0  # lines in the file, and how many there may be

    def read(self) -> list[Note]:
        """The notes that were written last; those that cannot be read are left out."""
        try:
            # A kernel of the same user may have put a named pipe there. It is not waited for, and
            # not read: while another has its end, it has neither bytes nor an end of file.
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
            with open(self._open(FILE, flags), "rb") as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise OSError(errno.EINVAL, f"{FILE} is no file")
                lines = file.read(MAX_BYTES).splitlines() or [b""]
        except FileNotFoundError:
            return []
        except OSError as error:
            logger.warning("what the keeper before this one had is not known: %r", error)
            return []
        notes: dict[str, Note] = {}
        for line in lines:
            try:
                note = msgspec.json.decode(line, type=Note)
            except (msgspec.MsgspecError, RecursionError) as error:
                # The last one may be cut short: its keeper was killed, or the disk was full.
                logger.warning("what the keeper before this one had is not all known: %r", error)
                continue
            notes.pop(note[0], None)
            if note[1] != GONE:
                notes[note[0]] = note
        return [*notes.values()]

    def add(self, note: Note) -> bool:
        """Write one more note; False if all are to be written anew (`write`) instead."""
        # At first there is no file that this keeper has written, so all are written anew.
        if self._lines >= self._most:
            return False
        try:
            flags = os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW
            with open(self._open(FILE, flags), "ab", buffering=0) as file:
                line = msgspec.json.encode(note) + b"\n"
                if file.write(line) != len(line):  # the disk is full
                    self._lines = self._most
        except OSError:
            self._lines = self._most
        self._lines += 1
        return self._lines <= self._most

    def write(self, notes: Iterable[Note]) -> None:
        """Write all notes anew. A failure is logged once; the next call tries again."""
        # Until this has succeeded `add` takes nothing: the file may be an older keeper's.
        rows = list(notes)
        self._lines = self._most = 0
        try:
            if rows:
                self._write(rows)
                self._lines, self._most = len(rows), 2 * len(rows) + SPARE_LINES
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
        with open(self._open(new, flags), "wb") as file:
            file.writelines(msgspec.json.encode(row) + b"\n" for row in rows)
        os.rename(new, FILE, src_dir_fd=self._directory, dst_dir_fd=self._directory)

    def _open(self, name: str, flags: int) -> int:
        return os.open(name, flags | os.O_CLOEXEC, 0o600, dir_fd=self._directory)
