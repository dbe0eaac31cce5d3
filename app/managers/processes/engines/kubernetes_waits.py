"""Pods that wait: for how long each has waited, and which of them are given up."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final, NamedTuple

from ..hosts.errors import HostUnusable
from .engine import JobState
from .kubernetes_words import HOPELESS, Sight, why_not_begun

__all__ = ["TROUBLE_SECONDS", "Waits"]

TROUBLE_SECONDS: Final = 60.0
"""How long an image or a container may fail before its pod is given up: a registry may come back.
"""


class _Wait(NamedTuple):
    since: float
    in_trouble_since: float | None


class Waits:
    """The pods that wait, by their names. ``now`` is in seconds of this server's monotonic clock.

    A pod's wait begins when this server first sees the pod: clocks of other machines may differ.
    """

    def __init__(self, trouble_seconds: float = TROUBLE_SECONDS) -> None:
        self._trouble_seconds = trouble_seconds
        self._waits: dict[str, _Wait] = {}

    def see(self, name: str, sight: Sight, patience: float, now: float) -> HostUnusable | None:
        """See a pod now; returns the error with which it is given up, or None if it is not.

        ``patience`` is how many seconds the pod may wait.
        """
        if sight.state is not JobState.WAITING:
            self._waits.pop(name, None)
            return None
        # If a trouble passes and comes again, its time begins again; the time of the whole wait
        # does not.
        since, trouble = self._waits.get(name, _Wait(now, None))
        trouble = (now if trouble is None else trouble) if sight.trouble else None
        self._waits[name] = _Wait(since, trouble)
        if sight.trouble in HOPELESS:
            return why_not_begun(sight, 0.0)
        if trouble is not None and now - trouble >= min(self._trouble_seconds, patience):
            return why_not_begun(sight, now - since)
        if now - since >= patience:
            return why_not_begun(sight, patience)
        return None

    def keep(self, names: Collection[str]) -> None:
        """Forget all pods but these."""
        self._waits = {name: wait for name, wait in self._waits.items() if name in names}
