"""The output rate limit of one connection: it spares front ends more output than they can show.

Only ``stream``, ``display_data`` and ``update_display_data`` messages are ever held back; replies,
results, errors, statuses, comms and input requests never are. Messages that are held back are
counted, the client is told the count, and they stay in the log.
"""

from __future__ import annotations

from collections import deque
from typing import Final, NamedTuple

__all__ = ["LIMITED_TYPES", "Episode", "RateLimiter", "RateLimits"]

LIMITED_TYPES: Final = frozenset({"stream", "display_data", "update_display_data"})


class RateLimits(NamedTuple):
    """The options, with the names that Jupyter users know; 0 or less means no limit."""

    iopub_msg_rate_limit: float
    """Messages a second."""
    iopub_data_rate_limit: float
    """Bytes of ``stream`` messages a second."""
    rate_limit_window: float
    """Seconds over which the rates are taken."""


class Episode(NamedTuple):
    """The count and bytes of the messages that were held back while a limit was exceeded."""

    messages: int
    bytes: int


class RateLimiter:
    """Decides for each message whether one connection is sent it.

    Rates are averages over a sliding window. Once a limit is exceeded it is in force until the rate
    has fallen to four fifths of it (`resume_at`), or until the kernel goes idle.
    """

    # Lower than the limit: at the limit itself, output that comes just as fast would be let through
    # and held back in turns, with two notices each time.
    resume_at = 0.8

    def __init__(self, limits: RateLimits) -> None:
        self._limits = limits
        # When each message that was sent leaves the window, and the bytes that count of it.
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
        # Messages that are held back are not in the window. So the rate is that of messages which
        # the client was sent, and falls while the limit is in force, however much the kernel says.
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
        """The text that tells a person of an exceeded limit; its first line is Jupyter's own."""
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
        """The count of the messages that were held back; None if there are none.

        The count begins anew.
        """
        if not self._held_messages:
            return None
        episode = Episode(self._held_messages, self._held_bytes)
        self._held_messages = self._held_bytes = 0
        return episode

    def reset(self) -> Episode | None:
        """Forget the window and the limit in force, as the kernel has gone idle.

        Returns what `end_episode` returns.
        """
        self._window.clear()
        self._bytes = 0
        self._exceeded = None
        return self.end_episode()
