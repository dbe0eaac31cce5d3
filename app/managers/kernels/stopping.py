"""Stopping and leaving kernels: one that is given up, and all at once when the server ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection
from typing import Any, Final

from ...log_formats import about
from ..errors import KernelkeepError, KernelNotStopped
from ..handover.handover import Handover
from ..processes.keeper.keepers import Keepers
from .departures import BY_REQUEST
from .kernel import Kernel

__all__ = [
    "HandingOver",
    "end_unsaved",
    "leave_all",
    "leave_now",
    "stop_all",
    "stop_or_give_up",
    "stop_quietly",
]

logger = logging.getLogger(__name__)

FAREWELL_SECONDS: Final = 0.1
"""The pause between the end of streams and WebSockets, and the stop of the kernels."""

LEAVE_SECONDS: Final = 10.0
"""How long leaving a kernel to another replica waits for a start or a stop that is under way."""

SLACK_SECONDS: Final = 15.0
"""How much longer than one kernel's shutdown the stop of all kernels may take."""

HAND_OVER_AGAIN_SECONDS: Final = 1.0
"""The pause before kernels are handed over again that could not be."""

REST_SECONDS: Final = 30.0
"""How many seconds the last handover, of the kernels that are still this replica's, may take."""

GIVEN_UP: Final = "The kernel was given up: its host was not reached"


async def stop_or_give_up(kernel: Kernel, keepers: Keepers, *, now: bool, give_up: bool) -> None:
    """Stop a kernel and forget it; returns when its process is gone. Raises `KernelNotStopped`.

    Whether a process runs on a host that is away cannot be known here. With ``give_up`` the process
    is taken for gone, and the keeper there ends it when the host is back.
    """
    is_away, why = kernel.state.unreachable or kernel.is_left, BY_REQUEST
    if give_up and is_away and keepers.remote.give_up(kernel.id, GIVEN_UP):
        kernel.state.on_reach("")
        why = GIVEN_UP
    # The stop ends the kernel's life before that gets its turn to see a death.
    await kernel.stop(now=now, why=why)


async def stop_all(
    kernels: Collection[Kernel], starting: Collection[asyncio.Future[None]], patience: float
) -> None:
    """Stop the kernels; returns when all are gone, and the starts under way have ended.

    ``patience`` is how long each kernel has for its shutdown, in seconds. The server ends without
    the kernels that take `SLACK_SECONDS` more. A start that is under way ends its kernel itself.
    """
    if kernels:
        # Streams and WebSockets end first: their clients are told that the server stops, and not
        # that their kernels do.
        await asyncio.sleep(FAREWELL_SECONDS)
    # Side by side: each kernel has its own lock, and one that does not end delays no other.
    loop = asyncio.get_running_loop()
    stops: set[asyncio.Future[Any]] = {loop.create_task(stop_quietly(one)) for one in kernels}
    if not stops and not starting:
        return
    # Each step of a stop has its bound, but a provisioner of another package may have none.
    _, late = await asyncio.wait({*stops, *starting}, timeout=patience + SLACK_SECONDS)
    if late:
        logger.error("%d kernels do not stop; the server ends without them", len(late))
    # The record of a kernel that has begun to stop is gone (`Registration.disown`): the next server
    # ends its process, or the keeper when no server comes.
    for stop in stops:
        stop.cancel()


class HandingOver:
    """Hands kernels over to the other replicas as soon as they are left, beside the server's stop.

    So a kernel that takes long to stop, or to be left, keeps no other kernel from its clients.
    Nothing in here raises. A registry that is away delays the end of the server only in `end`, for
    `REST_SECONDS` at the most.
    """

    # Streams and WebSockets end first (`MultiKernelManager.begin_stop`), and the kernels are left
    # and handed over `FAREWELL_SECONDS` later. In the other order a client could send requests that
    # reach no process, as this server has left it, and how far a client has come would be refused
    # by the registry, as the kernel is no more this replica's. A client that comes back at once, to
    # whichever replica, loses nothing: its request waits there until another has the kernel
    # (`ForwardingMiddleware`). One that is slow to take the end of its stream may get the last
    # messages twice.

    def __init__(self, handover: Handover) -> None:
        self._handover = handover
        self._left: set[str] = set()
        self._task: asyncio.Task[None] | None = None
        self._is_over = False

    def add(self, *kernel_ids: str) -> None:
        """Hand over these kernels, which have been left. Behind `end` this does nothing."""
        self._left.update(kernel_ids)
        if self._task is None and self._left and not self._is_over:
            self._task = asyncio.get_running_loop().create_task(self._run(), name="hand over")

    async def _run(self) -> None:
        has_failed = False
        while self._left:
            # Kernels that are left during this round go in the next: few transactions for many.
            asked = {*self._left}
            why: object = "the registry does not have all of them yet"
            try:
                self._left.difference_update(await self._handover.hand_over(asked))
            except Exception as error:
                why = error
            if later := len(self._left & asked):
                if not has_failed:
                    logger.error("%d kernels are handed over later: %s", later, why)
                has_failed = True
                await asyncio.sleep(HAND_OVER_AGAIN_SECONDS)
        # Nothing is awaited since the last look at `_left`: the next `add` begins another task.
        self._task = None

    async def end(self) -> None:
        """Hand over all kernels that are still this replica's; `add` does nothing any more."""
        self._is_over = True
        if self._task is not None:
            # The registry has carried out the cancelled round, or has not: the rest are the kernels
            # that are this replica's in the registry then.
            self._task.cancel()
            await asyncio.wait({self._task})
        try:
            async with asyncio.timeout(REST_SECONDS):
                await self._handover.hand_over_rest()
        except Exception:
            logger.exception("the other replicas take the kernels over when the lease has ended")


