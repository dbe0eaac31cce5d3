"""All keepers of a state directory: the newest, and those of the version before.

A keeper of the version before keeps its kernels. A server that finds such a keeper sets it aside,
and starts one of its own version for new kernels; the older keeper goes on with the kernels that it
has, restarts included, and ends with the last. A keeper of any other version, older or newer, is
drained, and the newest keeper adopts its kernels.

One keeper at a time writes a kernel's log. So while an older keeper does not answer, no kernel is
given to the newest keeper if it is not known which keeper has the kernel.
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
"""How long a request waits for the newest keeper to be told of kernels of keepers that ended."""


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
        self._has_looked = False  # whether an older keeper, if there was one, was set aside
        self._changes: set[asyncio.Task[None]] = set()  # tasks that take keepers out
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
        """As `Connection.problem`, of the newest keeper, which new kernels get."""
        return self._newest.problem()

    def _share(self) -> None:
        """Divide ``log_total_bytes`` among the keepers: it bounds all their logs together."""
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
        # No lock is needed: two callers that look for one kernel find the same keeper, or none.
        if kernel_id in self._homes:
            return self._homes[kernel_id]
        failure: KeeperUnavailable | None = None
        try:
            await self._look()
        except KeeperUnavailable as error:
            failure = error
        older = self._older.all
        everybody = [self._newest, *older] if older else []
        # Connected keepers are asked first: a kernel of theirs does not wait for the others.
        for keeper in sorted(everybody, key=lambda each: not each.is_connected):
            try:
                if await keeper.has(kernel_id):
                    self._homes[kernel_id] = keeper
                    return keeper
            except KeeperGone:
                # The newest has its kernels by now: `_on_gone` was called before this was raised.
                continue
            except KeeperUnavailable as error:
                failure = failure or error
        # A keeper could not be asked, and may have the kernel. If the kernel was given to the
        # newest now, two keepers could write one log.
        if failure is not None:
            raise failure
        await self._settled()
        return self._newest

    async def _look(self) -> None:
        """Have a keeper of the version before set aside, if it is in the newest's place."""
        if not self._has_looked:
            await self._newest.connect()
            self._has_looked = True
        await self._settled()

    async def _settled(self) -> None:
        # Kernels of a keeper that has ended are the newest's at once (`_on_gone`). If the newest
        # keeper has not been told of one within this time, it refuses requests for that kernel, and
        # the caller gets its refusal.
        if self._changes:
            await asyncio.wait(self._changes, timeout=SETTLE_SECONDS)

    async def _ask(self, kernel_id: str, ask: Callable[[Keeper], Awaitable[T]]) -> T:
        """Ask the keeper of a kernel; if that keeper has ended, ask its successor."""
        try:
            return await ask(self._home(kernel_id))
        except KeeperGone:
            # Once is enough: only an older keeper raises this, and then the newest has the kernel.
            await self._settled()
            return await ask(self._home(kernel_id))

    # Processes

    async def launch(self, kernel_id: str, command: Sequence[str], **options: Any) -> Kept:
        """As `Keeper.launch`: a kernel that an older keeper has is restarted there."""
        return await self._ask(
            kernel_id, lambda keeper: keeper.launch(kernel_id, command, **options)
        )

    async def run(self, command: Sequence[str], env: Mapping[str, str]) -> tuple[int, str]:
        """As `Keeper.run`, of the newest keeper."""
        return await self._newest.run(command, env)

    async def adopt(
        self,
        kernel_id: str,
        pid: int,
        start_time: str,
        output: Path,
        limits: ProcessLimits = NO_LIMITS,
    ) -> Kept | None:
        """As `Keeper.adopt`, of the keeper that has the process, or else of the newest."""
        await self._find_home(kernel_id)
        return await self._ask(
            kernel_id, lambda keeper: keeper.adopt(kernel_id, pid, start_time, output, limits)
        )

    async def kept(self) -> dict[str, Kept]:
        """As `Keeper.kept`, of all keepers of this host; raises if the newest does not answer."""
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
        """As `Keeper.hear`: the newest keeper hears a new kernel."""
        kernel_id = line.kernel_id
        if kernel_id not in self._homes:
            # If there is a log already, an older keeper may be writing it: those are asked first.
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
        # The kernel's keeper is forgotten at once: if it cannot be told now, its client remembers
        # the errand.
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
        """Close the connection to every keeper."""
        # First the changes: they may be moving kernels from a keeper that has ended to the newest.
        await self._settled()
        for task in self._changes:
            task.cancel()
        leaving = [self._newest.close(), *self._older.close(), *self.remote.close()]
        await asyncio.gather(*leaving, *self._changes, return_exceptions=True)
