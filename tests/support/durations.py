"""Writes how long tests take, for `tests.plugins.longest_first`.

``python -m tests.support.durations FILE`` (``scripts/durations``) reads what
``scripts/test --junitxml=FILE`` has written.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Final
from xml.etree import ElementTree

from tests.support.rooms import REPOSITORY

__all__ = ["durations", "nodeid"]

ALONE_SECONDS: Final = 15
"""A test that takes so long is taken alone, and not with its file."""

FILE_SECONDS: Final = 10
"""Files that take less are short."""

TABLE: Final = REPOSITORY / "tests" / "plugins" / "durations.json"


def nodeid(classname: str, name: str) -> str:
    """The id of a test from the two names that JUnit's format has of it."""
    parts = classname.split(".")
    for end in range(len(parts), 0, -1):
        file = Path(*parts[:end]).with_suffix(".py")
        if (REPOSITORY / file).is_file():
            return "::".join([file.as_posix(), *parts[end:], name])
    raise ValueError(f"{classname} is in no file")


def durations(seconds: dict[str, float]) -> dict[str, int]:
    """The table, the longest first, from the seconds of each test by its id."""
    found: Counter[str] = Counter()
    for test, took in seconds.items():
        found[test if took >= ALONE_SECONDS else test.split("::")[0]] += round(took * 1000)
    table = {name: round(took / 1000) for name, took in found.most_common()}
    return {name: took for name, took in table.items() if "::" in name or took >= FILE_SECONDS}


def main() -> None:
    """Write the table."""
    seconds = {
        nodeid(case.get("classname", ""), case.get("name", "")): float(case.get("time", 0))
        for case in ElementTree.parse(sys.argv[1]).iter("testcase")
    }
    TABLE.write_text(json.dumps(durations(seconds), indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
