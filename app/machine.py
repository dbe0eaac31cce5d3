"""What the machine, or the container, has."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

__all__ = ["machine_memory"]

_LIMITS: Final = (
    "/sys/fs/cgroup/memory.max",  # cgroup 2
    "/sys/fs/cgroup/memory/memory.limit_in_bytes",
)


def machine_memory() -> int | None:
    """Bytes of memory that there are for everybody together; None if nobody can tell."""
    sizes = []
    try:
        sizes.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (ValueError, OSError, AttributeError):
        pass
    for path in _LIMITS:
        try:
            sizes.append(int(Path(path).read_text()))
        except (OSError, ValueError):  # there is none, or it is "max"
            continue
    return min((size for size in sizes if size > 0), default=None)
