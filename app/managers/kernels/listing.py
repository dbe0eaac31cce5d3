"""Listing a caller's kernels: those that there are, at whichever replica, and those that were."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator

from ..handover.elsewhere import KernelElsewhere
from .departures import Departure
from .finding import Finding
from .kernel import Kernel
from .multikernel import MultiKernelManager
from .table import keys_for

__all__ = ["Listing"]


class Listing:
    """The kernels that a caller may read, in the order in which they were started."""

    def __init__(self, manager: MultiKernelManager, finding: Finding) -> None:
        self._manager = manager
        self._reads = finding.reads
        self._all = finding.finds_all
        self._keys = keys_for(finding.principal)
        self.refresh = manager.refresh
        self.check_running = manager.check_running
        self._seen: tuple[int, list[Kernel]] = (-1, [])
        self._models: tuple[list[Kernel], list[int], int, bytes] = ([], [], 0, b"[]")

    def __iter__(self) -> Iterator[Kernel]:
        """The kernels of this server."""
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    @property
    def _found(self) -> list[Kernel]:
        """The kernels, looked for once per change of what there is. The list does not change."""
        # What a caller may read changes with the kernels' shares alone, and those count in the
        # version: a principal's scopes and groups never change.
        version = self._manager.version
        if self._seen[0] != version:
            found: Iterable[Kernel] = self._manager
            if not self._all:
                found = filter(self._reads, self._manager.found_by(self._keys))
            self._seen = version, [*found]
        return self._seen[1]

    @property
    def models(self) -> bytes:
        """The models of the kernels, as a JSON list, put together once per change."""
        found, changes = self._found, self._manager.elsewhere.changes
        each = [kernel.state.changes for kernel in found]
        if self._models[0] is not found or self._models[1:3] != (each, changes):
            self._models = found, each, changes, self._listed(found)
        return self._models[3]

    def models_of(self, owner: str) -> bytes:
        """The models of those kernels that are an owner's, as a JSON list."""
        found = self._manager.found_by([("owner", owner)])
        return self._listed([one for one in found if self._reads(one)], owner)

    def _listed(self, here: list[Kernel], owner: str | None = None) -> bytes:
        """The models of kernels of this server, and of those that other replicas have."""
        others = self.others(owner)
        if not others:
            return b"[" + b",".join([kernel.model for kernel in here]) + b"]"
        everybody: list[Kernel | KernelElsewhere] = [*here, *others]
        everybody.sort(key=lambda one: one.created)
        return b"[" + b",".join([one.model for one in everybody]) + b"]"

    def others(self, owner: str | None = None) -> list[KernelElsewhere]:
        """The kernels of other replicas that the caller may read; or those of an owner."""
        return [
            one
            for one in self._manager.elsewhere.kernels.values()
            if one.id not in self._manager
            and owner in (None, one.ownership.owner)
            and (self._all or self._reads(one))
        ]

    @property
    def by_replica(self) -> Counter[str]:
        """How many of the caller's kernels each replica has, as the registry tells."""
        known = self._manager.elsewhere.kernels.values()
        found = [one for one in known if self._all or self._reads(one)]
        return Counter(one.replica for one in found if one.replica is not None)

    @property
    def departed(self) -> int:
        """The number of the latest departure, of whosever kernel."""
        return self._manager.departures.last

    def departures(self, since: int) -> list[Departure]:
        """The kernels that have ended lately, and that the caller could read, behind a number."""
        found = self._manager.departures.since(since, time.time())
        return [one for one in found if self._all or self._reads(one)]
