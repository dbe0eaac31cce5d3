"""The counters of one server since it started; `app.api.prometheus` shows them to Prometheus.

Messages are counted on the hot path, so to count is to add to a plain attribute. All additions are
made in the event loop's thread but ``audit_lost``, which is added to under the audit log's lock.
Nothing here depends on Prometheus.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from typing import Final

__all__ = ["Counters", "Durations", "Tally"]

REQUEST_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
LAG_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
START_SECONDS: Final = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
EXECUTION_SECONDS: Final = (0.001, 0.01, 0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600, 4 * 3600)


class Tally:
    """A number of messages, and their bytes."""

    __slots__ = ("bytes", "messages")

    def __init__(self) -> None:
        self.messages = 0
        self.bytes = 0


class Durations:
    """A histogram of durations in seconds, and their sum (``total``).

    ``bounds`` are ascending. ``counts`` has one number for each bound: how many durations were at
    most that, and above the bound before. Its last number counts those above all bounds.
    """

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        """Add a duration."""
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.total += seconds


class Counters:
    """All counters. A kernel's ``type``, a label, is the name of its kernelspec in lower case."""

    def __init__(self) -> None:
        channels = ("iopub", "shell", "control", "stdin")
        self.from_kernels = {channel: Tally() for channel in channels}
        self.to_kernels = {channel: Tally() for channel in channels if channel != "iopub"}
        self.malformed = 0  # messages from kernels that were dropped
        self.held_back = Tally()  # output that a rate limit kept from one client
        self.outdated = Tally()  # messages that the log dropped before one client came to them
        # By type and reason.
        self.starts: Counter[tuple[str, str]] = Counter()
        self.deaths: Counter[tuple[str, str]] = Counter()
        self.culls: Counter[tuple[str, str]] = Counter()
        self.forks = 0  # kernels' processes that were forked instead of started
        self.warm_claims: Counter[tuple[str, str]] = Counter()  # by type and "hit" or "miss"
        # By type.
        self.start_seconds: dict[str, Durations] = defaultdict(lambda: Durations(START_SECONDS))
        self.execution_seconds = Durations(EXECUTION_SECONDS)
        # By method, route and status.
        self.request_seconds: dict[tuple[str, str, str], Durations] = defaultdict(
            lambda: Durations(REQUEST_SECONDS)
        )
        self.limit_refusals: Counter[str] = Counter()  # by the limit of an owner
        self.wrong_tokens = Counter({"refused": 0, "slowed": 0})  # by how they were answered
        self.audit_lost = 0  # records that the audit log has lost
        self.lag_seconds = Durations(LAG_SECONDS)

    def on_forked(self) -> None:
        """Count a kernel's process that was forked."""
        self.forks += 1
