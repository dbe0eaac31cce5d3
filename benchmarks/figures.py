"""What was measured, and what the many rounds of it come to. Nothing here measures anything."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import median

__all__ = ["Figures", "NotMeasured", "Results", "named", "percentile"]

Figures = dict[str, float]
"""By the key of the line in the table (`benchmarks.table`)."""


class NotMeasured(RuntimeError):
    """A measure says why it has no figure, or only ``figures``; the server is none the worse."""

    def __init__(self, why: str, figures: Figures | None = None) -> None:
        super().__init__(why)
        self.figures: Figures = figures or {}


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that so many percent are not above (nearest rank).

    Raises `ValueError` when there are no values.
    """
    if not values:
        raise ValueError("there are no values")
    rank = math.ceil(percent / 100 * len(values))
    return sorted(values)[max(rank, 1) - 1]


def named(prefix: str, figures: Mapping[str, float]) -> Figures:
    """The same figures with names that say of what they are."""
    return {f"{prefix}_{key}": value for key, value in figures.items()}


class Results:
    """The figures of every server by line, and what went wrong by measure."""

    def __init__(self, servers: Sequence[str]) -> None:
        self.servers = list(servers)
        self.rounds = 0
        self._values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        self.problems: dict[str, dict[str, str]] = defaultdict(dict)

    def add(self, server: str, figures: Mapping[str, float]) -> None:
        """The figures of one round."""
        for key, value in figures.items():
            self._values[key][server].append(value)

    def fail(self, server: str, measure: str, problem: str) -> None:
        """A measure gave no figures: it is the problem that is shown."""
        self.problems[measure][server] = problem

    def median(self, key: str, server: str) -> float | None:
        """The median of all rounds, if there was any."""
        values = self._values.get(key, {}).get(server)
        return median(values) if values else None

    def row(self, key: str) -> dict[str, float | None]:
        """The medians of a line, by server."""
        return {server: self.median(key, server) for server in self.servers}

    def as_json(self) -> dict[str, object]:
        """All that is known: every value, the medians, the problems."""
        return {
            "values": {key: dict(values) for key, values in self._values.items()},
            "medians": {key: self.row(key) for key in self._values},
            "problems": {measure: dict(found) for measure, found in self.problems.items()},
        }
