"""Where this process's control group is, and the few file operations that control groups take.

Version 2 alone [https://docs.kernel.org/admin-guide/cgroup-v2.html]: a group is a directory, and
what it does is read from and written to files in there.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final, NamedTuple

__all__ = ["SERVICE", "Base", "GroupFiles", "Unusable", "find_base", "group_of"]

SERVICE: Final = "kernelkeep-service"
"""The group, below the base, of the service's own processes. They are moved there because a group
whose children have controllers must have no processes of its own."""

_MAX_BYTES: Final = 2**20


class Unusable(Exception):
    """Control groups cannot be used here; the text says why, and what would help."""


class Base(NamedTuple):
    """The group below which kernels get theirs; whether it ``is_root``, the one of the machine."""

    path: Path
    is_root: bool


class GroupFiles:
    """The operations on the directories and files of groups. Each of them raises `OSError`."""

    def make(self, group: Path) -> None:
        """Make a group. Raises `FileExistsError`."""
        group.mkdir(mode=0o755)

    def remove(self, group: Path) -> None:
        """Remove a group that has no processes and no groups."""
        group.rmdir()

    def read(self, group: Path, name: str) -> str:
        """The text of a file; at most a MiB of it."""
        with open(group / name, "rb") as file:
            return file.read(_MAX_BYTES).decode("utf-8", "replace")

    def write(self, group: Path, name: str, text: str) -> None:
        """Write a file, which must be there, by one call."""
        descriptor = self.open(group, name)
        try:
            os.write(descriptor, text.encode())
        finally:
            os.close(descriptor)

    def open(self, group: Path, name: str) -> int:
        """A descriptor to write to a file."""
        return os.open(group / name, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)

    def children(self, group: Path) -> list[Path]:
        """The groups directly below a group."""
        with os.scandir(group) as entries:
            return [Path(entry) for entry in entries if entry.is_dir(follow_symlinks=False)]


def find_base(files: GroupFiles, *, lasting: bool, root: Path = Path("/")) -> Base:
    """The group of this process, or the one above it if this process is in a group for it alone.

    ``root`` has ``proc`` and what is mounted. ``lasting`` is whether kernels are to outlive the
    service. Raises `Unusable` if nobody has given the group to this service.
    """
    own = group_of("self", root)
    if own is None:
        raise Unusable("this system has no control groups of version 2, or does not show them")
    # An earlier keeper has moved the processes of the base there, this one's parent among them.
    base = own.parent if own.name == SERVICE or _is_delegated(own.parent) else own
    is_root = not (base / "cgroup.type").exists()
    if not is_root:
        _check_type(files, base)
    if _is_delegated(base) and base == own and lasting:
        # systemd puts the service's next process into this very group, and cannot as long as
        # kernels have groups in there: the restart of the service would fail.
        raise Unusable(
            "systemd starts the service in the group that it has delegated, and could not start it "
            "beside kernels that are kept: DelegateSubgroup= puts it into one below"
        )
    _check_rights(base)
    if os.geteuid() == 0 and not _is_delegated(base) and (root / "run/systemd/system").exists():
        raise Unusable("the groups here are systemd's: the service's unit needs Delegate=yes")
    return Base(base, is_root)


def _check_type(files: GroupFiles, base: Path) -> None:
    try:
        kind = files.read(base, "cgroup.type").strip()
    except OSError as error:
        raise Unusable(f"{base} cannot be read: {error.strerror}") from None
    if kind != "domain":
        raise Unusable(f"{base} is a group of the type {kind!r}")


def _check_rights(base: Path) -> None:
    """Raise `Unusable` unless groups can be made here, and processes moved to them."""
    for name in (".", "cgroup.procs", "cgroup.subtree_control"):
        if not os.access(base / name, os.W_OK):
            raise Unusable(f"this service may not make groups in {base}: {name} cannot be written")


def _is_delegated(group: Path) -> bool:
    """Whether systemd says that it leaves a group to the service that runs there."""
    for name in ("user.delegate", "trusted.delegate"):
        with contextlib.suppress(OSError, AttributeError):
            if os.getxattr(group, name) == b"1":
                return True
    return False


def group_of(pid: int | str, root: Path = Path("/")) -> Path | None:
    """The directory of a process's control group; None if it has none that can be seen here."""
    try:
        lines = (root / "proc" / str(pid) / "cgroup").read_text().splitlines()
        mounts = (root / "proc/self/mountinfo").read_text().splitlines()
    except (OSError, ValueError):
        return None
    path = next((line[3:] for line in lines if line.startswith("0::")), None)
    if path is None or "/.." in path:  # it is outside of what this process can see
        return None
    path = path.removesuffix(" (deleted)")
    for line in reversed(mounts):  # what was mounted last covers what was there before
        mounted, _, kind = line.partition(" - ")
        if not kind.startswith("cgroup2 "):
            continue
        begin, point = map(_unescaped, mounted.split(" ")[3:5])
        inside = f"{path}/".startswith(f"{begin.rstrip('/')}/")
        if inside:
            below = path[len(begin.rstrip("/")) :].strip("/")
            return root / point.strip("/") / below
    return None


def _unescaped(text: str) -> str:
    """A field of mountinfo, which has blanks and the like as three octal digits [proc(5)]."""
    head, *rest = text.split("\\")
    return head + "".join(chr(int(part[:3], 8)) + part[3:] for part in rest)
