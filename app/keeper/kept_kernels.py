"""All kernels of a keeper, by id, and the notes of them for a keeper after it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from .enforcement import Enforcer
from .groups import ControlGroups, Group
from .kernels import KeptKernel
from .launching import AsUser
from .limits import NO_LIMITS, ProcessLimits
from .notes import GONE, LAUNCHING, Note, Notes
from .output import ProcessOutput, pipe_of
from .processes import ended_child, leader_that_writes
from .protocol import Fields
from .usage import orphans, processes_of

__all__ = ["KeptKernels"]

logger = logging.getLogger(__name__)

SWEEP_SECONDS: Final = 0.1
"""Seconds between two attempts to remove a control group whose processes were killed: they end in
milliseconds."""


class KeptKernels:
    """The kernels' processes, and those that are killed and forgotten, but not yet gone.

    ``directory`` is the keeper's own. ``on_exit`` is called when the process of a kernel has ended,
    and ``on_gone`` when a forgotten one has. ``output_bytes`` bounds each kernel's output on disk.
    ``groups`` are those of this state directory.
    """

    def __init__(
        self,
        directory: int,
        on_exit: Callable[[KeptKernel], None],
        on_gone: Callable[[], None],
        groups: ControlGroups,
    ) -> None:
        self.output_bytes = 0
        self._groups = groups
        self._enforcer = Enforcer(groups)
        self._sweeping: asyncio.TimerHandle | None = None
        self._notes = Notes(directory)
        self._left = self._notes.read()  # by a keeper that was killed
        self._kernels: dict[str, KeptKernel] = {}
        self._dying: set[KeptKernel] = set()
        self._on_exit = on_exit
        self._on_gone = on_gone

    def __iter__(self) -> Iterator[KeptKernel]:
        """The kernels, without those that are forgotten."""
        return iter(tuple(self._kernels.values()))

    def __getitem__(self, kernel_id: str) -> KeptKernel:
        """The kernel with this id. Raises `KeyError`."""
        return self._kernels[kernel_id]

    def __bool__(self) -> bool:
        """Whether there is any kernel, forgotten ones included."""
        return bool(self._kernels or self._dying or self._sweeping)

    @property
    def records(self) -> list[Fields]:
        """What the server is told of each kernel that is not forgotten."""
        return [kernel.record for kernel in self]

    @property
    def any_wanted(self) -> bool:
        """Whether there is any kernel that is not forgotten."""
        return bool(self._kernels)

    @property
    def any_running(self) -> bool:
        """Whether the process of any kernel runs that is not forgotten."""
        return any(kernel.running for kernel in self._kernels.values())

    def present(self, kernel_id: str) -> KeptKernel | None:
        """The kernel with this id, if there is one; an end of its process is noticed first."""
        kernel = self._kernels.get(kernel_id)
        if kernel is not None:
            kernel.look()
        return kernel

    # Kernels are added

    def take_over(self) -> None:
        """Take over the processes that the keeper before this one has noted.

        The server then asks for the kernels that it knows, and has the others ended.
        """
        # Called at each greeting: what could not be watched the last time is tried again. A note
        # stays in `_left`, and so in the file where that can be written, until its kernel is taken
        # over: this keeper, too, may be killed at any moment.
        self._groups.resume()
        for note in [*self._left]:
            try:
                self._take_over(note)
            except OSError as error:  # no descriptors are left, for one
                logger.error("kernel %s cannot be watched: %s", note[0], error)
                continue
            except ValueError as error:  # no keeper wrote that
                logger.error("a note of %s is of no use: %s", note[0], error)
            self._left.remove(note)

    def _take_over(self, note: Note) -> None:
        kernel_id, pid, started, output = note
        if pid == LAUNCHING:
            pid, started = leader_that_writes(pipe_of(Path(output))) or (0, "")
        kernel = self._new(kernel_id, output)
        if kernel_id in self._kernels:  # a server has had this keeper adopt or launch it meanwhile
            return
        if kernel.adopt(pid, started):
            kernel.enforce(self._enforcer.again(kernel_id, pid, None))
            self._put(kernel)
        else:  # it has ended, and may have left something running
            self._groups.end_all_of(kernel_id)
            self._sweep_soon()

    def launch(
        self,
        kernel_id: str,
        command: list[str],
        env: Mapping[str, str],
        cwd: str,
        *,
        output: str,
        launched_by: str,
        limits: ProcessLimits = NO_LIMITS,
        user: AsUser | None = None,
        arguments: Sequence[str] | None = None,
    ) -> KeptKernel:
        """Start a process for a kernel that has none. Raises `OSError`, and `ValueError`."""
        # A process that is forgotten and not gone yet (`_dying`) stands in nobody's way: it has got
        # SIGKILL, and has a pipe and a control group of its own.
        before = self.present(kernel_id)
        if before is not None and before.running:
            raise ValueError(f"kernel {kernel_id} runs")
        if not command:
            raise ValueError("there is no command to execute")
        kernel = self._new(kernel_id, output, launched_by)
        enforcement = self._enforcer.new(kernel_id, limits, user.uid if user is not None else None)
        # For a keeper after this one, if this one is killed before it can note the process.
        self._note((kernel_id, LAUNCHING, "", kernel.output))
        try:
            kernel.launch(command, env, cwd, enforcement, user, arguments)
        except BaseException:
            self._note_all()
            self._end_group(kernel)
            raise
        try:
            self._put(kernel)
        except BaseException:
            kernel.abandon()
            self._end_group(kernel)
            raise
        return kernel

    def adopt(
        self,
        kernel_id: str,
        pid: int,
        started: str,
        output: str,
        limits: ProcessLimits = NO_LIMITS,
    ) -> KeptKernel | None:
        """Adopt a process that runs already; None if it is gone. Raises `OSError`, `ValueError`."""
        kernel = self.present(kernel_id)
        if kernel is not None and (kernel.pid, kernel.started) == (pid, started):
            self._limit(kernel, limits)
            return kernel
        if kernel is not None and kernel.running:
            raise ValueError(f"kernel {kernel_id} has another process")
        kernel = self._new(kernel_id, output)
        if not kernel.adopt(pid, started):
            self._groups.end_all_of(kernel_id)
            self._sweep_soon()
            return None
        self._limit(kernel, limits)
        self._put(kernel)
        return kernel

    def _limit(self, kernel: KeptKernel, limits: ProcessLimits) -> None:
        """Limit a kernel that runs already; if that fails, `KeptKernel.unlimited` tells why."""
        before = kernel.enforcement
        if before is not None and before.limits == limits and not kernel.unlimited:
            return
        kernel.unlimited = ""
        left = self._groups.found(kernel.pid)
        if left is None and not limits.limited:
            return
        after = None
        try:
            after = self._enforcer.again(kernel.kernel_id, kernel.pid, limits)
            after.impose(left.pids() if left else processes_of(kernel.pid, orphans()))
        except OSError as error:
            logger.error("the limits of kernel %s do not hold: %s", kernel.kernel_id, error)
            kernel.unlimited = f"its limits cannot be set: {error.strerror or error}"
            if after is not None:
                self._leave(after.group, kernel)
            return
        kernel.enforce(after)
        if left is not None:
            self._leave(left, kernel)

    def _leave(self, group: Group | None, kernel: KeptKernel) -> None:
        """Remove a group that a kernel is not in any more, or has not come into."""
        present = kernel.enforcement.group if kernel.enforcement is not None else None
        if group is not None and (present is None or present.path != group.path):
            group.remove()

    def _new(self, kernel_id: str, output: str, launched_by: str = "") -> KeptKernel:
        written = ProcessOutput(Path(output), self.output_bytes)
        return KeptKernel(kernel_id, written, self._ended, launched_by)

    def _put(self, kernel: KeptKernel) -> None:
        """Put a kernel's process in the place of the one that the kernel had before."""
        before = self._kernels.get(kernel.kernel_id)
        if before is not None:  # its process has ended: `launch` and `adopt` look at that
            before.close()
        self._kernels[kernel.kernel_id] = kernel
        self._note((kernel.kernel_id, kernel.pid, kernel.started, kernel.output))

    # Kernels end

    def forget(self, kernel: KeptKernel) -> None:
        """Kill the process of a kernel that nobody wants, and forget it."""
        del self._kernels[kernel.kernel_id]
        # It stays until its end is seen, so that its control group is removed then. If this keeper
        # is killed before, the note GONE keeps the next one from taking it for a kernel.
        if kernel.running:
            self._dying.add(kernel)
            # The process may have ended since it was last looked at (see `KeptKernel.end`).
            with contextlib.suppress(ProcessLookupError, PermissionError):
                kernel.signal(signal.SIGKILL)
        else:
            kernel.close()
        if self._kernels:
            self._note((kernel.kernel_id, GONE, "", ""))
        else:  # then there is no file
            self._note_all()

    def signal_all(self, number: int) -> None:
        """Signal every kernel, as far as that can be done."""
        for kernel in self._kernels.values():
            with contextlib.suppress(OSError):
                kernel.signal(number)

    def reap(self) -> None:
        """Reap all children that have ended: kernels, orphans of theirs, and fork servers."""
        # Several SIGCHLD may come as one, so this looks for every child that has ended. It goes
        # through copies, as `end` calls methods here that change the sets. The end of a kernel may
        # have been seen already: a process whose own parent has ended is a child of the keeper by
        # now, and has a pidfd, too. So `running` is looked at before `end`.
        kernels = {kernel.pid: kernel for kernel in self._dying}
        kernels |= {kernel.pid: kernel for kernel in self._kernels.values() if kernel.running}
        while (pid := ended_child()) is not None:
            kernel = kernels.get(pid)
            if kernel is not None and kernel.running:
                kernel.end()
            else:  # an orphan, or a fork server: if not reaped, it would be found again, for ever
                os.waitpid(pid, 0)

    def _end_group(self, kernel: KeptKernel) -> None:
        if kernel.enforcement is not None and kernel.enforcement.group is not None:
            self._groups.end(kernel.enforcement.group)
            self._sweep_soon()

    def _sweep_soon(self) -> None:
        """Remove groups whose killed processes have yet to end: nothing tells when they do."""
        if self._sweeping is None and self._groups.sweep():
            self._sweeping = asyncio.get_running_loop().call_later(SWEEP_SECONDS, self._sweep)

    def _sweep(self) -> None:
        self._sweeping = None
        self._sweep_soon()
        if self._sweeping is None:
            self._on_gone()

    def _ended(self, kernel: KeptKernel) -> None:
        # A process that has left the kernel's process group and session is still in the kernel's
        # control group, and is killed by that.
        self._end_group(kernel)
        if kernel in self._dying:  # it is forgotten: no server is told of its end
            self._dying.discard(kernel)
            kernel.close()
            self._on_gone()
        else:
            self._on_exit(kernel)

    def close(self) -> None:
        """Close all pipes, files and watches. The processes go on."""
        for kernel in (*self._kernels.values(), *self._dying):
            kernel.close()
        if self._sweeping is not None:
            self._sweeping.cancel()
        self._groups.close()
        self._kernels.clear()
        self._dying.clear()

    # Notes

    def _note(self, note: Note) -> None:
        # `_note_all` writes the kernels that this object has. A kernel that is being launched is
        # not among them yet, so its note is given beside them.
        if not self._notes.add(note):
            self._note_all(*([note] if note[1] == LAUNCHING else []))

    def _note_all(self, *more: Note) -> None:
        rows = [
            (kernel.kernel_id, kernel.pid, kernel.started, kernel.output)
            for kernel in self._kernels.values()
            if kernel.running
        ]
        self._notes.write([*self._left, *rows, *more])
