"""Which server a kernel obeys, where several share a keeper.

Servers that share a registry are replicas of each other, and each kernel is one replica's at a
time. The registry counts a kernel's *term* up whenever another replica takes the kernel. A kernel
obeys only the replica that has come with the highest term so far. A replica that was stopped for a
while, and believes that the kernel is still its own, is refused.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final, NamedTuple

__all__ = ["MAX_GONE", "Terms"]

MAX_GONE: Final = 4096
"""Of how many kernels that are gone the terms are remembered: of those that went last."""


class _Tenure(NamedTuple):
    term: int
    replica: str


class Terms:
    """The terms of a keeper's kernels. A server that is no replica has the name ``""``."""

    def __init__(self) -> None:
        self._tenures: dict[str, _Tenure] = {}
        self._gone: dict[str, None] = {}

    def __bool__(self) -> bool:
        """Whether any replica has come for any kernel."""
        return bool(self._tenures)

    def come(self, kernel_id: str, term: int, replica: str) -> str | None:
        """Give a kernel to a replica that comes with this term; returns the replica that had it.

        Returns None if no other replica had the kernel. Raises `ValueError` if another replica has
        come with this term or a later one.
        """
        if term < 1:
            raise ValueError(f"the replica has let go of kernel {kernel_id}")
        before = self._tenures.get(kernel_id)
        if before is not None and before.replica == replica and term <= before.term:
            # One replica's requests come in order, but those of an earlier connection may be late.
            return None
        if before is not None and term <= before.term:
            raise ValueError(f"another replica has kernel {kernel_id}, in term {before.term}")
        self._gone.pop(kernel_id, None)
        self._tenures[kernel_id] = _Tenure(term, replica)
        return None if before is None or before.replica == replica else before.replica

    def obeys(self, kernel_id: str, replica: str) -> bool:
        """Whether a kernel obeys a replica: it has the kernel, or no replica has."""
        tenure = self._tenures.get(kernel_id)
        return tenure is None or tenure.replica == replica

    def has(self, replica: str, kernel_id: str) -> bool:
        """Whether a replica has a kernel; ``""`` has the kernels that no replica has."""
        tenure = self._tenures.get(kernel_id)
        return (tenure.replica if tenure is not None else "") == replica

    def of_any(self, kernel_id: str, replicas: Collection[str]) -> bool:
        """Whether one of these replicas has a kernel."""
        tenure = self._tenures.get(kernel_id)
        return tenure is not None and tenure.replica in replicas

    def forget(self, kernel_id: str) -> None:
        """Forget a kernel that is gone, but remember its term for a while.

        Otherwise a replica that was stopped while another one ended the kernel would take that end
        for a death, and launch another process.
        """
        if kernel_id in self._tenures:
            self._gone[kernel_id] = None
            # Bounded, as kernels come and go while the keeper lives. To be misled a replica has to
            # sleep through the ends of so many kernels.
            if len(self._gone) > MAX_GONE:
                oldest = next(iter(self._gone))
                del self._gone[oldest], self._tenures[oldest]
