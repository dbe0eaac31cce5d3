"""The handover between replicas: while it serves, one adopts kernels of others that are gone.

The replicas of a host share the state directory, in which the logs are.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import time
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from ...log_formats import about
from ..errors import KeeperUnavailable
from ..handover.handover import ADOPTION_SECONDS, Adopt, HandedOver, RegisteredHandover, Rest
from ..handover.store import KernelRecord
from ..processes.isolation.isolation import Isolation
from ..processes.keeper.keepers import Keepers
from ..processes.run_files import KEPT, clear_mirrors
from .errors import RegistryUnavailable
from .membership import Taken
from .registry import SharedRegistry

__all__ = ["SharedHandover"]

logger = logging.getLogger(__name__)

LEFTOVER_SECONDS: Final = 7200.0
"""How old the log of a kernel that is not in the registry has to be to be removed.

The kernel of a younger log may be one that another replica is about to store, or keeps warm: so
this is longer than `app.managers.kernels.warm.MAX_AGE_SECONDS`."""

GONE_SECONDS: Final = 600.0
"""How long this replica remembers in which term it had a kernel that is gone."""


class SharedHandover(RegisteredHandover):
    """The handover of a replica. Make it inside a running event loop, and `close` it there."""

    def __init__(
        self, registry: SharedRegistry, keepers: Keepers, state_dir: Path, isolation: Isolation
    ) -> None:
        super().__init__(registry, keepers, state_dir, isolation)
        self._shared = registry
        self._logs = state_dir / "logs" / KEPT
        self._one: Adopt | None = None
        self._leaving: dict[str, asyncio.Task[None]] = {}
        registry.on_fenced = self._on_fenced
        keepers.on_fenced = registry.fence
        registry.member.on_taken = self._on_taken
        registry.member.on_lost = self._on_lost
        registry.member.on_gone = self._on_gone

    async def adopt(self, one: Adopt) -> None:
        """Adopt this replica's share of the kernels that no replica has, now and from now on."""
        self._one = one
        await asyncio.to_thread(self._remove_leftovers)
        # `begin` calls `_on_taken` for all kernels that it takes before it returns: the tasks that
        # were added by then are the first adoptions. Further kernels are taken while this waits.
        before = {*self._tasks}
        await self._shared.member.begin()
        first = self._tasks - before
        if first:
            await asyncio.wait(first, timeout=ADOPTION_SECONDS)

    def _on_taken(self, taken: Sequence[Taken]) -> None:
        assert self._one is not None
        logger.info("%d kernels are taken over", len(taken))
        # Marked at once, before any task runs: a request that comes now waits for the adoption,
        # instead of getting 404.
        for each in taken:
            self.adopting.add(each.record.id)
            self._shared.found(each)
            self._do(self._adopt_taken(self._one, each.record))

    async def _adopt_taken(self, one: Adopt, record: KernelRecord) -> None:
        try:
            # If this replica has lost the kernel before, the task that leaves it is awaited first.
            # That task tells the keeper's client to let go of the kernel, by its id: after the
            # adoption the client would let go of the kernel that was just adopted.
            while (leaving := self._leaving.get(record.id)) is not None:
                await asyncio.wait({leaving})
            await self._adopt(one, record)
        finally:
            self.adopting.discard(record.id)

    def _on_fenced(self, kernel_id: str) -> None:
        # A kernel may be lost, taken and lost again before the first task that leaves it is done.
        # Such tasks run one after the other, and an adoption waits for the last.
        before = self._leaving.get(kernel_id)
        rest = self.let_go(kernel_id)
        leaving = self._leaving[kernel_id] = self._do(self._leave(kernel_id, rest, before))

        def forget(_: object) -> None:
            if self._leaving.get(kernel_id) is leaving:
                del self._leaving[kernel_id]

        leaving.add_done_callback(forget)

    def _on_lost(self) -> None:
        # All terms are dropped in this turn of the loop; the kernels are left by tasks, later.
        for kernel_id in self._shared.terms:
            self._shared.fence(kernel_id)

    def _on_gone(self, gone: Sequence[str], known: Sequence[str]) -> None:
        self._do(self._end_strays(gone, known))

    async def _end_strays(self, gone: Sequence[str], known: Sequence[str]) -> None:
        # The mirrors of any server process that has ended: one that lives has a lock on its own.
        with contextlib.suppress(OSError):
            await asyncio.to_thread(clear_mirrors, self._state_dir)
        is_done = False
        try:
            await self._keepers.end_strays(gone, known)
            is_done = True
        except KeeperUnavailable as error:
            logger.error("kernels that nobody knows may be left: %s", error.message)
        except Exception:  # whatever was raised: `buried` has to be told, so that it is tried again
            logger.exception("kernels that nobody knows may be left")
        await self._shared.member.buried(gone, is_done=is_done)

    async def _leave(self, kernel_id: str, rest: Rest, before: asyncio.Task[None] | None) -> None:
        try:
            if before is not None:
                await asyncio.wait({before})
            await rest()
        except Exception:
            about(logger, kernel_id=kernel_id).exception("kernel %s could not be left", kernel_id)

    async def close(self) -> None:
        """As `Handover.close`; no kernel is taken over any more."""
        self._shared.member.take_no_more()  # first: each that is taken begins a task
        await super().close()

    async def hand_over(self, kernel_ids: Collection[str]) -> Collection[str]:
        """As `Handover.hand_over`. Raises `StoreAway`."""
        # Another replica may take a kernel before this one drops its term. That is as if this
        # replica had been declared dead: registry and keeper refuse what it writes and asks.
        freed = await self._shared.release(kernel_ids)
        for kernel_id in freed:
            self._shared.fence(kernel_id)
        return freed

    async def hand_over_rest(self) -> None:
        """Leave the group: the other replicas take the kernels, and this one answers for none."""
        await self._shared.leave()

    def check_saved(self, kernel_id: str) -> None:
        """As `Handover.check_saved`. Raises `RegistryUnavailable`.

        A kernel without a row in the registry is ended when its replica dies: so no client may be
        told before that the kernel was started.
        """
        if not self._shared.has_saved(kernel_id):
            raise RegistryUnavailable

    async def forget(self, kernel: HandedOver) -> None:
        """As `Handover.forget`."""
        # The term is dropped later (`GONE_SECONDS`): the keeper has still to remove the log, and
        # the registry perhaps to delete the kernel, and both are asked with the term. It is read
        # before the await: a kernel of the same id that is started meanwhile has a later term,
        # which stays.
        drop = partial(self._shared.terms.drop, kernel.id, self._shared.terms.of(kernel.id))
        try:
            await super().forget(kernel)
        finally:
            # This may have been cancelled, or the registry be away: the kernel is gone all the
            # same, and must not count towards `max_kernels` any more.
            asyncio.get_running_loop().call_later(GONE_SECONDS, drop)
            self._shared.directory.forget(kernel.id)
            await self._shared.reservations.release(kernel.id)

    def _remove_leftovers(self) -> None:
        """Remove the logs and directories of kernels that are not in the registry any more."""
        # This runs in a thread, while the loop changes the directory's dict: the copy is made in
        # one step. Logs of kernels that other replicas start meanwhile are too young to be removed.
        known: Collection[str] = [*self._shared.directory.kernels]
        oldest = time.time() - LEFTOVER_SECONDS
        self._isolation.remove_leftovers(known, oldest)
        for path in self._logs.glob("*"):
            with contextlib.suppress(OSError):
                if path.name not in known and path.stat().st_mtime <= oldest:
                    shutil.rmtree(path, ignore_errors=True)
