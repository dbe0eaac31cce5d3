"""Warm kernels: started, ready, and parked until a client asks for a kernel.

A parked kernel belongs to no client: it is not listed, has no connections, counts against no limit
and reports no events. A start that asks for just such a kernel gets a parked one, and so does a
start that asks for what a parked kernel can be moved to (`app.managers.kernels.moving`). Each is
handed out once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from uuid import uuid4

import msgspec
from jupyter_client.kernelspec import KernelSpec

from ...log_formats import about
from ..errors import (
    KeeperUnavailable,
    KernelkeepError,
    KernelSpecInvalid,
    KernelSpecNotFound,
    KernelStartFailed,
    ServerStopping,
    TooManyStarts,
)
from ..owners.ownership import Ownership
from ..processes.engines.caller_options import settled
from ..processes.hosts.provisioner import elsewhere
from ..processes.hosts.shared_files import shares_files
from ..processes.specs import Specs
from ..state import Lifecycle
from ..telemetry.counters import Counters
from .kernel import Kernel
from .moving import MOVABLE, Move, WantedKernel, moved, plan
from .services import KernelServices
from .stopping import stop_quietly

__all__ = ["WarmKernels", "retry_seconds"]

logger = logging.getLogger(__name__)

MAX_AGE_SECONDS: Final = 3600.0
"""The age at which a parked kernel is replaced."""

CHECK_SECONDS: Final = 15.0
"""How often parked kernels are checked."""

ANSWER_SECONDS: Final = 5.0
"""How long a parked kernel may take to answer; it has nothing else to do."""

MOVE_SECONDS: Final = 1.0
"""How long a kernel may take to move; after that a cold start is quicker."""

REFILL_SECONDS: Final = 0.5
"""The pause between a claim and the start of the next warm kernel.

