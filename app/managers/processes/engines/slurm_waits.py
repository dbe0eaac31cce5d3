"""How long jobs of Slurm's have waited, and which of them are given up."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from ..hosts.errors import JobNotStarted
from .slurm_words import WAITING, Seen, is_hopeless, why_not_begun

__all__ = ["HOPELESS_SECONDS", "SlurmWaits"]

HOPELESS_SECONDS: Final = 6.0
"""How long a job may wait for what does not come by itself: at first Slurm may be mistaken."""


class SlurmWaits:
    """The jobs that wait, by their names, each for at most as long as was said at first.

    A moment is one of a monotonic clock. One that an earlier server has submitted waits for as long
    as it likes: no kernel waits for it.
    """

    def __init__(self) -> None:
        self._since: dict[str, tuple[float, float]] = {}
        self._hopeless_since: dict[str, float] = {}
        self._given_up: dict[str, JobNotStarted] = {}

    def begin(self, name: str, patience: float, now: float) -> None:
        """A job is submitted now."""
        self._since[name] = now, patience

    def see(self, seen: Seen, now: float) -> None:
        """Look at a job, which is given up when it has waited for too long."""
        name = seen.name
        if seen.state not in WAITING:
            # It does not wait again: it was submitted with --no-requeue.
            self._since.pop(name, None)
            self._hopeless_since.pop(name, None)
            return
        # If the reason becomes one that passes, the next hopeless one has the whole time again. A
        # job that was given up stays so until its end is seen.
        since, patience = self._since.get(name, (now, float("inf")))
        hopeless = self._hopeless_since.setdefault(name, now) if is_hopeless(seen) else None
        if hopeless is None:
            self._hopeless_since.pop(name, None)
        is_over = now - since >= patience
        if is_over or (hopeless is not None and now - hopeless >= HOPELESS_SECONDS):
            self._given_up.setdefault(name, why_not_begun(seen, now - since))

    def why(self, name: str) -> JobNotStarted | None:
        """Why a job was given up; None if it was not."""
        return self._given_up.get(name)

    def keep(self, names: Collection[str], before: float) -> None:
        """Forget all jobs but these, of those that were submitted before this moment."""
        for name in [name for name in self._since if self._since[name][0] < before]:
            if name not in names:
                del self._since[name]
        for table in (self._hopeless_since, self._given_up):
            for name in [name for name in table if name not in names]:
                del table[name]
