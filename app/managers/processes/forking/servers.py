"""Fork servers, as the service sees them: it starts them, asks them for kernels, and ends them.

The program is `fork_server.py` beside this file. The keeper is its parent, and that of forked
kernels.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Final

from .link import (
    SUPPORTED,
    CannotFork,
    ForkLink,
    NotForkedYet,
    Order,
    Outdated,
    Recipe,
    Runner,
)

__all__ = ["ForkServers"]

logger = logging.getLogger(__name__)

SERVERS: Final = 2
"""Fork servers of an asked recipe. They take turns, so that kernels which are started one after
another do not all have the same seed for hashes. An automatic recipe has one."""

RETRY_SECONDS: Final = 60.0
"""When a fork server of an asked recipe that could not start is tried again. That of an automatic
recipe is tried again after `IDLE_SECONDS`."""

IDLE_SECONDS: Final = 3600.0
"""After so many seconds without a fork the server of an automatic recipe ends."""

LOADING_SECONDS: Final = 2.0
"""How long a kernel waits for the server of an automatic recipe that is about to be ready: to be
started by itself would take as long, and take the processor from that server."""

MAX_RECIPES: Final = 8
"""How many recipes have fork servers at a time; each server takes memory."""


class _Family:
    """The fork servers of one recipe.

    The recipe is ``asked`` if a kernelspec or an option asks for forking; else it is automatic.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.asked = False
        self.servers: list[ForkLink] = []
        self.refusal = ""
        self.retry_at = 0.0  # by the loop's clock
        self.used_at = 0.0  # by the loop's clock
        self._turn = 0

    def living(self) -> list[ForkLink]:
        """The servers that fork, or will once they are ready."""
        return [server for server in self.servers if server.alive]

    def next(self) -> ForkLink | None:
        """The next server that is ready."""
        ready = [server for server in self.living() if server.ready.done()]
        self._turn += 1
        return ready[self._turn % len(ready)] if ready else None

    def check(self) -> None:
        """Raise `CannotFork` for a family that was refused lately."""
        if self.refusal and asyncio.get_running_loop().time() < self.retry_at:
            raise CannotFork(self.refusal)
        self.refusal = ""


