"""What a kernel's process itself writes: its stdout and stderr, beside the Jupyter protocol.

It is kept in a bounded file per kernel, and its tail in memory, because the last lines of a process
that died usually say why. The process that is the kernel's parent reads it: the server, or its
keeper.
"""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path
from typing import Final

from .last_words import MAX_LINES, last_words

__all__ = ["ProcessOutput", "lasting_pipe", "pipe_of"]

logger = logging.getLogger(__name__)

OUTPUT_BYTES: Final = 2**20
"""Bytes that are kept on disk of what one kernel's process writes."""

TAIL_BYTES: Final = 32768
"""Enough for the stacks of some threads, which are written after what says why."""

READ_BYTES: Final = 65536


class ProcessOutput:
    """A pipe that a process writes to, read into ``path`` (0600) and a tail in memory.

    The file holds at most ``max_bytes``: when half of that is full it becomes ``<path>.1`` and a
    new one begins. A file that cannot be written is given up with one warning; the tail goes on.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        self.path = path
        self._max_file = max_bytes // 2
        self._tail = bytearray()
        self._file: int | None = None
        self._size = 0
        self._read_end: int | None = None
        self._write_end: int | None = None
        self._loop = asyncio.get_running_loop()

    def open(self) -> int:
        """A descriptor for a new process to write to; give it back with `started`."""
        self.close()
        self._tail.clear()
        self._read_end, self._write_end = os.pipe()
        os.set_blocking(self._read_end, False)
        self._loop.add_reader(self._read_end, self._read)
        return self._write_end

    def open_lasting(self) -> int:
        """The same, by a `lasting_pipe`. Raises `OSError`."""
        self.close()
        self._tail.clear()
        self._write_end = lasting_pipe(self.path)
        self.follow()
        return self._write_end

    def follow(self) -> None:
        """Read from now on what a process writes that was started with a `lasting_pipe`.

        Raises `OSError` when it has no such pipe.
        """
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW
        self._read_end = os.open(self._pipe, flags)
        self._loop.add_reader(self._read_end, self._read)

    def started(self) -> None:
        """The process has its copy of the descriptor (or will never have): close ours."""
        if self._write_end is not None:
            os.close(self._write_end)
            self._write_end = None

    def close(self) -> None:
        """Take what the pipe still holds, then let go of it and of the file."""
        self.started()
        if self._read_end is not None:
            self._read()
        self._close_pipe()
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def remove(self) -> None:
        """Close, and delete the files."""
        self.close()
        for path in (self.path, self._rotated, self._pipe):
            path.unlink(missing_ok=True)

    def tail(self, lines: int = MAX_LINES) -> str:
        """The `last_words` of the newest process, for people; undecodable bytes replaced."""
        if self._read_end is not None:
            self._read()
        return last_words(self._tail.decode("utf-8", "replace"), lines)

    @property
    def _rotated(self) -> Path:
        return self.path.with_name(self.path.name + ".1")

    @property
    def _pipe(self) -> Path:
        return pipe_of(self.path)

    def _close_pipe(self) -> None:
        if self._read_end is not None:
            self._loop.remove_reader(self._read_end)
            os.close(self._read_end)
            self._read_end = None

    def _read(self) -> None:
        """Take one pipe's worth; a process that writes without end gets its turn again."""
        assert self._read_end is not None
        try:
            data = os.read(self._read_end, READ_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            logger.warning("cannot read a kernel's output: %s", error)
            data = b""
        if not data:  # every holder of the other end is gone
            self._close_pipe()
            return
        self._tail += data
        del self._tail[:-TAIL_BYTES]
        self._write(data)

    def _write(self, data: bytes) -> None:
        if self._max_file == 0:  # given up
            return
        try:
            if self._file is None:
                self._open_file()
            if self._size and self._size + len(data) > self._max_file:
                self._rotate()
            assert self._file is not None
            self._size += os.write(self._file, data[-self._max_file :])
        except OSError as error:
            logger.warning("a kernel's output is no longer kept in %s: %s", self.path, error)
            self._max_file = 0

    def _rotate(self) -> None:
        assert self._file is not None
        os.close(self._file)
        self._file = None
        os.replace(self.path, self._rotated)
        self._open_file()

    def _open_file(self) -> None:
        # It may be there already, from a process before this one.
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0)
        self._file = os.open(self.path, flags, 0o600)
        self._size = os.fstat(self._file).st_size


def lasting_pipe(path: Path) -> int:
    """A descriptor for a new process to write to, whose output is kept in ``path``.

    It is that of a named pipe: the process can go on to write when its reader is gone. It has both
    ends of the pipe, and so is not told that nobody reads: it is only held up when the pipe is
    full, until `ProcessOutput.follow` is called in some process. Raises `OSError`.
    """
    pipe = pipe_of(path)
    pipe.unlink(missing_ok=True)  # what is left of another process is no concern
    os.mkfifo(pipe, 0o600)
    return os.open(pipe, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)


def pipe_of(path: Path) -> Path:
    """The named pipe of a process whose output is kept in ``path``."""
    return path.with_name(path.name + ".pipe")
