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

ALONE_SECONDS: Final = 10
"""A test that takes so long is taken alone, and not with its file."""

FILE_SECONDS: Final = 25
"""Of a file that takes longer, each test function is taken for itself."""

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
    rest: Counter[str] = Counter()  # of each file
    for test, took in seconds.items():
        rest[test.split("::")[0]] += _milliseconds(took) if took < ALONE_SECONDS else 0
    found: Counter[str] = Counter()
    for test, took in seconds.items():
        scope, function = test.split("::")[0], test.split("[")[0]
        if took >= ALONE_SECONDS:
            scope = test
        elif rest[scope] >= _milliseconds(FILE_SECONDS):
            scope = function
        found[scope] += _milliseconds(took)
    return {name: round(took / 1000) for name, took in found.most_common()}


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


def main() -> None:
    """Write the table."""
    seconds = {
        nodeid(case.get("classname", ""), case.get("name", "")): float(case.get("time", 0))
        for case in ElementTree.parse(sys.argv[1]).iter("testcase")
    }
    TABLE.write_text(json.dumps(durations(seconds), indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
