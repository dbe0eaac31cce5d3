"""The restart policy: whether a kernel that died gets another process, and when."""

from __future__ import annotations

__all__ = ["RestartPolicy"]


class RestartPolicy:
    """Counts the deaths of a kernel in a row, and limits the restarts that follow them.

    The count begins anew when a process has lived for ``stable_time`` seconds since it was ready.
    The first restart of a row comes at once, the second after ``first_delay`` seconds, and each
    further one after twice the pause before it, up to ``longest_delay``.
    """

    stable_time = 10.0
    first_delay = 0.5
    longest_delay = 8.0

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._deaths = 0
        self._ready_since: float | None = None

    @property
    def deaths(self) -> int:
        """Deaths in a row."""
        return self._deaths

    def on_ready(self, now: float) -> None:
        """The kernel is ready; ``now`` is in monotonic seconds."""
        self._ready_since = now

    def on_death(self, now: float) -> float | None:
        """Seconds to wait before the restart, or None when the limit is passed."""
        # Since it was ready: a kernel that takes long to load and then dies is no stabler for that.
        if self._ready_since is not None and now - self._ready_since >= self.stable_time:
            self._deaths = 0
        self._ready_since = None
        self._deaths += 1
        if self._deaths > self._limit:
            return None
        if self._deaths == 1:
            return 0.0
        return min(float(self.first_delay * 2 ** (self._deaths - 2)), self.longest_delay)
