"""Tokens that tests have made."""

from __future__ import annotations

from typing import Any, Final

from app.managers.owners.token_table import NewToken

__all__ = ["DAY", "NOW", "wanted"]

NOW: Final = 1_800_000_000.0
DAY: Final = 86400.0


def wanted(name: str = "laptop", owner: str = "anna", **more: Any) -> NewToken:
    """A token that is to be made."""
    return NewToken(name, owner, ("kernels:read",), **more)
