"""Spans of time as people write them: ``30d``, ``12h``, ``never``."""

from __future__ import annotations

import re
from typing import Final

__all__ = ["NEVER", "InvalidDuration", "parse_duration", "shown_duration"]

NEVER: Final = "never"

_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_MAX_SECONDS: Final = 10 * 365 * 86400
_PATTERN: Final = re.compile(r"([0-9]{1,9})([smhdw])", re.ASCII)


class InvalidDuration(ValueError):
    """A text is no span of time. The exception's text says how one is written, and does not repeat
    the wrong text."""


def parse_duration(text: str) -> float:
    """Parse a number with its unit (s, m for minutes, h, d or w); returns seconds.

    Raises `InvalidDuration` for any other text, for less than a second and for more than ten years.
    """
    found = _PATTERN.fullmatch(text)
    if found is None:
        raise InvalidDuration("a span of time is a number and a unit: 30m, 12h, 90d, 8w")
    seconds = int(found[1]) * _UNITS[found[2]]
    if not 1 <= seconds <= _MAX_SECONDS:
        raise InvalidDuration("a span of time has at least one second and at most ten years")
    return float(seconds)


def shown_duration(seconds: float) -> str:
    """A span of time in its largest whole unit, rounded down: ``29d``, ``3h``, ``0s``."""
    for unit in ("d", "h", "m"):
        if seconds >= _UNITS[unit]:
            return f"{int(seconds // _UNITS[unit])}{unit}"
    return f"{max(0, int(seconds))}s"
