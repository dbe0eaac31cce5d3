"""How much of a turn of the event loop one kernel may have."""

from __future__ import annotations

import time
from typing import Final

__all__ = ["MESSAGES_ALONE", "Turns"]

MESSAGES_ALONE: Final = 64
"""What is read from one socket in one turn. More gains no throughput."""

MESSAGES_SHARED: Final = 8
"""The same while somebody else is served who has little to say: an execution takes some turns, and
each waits for one of a kernel that floods. To read so few at a time costs a third more."""

SHARED_SECONDS: Final = 0.05
"""How long after it was served last somebody else counts."""


class Turns:
    """Keeps apart those that flood and those that say little, for all kernels of one server.

    Two that flood may have long turns, both: neither would gain by short ones. Who they are tells
    the identity of their sockets, so that nobody is kept here.
    """

    def __init__(self) -> None:
        # The last two that were served, and until when that counts (monotonic).
        self._last: tuple[bytes, float] = (b"", 0.0)
        self._other: tuple[bytes, float] = (b"", 0.0)

    def messages(self, who: bytes) -> int:
        """How many messages ``who`` may read in this turn."""
        _, until = self._other if self._last[0] == who else self._last
        return MESSAGES_SHARED if until > time.monotonic() else MESSAGES_ALONE

    def was_short(self, who: bytes) -> None:
        """``who`` has read all that there was."""
        if self._last[0] != who:
            self._other = self._last
        self._last = (who, time.monotonic() + SHARED_SECONDS)
