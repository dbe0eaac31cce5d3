"""What an `ExecutionTracker` tells others about its executions."""

from __future__ import annotations

from typing import Protocol

from .execution import Execution

__all__ = ["ExecutionListener", "ExecutionStore"]


class ExecutionListener(Protocol):
    """Acts on what happens to executions. Its methods must not block and must not raise."""

    def on_start(self, execution: Execution) -> None:
        """The kernel has begun with an execution."""

    def on_interrupt(self, execution: Execution) -> None:
        """An execution is about to be interrupted."""

    def on_free(self) -> None:
        """The kernel has become ready, or has gone idle, or an execution has ended."""

    def on_end(self, execution: Execution) -> None:
        """An execution has ended."""

    def on_close(self, reason: str) -> None:
        """The kernel's process takes no more requests: the executions that wait for it end."""


class ExecutionStore(Protocol):
    """Stores executions for the next server. Its methods must not block and must not raise."""

    def changed(self, execution: Execution) -> None:
        """A field of an execution has changed."""

    def forgotten(self, execution: Execution) -> None:
        """The server has forgotten an execution: it need not be stored any longer."""

    async def stored(self) -> None:
        """Return when all changes are stored, or after a bounded time."""

    async def execution_stored(self, execution: Execution) -> None:
        """Return when an execution is stored.

        Raises a `KernelkeepError` if it is not, and another server may have the kernel next.
        """
