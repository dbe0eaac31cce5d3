"""Tells whether Linux has killed a process because memory ran out, if a control group counts that.

The count is ``oom_kill`` in ``memory.events`` [https://docs.kernel.org/admin-guide/cgroup-v2.html],
or in ``memory.oom_control`` of version 1. It does not tell which process was killed.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["OOMWatch", "parse_count"]


class OOMWatch:
    """Watches the control group of a process from now on; ``root`` has ``/proc`` and ``/sys``.

    Without a ``pid``, or where there is no count, nothing is ever seen.
    """

    def __init__(self, pid: int | None, root: Path = Path("/")) -> None:
        self._file: Path | None = None
        self._before = 0
        # The count is read now, and its file is remembered: the group may have killed other
        # processes before, and when the process has ended, its /proc no longer names the group.
        for file in _candidates(pid, root) if pid is not None else ():
            count = _count(file)
            if count is not None:
                self._file, self._before = file, count
                return

    @property
    def struck(self) -> bool:
        """Whether a process of the group was killed for lack of memory since this was made."""
        if self._file is None:
            return False
        # Read before the group is removed (`KeptKernel.end`); one that is gone counts nothing.
        return (_count(self._file) or 0) > self._before


def parse_count(text: str) -> int | None:
    """The number of killed processes in the text of ``memory.events`` or ``memory.oom_control``."""
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if key == "oom_kill" and value.isdecimal():
            return int(value)
    return None


def _count(file: Path) -> int | None:
    try:
        return parse_count(file.read_text())
    except (OSError, ValueError):
        return None


def _candidates(pid: int, root: Path) -> list[Path]:
    """Files that may have the count, the likeliest first."""
    try:
        lines = (root / "proc" / str(pid) / "cgroup").read_text().splitlines()
    except (OSError, ValueError):
        return []
    mounted = root / "sys" / "fs" / "cgroup"
    found = []
    for line in lines:
        controllers, _, path = line.partition(":")[2].partition(":")
        if controllers == "memory" or "memory" in controllers.split(","):
            where, name = mounted / "memory", "memory.oom_control"
        elif not controllers:
            where, name = mounted, "memory.events"
        else:
            continue
        # In a container the process's own group is often mounted as the root of all groups.
        found += [where / path.strip("/") / name, where / name]
    return found
