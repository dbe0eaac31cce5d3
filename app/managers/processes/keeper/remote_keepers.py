"""All keepers on other hosts, in containers, pods and jobs, and which kernels are there."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, Final

from .client import Keeper
from .remote import Host, RemoteKeeper, RemotePlace

__all__ = ["RemoteKeepers"]

PART_SECONDS: Final = 5.0
"""How long the keeper of a kernel that is gone may take to be told of that."""


class RemoteKeepers:
    """The server's keepers on other hosts, each by a key, which says where the keeper is.

    ``new`` makes the client of a keeper at a place. ``homes`` has the keeper of each kernel, those
    of this machine among them. ``change`` runs an awaitable that takes a keeper out, and
    ``on_changed`` is called when the number of keepers has changed.
    """

    def __init__(
        self,
        new: Callable[[RemotePlace], RemoteKeeper],
        homes: MutableMapping[str, Keeper],
        change: Callable[[Awaitable[None]], None],
        on_changed: Callable[[], None],
    ) -> None:
        self._new = new
        self._homes = homes
        self._change = change
        self._on_changed = on_changed
        self._keepers: dict[str, RemoteKeeper] = {}
        self.is_stored: Callable[[str], bool] = lambda _: True
        """Whether a kernel of this id, which has no keeper here, may be stored."""
        self.is_looked_at: Callable[[str], bool] = lambda _: False
        """Whether a choice of hosts looks at the keeper of this key, between `look_at` and
        `leave_unused`."""

    @property
    def all(self) -> list[RemoteKeeper]:
        """All keepers on other hosts."""
        return [*self._keepers.values()]

    def assign(self, kernel_id: str, key: str, place: Callable[[], RemotePlace]) -> None:
        """Assign a kernel to the keeper ``key``; ``place`` makes its place if it is not known yet.

        Call this before any other method with this kernel.
        """
        self._homes[kernel_id] = self._at(key, place)

    def _at(self, key: str, place: Callable[[], RemotePlace]) -> RemoteKeeper:
        keeper = self._keepers.get(key)
        if keeper is None:
            keeper = self._new(place())
            keeper.on_empty = lambda: self._change(self._retire(keeper))
            # A kernel without a home may be one that an earlier server has left there.
            keeper.may_have = lambda kernel_id: self._homes.get(kernel_id, keeper) is keeper
            keeper.is_stray = lambda each: not (each in self._homes or self.is_stored(each))
            self._keepers[key] = keeper
            self._on_changed()
        return keeper

    def count(self, key: str) -> int:
        """How many kernels are assigned to the keeper ``key`` on another host."""
        keeper = self._keepers.get(key)
        return 0 if keeper is None else sum(home is keeper for home in self._homes.values())

    async def look_at(
        self, key: str, place: Callable[[], RemotePlace], *, with_load: bool
    ) -> float:
        """Connect to a host's keeper; returns the host's load, or 0 without ``with_load``.

        Call `leave_unused` afterwards. Raises `KeeperUnavailable`.
        """
        # The keeper may have no kernel. Then the end of its last kernel, or `leave_unused`, could
        # take it out while this waits: `is_looked_at` prevents both.
        keeper = self._at(key, place)
        await keeper.connect()
        return await keeper.load() if with_load else 0.0

    def leave_unused(self, key: str) -> None:
        """Leave a keeper on another host, unless a kernel or an errand needs it."""
        if (keeper := self._keepers.get(key)) is not None and keeper.has_nothing:
            self._part_with(keeper)

    async def _retire(self, keeper: RemoteKeeper) -> None:
        """Leave a keeper on another host that has no kernels any more, so that it ends."""
        # A keeper that is away cannot say whether it has kernels. If it was given up, and is told
        # to end when it comes back, it need not be waited for.
        is_given_up = keeper.has_given_up and keeper.ends_forgotten and not keeper.is_connected
        if (keeper.is_empty or is_given_up) and self._take_out(keeper):
            await keeper.retire()

    def _take_out(self, keeper: RemoteKeeper) -> bool:
        """Remove a keeper from the table, unless a kernel or a choice of hosts needs it.

        Returns whether it was removed.
        """
        key = next((key for key, each in self._keepers.items() if each is keeper), None)
        # Nothing is awaited between this check and the removal. A kernel that is assigned later
        # gets a new client for the same keeper, and never one that is being closed.
        if key is None or keeper in self._homes.values() or self.is_looked_at(key):
            return False
        del self._keepers[key]
        self._on_changed()
        return True

    def declare_ended(self, kernel_id: str, reason: str) -> None:
        """As `RemoteKeeper.declare_ended`. Raises `ValueError` for a kernel of this machine."""
        self._home(kernel_id).declare_ended(kernel_id, reason)

    async def rest(self, kernel_id: str) -> None:
        """As `RemoteKeeper.rest`. Raises `ValueError` for a kernel of this machine."""
        await self._home(kernel_id).rest(kernel_id)

    def is_connected(self, kernel_id: str) -> bool:
        """Whether a kernel was assigned, and its keeper can be asked now."""
        home = self._homes.get(kernel_id)
        return isinstance(home, RemoteKeeper) and home.is_connected

    async def connect(self, kernel_id: str) -> None:
        """Connect to the keeper of a kernel that was assigned. Raises `KeeperUnavailable`."""
        await self._home(kernel_id).connect()

    def give_up(self, kernel_id: str, reason: str) -> bool:
        """As `RemoteKeeper.give_up`; False for a kernel of this machine."""
        home = self._homes.get(kernel_id)
        return isinstance(home, RemoteKeeper) and home.give_up(kernel_id, reason)

    async def prepare(self, kernel_id: str, info: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """As `RemoteKeeper.prepare`. Raises `ValueError` for a kernel that was not assigned."""
        return await self._home(kernel_id).prepare(kernel_id, info)

    def key_of(self, kernel_id: str) -> str:
        """The key of the keeper to which a kernel was assigned. Raises `ValueError` without one."""
        home = self._home(kernel_id)
        return next(key for key, keeper in self._keepers.items() if keeper is home)

    def host_of(self, kernel_id: str) -> Host:
        """The host of a kernel that was assigned, and whose keeper was connected before."""
        return self._home(kernel_id).host

    def _home(self, kernel_id: str) -> RemoteKeeper:
        keeper = self._homes.get(kernel_id)
        if not isinstance(keeper, RemoteKeeper):
            raise ValueError("the kernel has begun on this machine, and stays here")
        return keeper

    def on_dropped(self, keeper: RemoteKeeper) -> None:
        """Leave a keeper one of whose kernels is gone, if it was there for that kernel alone."""
        if keeper.has_given_up:
            keeper.on_empty()  # otherwise called after the keeper's answer, which may never come
        if keeper.is_kernels_own:
            seconds = PART_SECONDS if keeper.is_connected else 0.0
            # The timer is never cancelled: `_take_out` checks whether the keeper is needed again,
            # or was taken out already.
            asyncio.get_running_loop().call_later(seconds, self._part_with, keeper)

    def on_let_go(self, keeper: RemoteKeeper) -> None:
        """Close the connection to a keeper that has lost a kernel, if it has no other kernel."""
        if self._take_out(keeper):
            self._change(keeper.close())

    def _part_with(self, keeper: RemoteKeeper) -> None:
        """Leave a keeper for good without telling it to end: its job is ended, and so is it."""
        if self._take_out(keeper):
            self._change(keeper.retire())

    def close(self) -> list[Awaitable[object]]:
        """Empty the table; returns the awaitables that close the connections to the keepers."""
        closing: list[Awaitable[object]] = [keeper.close() for keeper in self._keepers.values()]
        self._keepers = {}
        return closing
