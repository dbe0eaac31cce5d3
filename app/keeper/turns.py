"""How many messages of one kernel may be read in one turn of the event loop."""

from __future__ import annotations

import time
from typing import Final

__all__ = ["MESSAGES_ALONE", "Turns"]

MESSAGES_ALONE: Final = 64
"""How many messages are read from one socket in one turn. More would gain no throughput."""

MESSAGES_SHARED: Final = 8
"""How many messages are read from one socket in one turn while another kernel has short turns. An
execution of that kernel takes some turns of the loop, and each waits for a turn of the kernel that
floods. To read in short turns costs a third more."""

SHARED_SECONDS: Final = 0.05
"""For how many seconds after its last short turn a kernel shortens the turns of others."""


class Turns:
    """Shortens the turns of kernels that flood while kernels with little output are active.

    One object serves all kernels of a keeper. If all active kernels flood, their turns stay long:
    none would gain by short ones. A kernel is known by the identity of its sockets, so this holds
    no objects of kernels.
    """

    def __init__(self) -> None:
        # The last two kernels with short turns, and until when each counts (monotonic). Two are
        # enough: a kernel's own short turns must not shorten its turns, and one other does.
        self._last: tuple[bytes, float] = (b"", 0.0)
        self._other: tuple[bytes, float] = (b"", 0.0)

    def messages(self, who: bytes) -> int:
        """How many messages may be read of the kernel ``who`` in this turn."""
        _, until = self._other if self._last[0] == who else self._last
        return MESSAGES_SHARED if until > time.monotonic() else MESSAGES_ALONE

    def was_short(self, who: bytes) -> None:
        """Note that a turn has read all messages of the kernel ``who`` that there were."""
        if self._last[0] != who:
            self._other = self._last
        self._last = (who, time.monotonic() + SHARED_SECONDS)