The claimed kernel answers its client first."""

BUSY_SECONDS: Final = 1.0
"""The pause before a start is tried again when the queue of starts is full."""

STOP_AGAIN_SECONDS: Final = 10.0
"""The pause before a kernel whose process could not be ended is stopped again."""

RETRY_SECONDS: Final = 60.0
"""The pause before a kernelspec that cannot be started is tried again."""

LONGEST_RETRY_SECONDS: Final = 600.0
"""The longest of these pauses, for a kernelspec that fails again and again for one reason."""

OWN_SECONDS: Final = 5.0
"""How long an engine may take to note the owner of a claimed kernel."""


class WarmKernels:
    """The parked kernels of one server, by kernelspec.

    ``wanted`` is how many kernels there shall be of each kernelspec. Parked kernels have
    ``services`` of their own, by which none is restarted and no events are reported. They are
    started in the directory ``cwd`` with the environment ``env``; one in a job of an engine becomes
    its owner's when it is claimed. Make this inside a running event loop, and `close` it there.
    """

    def __init__(
        self,
        wanted: Mapping[str, int],
        services: KernelServices,
        specs: Specs,
        cwd: Path,
        env: Mapping[str, str],
    ) -> None:
        self._services = services
        self._specs = specs
        self._starts = services.starts
        self._as_started = (cwd, env)
        self._counters: Counters = services.counters
        self._pools = {name.lower(): _Pool(name, number) for name, number in wanted.items()}
        self._starting: dict[str, Kernel] = {}
        self._stops: set[asyncio.Task[None]] = set()
        self._closing = asyncio.Event()
        loop = asyncio.get_running_loop()
        self._tasks = [
            loop.create_task(task(pool), name=f"{task.__name__} {pool.name}")
            for pool in self._pools.values()
            for task in (self._fill, self._look_after)
        ]

    @property
    def parked(self) -> dict[str, int]:
        """How many kernels are ready to be claimed, by kernelspec."""
        return {name: len(pool.parked) for name, pool in self._pools.items()}

    async def claim(self, asked: WantedKernel) -> Kernel | None:
        """A ready kernel that is as ``asked``, or None. The kernel is the caller's from now on."""
        pool = self._pools.get(asked.name.lower())
        if pool is None:
            return None
        kernel = None if asked.given else await self._claim(pool, asked)
        self._counters.warm_claims[pool.name.lower(), "hit" if kernel else "miss"] += 1
        return kernel

    async def _claim(self, pool: _Pool, asked: WantedKernel) -> Kernel | None:
        if not pool.parked:
            return None
        try:
            spec = await self._specs.find(pool.name)
        except (KernelSpecNotFound, KernelSpecInvalid):  # the start that follows raises this again
            return None
        there = elsewhere(spec.metadata)
        if there and not self._has_nobodys_limits(asked.ownership):
            return None
        # A directory of this machine means nothing on another that does not have its files; where
        # one does, only kernels of this machine can be moved to it.
        cwd = self._as_started[0] if there else asked.cwd
        if shares_files(spec.metadata) and cwd != asked.cwd:
            return None
        move = plan(spec.env, self._as_started, (cwd, asked.env))
        # Each is taken out before anything is awaited about it: of two claims at a time, or a claim
        # and a look (`_check`), only one gets the kernel.
        while move is not None and (kernel := pool.oldest) is not None:
            if move.needed and kernel.traffic.own.implementation != MOVABLE:
                return None
            pool.remove(kernel)
            if not _is_fit(kernel) or not _same(kernel.spec, spec):
                self._stop(kernel)
            elif why := await self._why_not(kernel, move, asked.ownership.owner if there else ""):
                text = "warm kernel %s %s, and is stopped"
                about(logger, kernel_id=kernel.id).info(text, kernel.id, why)
                self._stop(kernel)
            else:
                return kernel
        return None

    def _has_nobodys_limits(self, ownership: Ownership) -> bool:
        """Whether an owner's limits are those with which parked kernels were started."""
        own, nobodys = map(self._services.process_limits, (ownership, Ownership()))
        return msgspec.structs.replace(own, owner=nobodys.owner) == nobodys

    async def _why_not(self, kernel: Kernel, move: Move, owner: str) -> str:
        """Move a kernel, and tell its engine the ``owner``; returns why that failed, or nothing."""
        try:
            if move.needed:
                own = kernel.traffic.own
                reply = await own.ask("execute_request", move.request, MOVE_SECONDS)
                if not moved(reply):
                    return "could not be moved"
            if owner:
                async with asyncio.timeout(OWN_SECONDS):
                    await self._services.engines.own(kernel.id, owner)
        except (KeeperUnavailable, TimeoutError) as error:
            return f"could not be made somebody's ({str(error) or 'no answer'})"
        except BaseException:  # such as a cancellation: the kernel is neither parked nor listed
            self._stop(kernel)
            raise
        # The kernel may have died, or have been restarted, while it was being moved.
        return "" if _is_fit(kernel) else "has become unfit"

    def drop(self, kernel_id: str) -> Kernel | None:
        """Forget a kernel that is this server's no more, and which others may have ended."""
        for pool in self._pools.values():
            for kernel in pool.parked:
                if kernel.id == kernel_id:
                    pool.remove(kernel)
                    return kernel
        return self._starting.pop(kernel_id, None)

    # Refilling and checking

    async def _fill(self, pool: _Pool) -> None:
        """Start kernels while some are missing: one at a time, and when no other start is busy."""
        failure, times = "", 0
        while True:
            await pool.missing.wait()  # without a bound: there may never be a claim
            await asyncio.sleep(max(pool.refill_at - asyncio.get_running_loop().time(), 0))
            await self._starts.quiet()
            # A kernel is still missing: only this task parks kernels, one after the other.
            try:
                pool.park(await self._start(pool))
                failure, times = "", 0
            except ServerStopping:
                return
            except TooManyStarts:
                await asyncio.sleep(BUSY_SECONDS)
            except Exception as error:  # any: neither a kernel nor a bug may end the pool
                if _kind_of(error) != failure:
                    failure, times = _kind_of(error), 0
                    logger.error("warm_kernels: %s cannot be kept warm: %s", pool.name, error)
                times += 1
                await asyncio.sleep(retry_seconds(times))

    async def _start(self, pool: _Pool) -> Kernel:
        """Start a kernel, and return it when it is ready. Raises `KernelkeepError` if it fails."""
        cwd, env = self._as_started
        spec = await self._specs.find(pool.name)
        there = elsewhere(spec.metadata)
        if there and not await self._services.engines.may_park(settled(spec, {})):
            raise KernelStartFailed("on its host, none can be kept that is nobody's")
        kernel = Kernel(
            str(uuid4()), pool.name, spec, self._services, place=cwd, env=env, on_gone=_nothing
        )
        self._starting[kernel.id] = kernel
        try:
            if there:
                # The start takes nothing of this machine and may take long: it needs no turn.
                await kernel.start()
            else:
                with self._starts.admission():
                    await self._starts.launch(kernel.start, kernel.came_up)
            # Bounded by kernel_info_timeout, and by how long the engine may have it wait. A
            # cancellation cancels the future as well; only this task awaits it for a warm kernel.
            if not await kernel.came_up:
                raise KernelStartFailed(kernel.state.reason)
            if kernel.id not in self._starting:
                raise KernelStartFailed("the other replicas have declared this one dead")
        except BaseException:
            if kernel.id in self._starting:  # else `drop` has taken it: other replicas end it
                self._stop(kernel)
            raise
        finally:
            self._starting.pop(kernel.id, None)
        return kernel

    async def _look_after(self, pool: _Pool) -> None:
        """Stop kernels that are too old, do not answer, or whose kernelspec has changed."""
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            try:
                await self._check(pool)
            except Exception:  # a bug here must not end the pool
                logger.exception("the warm kernels of %s could not be looked after", pool.name)

    async def _check(self, pool: _Pool) -> None:
        spec: KernelSpec | None = None
        with contextlib.suppress(KernelSpecNotFound, KernelSpecInvalid):
            spec = await self._specs.find(pool.name)
        for kernel in [*pool.parked]:
            why = await self._what_is_wrong(pool, kernel, spec)
            # The kernel may have been claimed while it was asked: then it is a client's, whatever
            # it has answered.
            if why and pool.remove(kernel):
                about(logger, kernel_id=kernel.id).info(
                    "warm kernel %s (%s) is stopped: %s", kernel.id, pool.name, why
                )
                self._stop(kernel)

    async def _what_is_wrong(self, pool: _Pool, kernel: Kernel, spec: KernelSpec | None) -> str:
        age = asyncio.get_running_loop().time() - pool.parked.get(kernel, 0.0)
        if age > MAX_AGE_SECONDS:
            return "it is too old"
        if spec is None or not _same(kernel.spec, spec):
            return "its kernelspec has changed"
        if not _is_fit(kernel):
            return kernel.state.unreachable or kernel.state.reason or "it is not idle"
        if await kernel.traffic.own.ask("kernel_info_request", {}, ANSWER_SECONDS) is None:
            return "it does not answer"
        return ""

    def _stop(self, kernel: Kernel) -> None:
        """Stop a kernel that was not handed out, in the background."""
        task = asyncio.get_running_loop().create_task(
            self._stop_until_gone(kernel), name=f"stop warm kernel {kernel.id}"
        )
        self._stops.add(task)
        task.add_done_callback(self._stops.discard)

    async def _stop_until_gone(self, kernel: Kernel) -> None:
        """Stop the kernel, again and again: it is not listed, so that no client could."""
        while not await stop_quietly(kernel, now=True):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STOP_AGAIN_SECONDS):
                    await self._closing.wait()
            if self._closing.is_set():
                await stop_quietly(kernel, now=True)
                return

    async def close(self) -> None:
        """Stop every parked kernel, and start no more."""
        self._closing.set()
        # First the tasks: `_fill` would park another kernel, and `_check` stop one a second time.
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        for pool in self._pools.values():
            for kernel in pool.parked:
                self._stop(kernel)
        if self._stops:
            await asyncio.wait(self._stops)