class ForkServers:
    """The fork servers of one service. Make it inside a running event loop, and `close` it there.

    Servers of ``asked`` recipes are started when they are first needed, or by `prepare`, and stay.
    Those of automatic recipes are started by `bring_up`, and end when they have forked nothing for
    ``idle_seconds``. ``on_forked`` is called after each fork.
    """

    def __init__(
        self,
        keeper: Runner,
        *,
        idle_seconds: float = IDLE_SECONDS,
        on_forked: Callable[[], None] = lambda: None,
    ) -> None:
        self._keeper = keeper
        self._idle_seconds = idle_seconds
        self._on_forked = on_forked
        self._families: dict[Recipe, _Family] = {}
        self._links: set[ForkLink] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        keeper.on_lost.append(self._on_keeper_lost)

    async def fork(self, recipe: Recipe, order: Order, *, asked: bool = True) -> int:
        """Fork a kernel, once a server is ready; returns the kernel's process id.

        Raises `CannotFork`; and `NotForkedYet` if a server is to be started by `bring_up`, once the
        kernel that is started instead is ready.
        """
        family = self._asked(recipe) if asked else self._brought_up(recipe)
        # Nothing is awaited between the choice of a server and the packet that is sent to it: so
        # the server has not ended, nor was it retired, since it was chosen.
        server = await self._ready(family)
        self._start_another(family)
        family.used_at = asyncio.get_running_loop().time()
        try:
            pid = await server.fork(order)
        except Outdated as why:
            self._replace(family, server, str(why))
            raise
        self._on_forked()
        return pid

    def check(self, recipe: Recipe, *, asked: bool = True) -> None:
        """Raise what `fork` would raise at once for an automatic recipe."""
        if not asked:
            self._brought_up(recipe)

    def prepare(self, recipe: Recipe) -> None:
        """Start the servers of an asked recipe now."""
        try:
            self._start(self._asked(recipe, anew=True))
        except CannotFork as error:
            logger.warning("no fork servers: %s", error)

    def bring_up(self, recipe: Recipe) -> None:
        """Start the server of an automatic recipe, unless there is one or it was refused."""
        try:
            family = self._family(recipe)
            if not family.living():
                self._start(family)
        except CannotFork as error:
            logger.debug("no fork server: %s", error)

    def give_up(self, recipe: Recipe, reason: str) -> None:
        """Fork no kernels from a recipe for a while, as forked ones do not come up."""
        family = self._families.get(recipe)
        if family is not None:
            self._refuse(family, reason)
            for server in family.living():
                server.retire()

    def _asked(self, recipe: Recipe, *, anew: bool = False) -> _Family:
        """The family of an asked recipe, with a server that lives. Raises `CannotFork`."""
        family = self._family(recipe)
        had = family.asked and bool(family.servers)
        family.asked = True
        if not anew and not family.living():
            self._start(family)
            if had:
                # Its imports would take as long as those of a kernel that is just started.
                raise CannotFork(family.refusal or "its fork servers have ended; there will be new")
        return family

    def _brought_up(self, recipe: Recipe) -> _Family:
        """The family of an automatic recipe, with a server that lives. Raises `CannotFork`."""
        family = self._families.get(recipe)
        if family is None or not family.living():
            self._family(recipe).check()
            raise NotForkedYet("there is no fork server yet")
        return family

    async def _ready(self, family: _Family) -> ForkLink:
        """The server whose turn it is."""
        living = family.living()
        if not any(server.ready.done() for server in living):
            # An asked recipe needs no bound here: `READY_SECONDS` bounds `ready`. If this wait is
            # cancelled, `asyncio.wait` does not cancel the future, for which other kernels wait.
            ready = {living[0].ready}
            await asyncio.wait(ready, timeout=None if family.asked else LOADING_SECONDS)
            if not living[0].ready.done():
                raise NotForkedYet("its fork server is not ready yet")
            living[0].ready.result()
        # Chosen again: the server that was waited for may have been retired meanwhile.
        server = family.next()
        if server is None:
            raise CannotFork(family.refusal or "its fork servers have ended")
        return server

    def _family(self, recipe: Recipe) -> _Family:
        if self._closed:
            raise CannotFork("the server is shutting down")
        if not SUPPORTED:
            raise CannotFork("forking takes Linux 5.3 or newer")
        family = self._families.get(recipe)
        if family is None:
            self._drop_unused()
            if len(self._families) >= MAX_RECIPES:
                raise CannotFork(
                    f"there are fork servers for {MAX_RECIPES} kinds of kernels already"
                )
            family = self._families[recipe] = _Family(recipe)
        return family

    def _drop_unused(self) -> None:
        """Forget families of automatic recipes that have no server, to make room for another."""
        now = asyncio.get_running_loop().time()
        for recipe, family in [*self._families.items()]:
            is_refused = family.refusal and now < family.retry_at
            if not family.asked and not family.living() and not is_refused:
                del self._families[recipe]

    def _start(self, family: _Family) -> None:
        """Start one more server. Raises `CannotFork` for a family that was refused lately."""
        loop = asyncio.get_running_loop()
        family.check()
        family.servers = [server for server in family.servers if server.alive]
        server = ForkLink(family.recipe, self._keeper)
        family.servers.append(server)
        self._links.add(server)
        task = loop.create_task(self._supervise(family, server), name="life of a fork server")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _supervise(self, family: _Family, server: ForkLink) -> None:
        """Wait for a server to be ready, and to end; start another beside it once it is ready."""
        try:
            await server.ready
        except CannotFork as error:
            if not self._closed and not server.retired:
                # A server that was retired during its imports is at no fault.
                self._refuse(family, str(error))
        else:
            logger.info("fork server %d is ready", server.pid)
            self._start_another(family)
            await self._await_end(family, server)
            if not self._closed and not server.retired:
                logger.warning("fork server %d has ended; its kernels go on", server.pid)
        await server.close()
        self._links.discard(server)

    async def _await_end(self, family: _Family, server: ForkLink) -> None:
        """Return when a server has ended; end it if it is automatic and was not used for long."""
        loop = asyncio.get_running_loop()
        family.used_at = loop.time()
        while not server.ended.done():
            left = family.used_at + self._idle_seconds - loop.time()
            if left <= 0 and not (family.asked or server.retired):
                logger.info("fork server %d ends: it has nothing to do", server.pid)
                server.retire()
                continue
            # A server of an asked recipe stays, and a retired one ends as soon as it can.
            pause = None if family.asked or server.retired else left
            await asyncio.wait({server.ended}, timeout=pause)

    def _start_another(self, family: _Family) -> None:
        if family.asked and len(family.living()) < SERVERS and not self._closed:
            with contextlib.suppress(CannotFork):  # which has been logged
                self._start(family)

    def _replace(self, family: _Family, server: ForkLink, reason: str) -> None:
        """Retire the family's servers; start another at once if the recipe is asked.

        For an automatic recipe the next kernel that is ready brings one up.
        """
        # Several kernels may have asked the same server at once, and each gets `Outdated`.
        if server.alive:  # this is the first of them
            logger.info("fork server %d is replaced: %s", server.pid, reason)
            for each in family.living():
                each.retire()
            self._start_another(family)

    def _refuse(self, family: _Family, reason: str) -> None:
        family.refusal = reason
        pause = RETRY_SECONDS if family.asked else self._idle_seconds
        family.retry_at = asyncio.get_running_loop().time() + pause
        logger.warning("kernels are not forked but started: %s", reason)

    def _on_keeper_lost(self) -> None:
        """Kill all servers: the next keeper is not their parent, nor that of kernels they fork."""
        for family in self._families.values():
            for server in family.living():
                server.kill()

    async def close(self) -> None:
        """End every server; returns when they are gone."""
        # First: from now on no server is started, by a request or beside one that has become ready.
        self._closed = True
        await asyncio.gather(*(server.close() for server in self._links))
        if self._tasks:
            await asyncio.wait(self._tasks)
