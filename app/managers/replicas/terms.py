"""The terms of a replica's kernels: how often each has changed its owner among the replicas.

The registry counts a kernel's term up whenever another replica takes the kernel. Whatever a replica
writes of a kernel into the registry, and asks of the kernel's keeper, goes with the term in which
it has the kernel, and is refused if there has been a later one.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

__all__ = ["Terms"]


class Terms:
    """The terms in which this replica has its kernels, by their ids."""

    def __init__(self) -> None:
        # Only the loop writes. The thread of `SharedKeepers` reads, too, while the loop may change
        # the dict: it gets a term or none, and the registry refuses a term that is over. The thread
        # of `SharedStore` has a copy (`now`).
        self._terms: dict[str, int] = {}

    def __contains__(self, kernel_id: object) -> bool:
        return kernel_id in self._terms

    def __iter__(self) -> Iterator[str]:
        """The ids of the kernels."""
        return iter([*self._terms])  # a copy: whoever loops drops some

    def begin(self, kernel_id: str) -> None:
        """Begin the first term of a kernel that is to be started here.

        A first term is the time in seconds since the epoch. So a kernel that is started with the id
        of one that is gone has a later term, and a replica that had the earlier kernel is refused.
        """
        # The term of a kernel that has gone here is dropped only later (`SharedHandover.forget`).
        # The new one is higher even in the same second, or when the clock was set back.
        self._terms[kernel_id] = max(self.of(kernel_id) + 1, int(time.time()))

    def now(self) -> Terms:
        """A copy of the terms as they are now."""
        terms = Terms()
        terms._terms = dict(self._terms)
        return terms

    def of(self, kernel_id: str) -> int:
        """The term of a kernel; 0, in which nothing is granted, if it is not this replica's."""
        return self._terms.get(kernel_id, 0)

    def take(self, kernel_id: str, term: int) -> None:
        """Store the term in which this replica has taken a kernel over."""
        self._terms[kernel_id] = term

    def drop(self, kernel_id: str, term: int | None = None) -> None:
        """Forget the term of a kernel; with ``term``, only if that is still its term."""
        if term in (None, self.of(kernel_id)):
            self._terms.pop(kernel_id, None)
