"""This process as a member of its group of replicas: its lease, and the kernels that it takes.

The statements run in a thread of their own, so that a lease is renewed however much there is to
write. Each has a bound: the connection to a database that hangs is cut (`Database.abort`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import Final, TypeVar

from ...log_formats import about
from ..handover.store import StoreAway, UnusableRegistry
from ..threads import DaemonThreads
from .database import Connection, Database
from .lease import Lease, Standing
from .membership import (
    Replica,
    Taken,
    announce,
    beat,
    declare_dead,
    everybodys,
    forget_gone,
    gone,
    join,
    leave,
    mine,
    release,
    take,
)
from .terms import Terms

__all__ = ["Member", "bounded"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

ASK_SECONDS: Final = 4.0
"""How long the database may take for one piece of work. Then the work is aborted from here, before
the database itself would end the statement (`STATEMENT_SECONDS`)."""

ABORT_SECONDS: Final = 5.0
"""How long work that was aborted may take to end."""

AT_ONCE: Final = 64
"""Kernels that are taken in one transaction."""

SPREAD_SECONDS: Final = 0.05
"""The pause before more kernels are taken, in which the other replicas take theirs."""

BURY_SECONDS: Final = 30.0
"""The pause before unregistered kernels of dead replicas are ended again, if that failed."""

ROUNDS: Final = 200
"""How often more kernels are taken in a row, before this replica looks for the dead again."""


class Member:
    """A replica among the others. Make it inside a running event loop, and `close` it there.

    ``on_taken`` is called with kernels that this replica has just taken, and ``on_lost`` when the
    others have declared it dead: it has no kernel any more. ``on_gone`` is called with the ids of
    replicas of this host that are gone, and the ids of all kernels that the registry knows; call
    `buried` with the replicas' ids when their unregistered kernels were ended, or could not be.
    ``agents`` are the addresses at which keepers dial this replica, if it listens for them.
    ``keepers`` are the ways to keepers that this replica has (`SharedRegistry._keeper_of`).
    """

    def __init__(
        self, url: str, replica: Replica, lease: Lease, terms: Terms, keepers: Collection[str]
    ) -> None:
        self.replica = replica
        self.lease = lease
        self.on_taken: Callable[[Sequence[Taken]], None] = lambda _: None
        self.on_lost: Callable[[], None] = lambda: None
        self.on_gone: Callable[[Sequence[str], Sequence[str]], None] = lambda _gone, _known: None
        self.agents: Sequence[str] = ()
        self._burying: set[str] = set()
        self._senseless: set[str] = set()  # kernels of this replica that it cannot adopt
        self._keepers = keepers
        self._terms = terms
        self._database = Database(url)
        self._thread = DaemonThreads(1, "lease")
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        self._trouble = ""
        self._takes = True
        self._is_closed = False
        self._task: asyncio.Task[None] | None = None

    @property
    def standing(self) -> Standing:
        """The present standing of the lease."""
        return self.lease.standing(self._loop.time())

    @property
    def is_away(self) -> bool:
        """Whether the registry is away, or was when it was asked last."""
        return bool(self._trouble) or self.standing is not Standing.GOOD

    def wake(self) -> None:
        """Look soon for kernels that no replica has."""
        self._wake.set()

    async def join(self, *, replaces: Sequence[str] = ()) -> None:
        """Join the others. Raises `UnusableRegistry` and `StoreAway`."""
        # The clock is read before the statement is sent, here and in `_beat`. So the lease ends
        # sooner here than in the registry, which counts from when the statement arrives.
        sent = self._loop.time()
        seconds = self.lease.seconds
        await self._ask(lambda one: join(one, self.replica, seconds, replaces=replaces))
        self.lease.renewed(sent, self._loop.time())
        await self._announce()

    async def _announce(self) -> None:
        if self.agents:
            await self._ask(lambda one: announce(one, self.replica.id, self.agents))

    async def begin(self) -> None:
        """Take free kernels, now and from now on, and renew the lease from now on."""
        # The first take runs in the caller's task: when this returns, the first kernels are being
        # adopted, and the server does not say before that it is ready.
        try:
            await self._announce()
            await self._take()
        except StoreAway as error:
            self._tell(error)
        except UnusableRegistry as error:
            self._refused(error)
        self._task = self._loop.create_task(self._live(), name="lease")

    async def _live(self) -> None:
        while True:
            try:
                async with asyncio.timeout(self.lease.every):
                    await self._wake.wait()
            except TimeoutError:
                pass
            # Cleared before the work: a call of `wake` during the work leads to another turn.
            self._wake.clear()
            try:
                # The lease first: a replica that has lost it can neither bury others nor take
                # kernels. Both steps look at the lease again, as each may take as long as it lasts.
                await self._beat()
                await self._look_for_the_dead()
                await self._take()
            except StoreAway as error:
                self._tell(error)
            except UnusableRegistry as error:
                self._refused(error)
            except Exception:
                logger.exception("the lease of this replica could not be renewed")

    def _tell(self, error: StoreAway) -> None:
        if not self._trouble:
            logger.error("the registry is away, kernels go on: %s", error)
        self._trouble = str(error)

    def _refused(self, error: UnusableRegistry) -> None:
        """Take note that the other replicas do not let this one, declared dead, join them again."""
        if self._trouble != str(error):
            logger.error("this replica may not join the others again: %s", error)
        self._trouble = str(error)

    async def _beat(self) -> None:
        sent = self._loop.time()
        seconds = self.lease.seconds
        alive = await self._ask(lambda one: beat(one, self.replica.id, seconds))
        if alive:
            self._back()
            self.lease.renewed(sent, self._loop.time())
            return
        # This replica's row is gone, and the registry refuses its writes already. `on_lost` drops
        # the terms before the replica joins anew: it then takes kernels, perhaps the same ones, in
        # later terms.
        if self.standing is not Standing.NONE:
            logger.error("the other replicas have declared this one dead, and have its kernels")
            self.lease.lost()
            self.on_lost()
        # If another row of this host has this replica's name, its process has ended, as this one
        # has the lock of the name. A row of another host is not replaced: the join is refused.
        await self.join(replaces=[self.replica.name])
        self._back()

    def _back(self) -> None:
        if self._trouble:
            logger.info("the registry is back")
            self._trouble = ""

    async def _look_for_the_dead(self) -> None:
        if self.lease.may_bury(self._loop.time()):
            for name in await self._ask(lambda one: declare_dead(one, self.replica.id)):
                logger.warning("replica %s is not heard of: its kernels are taken over", name)
        # Several replicas of the host may bury the same dead replicas: it does no harm to end
        # unregistered kernels twice, nor to delete rows that are gone already (`forget_gone`).
        found = await self._ask(lambda one: gone(one, self.replica.host))
        new = [replica_id for replica_id in found if replica_id not in self._burying]
        if new:
            # Read after the end of those replicas: they can store no further kernel.
            known = await self._ask(everybodys)
            self._burying.update(new)
            self.on_gone(new, known)

    async def buried(self, ids: Sequence[str], *, is_done: bool) -> None:
        """Note that unregistered kernels of these dead replicas were ended.

        If that failed, and ``is_done`` is False, it is tried again after `BURY_SECONDS`.
        """
        if not is_done:
            self._loop.call_later(BURY_SECONDS, self._burying.difference_update, ids)
            return
        try:
            await self._ask(lambda one: forget_gone(one, ids))
        except StoreAway as error:
            logger.debug("replicas that are gone are looked after once more: %s", error)
        self._burying.difference_update(ids)

    async def _take(self) -> None:
        """Take this replica's share of the kernels that no replica has, until there are none."""
        renewed = self._loop.time()
        for _ in range(ROUNDS):
            # Thousands of kernels take longer than a lease: the others would declare this replica
            # dead, and have all of them to take once more.
            if self._loop.time() >= renewed + self.lease.every:
                renewed = self._loop.time()
                await self._beat()
            if not self._takes or self.standing is not Standing.GOOD:
                return
            # Between this check of the lease and the statement this replica may be declared dead:
            # the statement then takes nothing, as the replica's row is gone (`take`).
            taking = partial(
                take, replica_id=self.replica.id, keepers=self._keepers, at_most=AT_ONCE
            )
            _, left = await self._ask(taking)
            # All kernels that the registry has for this replica are read, not only those of this
            # `take`: the answer to an earlier one may have been lost with its connection.
            known = [*self._terms, *self._senseless]
            work = partial(mine, replica_id=self.replica.id, known=known)
            found, senseless = await self._ask(work)
            self._leave_alone(senseless)
            new = [one for one in found if one.record.id not in self._terms]
            if not self._takes:  # this replica has begun to end while it took these
                await self.release({one.record.id: one.term for one in new})
                return
            # The terms are set before `on_taken` is called: what the adoption asks of the keeper,
            # or writes, goes with them. A kernel that was started or deleted here while `mine` ran
            # is in `_terms` (it stays there for a while, see `SharedHandover.forget`), and so is
            # not taken for new.
            for one in new:
                self._terms.take(one.record.id, one.term)
            if new:
                self.on_taken(new)
            if not left:
                return
            await asyncio.sleep(SPREAD_SECONDS)

    def _leave_alone(self, senseless: Mapping[str, str]) -> None:
        """Adopt none of these kernels, whose records this version cannot decode.

        Another replica may, once this one has left them. No other kernel's adoption waits for them.
        """
        self._senseless.update(senseless)
        for kernel_id, why in senseless.items():
            about(logger, kernel_id=kernel_id).error(
                "kernel %s is left alone: its record makes no sense to this version: %s",
                *(kernel_id, why),
            )

    def take_no_more(self) -> None:
        """Leave free kernels to the others from now on; the lease is renewed as before."""
        self._takes = False

    async def release(self, terms: Mapping[str, int]) -> None:
        """Free kernels that this replica has in these ``terms``. Raises `StoreAway`.

        `take_no_more` comes before, or this replica may take them itself.
        """
        if terms:
            await self._ask(lambda one: release(one, self.replica.id, terms))

    async def _ask(self, work: Callable[[Connection], T]) -> T:
        return await bounded(self._thread, self._database, partial(self._database.run, work))

    async def close(self) -> None:
        """Leave the others, which take the kernels that are still this replica's; only once."""
        # The renewal ends before the replica leaves: a renewal after that would find no row, take
        # this replica for declared dead, and join anew.
        if self._is_closed:
            return
        self._is_closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        try:
            await self._ask(lambda one: leave(one, self.replica.id))
        except StoreAway as error:
            logger.error("the other replicas take over only when the lease ends: %s", error)
        self.lease.lost()
        self._database.close()
        self._thread.shutdown()


async def bounded(thread: Executor, database: Database, work: Callable[[], T]) -> T:
    """Run work of a database in its thread, for `ASK_SECONDS` at most. Raises `StoreAway`."""
    # If the caller is cancelled, or gets `StoreAway`, the thread may do the work all the same. A
    # caller that then asks again, or undoes the work, does so in the same thread, and so after it.
    asked = asyncio.get_running_loop().run_in_executor(thread, work)
    done, _ = await asyncio.wait({asked}, timeout=ASK_SECONDS)
    if not done:
        database.abort()
        # The abort makes the work fail; this is how long its end is waited for.
        done, _ = await asyncio.wait({asked}, timeout=ABORT_SECONDS)
    if not done:
        asked.cancel()  # work that has not begun yet is not done any more
        raise StoreAway("the database does not answer")
    return asked.result()
