"""The control groups of a state directory's kernels: one for each owner, with one for each process.

    BASE/kernelkeep-service                  the service's own processes
    BASE/kernelkeep-KEY/OWNER/k-KERNEL.N     a kernel's processes; limits are those of OWNER

No group is made or changed before the first kernel with a limit is launched.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Final

from .group_files import SERVICE, Base, GroupFiles, Unusable, group_of
from .limits import ProcessLimits

__all__ = ["CONTROLLERS", "ControlGroups", "Group", "state_key"]

logger = logging.getLogger(__name__)

CONTROLLERS: Final = {"memory": "memory", "cpu": "cpu", "processes": "pids"}
"""Which controller enforces which limit."""

PERIOD: Final = 100_000
"""Microseconds in which processors' time is shared out."""

MIN_QUOTA: Final = 1000
MAX_QUOTA: Final = 10**12
"""Microseconds of a period that the kernel takes for a quota; more is no limit on any machine."""

# Other keepers of the service, and systemd, change the same groups without a lock: there is none
# that all of them would take. So each step may find what it needs gone, or there already.
ATTEMPTS: Final = 5
"""How often a step is tried that fails because another process has changed the groups meanwhile."""


class Group:
    """The control group of one process of a kernel, and of all processes that come from it."""

    def __init__(self, path: Path, files: GroupFiles) -> None:
        self.path = path
        self._files = files

    @property
    def owner(self) -> Path:
        """The owner's group."""
        return self.path.parent

    def open(self) -> int:
        """A descriptor of ``cgroup.procs``. Raises `OSError`.

        A process that writes "0" to it moves into the group.
        """
        return self._files.open(self.path, "cgroup.procs")

    def enter(self, pid: int) -> None:
        """Move a process into the group. Raises `OSError`."""
        self._files.write(self.path, "cgroup.procs", str(pid))

    def pids(self) -> list[int]:
        """The processes in the group; none if it cannot be read."""
        try:
            words = self._files.read(self.path, "cgroup.procs").split()
        except OSError:
            return []
        return [int(word) for word in words if word.isdigit()]

    def figure(self, name: str, key: str = "", *, of_owner: bool = False) -> int | None:
        """The number in a file, or behind the word ``key`` in one of many lines; None if none."""
        try:
            lines = self._files.read(self.owner if of_owner else self.path, name).splitlines()
        except OSError:
            return None
        for line in lines:
            word, _, value = line.rpartition(" ")
            if word == key and value.isdigit():
                return int(value)
        return None

    def kill(self) -> None:
        """Kill whatever runs in the group."""
        try:
            self._files.write(self.path, "cgroup.kill", "1")
        except OSError:  # a Linux before 5.14, or the group is gone
            # A process that one of these forks meanwhile is missed. `remove` then fails, and is
            # tried again later (`ControlGroups.sweep`); the missed process is not killed.
            for pid in self.pids():
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)

    def remove(self) -> bool:
        """Remove the group, and its owner's with the last; whether it is gone."""
        try:
            self._files.remove(self.path)
        except FileNotFoundError:
            pass
        except OSError:  # what was killed has not ended yet
            return False
        with contextlib.suppress(OSError):  # another kernel of the owner has its group in there
            self._files.remove(self.owner)
        return True


