"""The kernels of a keeper: their processes, and what those write."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from collections.abc import Callable, Mapping, Sequence

from .launching import AsUser, launch_process
from .output import ProcessOutput
from .processes import Process, child_process, open_process, start_time
from .protocol import Fields

__all__ = ["KeptKernel"]


class KeptKernel:
    """One kernel's process, launched here or found running, until it is forgotten.

    ``on_exit`` is called when it has ended and its exit code is known, minus the number of a
    signal; `UNKNOWN_EXIT` for one that is not the keeper's child. ``launched_by`` names the request
    that launched it; empty if a keeper before this one did, or a fork server.
    """

    def __init__(
        self,
        kernel_id: str,
        output: ProcessOutput,
        on_exit: Callable[[KeptKernel], None],
        launched_by: str = "",
    ) -> None:
        self.kernel_id = kernel_id
        self.launched_by = launched_by
        self.pid = 0
        self.started = ""
        self.exit_code: int | None = None
        self._output = output
        self._on_exit = on_exit
        self._process: Process | None = None

    @property
    def record(self) -> Fields:
        """All that is known of it, for the server."""
        return {
            "kernel_id": self.kernel_id,
            "pid": self.pid,
            "start_time": self.started,
            "exit_code": self.exit_code,
            "output": self.output,
        }

    @property
    def output(self) -> str:
        """The file of what the process writes."""
        return str(self._output.path)

    @property
    def running(self) -> bool:
        """Whether its end has not been seen."""
        return self.exit_code is None

    def launch(
        self,
        command: list[str],
        env: Mapping[str, str],
        cwd: str,
        user: AsUser | None = None,
        arguments: Sequence[str] | None = None,
    ) -> None:
        """Start the process (`launch_process`). Raises `OSError` and `ValueError`."""
        descriptor = self._output.open_lasting()
        try:
            words = [os.path.expanduser(word) for word in command]
            process = launch_process(words, env, cwd, descriptor, user, arguments)
        except BaseException:
            self._output.close()
            raise
        finally:
            self._output.started()
        self.pid = process.pid
        process.returncode = 0  # it is reaped in `end`
        try:
            # Nobody else reaps it, so these are its own although it may have ended.
            self.started = start_time(self.pid) or ""
            self._watch_process(child_process(self.pid, self.started, reaping=True))
        except BaseException:  # no descriptors are left
            self.abandon()
            raise

    def abandon(self) -> None:
        """Kill and reap a process that was just launched and that nobody will know of."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        self.close()

    def adopt(self, pid: int, started: str) -> bool:
        """Take over a process that runs already, maybe a child of ours; False if it is gone."""
        process = open_process(pid, started, reaping=True)
        if process is None or process.has_ended():
            if process is not None:
                process.close()
            return False
        self.pid, self.started = pid, started
        with contextlib.suppress(OSError):  # it writes elsewhere, or its pipe was removed
            self._output.follow()
        self._watch_process(process)
        return True

    def signal(self, number: int) -> None:
        """Send a signal to its process group. Raises `ProcessLookupError` when it has ended."""
        if self._process is None:
            raise ProcessLookupError(errno.ESRCH, "the process has ended")
        self._process.signal_group(number)

    def look(self) -> None:
        """Notice the end of the process now, if it has ended."""
        if self._process is not None and self._process.has_ended():
            self.end()

    def end(self) -> None:
        """The process has ended. What it left running in its process group ends with it."""
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError, PermissionError):
            self.signal(signal.SIGKILL)
        self.exit_code = self._process.exit_code()
        self._process.close()
        self._process = None
        self._output.close()
        self._on_exit(self)

    def tail(self) -> str:
        """The last lines that the process wrote."""
        return self._output.tail()

    def close(self) -> None:
        """Let go of everything but the process."""
        if self._process is not None:
            self._process.close()
            self._process = None
        self._output.close()

    def _watch_process(self, process: Process) -> None:
        self._process = process
        process.watch(self.end)
