"""The options about how the kernels of different owners are kept apart."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final, Literal

from pydantic import Field, field_validator

from .option_types import AbsolutePathOrNone, OptionGroup, Paths

__all__ = ["Isolation", "id_range"]

MAX_ID: Final = 2**32 - 2
"""The greatest id that a user can have: 2**32 - 1 stands for no user."""


class Isolation(OptionGroup):
    """Isolation of owners."""

    table = "isolation"

    isolation: Literal["none", "user", "bubblewrap"] = Field(
        "none",
        description="How kernels of different owners are kept apart: not at all, by a user of the "
        "system for each owner (as root), or in sandboxes (not as root); see docs/owners.md.",
    )
    isolation_dir: AbsolutePathOrNone = Field(
        None, description="Directory of the owners' homes, in which their kernels work."
    )
    isolation_uids: str = Field(
        "",
        description="With isolation=user: ids of users, FIRST-LAST, that nobody has; each owner "
        "gets one of them, and the id of a group with the same number, for good.",
    )
    isolation_accounts: bool = Field(
        False,
        description="With isolation=user: run an owner's kernels as the system's account of the "
        "same name, in its home, if there is one.",
    )
    isolation_paths: Paths = Field(
        [],
        description="With isolation=bubblewrap: further files and directories that kernels may "
        "read.",
    )
    isolation_network: bool = Field(
        False, description="With isolation=bubblewrap: let kernels use the machine's network."
    )

    @field_validator("isolation_dir")
    @classmethod
    def _no_file_for_homes(cls, value: Path | None) -> Path | None:
        if value is not None and os.path.exists(value) and not os.path.isdir(value):
            raise ValueError(f"{value} is no directory")
        return value

    @field_validator("isolation_paths")
    @classmethod
    def _paths_there(cls, value: list[Path]) -> list[Path]:
        for path in value:
            if not os.path.exists(path):
                raise ValueError(f"there is no file and no directory {path}")
        return [Path(os.path.abspath(path)) for path in value]

    @field_validator("isolation_uids")
    @classmethod
    def _ids(cls, value: str) -> str:
        if value:
            id_range(value)
        return value


def id_range(text: str) -> range:
    """Parse a range of users' ids, ``FIRST-LAST``. Raises `ValueError` for any other text."""
    match = re.fullmatch(r"([0-9]{1,10})-([0-9]{1,10})", text)
    if match is None:
        raise ValueError("not two ids, like 200000-265535")
    first, last = int(match[1]), int(match[2])
    if not 0 < first <= last <= MAX_ID:
        raise ValueError(f"not a range of ids from 1 to {MAX_ID}")
    return range(first, last + 1)
