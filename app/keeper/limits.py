"""How much of the machine the processes of a kernel may take, as a launch says it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any, Final, Optional

import msgspec

__all__ = ["NO_LIMITS", "ProcessLimits", "limits_from", "owner_key"]

_KEY: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}").fullmatch
_READABLE: Final = re.compile(r"[^A-Za-z0-9]+")
_READABLE_CHARACTERS: Final = 32
_DIGEST_CHARACTERS: Final = 24


class ProcessLimits(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a kernel's processes may take; None is as much as there is.

    ``memory`` (bytes), ``cpu`` (processors; 0.5 is half of one) and ``processes`` (threads count)
    hold for all kernels of an ``owner`` together where the system has control groups, and for each
    process, as far as they can be enforced, where it has not; ``processes`` then for all that run
    as the owner's user. ``open_files`` holds for each process everywhere. ``owner`` is the
    `owner_key` of the kernel's owner; without one the kernel shares its limits with no other.
    """

    owner: str = ""
    memory: Optional[int] = None
    cpu: Optional[float] = None
    processes: Optional[int] = None
    open_files: Optional[int] = None

    @property
    def limited(self) -> frozenset[str]:
        """The names of the limits that are set."""
        names = ("memory", "cpu", "processes", "open_files")
        return frozenset(name for name in names if getattr(self, name) is not None)


NO_LIMITS: Final = ProcessLimits()
"""The limits of a kernel that has none."""


def limits_from(fields: Mapping[str, Any] | None) -> ProcessLimits:
    """The limits that a request has in its field ``limits``; `NO_LIMITS` if it has none.

    Raises `ValueError` for a value of another type, a limit that is not above zero, or an owner's
    key that is no name of a directory.
    """
    limits = msgspec.convert(fields or {}, ProcessLimits)
    if limits.owner and not _KEY(limits.owner):
        raise ValueError("the owner's key is no name of a directory")
    # `not ... > 0`, as nan is neither more nor less.
    for name in limits.limited:
        if not getattr(limits, name) > 0:
            raise ValueError(f"a limit of {getattr(limits, name)} {name} lets no process run")
    return limits


def owner_key(name: str) -> str:
    """The key of an owner: a directory's name, different for each owner and the same every time.

    It begins with what can be read of the owner's name.
    """
    readable = _READABLE.sub("_", name)[:_READABLE_CHARACTERS].strip("_")
    digest = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:_DIGEST_CHARACTERS]
    return f"{readable or 'owner'}-{digest}"
