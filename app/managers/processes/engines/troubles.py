"""When an engine that cannot be watched is watched again, and what is logged of that."""

from __future__ import annotations

import logging
from typing import Final

from ...errors import KeeperUnavailable

__all__ = ["Troubles"]

logger = logging.getLogger(__name__)

SHORTEST_PAUSE: Final = 2.0
LONGEST_PAUSE: Final = 30.0
"""Seconds before an engine is watched again: twice as many after each failure in a row."""

LASTING_SECONDS: Final = 60.0
"""How long an engine has to be watched without trouble before its troubles count as over. So a
watch that breaks again and again is logged once."""

MOST_SAID: Final = 8
"""How many different troubles are logged: a text may have a part that is new each time."""


class Troubles:
    """The troubles of one engine with this ``name``. Times are of one monotonic clock, in seconds.

    Each trouble is logged once, until the engine was seen for `LASTING_SECONDS` without any: with a
    traceback if it is none that an engine is expected to have.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._pause = SHORTEST_PAUSE
        self._said: set[str] = set()
        self._since: float | None = None  # since when the engine is seen

    def on_seen(self, now: float) -> None:
        """Note that the engine has told its jobs, and that all of them were seen to."""
        self._pause = SHORTEST_PAUSE
        if self._since is None:
            self._since = now
        if self._said and now - self._since >= LASTING_SECONDS:
            logger.info("jobs of %s are seen again", self._name)
            self._said.clear()

    def on_end(self, error: Exception | None) -> float:
        """Note that the watch has ended, with this error; returns the pause before the next one.

        The pause is in seconds. Without an error the stream has ended by itself.
        """
        self._since = None
        self._say(error)
        pause, self._pause = self._pause, min(2 * self._pause, LONGEST_PAUSE)
        return pause

    def _say(self, error: Exception | None) -> None:
        what = "it tells no more" if error is None else str(error) or type(error).__name__
        kind = f"{type(error).__name__}: {what}"
        if kind in self._said or len(self._said) >= MOST_SAID:
            return
        self._said.add(kind)
        is_expected = error is None or isinstance(error, KeeperUnavailable)
        logger.error(
            "jobs of %s are not seen: %s", self._name, what, exc_info=None if is_expected else error
        )
