"""Control groups in a plain directory, by the rules that the system has for them."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from app.keeper.group_files import Base, GroupFiles

__all__ = ["FakeGroups"]

CORE = {
    "cgroup.procs": "",
    "cgroup.controllers": "",
    "cgroup.subtree_control": "",
    "cgroup.type": "domain\n",
    "cgroup.events": "populated 0\nfrozen 0\n",
    "cgroup.kill": "",
    "cpu.stat": "usage_usec 0\n",
}
OF = {
    "memory": {
        "memory.max": "max\n",
        "memory.swap.max": "max\n",
        "memory.oom.group": "0\n",
        "memory.current": "0\n",
        "memory.events": "oom 0\noom_kill 0\n",
    },
    "cpu": {"cpu.max": "max 100000\n"},
    "pids": {"pids.max": "max\n", "pids.current": "0\n"},
}


class FakeGroups(GroupFiles):
    """The rules of control groups, version 2: of processes, controllers and emptiness.

    ``faults`` has, by an operation and the name of what it is done to, what is raised instead.
    """

    def __init__(self, base: Path, controllers: str = "cpu memory pids") -> None:
        self.base = base
        self.faults: dict[tuple[str, str], OSError] = {}
        self.gone: set[str] = set()
        self.dies_late = False
        self._fill(base, controllers)

    def find(self, _files: GroupFiles) -> Base:
        """For `ControlGroups`: the base, which is no root."""
        return Base(self.base, is_root=False)

    def fail(self, operation: str, name: str, number: int) -> None:
        """Have an operation on what has this name fail from now on."""
        self.faults[operation, name] = OSError(number, os.strerror(number))

    def _check(self, operation: str, name: str) -> None:
        if (operation, name) in self.faults:
            raise self.faults[operation, name]

    def _fill(self, group: Path, controllers: str) -> None:
        for name, text in CORE.items():
            (group / name).write_text(text)
        (group / "cgroup.controllers").write_text(controllers)
        self._add(group, controllers.split())

    def _add(self, group: Path, controllers: list[str]) -> None:
        for controller in controllers:
            for name, text in OF[controller].items():
                if not (group / name).exists():
                    (group / name).write_text(text)

    def of(self, group: Path, name: str) -> list[str]:
        """The words of a file."""
        return (group / name).read_text().split()

    def make(self, group: Path) -> None:
        """With the files that the controllers of the group above give it."""
        self._check("make", group.name)
        group.mkdir()
        self._fill(group, " ".join(self.of(group.parent, "cgroup.subtree_control")))

    def remove(self, group: Path) -> None:
        """Only what is empty goes."""
        self._check("remove", group.name)
        if not group.exists():
            raise FileNotFoundError(errno.ENOENT, "no such group")
        if self.of(group, "cgroup.procs") or self.children(group):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        for file in group.iterdir():
            file.unlink()
        group.rmdir()

    def write(self, group: Path, name: str, text: str) -> None:
        """Do what a write does."""
        self._check("write", name)
        if not (group / name).exists():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        if name == "cgroup.subtree_control":
            self._enable(group, text.removeprefix("+"))
        elif name == "cgroup.procs":
            self._move(group, text)
        elif name == "cgroup.kill":
            if not self.dies_late:
                (group / "cgroup.procs").write_text("")
        else:
            (group / name).write_text(text + "\n")

    def _enable(self, group: Path, controller: str) -> None:
        if controller not in self.of(group, "cgroup.controllers"):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        if self.of(group, "cgroup.procs"):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        enabled = sorted({*self.of(group, "cgroup.subtree_control"), controller})
        (group / "cgroup.subtree_control").write_text(" ".join(enabled))
        for child in self.children(group):
            (child / "cgroup.controllers").write_text(" ".join(enabled))
            self._add(child, [controller])

    def _move(self, group: Path, pid: str) -> None:
        if pid in self.gone:
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
        if self.of(group, "cgroup.subtree_control"):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        for file in self.base.rglob("cgroup.procs"):
            words = file.read_text().split()
            if pid in words:
                file.write_text("\n".join(word for word in words if word != pid))
        with (group / "cgroup.procs").open("a") as procs:
            procs.write(f"\n{pid}\n")

    def where(self, pid: int) -> Path | None:
        """For `ControlGroups`: the group of a process."""
        for file in self.base.rglob("cgroup.procs"):
            if str(pid) in file.read_text().split():
                return file.parent
        return None
