"""The choice of a host, out of several, for a kernel: one that answers, and has the least to do."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Final

from ...errors import KeeperUnavailable
from ..keeper.remote_keepers import RemoteKeepers
from .errors import HostUnusable
from .options import SSHOptions
from .place import SSHPlace
from .service import Service

__all__ = ["HostChoice", "in_turn", "no_host"]

logger = logging.getLogger(__name__)

GRACE_SECONDS: Final = 1.5
"""How much longer than the first host to answer the others may take."""

AWAY_SECONDS: Final = 30.0
"""For how long a host that could not be used is tried only after all others."""


class HostChoice:
    """Chooses hosts for the kernels of one server, whose keepers there are this ``service``'s."""

    def __init__(self, keepers: RemoteKeepers, service: Service) -> None:
        self._keepers = keepers
        self._service = service
        self._looks: Counter[str] = Counter()  # by the keepers' keys
        keepers.is_looked_at = lambda key: self._looks[key] > 0
        self._failed: dict[str, float] = {}  # when, by the loop's clock

    async def choose(self, options: SSHOptions) -> str:
        """The host for a kernel. Assign the kernel to its keeper before anything else is awaited.

        The host is one that can be reached, with the fewest kernels of this server; of several such
        hosts it is the one with the least load for each processor. Raises `KeeperUnavailable` if no
        host can be used.
        """
        if len(options.hosts) == 1:
            return options.hosts[0]
        places = {options.at(host).key: host for host in options.hosts}
        now = asyncio.get_running_loop().time()
        late = {key for key in places if now - self._failed.get(key, -AWAY_SECONDS) < AWAY_SECONDS}
        failures: dict[str, KeeperUnavailable] = {}
        # Before anything is awaited: from now on no keeper of these hosts is taken out, though it
        # may have no kernel (`RemoteKeepers.is_looked_at`).
        self._looks.update([*places])
        try:
            for keys in in_turn({key: self._keepers.count(key) for key in places}, late):
                loads = await self._look({key: options.at(places[key]) for key in keys}, failures)
                if loads:
                    # Kernels are counted again: other starts may have got hosts meanwhile.
                    found = min(loads, key=lambda key: (self._keepers.count(key), loads[key]))
                    return places[found]
        finally:
            self._looks.subtract([*places])
            # In the loop's next turn, by which the caller has assigned the kernel.
            asyncio.get_running_loop().call_soon(self._leave, [*places])
        raise no_host({places[key]: failures[key] for key in places if key in failures})

    async def _look(
        self, candidates: Mapping[str, SSHOptions], failures: dict[str, KeeperUnavailable]
    ) -> dict[str, float]:
        """The loads of the hosts that answer in time."""
        loop = asyncio.get_running_loop()
        alone = len(candidates) == 1
        looks = {
            loop.create_task(
                self._load(key, options, alone=alone), name=f"look at {options.name}"
            ): key
            for key, options in candidates.items()
        }
        loads: dict[str, float] = {}
        waiting = {*looks}
        until: float | None = None
        try:
            while waiting:
                left = None if until is None else max(0.0, until - loop.time())
                done, waiting = await asyncio.wait(
                    waiting, timeout=left, return_when=asyncio.FIRST_COMPLETED
                )
                if not done:
                    # Hosts that are late are tried last for a while, as hosts that refuse are.
                    self._failed.update({looks[look]: loop.time() for look in waiting})
                    break
                for look in done:
                    key = looks[look]
                    try:
                        loads[key] = look.result()
                    except KeeperUnavailable as error:
                        failures[key] = error
                        self._on_failure(key, candidates[key].name, error)
                    else:
                        self._failed.pop(key, None)
                        until = until or loop.time() + GRACE_SECONDS
        finally:
            # If a look is cancelled, the attempt to connect goes on: other callers may wait for it.
            for look in waiting:
                look.cancel()
            if waiting:
                await asyncio.wait(waiting)
        return loads

    async def _load(self, key: str, options: SSHOptions, *, alone: bool) -> float:
        place = SSHPlace(options, self._service)
        return await self._keepers.look_at(key, lambda: place, with_load=not alone)

    def _on_failure(self, key: str, name: str, error: KeeperUnavailable) -> None:
        if key not in self._failed:
            logger.warning("%s is passed over: %s", name, error.message)
        self._failed[key] = asyncio.get_running_loop().time()

    def _leave(self, keys: Sequence[str]) -> None:
        """Leave keepers that no kernel needs and no choice looks at, so that they end."""
        for key in keys:
            if not self._looks[key]:
                del self._looks[key]
                self._keepers.leave_unused(key)


def in_turn(counts: Mapping[str, int], late: set[str]) -> list[list[str]]:
    """The keys in groups that are tried one after the other, those with the fewest kernels first.

    Keys that are ``late`` come after all others.
    """

    def turn(key: str) -> tuple[bool, int]:
        return key in late, counts[key]

    return [[*keys] for _, keys in groupby(sorted(counts, key=turn), turn)]


def no_host(failures: Mapping[str, KeeperUnavailable]) -> KeeperUnavailable:
    """The error when no host can be used; of the hosts' kind of error, if all have the same."""
    kinds = {type(error) for error in failures.values()}
    kind = kinds.pop() if len(kinds) == 1 else HostUnusable
    told = "; ".join(f"{host}: {error.message}" for host, error in failures.items())
    return kind(f"None of the hosts can be used: {told}")
