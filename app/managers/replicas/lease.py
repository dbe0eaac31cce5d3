"""The lease of one replica: until when no other replica can have taken its kernels.

The registry keeps its own count of the lease, by the clock of the database: a replica that has not
renewed its lease for ``seconds`` may be declared dead, and then its kernels are taken. The count
here begins *before* the renewal is sent, uses a clock of this machine that nobody sets (monotonic),
and ends a margin earlier. So the lease ends here before it ends in the registry, however long the
answer took and whatever the time of day on either machine, as long as their clocks run at nearly
the same rate.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Final

__all__ = ["Lease", "Standing"]

MARGIN: Final = 0.05
"""The fraction of a lease that is not used here, as two clocks may run at different rates."""


class Standing(Enum):
    """What a replica knows of its own lease."""

    NONE = auto()
    """It has not joined the others, or was declared dead by them and has not joined again."""
    GOOD = auto()
    """No other replica can have taken its kernels."""
    OVER = auto()
    """Others may have taken its kernels, or may not: only the kernels' keepers can tell."""


class Lease:
    """The lease of one replica. Times are in seconds by the one monotonic clock."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.every = seconds / 5
        """How often the lease is renewed."""
        self._is_member = False
        self._good_until = float("-inf")
        self._steady_since = float("inf")

    def renewed(self, sent: float, now: float) -> None:
        """Note that by ``now`` the registry has confirmed a renewal that was sent at ``sent``.

        The lease is good from ``sent`` on, not from ``now``; and a late answer to an early renewal
        never shortens a lease that a later renewal has extended.
        """
        # `_steady_since` is when the lease was last renewed after a gap, however short: other
        # replicas may have taken kernels in that gap.
        was_good = self.is_good(now)
        self._is_member = True
        self._good_until = max(self._good_until, sent + self.seconds * (1 - MARGIN))
        if not self.is_good(now):  # the answer came too late to be of use
            self._steady_since = float("inf")
        elif not was_good:
            self._steady_since = now

    def lost(self) -> None:
        """Note that the registry has no row of this replica: it was declared dead, or has left."""
        self._is_member = False
        self._good_until = float("-inf")
        self._steady_since = float("inf")

    def is_good(self, now: float) -> bool:
        """Whether no other replica can have taken a kernel of this one."""
        return now < self._good_until

    def standing(self, now: float) -> Standing:
        """The standing of the lease."""
        if not self._is_member:
            return Standing.NONE
        return Standing.GOOD if self.is_good(now) else Standing.OVER

    def may_bury(self, now: float) -> bool:
        """Whether this replica may declare others dead whose leases have ended.

        After the registry was away, the leases of all replicas are over, and the first that comes
        back would declare dead those that come back a moment later. So a replica may do that only
        if its own lease has been good, without a gap, for the length of a lease.
        """
        return self.is_good(now) and now >= self._steady_since + self.seconds
