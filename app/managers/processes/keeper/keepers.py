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
from ....protocol.messages import ClientMessage, Message
from ...errors import KeeperUnavailable
from ...messages.line import Line
from .client import Keeper
from .kept import Kept, ProcessUsage
from .older_keepers import OlderKeepers
from .places import AsidePlace, KeeperGone, NewestPlace
from .remote import RemoteKeeper, RemotePlace
from .remote_keepers import RemoteKeepers

__all__ = ["Keepers"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

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
        self._homes: dict[str, Keeper] = {}  # the keepers of kernels, as far as they are known
        self._newest = self._client(NewestPlace(state_dir, lambda each: self._older.add(each)))
        self._older = OlderKeepers(
            state_dir, self._client, self._newest, self._homes, self._change, self._share
        )
        self.remote = RemoteKeepers(self._remote, self._homes, self._change, self._share)
        self._has_looked = False  # for a keeper that is to be set aside
        self._changes: set[asyncio.Task[None]] = set()  # of which keepers there are
        self._older.find()

    def _client(self, place: NewestPlace | AsidePlace) -> Keeper:
        total = self._log_total_bytes
        keeper = Keeper(self._state_dir, place=place, log_total_bytes=total, **self._options)
        keeper.on_fenced = self._on_fenced
        return keeper

    def _remote(self, place: RemotePlace) -> RemoteKeeper:
        keeper = RemoteKeeper(place, log_total_bytes=self._log_total_bytes, **self._options)
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

    def _share(self) -> None:
        """Divide the bytes for logs: the bound is for the logs of all keepers together."""
        keepers = (self._newest, *self._older.all, *self.remote.all)
        for keeper in keepers:
            keeper.bound_logs(self._log_total_bytes // len(keepers))

    def _change(self, change: Awaitable[None]) -> None:
        task = asyncio.ensure_future(change)
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)

    # The keepers of kernels

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
        older = self._older.all
        everybody = [self._newest, *older] if older else []
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
        for keeper in self._older.all:
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
            has_older = self._older.all or not self._has_looked
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
        if isinstance(home, RemoteKeeper):
            self.remote.on_dropped(home)

    def let_go(self, kernel_id: str) -> None:
        """As `Keeper.let_go`. The connection to a keeper without other kernels here is closed."""
        home = self._homes.pop(kernel_id, self._newest)
        home.let_go(kernel_id)
        if isinstance(home, RemoteKeeper):
            self.remote.on_let_go(home)

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
        leaving = [self._newest.close(), *self._older.close(), *self.remote.close()]
        await asyncio.gather(*leaving, *self._changes, return_exceptions=True)
