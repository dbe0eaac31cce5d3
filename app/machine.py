"""The memory and the file systems of the machine or container."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

__all__ = ["machine_memory", "network_file_system"]

_LIMITS: Final = (
    "/sys/fs/cgroup/memory.max",  # cgroup 2
    "/sys/fs/cgroup/memory/memory.limit_in_bytes",
)

_NETWORK: Final = {
    *("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "beegfs", "ceph", "gpfs", "lustre"),
    *("fuse.ceph", "fuse.gcsfuse", "fuse.glusterfs", "fuse.s3fs", "fuse.sshfs"),
}


def network_file_system(path: Path, mounts: Path = Path("/proc/self/mountinfo")) -> str | None:
    """The kind of network file system on which ``path`` is; None if it is on another, or unknown.

    ``mounts`` has the format of Linux's ``mountinfo`` [proc(5)].
    """
    try:
        device = path.stat().st_dev
        lines = mounts.read_text(errors="replace").splitlines()
    except OSError:
        return None
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in lines:
        mount, _, kind = line.partition(" - ")
        if mount.split()[2:3] == [number] and kind.split()[0] in _NETWORK:
            return kind.split()[0]
    return None


def machine_memory() -> int | None:
    """Bytes of memory of the machine, or of the container if that has less; None if unknown."""
    sizes = []
    try:
        sizes.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (ValueError, OSError, AttributeError):
        pass
    for path in _LIMITS:
        try:
            sizes.append(int(Path(path).read_text()))
        except (OSError, ValueError):  # there is no such file, or it says "max"
            continue
    return min((size for size in sizes if size > 0), default=None)