async def leave_all(
    kernels: Collection[Kernel],
    orphan_timeout: float,
    patience: float,
    on_left: Callable[[str], None],
) -> list[Kernel]:
    """Let the kernels go on without this server; returns those that cannot, to be stopped.

    The keeper ends those that no other server takes within ``orphan_timeout`` seconds. ``patience``
    is that of `stop_all`. A kernel that takes `SLACK_SECONDS` more is taken for left. For each of
    the others ``on_left`` is called with its id as soon as it is left.
    """
    if not kernels:
        return []
    await asyncio.sleep(FAREWELL_SECONDS)
    loop = asyncio.get_running_loop()
    leaves = [loop.create_task(_leave(one, on_left)) for one in kernels]
    # A leave waits for the kernel's lock, and for a disk that may hang.
    _, late = await asyncio.wait(leaves, timeout=patience + SLACK_SECONDS)
    for leave in late:
        leave.cancel()
    if late:
        logger.error(
            "%d kernels are left without all that the next server should know: the disk does not "
            "answer, or a start or a stop goes on",
            len(late),
        )
    left = [leave in late or leave.result() for leave in leaves]
    if any(left):
        logger.info(
            "%d kernels go on without a server, for %g s at most; "
            "'kernelkeep kernels stop --all' ends them",
            sum(left),
            orphan_timeout,
        )
    return [kernel for kernel, is_left in zip(kernels, left, strict=True) if not is_left]


async def _leave(kernel: Kernel, on_left: Callable[[str], None]) -> bool:
    is_left = await _leave_quietly(kernel)
    if is_left:
        on_left(kernel.id)
    return is_left


async def _leave_quietly(kernel: Kernel) -> bool:
    try:
        return await kernel.leave()
    except Exception:
        about(logger, kernel_id=kernel.id).exception(
            "kernel %s is left without all that the next server should know", kernel.id
        )
        return True


async def leave_now(kernel_id: str, kernel: Kernel | None, keepers: Keepers) -> None:
    """Leave a kernel, which may not be here, to another replica. Bounded by `LEAVE_SECONDS`.

    Its streams and WebSockets end, so that their clients come back, and find that replica.
    """
    if kernel is not None:
        # First, and without the lock: streams would follow a log that this replica reads no more.
        kernel.executions.close_streams()
        try:
            async with asyncio.timeout(LEAVE_SECONDS):
                await _leave_quietly(kernel)
        except TimeoutError:  # a start or a stop has the lock; the keeper refuses its requests
            about(logger, kernel_id=kernel_id).error(
                "kernel %s is another replica's; it is still used here", kernel_id
            )
    keepers.let_go(kernel_id)


async def end_unsaved(kernel: Kernel, handover: Handover, keepers: Keepers) -> None:
    """End a kernel that was just started if another server may not know it, and raise why it may
    not (`Handover.check_saved`).

    A kernel whose host is away is given up, as no client is told of it that could do so later.
    """
    try:
        handover.check_saved(kernel.id)
    except KernelkeepError as error:
        is_gone = await stop_quietly(kernel, now=True)
        if not is_gone and kernel.state.unreachable:
            with contextlib.suppress(KernelNotStopped):
                await stop_or_give_up(kernel, keepers, now=True, give_up=True)
                is_gone = True
        if not is_gone:
            error.message += f". Kernel {kernel.id} was started, and could not be ended"
        raise


async def stop_quietly(kernel: Kernel, *, now: bool = False) -> bool:
    """Stop a kernel, and log it if that fails instead of raising; whether the kernel is gone."""
    try:
        await kernel.stop(now=now)
    except KernelNotStopped as error:
        about(logger, kernel_id=kernel.id).error(
            "kernel %s could not be stopped: %s", kernel.id, error.message
        )
    except Exception:
        about(logger, kernel_id=kernel.id).exception("kernel %s could not be stopped", kernel.id)
        # Whatever has failed, the process must not stay: no request can find it any more.
        with contextlib.suppress(Exception):
            await kernel.kill()
    else:
        return True
    return False
