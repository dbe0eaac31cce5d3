"""The keepers of the version before, which end with the last of their kernels."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path

from ....keeper.protocol import aside_dirs
from ...errors import KeeperUnavailable
from .client import Keeper
from .kept import Kept
from .places import AsidePlace

__all__ = ["OlderKeepers"]

logger = logging.getLogger(__name__)


class OlderKeepers:
    """The keepers of a state directory that were set aside.

    ``new`` makes the client of such a keeper; the ``newest`` gets the kernels of one that was
    killed. ``homes`` has the keeper of each kernel. ``change`` runs an awaitable that takes a
    keeper out, and ``on_changed`` is called when the number of keepers has changed.
    """

    def __init__(
        self,
        state_dir: Path,
        new: Callable[[AsidePlace], Keeper],
        newest: Keeper,
        homes: MutableMapping[str, Keeper],
        change: Callable[[Awaitable[None]], None],
        on_changed: Callable[[], None],
    ) -> None:
        self._state_dir = state_dir
        self._new = new
        self._newest = newest
        self._homes = homes
        self._change = change
        self._on_changed = on_changed
        self._keepers: dict[Keeper, AsidePlace] = {}

    @property
    def all(self) -> list[Keeper]:
        """The keepers that were set aside, and have not ended."""
        return [*self._keepers]

    def find(self) -> None:
        """Add the keepers that an earlier server has set aside."""
        for directory in aside_dirs(self._state_dir):
            self.add(directory)

    def add(self, directory: Path) -> None:
        """Add the keeper that was set aside in a directory, and begin to connect to it.

        At once, as a keeper without a server ends its kernels after ``orphan_timeout``.
        """
        if any(place.directory == directory for place in self._keepers.values()):
            return
        place = AsidePlace(self._state_dir, directory)
        keeper = self._new(place)
        self._keepers[keeper] = place
        keeper.on_gone = lambda: self._on_gone(keeper)
        keeper.on_empty = lambda: self._change(self._retire(keeper))
        self._on_changed()
        keeper.connect_soon()

    def _on_gone(self, keeper: Keeper) -> None:
        """Give the kernels of an older keeper, which has ended or was killed, to the newest."""
        # `Keeper.find` calls this while `_retire` may be closing the same keeper: the one that
        # takes the keeper out of the table does the rest.
        place = self._keepers.pop(keeper, None)
        if place is None:
            return
        for kernel_id in [each for each, home in self._homes.items() if home is keeper]:
            del self._homes[kernel_id]
        self._on_changed()
        found = [Kept(kernel_id, pid, at, None, out) for kernel_id, pid, at, out in place.notes()]
        # `take_from` gives the kernels to the newest before anything is awaited. The task then
        # tells that keeper of them; requests for such kernels wait for it (`Keepers._settled`).
        self._change(self._move(self._newest.take_from(keeper, found), keeper, place))

    async def _move(self, taking: asyncio.Task[None], keeper: Keeper, place: AsidePlace) -> None:
        """Remove the directory of an older keeper, once the newest has its kernels."""
        try:
            await taking
        except KeeperUnavailable as error:
            # The directory stays: the next server reads in its notes which processes there are.
            logger.error("kernels of a keeper that has ended have no other yet: %s", error.message)
            self._newest.connect_soon()
        else:
            await asyncio.to_thread(place.remove)
        await keeper.close()

    async def _retire(self, keeper: Keeper) -> None:
        """Leave an older keeper that has no kernels any more, so that it ends."""
        place = self._keepers.get(keeper)
        if place is None or not keeper.is_empty:
            return
        # Nothing is launched at this keeper meanwhile: it only restarts kernels that it has, and it
        # has none, as far as this server knows. It may have one that this server has not adopted,
        # and then does not end.
        ended = await self._leave(keeper, place)
        if self._keepers.pop(keeper, None) is None:
            return
        if ended:
            logger.info("the keeper of the version before has ended with its last kernel")
            self._on_changed()
        else:  # it has kernels that this server has not adopted
            self.add(place.directory)

    async def _leave(self, keeper: Keeper, place: AsidePlace) -> bool:
        """Close the connection to an older keeper; returns whether it has ended, without kernels.

        Then its directory is removed.
        """
        await keeper.close()
        # Checked again: until the connection was closed a kernel could be found there.
        if not (keeper.is_empty and await place.has_ended()):
            return False
        await asyncio.to_thread(place.remove)
        return True

    def close(self) -> list[Awaitable[object]]:
        """The awaitables that close the connections to the keepers."""
        return [self._leave(keeper, place) for keeper, place in self._keepers.items()]
