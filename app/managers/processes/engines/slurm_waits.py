"""Slurm jobs that wait: for how long each has waited, and which of them are given up."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from ..hosts.errors import JobNotStarted
from .slurm_words import WAITING, Seen, is_hopeless, why_not_begun

__all__ = ["HOPELESS_SECONDS", "SlurmWaits"]

HOPELESS_SECONDS: Final = 6.0
"""How long a job may wait for a hopeless reason (`slurm_words.HOPELESS`): at first Slurm may be
mistaken."""


class SlurmWaits:
    """The jobs that wait, by their names. ``now`` is in seconds of a monotonic clock.

    A job of this server may wait for the ``patience`` that `begin` was given. A job that an earlier
    server has submitted has no bound: no kernel waits for it.
    """

    def __init__(self) -> None:
        self._since: dict[str, tuple[float, float]] = {}
        self._hopeless_since: dict[str, float] = {}
        self._given_up: dict[str, JobNotStarted] = {}

    def begin(self, name: str, patience: float, now: float) -> None:
        """Note that a job is submitted now, which may wait ``patience`` seconds."""
        self._since[name] = now, patience

    def see(self, seen: Seen, now: float) -> None:
        """See a job now; it is given up if it has waited for too long (`why`)."""
        name = seen.name
        if seen.state not in WAITING:
            # A job that has begun does not wait again, as it was submitted with --no-requeue.
            self._since.pop(name, None)
            self._hopeless_since.pop(name, None)
            return
        # If the reason changes to one that is not hopeless, the time of the next hopeless one
        # begins again. A job that was given up stays so until its end is seen.
        since, patience = self._since.get(name, (now, float("inf")))
        hopeless = self._hopeless_since.setdefault(name, now) if is_hopeless(seen) else None
        if hopeless is None:
            self._hopeless_since.pop(name, None)
        is_over = now - since >= patience
        if is_over or (hopeless is not None and now - hopeless >= HOPELESS_SECONDS):
            self._given_up.setdefault(name, why_not_begun(seen, now - since))

    def why(self, name: str) -> JobNotStarted | None:
        """The error with which a job was given up; None if it was not."""
        return self._given_up.get(name)

    def keep(self, names: Collection[str], before: float) -> None:
        """Forget jobs that are not among ``names``, except those submitted after ``before``.

        Such a job may not be listed yet.
        """
        for name in [name for name in self._since if self._since[name][0] < before]:
            if name not in names:
                del self._since[name]
        for table in (self._hopeless_since, self._given_up):
            for name in [name for name in table if name not in names]:
                del table[name]
