"""Enforces limits on a kernel's processes, by the kernel's control group or by setrlimit(2).

A process has its limits before it runs any code. A process that the keeper launches gets them
between fork and exec. A process that a fork server forks waits until the keeper has adopted it.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import resource
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Final, Literal

from .groups import CONTROLLERS, ControlGroups, Group
from .limits import ProcessLimits
from .looking import user_of

__all__ = ["By", "Enforcement", "Enforcer"]

logger = logging.getLogger(__name__)

By = Literal["cgroup", "setrlimit", "none"]
"""What enforces a limit.

A limit by ``setrlimit`` holds for each process by itself; only the limit of ``processes`` counts
all processes of the user.
"""

_DATA: Final = "memory"
_FILES: Final = "open_files"
_PROCESSES: Final = "processes"

# RLIMIT_DATA counts what a process can write and shares with nobody [setrlimit(2), Linux from 4.7
# on]. RLIMIT_AS would count address space as well that is only reserved, of which some kernels have
# a thousand times what they use. RLIMIT_NPROC counts all processes and threads of the real user of
# the one that forks. So it is set only for a user who runs kernels of one owner alone
# (`_has_resource`).
RESOURCES: Final = {_FILES: resource.RLIMIT_NOFILE, _PROCESSES: resource.RLIMIT_NPROC} | (
    {_DATA: resource.RLIMIT_DATA} if sys.platform == "linux" else {}
)

# As /proc/PID/limits names the resources.
_TITLES: Final = {_FILES: "Max open files", _PROCESSES: "Max processes", _DATA: "Max data size"}


class Enforcement:
    """How one process is limited: in a ``group``, if there is one, and by setrlimit(2)."""

    def __init__(self, limits: ProcessLimits, group: Group | None, by: dict[str, By]) -> None:
        self.limits = limits
        self.group = group
        self.by = by
        self._rlimits = {
            name: _within_hard(RESOURCES[name], getattr(limits, name))
            for name, how in by.items()
            if how == "setrlimit"
        }
        self._entrance = -1
        self._told = (-1, -1)

    # A process that is launched

    def preparation(self) -> Callable[[], None] | None:
        """A function that the child has to call before it executes its program; None if none.

        The caller launches the process, and then calls `launched` or `failed`. Raises `OSError`.
        """
        if self.group is None and not self._rlimits:
            return None
        try:
            if self.group is not None:
                self._entrance = self.group.open()
            self._told = os.pipe()
        except BaseException:
            self._close()
            raise
        return self._prepare

    def _prepare(self) -> None:
        """Limit this process. Called in the child, between fork and exec.

        A lock or an import could hang there, so this needs neither.
        """
        # The child is another user's already, if it is to be (`launch_process`). So setuid(2) has
        # not counted that user's processes against this limit, by which exec(2) would then fail.
        try:
            if self._entrance != -1:
                os.write(self._entrance, b"0")
            for name, value in self._rlimits.items():
                resource.setrlimit(RESOURCES[name], (value, value))
        except OSError as error:
            os.write(self._told[1], b"%d" % (error.errno or errno.EIO))
            raise

    def launched(self) -> None:
        """Clean up: the child executes its program."""
        self._close()

    def failed(self) -> OSError | None:
        """Clean up: the launch has failed. Returns the error if the child could not be limited."""
        number = b""
        if self._told[1] != -1:
            # The child, if there was one, has ended, and it had the only other copy of the pipe's
            # writing end. So the read returns what the child has written, or the end of the pipe:
            # it does not block.
            os.close(self._told[1])
            number = os.read(self._told[0], 20)
            os.close(self._told[0])
            self._told = (-1, -1)
        self._close()
        if not number:
            return None
        return OSError(int(number), f"its limits cannot be set: {os.strerror(int(number))}")

    def _close(self) -> None:
        for descriptor in (self._entrance, *self._told):
            if descriptor != -1:
                os.close(descriptor)
        self._entrance, self._told = -1, (-1, -1)

    # Processes that run already

    def impose(self, pids: Collection[int]) -> None:
        """Limit processes that run; those that have ended are passed over. Raises `OSError`."""
        # What a process forks before it is moved is missed. A forked kernel runs no code before it
        # is adopted, and a kernel of the keeper before has its group already.
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                if self.group is not None:
                    self.group.enter(pid)
                for name, value in self._rlimits.items():
                    try:
                        resource.prlimit(pid, RESOURCES[name], (value, value))
                    except PermissionError:
                        # Without the capability SYS_RESOURCE nobody raises a hard limit, so that
                        # the lower one stays, nor changes any of another user's process.
                        if not _has_no_more(pid, name, value):
                            raise


class Enforcer:
    """Decides how limits are enforced on this machine, and logs each way once."""

    def __init__(self, groups: ControlGroups) -> None:
        self._groups = groups
        self._said: set[tuple[tuple[str, str], ...]] = set()

    def new(self, kernel_id: str, limits: ProcessLimits, uid: int | None = None) -> Enforcement:
        """The enforcement for a kernel's next process. Raises `OSError` if there is no group.

        ``uid`` is the user that the process is launched as; None for the keeper's own. Where groups
        can be used, a process whose group cannot be made must not run without one.
        """
        by = self._choose(limits, uid)
        group = self._groups.new(kernel_id, limits) if "cgroup" in by.values() else None
        return Enforcement(limits, group, by)

    def again(self, kernel_id: str, pid: int, limits: ProcessLimits | None) -> Enforcement:
        """The enforcement for a process that runs already; `Enforcement.impose` applies it.

        Without ``limits`` the process stays as the keeper before this one has limited it. Raises
        `OSError`.
        """
        group = self._groups.found(pid)
        if limits is None:
            return Enforcement(ProcessLimits(), group, {})
        uid = user_of(pid) if limits.processes is not None else None
        by = self._choose(limits, uid, running=True)
        if "cgroup" not in by.values():
            if group is not None:
                self._groups.limit(group.owner, limits)  # those of the keeper before may differ
            return Enforcement(limits, group, by)
        if group is None or group.owner.name != (limits.owner or f"k-{kernel_id}"):
            return Enforcement(limits, self._groups.new(kernel_id, limits), by)
        self._groups.limit(group.owner, limits)
        return Enforcement(limits, group, by)

    def _choose(
        self, limits: ProcessLimits, uid: int | None, *, running: bool = False
    ) -> dict[str, By]:
        limited = limits.limited
        controllers = self._groups.controllers if limited - {_FILES} else frozenset()
        by: dict[str, By] = {}
        for name in sorted(limited):
            if CONTROLLERS.get(name) in controllers:
                by[name] = "cgroup"
            elif _has_resource(name, uid) and (hasattr(resource, "prlimit") or not running):
                by[name] = "setrlimit"
            else:
                by[name] = "none"
        said = tuple(by.items())
        if by and said not in self._said:
            self._said.add(said)
            text = ", ".join(f"{name} by {how}" for name, how in said)
            why = self._groups.why_not
            logger.info("limits are enforced: %s%s", text, f" ({why})" if why else "")
        return by


def _has_resource(name: str, uid: int | None) -> bool:
    """Whether a resource limits the processes of this user; None is the keeper's own."""
    if name != _PROCESSES:
        return name in RESOURCES
    # RLIMIT_NPROC does not hold for root. And as the service's own user kernels of several owners
    # run, which would be counted together.
    return uid not in (None, 0, os.getuid(), os.geteuid())


def _has_no_more(pid: int, name: str, value: int) -> bool:
    """Whether the hard limit of a process is at most this, or the process has ended."""
    try:
        lines = Path(f"/proc/{pid}/limits").read_text().splitlines()
    except FileNotFoundError:
        return True
    title = _TITLES[name]
    hard = [line.removeprefix(title).split()[1] for line in lines if line.startswith(title)]
    return all(word != "unlimited" and int(word) <= value for word in hard)


def _within_hard(number: int, value: int) -> int:
    """The limit, or this process's hard one if that is lower: nobody may have more than that."""
    hard = resource.getrlimit(number)[1]
    return value if hard == resource.RLIM_INFINITY else min(value, hard)