class ControlGroups:
    """Makes the groups of kernels' processes, and removes them.

    ``key`` names the groups of this state directory. ``find`` finds the group below which they are
    made; it is called when a group is first needed.
    """

    def __init__(
        self,
        key: str,
        find: Callable[[GroupFiles], Base],
        files: GroupFiles | None = None,
        where: Callable[[int], Path | None] = group_of,
    ) -> None:
        self._name = f"kernelkeep-{key}"
        self._find = find
        self._files = files or GroupFiles()
        self._where = where
        self._top: Path | None = None
        self._controllers: frozenset[str] = frozenset()
        self._dying: list[Group] = []
        self.why_not = ""
        """Why there are no groups, once that is known."""

    @property
    def controllers(self) -> frozenset[str]:
        """What kernels' groups can limit; nothing where groups cannot be used. See `why_not`."""
        if self._top is None and not self.why_not:
            try:
                self._prepare()
            except Unusable as error:
                self.why_not = str(error)
                logger.info("control groups are not used: %s", error)
        return self._controllers

    def _prepare(self) -> None:
        base = self._find(self._files)
        top = base.path / self._name
        try:
            if not base.is_root:
                self._clear(base.path)
            self._enable(base)
            with contextlib.suppress(FileExistsError):
                self._files.make(top)
            enabled = self._enable(Base(top, is_root=True))  # no process is in there
        except OSError as error:
            raise Unusable(f"no groups can be made in {base.path}: {error.strerror}") from None
        if not enabled:
            raise Unusable(f"{base.path} has neither of {', '.join(CONTROLLERS.values())}")
        self._top, self._controllers = top, enabled
        logger.info("control groups are in %s, with %s", top, ", ".join(sorted(enabled)))

    def _clear(self, base: Path) -> None:
        """Move the processes of the base into the group of the service."""
        service = base / SERVICE
        with contextlib.suppress(FileExistsError):
            self._files.make(service)
        # A process that is started here meanwhile is met by the next attempt of `_enable`.
        for pid in self._files.read(base, "cgroup.procs").split():
            with contextlib.suppress(ProcessLookupError):
                self._files.write(service, "cgroup.procs", pid)

    def _enable(self, base: Base) -> frozenset[str]:
        """Give the groups below all controllers that are available; returns these.

        A controller that another part of the system has in use is left out.
        """
        for name in CONTROLLERS.values():
            for attempt in range(ATTEMPTS):
                try:
                    self._files.write(base.path, "cgroup.subtree_control", f"+{name}")
                    break
                except FileNotFoundError:  # Linux says so of a controller that it does not have
                    break
                except OSError as error:
                    if error.errno != errno.EBUSY or base.is_root or attempt == ATTEMPTS - 1:
                        logger.warning("%s is not limited by groups: %s", name, error.strerror)
                        break
                    self._clear(base.path)  # a process was started meanwhile
        enabled = self._files.read(base.path, "cgroup.subtree_control").split()
        return frozenset(CONTROLLERS.values()) & frozenset(enabled)

    # One process of a kernel

    def new(self, kernel_id: str, limits: ProcessLimits) -> Group:
        """A group for the next process of a kernel, whose owner has these limits.

        Raises `OSError`: then there is no group.
        """
        assert self.controllers, "there are no groups"
        for _ in range(ATTEMPTS - 1):
            # Another process may remove the owner's group in between, as it is empty.
            with contextlib.suppress(FileNotFoundError):
                return self._new(kernel_id, limits)
        return self._new(kernel_id, limits)

    def _new(self, kernel_id: str, limits: ProcessLimits) -> Group:
        assert self._top is not None
        owner = self._top / (limits.owner or f"k-{kernel_id}")
        with contextlib.suppress(FileExistsError):
            self._files.make(owner)
        for name in sorted(self._controllers):
            self._files.write(owner, "cgroup.subtree_control", f"+{name}")
        self.limit(owner, limits)
        for number in count(1):
            group = Group(owner / f"k-{kernel_id}.{number}", self._files)
            with contextlib.suppress(
                FileExistsError
            ):  # that of an earlier process, which was not removed yet
                self._files.make(group.path)
                break
        if "memory" in self._controllers:
            with contextlib.suppress(OSError):  # a Linux before 4.19
                self._files.write(group.path, "memory.oom.group", "1")
        return group

    def limit(self, owner: Path, limits: ProcessLimits) -> None:
        """Limit what an owner's kernels may take together from now on. Raises `OSError`."""
        controllers = self.controllers
        if "memory" in controllers:
            swap = "max" if limits.memory is None else "0"
            with contextlib.suppress(FileNotFoundError):  # a Linux that does not account for swap
                self._files.write(owner, "memory.swap.max", swap)
            self._files.write(owner, "memory.max", _text(limits.memory))
        if "cpu" in controllers:
            self._files.write(owner, "cpu.max", _quota(limits.cpu))
        if "pids" in controllers:
            self._files.write(owner, "pids.max", _text(limits.processes))

    def found(self, pid: int) -> Group | None:
        """The group of a kernel's process, if it has one of this state directory's."""
        path = self._where(pid)
        while path is not None and path.parent != path:
            if path.parent.parent.name == self._name:
                return Group(path, self._files)
            path = path.parent
        return None

    # Groups are removed

    def end(self, group: Group) -> None:
        """Kill what a process of a kernel has left running, and remove the group, now or later."""
        # A process that was killed is in its group until it has ended and, if it is the keeper's
        # child, was reaped: so the first attempt mostly fails.
        group.kill()
        if not group.remove():
            self._dying.append(group)

    def end_all_of(self, kernel_id: str) -> None:
        """End all groups of a kernel whose process ended while there was no keeper."""
        for group in self._all():
            if group.path.name.startswith(f"k-{kernel_id}."):
                self.end(group)

    def sweep(self) -> bool:
        """Remove the groups in which nothing runs any more; whether some are left."""
        self._dying = [group for group in self._dying if not group.remove()]
        return bool(self._dying)

    def close(self) -> None:
        """Remove the state directory's group, unless a kernel still has a group in it."""
        self.sweep()
        if self._top is not None:
            with contextlib.suppress(OSError):
                self._files.remove(self._top)

    def resume(self) -> None:
        """Use the groups that an earlier keeper has left, if any, and remove the empty ones."""
        # This makes no groups: a keeper whose kernels have no limits makes none, and moves no
        # process.
        if self._top is not None:
            return
        with contextlib.suppress(Unusable):
            if not (self._find(self._files).path / self._name).exists() or not self.controllers:
                return
        for group in self._all():
            if group.figure("cgroup.events", "populated") == 0:
                group.remove()

    def _all(self) -> Iterator[Group]:
        if self._top is None:
            return
        with contextlib.suppress(OSError):
            for owner in self._files.children(self._top):
                with contextlib.suppress(OSError):
                    for path in self._files.children(owner):
                        yield Group(path, self._files)


def state_key(directory: int) -> str:
    """A text that only this state directory has; ``directory`` is the keeper's, within it."""
    found = os.stat("..", dir_fd=directory)
    return f"{found.st_dev:x}-{found.st_ino:x}"


def _text(limit: int | None) -> str:
    return "max" if limit is None else str(limit)


def _quota(processors: float | None) -> str:
    """What ``cpu.max`` takes: microseconds in a period, which is longer for a very small share."""
    if processors is None or processors * PERIOD > MAX_QUOTA:
        return f"max {PERIOD}"
    period = PERIOD if processors * PERIOD >= MIN_QUOTA else 10 * PERIOD
    return f"{max(int(processors * period), MIN_QUOTA)} {period}"
