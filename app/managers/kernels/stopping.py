"""The stop of all kernels at once, when the server ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Collection
from typing import Any, Final

from ..errors import KernelNotStopped
from .kernel import Kernel

__all__ = ["leave_all", "stop_all", "stop_quietly"]

logger = logging.getLogger(__name__)

FAREWELL_SECONDS: Final = 0.1
"""Between the end of streams and WebSockets and that of the kernels."""

SLACK_SECONDS: Final = 15.0
"""What all of it may take beyond the time that one kernel has for its shutdown."""


async def stop_all(
    kernels: Collection[Kernel], starting: Collection[asyncio.Future[None]], patience: float
) -> None:
    """Stop the kernels; returns when all are gone, and the starts under way have ended.

    ``patience`` is what each has for its shutdown, in seconds. The server ends without those that
    take `SLACK_SECONDS` more. A start that is under way ends its kernel itself.
    """
    if kernels:
        # Whoever waited is told why, before what becomes of the kernels is the news.
        await asyncio.sleep(FAREWELL_SECONDS)
    loop = asyncio.get_running_loop()
    stops: set[asyncio.Future[Any]] = {loop.create_task(stop_quietly(one)) for one in kernels}
    if not stops and not starting:
        return
    # Each step has its bound, but a provisioner of somebody else's may have none.
    _, late = await asyncio.wait({*stops, *starting}, timeout=patience + SLACK_SECONDS)
    if late:
        logger.error("%d kernels do not stop; the server ends without them", len(late))
    for stop in stops:
        stop.cancel()


async def leave_all(kernels: Collection[Kernel]) -> list[Kernel]:
    """Let the kernels go on without this server; those that cannot, which are to be stopped.

    Each is left when its log is on disk.
    """
    if kernels:
        await asyncio.sleep(FAREWELL_SECONDS)
    left = await asyncio.gather(*map(_leave_quietly, kernels))
    return [kernel for kernel, is_left in zip(kernels, left, strict=True) if not is_left]


async def _leave_quietly(kernel: Kernel) -> bool:
    try:
        return await kernel.leave()
    except Exception:
        logger.exception(
            "kernel %s is left without all that the next server should know",
            kernel.id,
            extra={"kernel_id": kernel.id},
        )
        return True


async def stop_quietly(kernel: Kernel, *, now: bool = False) -> bool:
    """Stop a kernel that nobody waits for; where that fails it is logged. Whether it is gone."""
    try:
        await kernel.stop(now=now)
    except KernelNotStopped as error:
        logger.error(
            "kernel %s could not be stopped: %s",
            kernel.id,
            error.message,
            extra={"kernel_id": kernel.id},
        )
    except Exception:
        logger.exception(
            "kernel %s could not be stopped", kernel.id, extra={"kernel_id": kernel.id}
        )
        with contextlib.suppress(Exception):
            await kernel.kill()
    else:
        return True
    return False
