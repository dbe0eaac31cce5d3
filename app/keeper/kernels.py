"""The kernels of a keeper: their processes, and what those write."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence

import msgspec

from .enforcement import Enforcement
from .launching import AsUser, launch_process
from .oom import OOMWatch
from .output import ProcessOutput
from .processes import UNKNOWN_EXIT, Process, child_process, open_process, start_time
from .protocol import Fields
from .usage import Usage, sample

__all__ = ["KeptKernel"]

logger = logging.getLogger(__name__)


class KeptKernel:
    """One kernel's process, launched here or found running, until it is forgotten.

    ``on_exit`` is called when the process has ended and ``exit_code`` is set: minus the signal's
    number if a signal has ended the process, and `UNKNOWN_EXIT` if it was not the keeper's child.
    ``launched_by`` names the request that launched the process; empty if an earlier keeper or a
    fork server has launched it. ``unlimited`` is why the limits do not hold, if they do not.
    ``out_of_memory`` is whether the process has ended for want of memory.
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
        self.enforcement: Enforcement | None = None
        self.unlimited = ""
        self.out_of_memory = False
        self.pid = 0
        self.started = ""
        self.exit_code: int | None = None
        self._output = output
        self._on_exit = on_exit
        self._process: Process | None = None
        self._oom = OOMWatch(None)

    @property
    def record(self) -> Fields:
        """The record of the kernel that servers get: process, output, limits and end."""
        return {
            "kernel_id": self.kernel_id,
            "pid": self.pid,
            "start_time": self.started,
            "exit_code": self.exit_code,
            "output": self.output,
            "oom": self.out_of_memory,
            "enforced": self.enforcement.by if self.enforcement is not None else {},
            "unlimited": self.unlimited,
        }

    @property
    def output(self) -> str:
        """The file of what the process writes."""
        return str(self._output.path)

    @property
    def running(self) -> bool:
        """Whether the end of the process has not been seen."""
        return self.exit_code is None

    def launch(
        self,
        command: list[str],
        env: Mapping[str, str],
        cwd: str,
        enforcement: Enforcement,
        user: AsUser | None = None,
        arguments: Sequence[str] | None = None,
    ) -> None:
        """Start the process (`launch_process`). Raises `OSError` and `ValueError`."""
        # Nothing awaits from the launch to the note of it (`KeptKernels.launch`). A child that ends
        # meanwhile is reaped later: SIGCHLD only plans `reap`, for a next turn of the loop.
        self.enforcement = enforcement  # if the launch fails, the caller removes the group
        prepare = enforcement.preparation()
        try:
            descriptor = self._output.open_lasting()
        except BaseException:
            enforcement.launched()
            raise
        try:
            words = [os.path.expanduser(word) for word in command]
            process = launch_process(words, env, cwd, descriptor, user, arguments, prepare=prepare)
        except BaseException as error:
            self._output.close()
            if (why := enforcement.failed()) is not None:
                raise why from error
            raise
        finally:
            self._output.started()
        enforcement.launched()
        self.pid = process.pid
        # Otherwise subprocess would reap the process when another is started, and nobody would
        # know its exit code; `end` reaps it.
        process.returncode = 0
        try:
            # Nobody else reaps the process, so the number is its own even if it has ended.
            self.started = start_time(self.pid) or ""
            self._watch_process(child_process(self.pid, self.started, reaping=True))
            self.enforce(enforcement)
        except BaseException:  # no descriptors are left
            self.abandon()
            raise

    def abandon(self) -> None:
        """Kill and reap a process that was just launched and that nobody will know of."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        # Blocks for as long as a kill takes. Nobody else reaps it: `reap` runs in a later turn.
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
        self.enforce(None)
        return True

    def enforce(self, enforcement: Enforcement | None) -> None:
        """Note how the process is limited, and watch its group for a lack of memory from now on."""
        self.enforcement = enforcement
        self._oom = OOMWatch(self.pid)

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
        """Note that the process has ended, and kill what it left running in its process group."""
        assert self._process is not None
        # The signal comes before `exit_code`, which reaps the process: until it is reaped, no other
        # process and no other group can have its number. macOS refuses to signal a group in which
        # only zombies are left.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            self.signal(signal.SIGKILL)
        self.exit_code = self._process.exit_code()
        # Before `on_exit`, which removes the control group whose count this reads.
        self.out_of_memory = self._is_out_of_memory(self.exit_code)
        self._process.close()
        self._process = None
        self._output.close()
        self._on_exit(self)

    async def usage(self) -> Fields | None:
        """What the processes use now, for the server; None when the process has ended."""
        if not self.running:
            return None
        # While the sample is taken, the process may end: the sample then has fewer processes. Or a
        # server may set other limits: ``enforced`` then names how those are enforced.
        group = self.enforcement.group if self.enforcement is not None else None
        try:
            used = await sample(self.pid, group)
        except OSError as error:  # a tool of the system hangs, or no descriptors are left
            logger.warning("what kernel %s uses is not known: %s", self.kernel_id, error)
            used = Usage()
        by = self.enforcement.by if self.enforcement is not None else {}
        told: Fields = msgspec.to_builtins(used)
        return {"pid": self.pid, "at": time.monotonic(), "enforced": by, **told}

    def _is_out_of_memory(self, code: int) -> bool:
        """Whether a process that has ended was killed for want of memory.

        Other processes may be in the group whose count tells this. So it is believed only of a
        process that SIGKILL has ended, or whose exit code is unknown and whose group is its own.
        """
        own = self.enforcement is not None and self.enforcement.group is not None
        return (code == -signal.SIGKILL or (own and code == UNKNOWN_EXIT)) and self._oom.struck

    def tail(self) -> str:
        """The last lines that the process wrote."""
        return self._output.tail()

    def close(self) -> None:
        """Close the pipe, the file and the watch. The process goes on."""
        if self._process is not None:
            self._process.close()
            self._process = None
        self._output.close()

    def _watch_process(self, process: Process) -> None:
        self._process = process
        process.watch(self.end)
