"""The output rate limit of one connection, to spare front ends more than they can show.

Only ``stream``, ``display_data`` and ``update_display_data`` are ever held back: never a reply, a
result, an error, a status, a comm or an input request. What is held back is counted and said, and
stays in the log.
"""

from __future__ import annotations

from collections import deque
from typing import Final, NamedTuple

__all__ = ["LIMITED_TYPES", "Episode", "RateLimiter", "RateLimits"]

LIMITED_TYPES: Final = frozenset({"stream", "display_data", "update_display_data"})


class RateLimits(NamedTuple):
    """The options, under the names that Jupyter users know; a limit of 0 or less is none."""

    iopub_msg_rate_limit: float
    """Messages a second."""
    iopub_data_rate_limit: float
    """Bytes of ``stream`` messages a second."""
    rate_limit_window: float
    """Seconds over which the rates are taken."""


class Episode(NamedTuple):
    """What was held back while a limit was exceeded."""

    messages: int
    bytes: int


class RateLimiter:
    """Decides, message by message, what one connection is sent now.

    Rates are taken over a sliding window. A limit that is exceeded is in force until the rate falls
    below four fifths of it, or the kernel goes idle.
    """

    resume_at = 0.8

    def __init__(self, limits: RateLimits) -> None:
        self._limits = limits
        self._window: deque[tuple[float, int]] = deque()
        self._bytes = 0
        self._exceeded: str | None = None
        self._held_messages = 0
        self._held_bytes = 0

    def admit(self, msg_type: str, size: int, now: float) -> bool:
        """Whether a message of this type and size (bytes) may go; ``now`` is monotonic."""
        if msg_type not in LIMITED_TYPES:
            return True
        window, limits = self._window, self._limits
        while window and window[0][0] <= now:
            self._bytes -= window.popleft()[1]
        counted = size if msg_type == "stream" else 0
        seconds = limits.rate_limit_window
        self._exceeded = self._exceeds(
            (len(window) + 1) / seconds, (self._bytes + counted) / seconds
        )
        if self._exceeded is not None:
            self._held_messages += 1
            self._held_bytes += size
            return False
        window.append((now + seconds, counted))
        self._bytes += counted
        return True

    def _exceeds(self, messages: float, data: float) -> str | None:
        """Which rate is too high: "message", "data" or none."""
        limits = self._limits
        for name, rate, limit in (
            ("message", messages, limits.iopub_msg_rate_limit),
            ("data", data, limits.iopub_data_rate_limit),
        ):
            allowed = limit * self.resume_at if self._exceeded == name else limit
            if limit > 0 and rate > allowed:
                return name
        return None

    @property
    def exceeded(self) -> str | None:
        """The limit in force: "message", "data", or None."""
        return self._exceeded

    def notice(self, exceeded: str) -> str:
        """What the person is told when a limit is exceeded; the first line is Jupyter's own."""
        limits = self._limits
        name = "iopub_msg_rate_limit" if exceeded == "message" else "iopub_data_rate_limit"
        unit = "msgs/sec" if exceeded == "message" else "bytes/sec"
        return (
            f"IOPub {exceeded} rate exceeded.\n"
            "Output is held back from this client to spare it; results, errors and replies are\n"
            f"not. The limit can be changed with `--{name.replace('_', '-')}`.\n"
            "\n"
            "Current values:\n"
            f"{name}={getattr(limits, name)} ({unit})\n"
            f"rate_limit_window={limits.rate_limit_window} (secs)\n"
            "\n"
        )

    def end_episode(self) -> Episode | None:
        """The limit is no longer in force: what was held back since it was, if anything."""
        if not self._held_messages:
            return None
        episode = Episode(self._held_messages, self._held_bytes)
        self._held_messages = self._held_bytes = 0
        return episode

    def reset(self) -> Episode | None:
        """The kernel has gone idle: start counting anew; returns as `end_episode` does."""
        self._window.clear()
        self._bytes = 0
        self._exceeded = None
        return self.end_episode()
