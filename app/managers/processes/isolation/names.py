"""The name of an owner's directory."""

from __future__ import annotations

import hashlib
import re
from typing import Final

__all__ = ["directory_name"]

_PLAIN: Final = re.compile(r"[a-z0-9_][a-z0-9_.-]{0,31}")
"""Names that are directory names as they are. They have 32 characters at most, as names of
accounts do."""

_OTHER: Final = re.compile(r"[^a-z0-9_-]+")
_SHOWN: Final = 16  # characters of another name that are for people
_HASHED: Final = 32  # hexadecimal digits: to find two names with the same takes 2**64 attempts


def directory_name(owner: str) -> str:
    """A directory's name for an owner: ASCII, not hidden, and no other owner's in any case.

    A plain name is kept. Any other becomes a readable part, ``~``, and the beginning of its
    SHA-256. No plain name has a ``~``.
    """
    if _PLAIN.fullmatch(owner):
        return owner
    shown = _OTHER.sub("_", owner.lower())[:_SHOWN].strip("-_") or "owner"
    return f"{shown}~{hashlib.sha256(owner.encode()).hexdigest()[:_HASHED]}"
