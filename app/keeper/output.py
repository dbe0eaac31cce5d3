"""The output of a kernel's process: its stdout and stderr, which are no Jupyter messages.

The output goes to a bounded file per kernel, and its tail stays in memory, as the last lines of a
process that died mostly tell why. The parent of the process reads it: the keeper, or the server.
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
"""How many bytes of one kernel's output are on disk."""

TAIL_BYTES: Final = 32768
"""How many bytes of output are in memory. The line that tells why a process died comes before the
stacks of its threads: some of these fit."""

READ_BYTES: Final = 65536
"""How many bytes are read at once: as many as a pipe holds, unless somebody makes it larger."""


class ProcessOutput:
    """Reads the pipe that a process writes to, into the file ``path`` (0600) and a tail in memory.

    The files have at most ``max_bytes`` together: at half of that the file becomes ``<path>.1``,
    and a new one begins. If the file cannot be written, that is logged once, and only the tail goes
    on.
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
        """A descriptor for a new process to write to; call `started` when the process has it."""
        self.close()  # of the process before, whose children may write to its pipe still
        self._tail.clear()
        self._read_end, self._write_end = os.pipe()
        os.set_blocking(self._read_end, False)
        self._loop.add_reader(self._read_end, self._read)
        return self._write_end

    def open_lasting(self) -> int:
        """The same as `open`, with a `lasting_pipe`. Raises `OSError`."""
        self.close()
        self._tail.clear()
        self._write_end = lasting_pipe(self.path)
        try:
            self.follow()
        except BaseException:  # no descriptors are left; the caller does not call `started`
            self.started()
            raise
        return self._write_end

    def follow(self) -> None:
        """Read from now on the output of a process that was launched with a `lasting_pipe`.

        Raises `OSError` when there is no such pipe.
        """
        # Without O_NONBLOCK this would wait until somebody has the pipe open for writing [fifo(7)]:
        # the process may have closed its output.
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW
        self._read_end = os.open(self._pipe, flags)
        self._loop.add_reader(self._read_end, self._read)

    def started(self) -> None:
        """Close this process's copy of the descriptor: the new process has its own, or never will.

        While a copy is open here, the end of that process does not show as the pipe's end.
        """
        if self._write_end is not None:
            os.close(self._write_end)
            self._write_end = None

    def close(self) -> None:
        """Read what the pipe still holds, and close the pipe and the file."""
        self.started()
        # The last output of a process that has ended is in the pipe, however late the loop reads
        # it. One read takes all of it: a pipe holds `READ_BYTES` [pipe(7)].
        if self._read_end is not None:
            self._read()
        self._close_pipe()
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def remove(self) -> None:
        """Close, and delete the files and the named pipe."""
        self.close()
        for path in (self.path, self._rotated, self._pipe):
            path.unlink(missing_ok=True)

    def tail(self, lines: int = MAX_LINES) -> str:
        """The `last_words` of the newest process, with U+FFFD for bytes that are not UTF-8."""
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
        """Read once, so that a process which writes without end does not hold up the loop."""
        assert self._read_end is not None
        try:
            data = os.read(self._read_end, READ_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            logger.warning("cannot read a kernel's output: %s", error)
            data = b""
        if not data:  # every process that had the other end is gone
            self._close_pipe()
            return
        self._tail += data
        del self._tail[:-TAIL_BYTES]  # before the file, which may fail: the tail is always there
        self._write(data)

    def _write(self, data: bytes) -> None:
        if self._max_file == 0:  # the file could not be written
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
        # The file may be there already, from an earlier process: this one appends.
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0)
        self._file = os.open(self.path, flags, 0o600)
        self._size = os.fstat(self._file).st_size


def lasting_pipe(path: Path) -> int:
    """A descriptor of a named pipe for a new process to write to; its output goes to ``path``.

    The process has both ends of the pipe. So if its reader, a keeper, is killed, the process gets
    no SIGPIPE: it only waits when the pipe is full, until another keeper calls
    `ProcessOutput.follow`. Raises `OSError`.
    """
    # The directory is the service's own (0700), so nobody puts another file there in between.
    pipe = pipe_of(path)
    pipe.unlink(missing_ok=True)  # one that an earlier process has left
    os.mkfifo(pipe, 0o600)
    return os.open(pipe, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)


def pipe_of(path: Path) -> Path:
    """The path of the named pipe of a process whose output goes to ``path``."""
    return path.with_name(path.name + ".pipe")
