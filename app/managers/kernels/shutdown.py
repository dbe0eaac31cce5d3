"""The gentle end of a process: a `shutdown_request`, then SIGTERM, each with its bound."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from ...log_formats import about
from ..errors import KernelUnreachable
from ..messages.traffic import Traffic
from ..processes.process import KernelProcess
from ..state import KernelState

__all__ = ["TERMINATE_SECONDS", "Shutdown"]

logger = logging.getLogger(__name__)

LOOK_SECONDS: Final = 0.5
"""How often a kernel that shuts down is checked for children that it waits for in vain."""

IPYKERNEL: Final = "ipython"
"""The implementation that ipykernel names in its `kernel_info_reply`."""

CHILDREN_SECONDS: Final = 30.0
"""How long ipykernel waits for its children, at the most, when it shuts down."""

TERMINATE_SECONDS: Final = 2.0
"""How long a process may take from SIGTERM to its end, before SIGKILL."""


class Shutdown:
    """Asks one process to end. A caller that needs the process to be gone kills it afterwards.

    ``seconds`` is how long the process may take to end by itself when it is asked to.
    """

    def __init__(
        self,
        kernel_id: str,
        process: KernelProcess,
        traffic: Traffic,
        state: KernelState,
        seconds: float,
    ) -> None:
        self._process = process
        self._traffic = traffic
        self._state = state
        self._seconds = seconds
        self._id = kernel_id
        self._logger = about(logger, kernel_id=kernel_id)

    async def run(self, interrupt: Callable[[], Awaitable[None]], *, restart: bool) -> None:
        """Ask the kernel to shut down, then terminate its process, which may run on all the same.

        ``interrupt`` interrupts the kernel. ``restart`` if another process follows.
        """
        try:
            if self._traffic.own.answered:
                if self._state.execution_state == "busy":
                    # A kernel reads the `shutdown_request` only when it has done what it runs.
                    await interrupt()
                if await self._end_by_itself(restart=restart):
                    return
            if not await self._process.terminate(TERMINATE_SECONDS):
                self._logger.warning("kernel %s ignores SIGTERM", self._id)
        except KernelUnreachable as error:  # the kill comes next, and may work all the same
            self._logger.warning("kernel %s cannot be shut down: %s", self._id, error.message)

    async def _end_by_itself(self, *, restart: bool) -> bool:
        """Ask the kernel to shut down; return whether it ends within the seconds that it has."""
        if not self._traffic.connected:  # it cannot be asked
            return False
        loop, seconds, process = asyncio.get_running_loop(), self._seconds, self._process
        # Looked up before the request: children that exit hooks start are not to be in the set.
        children = await process.children() if self._may_wait_in_vain else set()
        deadline = loop.time() + seconds
        ask = self._traffic.own.ask("shutdown_request", {"restart": restart}, seconds, "control")
        # The reply comes over a socket and the end of the process from the keeper, in either order,
        # and some kernels send no reply: only the end counts. From the reply on, the kernel may be
        # waiting for children.
        answer = loop.create_task(ask)
        in_vain = 0
        try:
            while (left := deadline - loop.time()) > 0:
                if await process.wait(min(left, LOOK_SECONDS)):
                    return True
                has_agreed = answer.done() and answer.result() is not None
                # Children that are not in this set were started later, by exit hooks: those run.
                if has_agreed and children:
                    in_vain = in_vain + 1 if await process.has_dead_only(children) else 0
                if in_vain == 2:  # in two looks: after one, the kernel may be about to reap them
                    self._logger.info("kernel %s waits for children that have ended", self._id)
                    return False
            has_agreed = answer.done() and answer.result() is not None
            what = (
                "has agreed to shut down, and runs"
                if has_agreed
                else "ignores its shutdown request"
            )
            self._logger.info("kernel %s %s after %g s", self._id, what, seconds)
            return False
        finally:
            answer.cancel()

    @property
    def _may_wait_in_vain(self) -> bool:
        """Whether the kernel goes on to wait for children that have ended until it is terminated.

        ipykernel waits for its children before it runs its exit hooks. It counts zombies among
        them, and gives up only after `CHILDREN_SECONDS`.
        """
        is_python = self._traffic.own.implementation == IPYKERNEL
        return is_python and self._seconds < CHILDREN_SECONDS
