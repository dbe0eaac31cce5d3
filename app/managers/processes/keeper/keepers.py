"""All keepers of a state directory: the newest, and those of the version before.

A keeper is never replaced under its kernels. A server that finds a keeper of the version before
sets it aside and starts one of its own for new kernels; the older keeper goes on with those that it
has, restarts included, and ends with the last. Of any other version, older or newer, a keeper is
drained, and its kernels are adopted by the newest.

One keeper at a time writes a kernel's log. So a kernel of which it is not known which keeper has it
is no kernel of the newest, as long as some older keeper does not answer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from ....keeper.hearings import Heard
from ....keeper.limits import NO_LIMITS, ProcessLimits
from ....keeper.protocol import aside_dirs
from ....protocol.messages import ClientMessage, Message
from ...errors import KeeperUnavailable
from ...messages.line import Line
from .client import Keeper
from .kept import Kept, ProcessUsage
from .places import AsidePlace, KeeperGone, NewestPlace
from .remote import Host, RemoteKeeper, RemotePlace

__all__ = ["Keepers"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

PART_SECONDS: Final = 5.0
"""How long the keeper of a kernel that is gone may take to be told of that."""

SETTLE_SECONDS: Final = 5.0
"""How long a kernel is looked for only when it is known which keepers have ended."""


class Keepers:
    """The server's way to all keepers of its state directory, by the kernels that they have.

    Make it inside a running event loop, and `close` it there. Arguments and methods are those of
    `Keeper`, and so is what they raise. ``on_lost`` are called when the newest keeper has gone.
    """

    def __init__(self, state_dir: Path, *, log_total_bytes: int = 2**32, **options: Any) -> None:
        self._state_dir = state_dir
        self._log_total_bytes = log_total_bytes
        self._options = options
        self.on_fenced: Callable[[str], None] = lambda _: None
        """Called with the id of a kernel that another replica has."""
        self.is_stored: Callable[[str], bool] = lambda _: True
        """Whether a kernel that has no keeper here may be one that is stored."""
        self._newest = self._client(NewestPlace(state_dir, self._add))
        self._older: dict[Keeper, AsidePlace] = {}
        self._homes: dict[str, Keeper] = {}  # the keepers of kernels, as far as they are known
        self._remote: dict[str, RemoteKeeper] = {}
        self.is_looked_at: Callable[[str], bool] = lambda _: False
        """Whether `look_at` is done with a keeper, by its key, and `leave_unused` is to follow."""
        self._has_looked = False  # for a keeper that is to be set aside
        self._changes: set[asyncio.Task[None]] = set()  # of which keepers there are
        for directory in aside_dirs(state_dir):
            self._add(directory)

    def _client(self, place: NewestPlace | AsidePlace) -> Keeper:
        total = self._log_total_bytes
        keeper = Keeper(self._state_dir, place=place, log_total_bytes=total, **self._options)
        keeper.on_fenced = self._on_fenced
        return keeper

    def _on_fenced(self, kernel_id: str) -> None:
        self.on_fenced(kernel_id)

    @property
    def on_lost(self) -> list[Callable[[], None]]:
        """Callbacks for the end of the newest keeper."""
        return self._newest.on_lost

    @property
    def pid(self) -> int | None:
        """The newest keeper's process id while there is a connection."""
        return self._newest.pid

    def problem(self) -> str:
        """As `Connection.problem`, of the keeper that new kernels get."""
        return self._newest.problem()

    # Older keepers

    def _add(self, directory: Path) -> None:
        """There is a keeper that was set aside; it must not be without a server for long."""
        if any(place.directory == directory for place in self._older.values()):
            return
        place = AsidePlace(self._state_dir, directory)
        keeper = self._client(place)
        self._older[keeper] = place
        keeper.on_gone = lambda: self._on_gone(keeper)
        keeper.on_empty = lambda: self._change(self._retire(keeper))
        self._share()
        keeper.connect_soon()

    def _share(self) -> None:
        """Divide the bytes for logs: the bound is for the logs of all keepers together."""
        keepers = (self._newest, *self._older, *self._remote.values())
        for keeper in keepers:
            keeper.bound_logs(self._log_total_bytes // len(keepers))

    def _change(self, change: Awaitable[None]) -> None:
        task = asyncio.ensure_future(change)
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)

    def _on_gone(self, keeper: Keeper) -> None:
        """An older keeper has ended, or was killed: its kernels, if any, are the newest's."""
        # `find` tells this, and `_retire` may be closing the same keeper: whoever takes it out sees
        # to the rest.
        place = self._older.pop(keeper, None)
        if place is None:
            return
        self._homes = {each: home for each, home in self._homes.items() if home is not keeper}
        self._share()
        found = [Kept(kernel_id, pid, at, None, out) for kernel_id, pid, at, out in place.notes()]
        # `take_from` has the kernels be the newest's before anything is awaited. What is left is to
        # tell that keeper, which whoever asks for such a kernel waits for (`_settled`).
        self._change(self._move(self._newest.take_from(keeper, found), keeper, place))

    async def _move(self, taking: asyncio.Task[None], keeper: Keeper, place: AsidePlace) -> None:
        """Remove what an older keeper has left, once another has its kernels."""
        try:
            await taking
        except KeeperUnavailable as error:
            # The directory stays: the next server finds in its notes which processes there are.
            logger.error("kernels of a keeper that has ended have no other yet: %s", error.message)
            self._newest.connect_soon()
        else:
            await asyncio.to_thread(place.remove)
        await keeper.close()

    async def _retire(self, keeper: Keeper) -> None:
        """Leave an older keeper that has no kernels any more, so that it ends."""
        place = self._older.get(keeper)
        if place is None or not keeper.is_empty:
            return
        # While it is left nothing goes to it: only a kernel that it has, or is asked to hear, is
        # launched there, and it has none. A kernel that nobody has adopted it may have all the
        # same, and then does not end.
        ended = await self._leave(keeper, place)
        if self._older.pop(keeper, None) is None:
            return
        if ended:
            logger.info("the keeper of the version before has ended with its last kernel")
            self._share()
        else:  # it has kernels that nobody has adopted
            self._add(place.directory)

    async def _leave(self, keeper: Keeper, place: AsidePlace) -> bool:
        """Close the connection to an older keeper; whether it ends as it has no kernels."""
        await keeper.close()
        # Looked at again: until the connection was closed a kernel could come.
        if not (keeper.is_empty and await place.has_ended()):
            return False
        await asyncio.to_thread(place.remove)
        return True

    # Keepers on other hosts

    def assign(self, kernel_id: str, key: str, place: Callable[[], RemotePlace]) -> None:
        """Have a kernel on another host: by the keeper ``key``, whose ``place`` is made if need be.

        Call this before anything else is asked for the kernel.
        """
        self._homes[kernel_id] = self._elsewhere(key, place)

    def _elsewhere(self, key: str, place: Callable[[], RemotePlace]) -> RemoteKeeper:
        keeper = self._remote.get(key)
        if keeper is None:
            total = self._log_total_bytes
            keeper = RemoteKeeper(place(), log_total_bytes=total, **self._options)
            keeper.on_empty = lambda: self._change(self._retire_remote(keeper))
            keeper.on_fenced = self._on_fenced
            # A kernel without a home may be one that an earlier server has left there.
            keeper.may_have = lambda kernel_id: self._homes.get(kernel_id, keeper) is keeper
            keeper.is_stray = lambda each: not (each in self._homes or self.is_stored(each))
            self._remote[key] = keeper
            self._share()
        return keeper

    def count(self, key: str) -> int:
        """How many kernels are assigned to the keeper ``key`` on another host."""
        keeper = self._remote.get(key)
        return 0 if keeper is None else sum(home is keeper for home in self._homes.values())

    async def look_at(
        self, key: str, place: Callable[[], RemotePlace], *, with_load: bool
    ) -> float:
        """The load of a host, or 0; `leave_unused` is to follow. Raises `KeeperUnavailable`."""
        # It has no kernel, so its last kernel's end, or `leave_unused`, could take it out while
        # this waits: `is_looked_at` keeps both from it.
        keeper = self._elsewhere(key, place)
        await keeper.connect()
        return await keeper.load() if with_load else 0.0

    def leave_unused(self, key: str) -> None:
        """Leave a keeper on another host, unless there is something that it is needed for."""
        if (keeper := self._remote.get(key)) is not None and keeper.has_nothing:
            self._part_with(keeper)

    async def _retire_remote(self, keeper: RemoteKeeper) -> None:
        """Leave a keeper on another host that has no kernels any more, so that it ends."""
        # One that is away cannot say that it has nothing. Where it is told to end when it comes
        # back, it need not be waited for.
        is_given_up = keeper.has_given_up and keeper.ends_forgotten and not keeper.is_connected
        if (keeper.is_empty or is_given_up) and self._take_out(keeper):
            await keeper.retire()

    def _take_out(self, keeper: RemoteKeeper) -> bool:
        """Have a keeper on another host no more, unless a kernel or a choice of hosts needs it.

        Returns whether that was done.
        """
        key = next((key for key, each in self._remote.items() if each is keeper), None)
        # From this look to the removal nothing is awaited. A kernel that is assigned later gets a
        # new client for the same keeper, so that no kernel is at one that is being closed.
        if key is None or keeper in self._homes.values() or self.is_looked_at(key):
            return False
        del self._remote[key]
        self._share()
        return True

    def declare_ended(self, kernel_id: str, reason: str) -> None:
        """As `RemoteKeeper.declare_ended`. Raises `ValueError` for a kernel of this machine."""
        self._remote_home(kernel_id).declare_ended(kernel_id, reason)

    async def rest(self, kernel_id: str) -> None:
        """As `RemoteKeeper.rest`. Raises `ValueError` for a kernel of this machine."""
        await self._remote_home(kernel_id).rest(kernel_id)

    def is_connected(self, kernel_id: str) -> bool:
        """Whether the keeper of a kernel can be asked now."""
        return self._home(kernel_id).is_connected

    async def connect(self, kernel_id: str) -> None:
        """Connect to the keeper of a kernel that was assigned. Raises `KeeperUnavailable`."""
        await self._remote_home(kernel_id).connect()

    def give_up(self, kernel_id: str, reason: str) -> bool:
        """As `RemoteKeeper.give_up`; False for a kernel of this machine."""
        home = self._home(kernel_id)
        return isinstance(home, RemoteKeeper) and home.give_up(kernel_id, reason)

    async def prepare(self, kernel_id: str, info: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """As `RemoteKeeper.prepare`. Raises `ValueError` for a kernel that was not assigned."""
        return await self._remote_home(kernel_id).prepare(kernel_id, info)

    def key_of(self, kernel_id: str) -> str:
        """By which ``key`` a kernel was assigned. Raises `ValueError` if it was not."""
        home = self._remote_home(kernel_id)
        return next(key for key, keeper in self._remote.items() if keeper is home)

    def host_of(self, kernel_id: str) -> Host:
        """What is known of the host of a kernel that was assigned, and whose keeper was asked."""
        return self._remote_home(kernel_id).host

    def _remote_home(self, kernel_id: str) -> RemoteKeeper:
        keeper = self._home(kernel_id)
        if not isinstance(keeper, RemoteKeeper):
            raise ValueError("the kernel has begun on this machine, and stays here")
        return keeper

    def is_newest_for(self, kernel_id: str) -> bool:
        """Whether the newest keeper has this kernel, or would get it."""
        return self._home(kernel_id) is self._newest

    def _home(self, kernel_id: str) -> Keeper:
        """The keeper of a kernel that this server has."""
        return self._homes.get(kernel_id, self._newest)

    async def _find_home(self, kernel_id: str) -> Keeper:
        """The keeper of a kernel that an earlier server may have left; the newest if none has it.

        Raises `KeeperUnavailable` if that is not known.
        """
        # No lock: two that look for one kernel find the same keeper, or none.
        if kernel_id in self._homes:
            return self._homes[kernel_id]
        failure: KeeperUnavailable | None = None
        try:
            await self._look()
        except KeeperUnavailable as error:
            failure = error
        everybody = [self._newest, *self._older] if self._older else []
        # Those that can be asked come first: a kernel of theirs does not wait for the others.
        for keeper in sorted(everybody, key=lambda each: not each.is_connected):
            try:
                if await keeper.has(kernel_id):
                    self._homes[kernel_id] = keeper
                    return keeper
            except KeeperGone:
                # Its kernels are the newest's by now: `_on_gone` was called before this was raised.
                continue
            except KeeperUnavailable as error:
                failure = failure or error
        # Some keeper could not be asked, and may have the kernel. To take the newest then could
        # have two keepers write one log.
        if failure is not None:
            raise failure
        await self._settled()
        return self._newest

    async def _look(self) -> None:
        """Set aside an older keeper, if there is one in the newest's place."""
        if not self._has_looked:
            await self._newest.connect()
            self._has_looked = True
        await self._settled()

    async def _settled(self) -> None:
        # Kernels have their new home at once (`_on_gone`). A keeper that has not been told of one
        # within this time refuses what it is asked, and whoever has asked is told so.
        if self._changes:
            await asyncio.wait(self._changes, timeout=SETTLE_SECONDS)

    async def _ask(self, kernel_id: str, ask: Callable[[Keeper], Awaitable[T]]) -> T:
        """Ask the keeper of a kernel; if that is gone, its successor."""
        try:
            return await ask(self._home(kernel_id))
        except KeeperGone:
            # Once is enough: only an older keeper raises this, and the kernel is the newest's then.
            await self._settled()
            return await ask(self._home(kernel_id))

    # Processes

    async def launch(self, kernel_id: str, command: Sequence[str], **options: Any) -> Kept:
        """As `Keeper.launch`: a kernel that an older keeper has is restarted there."""
        return await self._ask(
            kernel_id, lambda keeper: keeper.launch(kernel_id, command, **options)
        )

    async def run(self, command: Sequence[str], env: Mapping[str, str]) -> tuple[int, str]:
        """Do `Keeper.run` at the newest keeper."""
        return await self._newest.run(command, env)

    async def adopt(
        self,
        kernel_id: str,
        pid: int,
        start_time: str,
        output: Path,
        limits: ProcessLimits = NO_LIMITS,
    ) -> Kept | None:
        """Do `Keeper.adopt` at the keeper that has the process, or else at the newest."""
        await self._find_home(kernel_id)
        return await self._ask(
            kernel_id, lambda keeper: keeper.adopt(kernel_id, pid, start_time, output, limits)
        )

    async def kept(self) -> dict[str, Kept]:
        """Do `Keeper.kept` at all keepers, and raise if the newest does not answer."""
        await self._look()
        found: dict[str, Kept] = {}
        for keeper in [*self._older]:
            try:
                found |= await keeper.kept()
            except KeeperGone:
                continue
            except KeeperUnavailable as error:
                logger.error("a keeper of the version before cannot be asked: %s", error.message)
        await self._settled()
        return found | await self._newest.kept()

    async def signal(self, kernel_id: str, number: int) -> None:
        """As `Keeper.signal`."""
        await self._ask(kernel_id, lambda keeper: keeper.signal(kernel_id, number))

    async def usage(self, kernel_id: str) -> ProcessUsage | None:
        """As `Keeper.usage`."""
        return await self._ask(kernel_id, lambda keeper: keeper.usage(kernel_id))

    def was_out_of_memory(self, kernel_id: str) -> bool:
        """As `Keeper.was_out_of_memory`."""
        return self._home(kernel_id).was_out_of_memory(kernel_id)

    def exited(self, kernel_id: str) -> asyncio.Future[int]:
        """As `Keeper.exited`."""
        return self._home(kernel_id).exited(kernel_id)

    async def tail(self, kernel_id: str) -> str:
        """As `Keeper.tail`."""
        return await self._ask(kernel_id, lambda keeper: keeper.tail(kernel_id))

    async def forget(self, kernel_id: str, pid: int | None = None) -> None:
        """As `Keeper.forget`."""
        await self._home(kernel_id).forget(kernel_id, pid)

    async def end(self, kernel_id: str) -> None:
        """As `Keeper.end`."""
        await self._find_home(kernel_id)
        await self._ask(kernel_id, lambda keeper: keeper.end(kernel_id))

    # What kernels say, and are asked (app.managers.messages.line.Hearer)

    async def hear(
        self, line: Line, directory: Path, info: Mapping[str, Any] | None, *, anew: bool
    ) -> Heard:
        """As `Keeper.hear`: a kernel that is new is the newest's."""
        kernel_id = line.kernel_id
        if kernel_id not in self._homes:
            # An older keeper may write a log that there is, so that one has to be asked first.
            has_older = self._older or not self._has_looked
            if has_older and await asyncio.to_thread(directory.exists):
                await self._find_home(kernel_id)
            else:
                self._homes[kernel_id] = self._newest
        return await self._ask(
            kernel_id, lambda keeper: keeper.hear(line, directory, info, anew=anew)
        )

    def request(self, line: Line, message: ClientMessage, owner: str) -> None:
        """As `Keeper.request`."""
        self._home(line.kernel_id).request(line, message, owner)

    def say(self, line: Line, message: Message, owner: str | None, flags: int) -> None:
        """As `Keeper.say`."""
        self._home(line.kernel_id).say(line, message, owner, flags)

    async def settle(self, kernel_id: str) -> bool:
        """As `Keeper.settle`."""
        return await self._ask(kernel_id, lambda keeper: keeper.settle(kernel_id))

    async def stdin_connected(self, kernel_id: str) -> bool:
        """As `Keeper.stdin_connected`."""
        return await self._ask(kernel_id, lambda keeper: keeper.stdin_connected(kernel_id))

    def opened(self, kernel_id: str, share: tuple[str, int] | None) -> None:
        """As `Keeper.opened`."""
        self._home(kernel_id).opened(kernel_id, share)

    async def disconnect(self, kernel_id: str) -> None:
        """As `Keeper.disconnect`."""
        await self._ask(kernel_id, lambda keeper: keeper.disconnect(kernel_id))

    def renew(self, kernel_id: str) -> None:
        """As `Keeper.renew`."""
        self._home(kernel_id).renew(kernel_id)

    def drop(self, kernel_id: str) -> None:
        """As `Keeper.drop`. A keeper of this kernel alone is not needed any more."""
        # The home is forgotten at once, and the keeper may be told later: it remembers by itself.
        home = self._homes.pop(kernel_id, self._newest)
        home.drop(kernel_id)
        if not isinstance(home, RemoteKeeper):
            return
        if home.has_given_up:
            home.on_empty()  # there will be no answer after which it is called
        if home.is_kernels_own:
            seconds = PART_SECONDS if home.is_connected else 0.0
            # Not cancelled by anything: `_take_out` looks whether the keeper is needed again, or
            # gone.
            asyncio.get_running_loop().call_later(seconds, self._part_with, home)

    def _part_with(self, keeper: RemoteKeeper) -> None:
        """Leave a keeper for good that has not been told to end: the end of its job ends it."""
        if self._take_out(keeper):
            self._change(keeper.retire())

    def let_go(self, kernel_id: str) -> None:
        """As `Keeper.let_go`. The connection to a keeper without other kernels here is closed."""
        home = self._homes.pop(kernel_id, self._newest)
        home.let_go(kernel_id)
        if isinstance(home, RemoteKeeper) and self._take_out(home):
            self._change(home.close())

    async def end_strays(self, dead: Sequence[str], known: Sequence[str]) -> None:
        """Have the newest keeper end the kernels of dead replicas that the registry does not know.

        Such a replica had launched them, and not stored them yet.
        """
        await self._newest.end_strays(dead, known)

    async def close(self) -> None:
        """Do `Keeper.close` with every keeper."""
        # First, or a keeper whose kernels are on their way to another would be closed under them.
        await self._settled()
        for task in self._changes:
            task.cancel()
        leaving: list[Awaitable[object]] = [
            self._leave(keeper, place) for keeper, place in self._older.items()
        ]
        leaving += [keeper.close() for keeper in self._remote.values()]
        self._remote = {}
        await asyncio.gather(self._newest.close(), *leaving, *self._changes, return_exceptions=True)
