"""Fork servers, as the service sees them: it starts them, asks them for kernels, and ends them.

A forked kernel is the child of its fork server (`app.managers.fork_server` is the program), which
tells how it ended; or, where there is a keeper, of that one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
from typing import Final

from app.managers.fork_link import CannotFork, ForkLink, Order, Recipe
from app.managers.keeping import Keeper

__all__ = ["ForkServers"]

logger = logging.getLogger(__name__)

SERVERS: Final = 2
"""Fork servers for kernels that are alike. They take turns, so that neighbours hash differently."""

RETRY_SECONDS: Final = 60.0
"""When a fork server that could not start is tried again."""

MAX_RECIPES: Final = 8
"""Kinds of kernels with fork servers of their own; they take memory."""

SUPPORTED: Final = sys.platform == "linux" and hasattr(os, "pidfd_open")


class _Family:
    """The fork servers of one recipe."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.servers: list[ForkLink] = []
        self.refusal = ""
        self.retry_at = 0.0  # by the loop's clock
        self._turn = 0

    def living(self) -> list[ForkLink]:
        """Those that fork or will; none if they have all ended."""
        return [server for server in self.servers if server.alive]

    def next(self) -> ForkLink | None:
        """The next server that is ready."""
        ready = [server for server in self.living() if server.ready.done()]
        self._turn += 1
        return ready[self._turn % len(ready)] if ready else None


class ForkServers:
    """The fork servers of one service. Make it inside a running event loop, and `close` it there.

    They are started when they are first needed, or with `prepare`; by the ``keeper``, if there is
    one, whose children their kernels are then.
    """

    def __init__(self, keeper: Keeper | None = None) -> None:
        self._keeper = keeper
        self._families: dict[Recipe, _Family] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        if keeper is not None:
            keeper.on_lost.append(self._on_keeper_lost)

    async def fork(self, recipe: Recipe, order: Order) -> tuple[int, ForkLink]:
        """Fork a kernel, once a server is ready for it: its process id, and by whom.

        Raises `CannotFork`.
        """
        family = self._family(recipe)
        had = bool(family.servers)
        living = family.living()
        if not living:
            self._start(family)
            if had:
                # Its imports would take as long as those of a kernel that is just started.
                raise CannotFork(family.refusal or "its fork servers have ended; there will be new")
            living = family.living()
        if not any(server.ready.done() for server in living):
            await asyncio.shield(living[0].ready)
        server = family.next()
        if server is None:
            raise CannotFork(family.refusal or "its fork servers have ended")
        self._start_another(family)
        return await server.fork(order), server

    def prepare(self, recipe: Recipe) -> None:
        """Start the servers for a recipe now."""
        try:
            self._start(self._family(recipe))
        except CannotFork as error:
            logger.warning("no fork servers: %s", error)

    def _family(self, recipe: Recipe) -> _Family:
        if not SUPPORTED:
            raise CannotFork("this platform has no pidfd")
        if self._closed:
            raise CannotFork("the server is shutting down")
        family = self._families.get(recipe)
        if family is None:
            if len(self._families) >= MAX_RECIPES:
                raise CannotFork(
                    f"there are fork servers for {MAX_RECIPES} kinds of kernels already"
                )
            family = self._families[recipe] = _Family(recipe)
        return family

    def _start(self, family: _Family) -> None:
        """Start one more server. Raises `CannotFork` for a family that was refused lately."""
        loop = asyncio.get_running_loop()
        if family.refusal:
            if loop.time() < family.retry_at:
                raise CannotFork(family.refusal)
            family.refusal = ""
        family.servers = [server for server in family.servers if server.alive]
        server = ForkLink(family.recipe, self._keeper)
        family.servers.append(server)
        task = loop.create_task(self._supervise(family, server), name="life of a fork server")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _supervise(self, family: _Family, server: ForkLink) -> None:
        """See a server through its life, which has no bound; have another started beside it."""
        try:
            await server.ready
        except CannotFork as error:
            if not self._closed:
                self._refuse(family, str(error))
        else:
            logger.info("fork server %d is ready", server.pid)
            self._start_another(family)
            await server.ended
            if not self._closed:
                logger.warning("fork server %d has ended; its kernels go on", server.pid)
        await server.close()

    def _start_another(self, family: _Family) -> None:
        if len(family.living()) < SERVERS and not self._closed:
            with contextlib.suppress(CannotFork):  # which has been logged
                self._start(family)

    def _refuse(self, family: _Family, reason: str) -> None:
        family.refusal = reason
        family.retry_at = asyncio.get_running_loop().time() + RETRY_SECONDS
        logger.warning("kernels are not forked but started: %s", reason)

    def _on_keeper_lost(self) -> None:
        """The next keeper is not their parent, and kernels that they fork would be nobody's."""
        for family in self._families.values():
            for server in family.living():
                server.kill()

    async def close(self) -> None:
        """End every server; returns when they are gone."""
        self._closed = True
        servers = [server for family in self._families.values() for server in family.servers]
        await asyncio.gather(*(server.close() for server in servers))
        if self._tasks:
            await asyncio.wait(self._tasks)