class _Pool:
    """The parked kernels of one kernelspec, the oldest first."""

    def __init__(self, name: str, wanted: int) -> None:
        self.name = name
        self.parked: dict[Kernel, float] = {}  # the time it was parked, by the loop's clock
        self.missing = asyncio.Event()
        self.refill_at = 0.0  # by the loop's clock
        self._wanted = wanted
        self._count()

    def park(self, kernel: Kernel) -> None:
        self.parked[kernel] = asyncio.get_running_loop().time()
        self._count()

    @property
    def oldest(self) -> Kernel | None:
        return next(iter(self.parked), None)

    def remove(self, kernel: Kernel) -> bool:
        """Take a kernel out; whether it was parked."""
        there = self.parked.pop(kernel, None) is not None
        self.refill_at = asyncio.get_running_loop().time() + REFILL_SECONDS
        self._count()
        return there

    def _count(self) -> None:
        if len(self.parked) < self._wanted:
            self.missing.set()
        else:
            self.missing.clear()


def _is_fit(kernel: Kernel) -> bool:
    """Whether the kernel is ready and runs nothing."""
    state = kernel.state
    if state.unreachable:
        return False
    return state.lifecycle is Lifecycle.RUNNING and kernel.has_process and not state.at_work


def _same(one: KernelSpec, other: KernelSpec) -> bool:
    return (one.resource_dir, one.to_dict()) == (other.resource_dir, other.to_dict())


def retry_seconds(failures: int) -> float:
    """The pause after a number of failures for one reason: longer only after the first few."""
    return min(RETRY_SECONDS * 2.0 ** max(min(failures, 9) - 2, 0), LONGEST_RETRY_SECONDS)


def _kind_of(error: Exception) -> str:
    """The code of the cause, if there is one, or the message: engines' messages name jobs."""
    cause = error.details.get("cause") if isinstance(error, KernelkeepError) else None
    return str(error) if cause is None else str(cause)


def _nothing(_kernel: Kernel) -> None:
    """Do nothing for a parked kernel that has gone: it was not listed anywhere."""
