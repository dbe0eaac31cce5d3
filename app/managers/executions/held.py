"""Executions that the server holds until their kernel is free."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from ...protocol.messages import ClientMessage
from .execution import Execution

__all__ = ["BACKLOG_BYTES", "HeldExecutions"]

BACKLOG_BYTES: Final = 16 * 2**20
"""How many bytes of requests may wait for one kernel before its clients are held back."""


class HeldExecutions:
    """The held executions of one kernel with their requests, in the order of asking."""

    def __init__(self) -> None:
        self._items: deque[tuple[Execution, ClientMessage]] = deque()
        self._interrupted: Execution | None = None
        # The held executions that were asked for after the interrupt of `_interrupted`.
        self._asked_after: set[Execution] = set()
        self.bytes = 0
        """The bytes of all requests that are held."""

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, execution: Execution) -> bool:
        return any(held is execution for held, _ in self._items)

    @property
    def first(self) -> Execution | None:
        """The execution to be sent next, if any is held."""
        return self._items[0][0] if self._items else None

    def add(self, execution: Execution, request: ClientMessage) -> None:
        """Hold an execution behind all others."""
        self._items.append((execution, request))
        self.bytes += request.size
        if self._interrupted is not None and not self._interrupted.ended:
            self._asked_after.add(execution)

    def add_first(self, execution: Execution, request: ClientMessage) -> None:
        """Hold an execution before all others: it was sent already, and its request was lost."""
        self._items.appendleft((execution, request))
        self.bytes += request.size

    def pop(self) -> tuple[Execution, ClientMessage]:
        """Take out the execution to be sent next, with its request. There must be one."""
        execution, request = self._items.popleft()
        self.bytes -= request.size
        self._asked_after.discard(execution)
        return execution, request

    def take(self, wanted: Callable[[Execution], bool] = lambda _: True) -> list[Execution]:
        """Take out, in order, the executions for which ``wanted`` returns True."""
        # ``wanted`` must not add an execution, which would get a place before all that stay here.
        items, self._items = self._items, deque()
        taken = []
        for execution, request in items:
            if wanted(execution):
                taken.append(execution)
                self.bytes -= request.size
                self._asked_after.discard(execution)
            else:
                self._items.append((execution, request))
        return taken

    def on_interrupt(self, execution: Execution) -> None:
        """Remember that an execution is being interrupted (see `take_behind`).

        The interrupt makes it fail, with a failure that its caller wanted. Executions added from
        now on are meant to run all the same. Of several interrupts of one execution the first
        counts.
        """
        if execution is not self._interrupted:
            self._interrupted = execution
            self._asked_after.clear()

    def take_behind(self, failed: Execution) -> list[Execution]:
        """Take out the executions to abort: those in the queue of one that has failed.

        If it was interrupted, those that were asked for after the interrupt stay.
        """
        spared = self._asked_after if failed is self._interrupted else ()
        return self.take(lambda held: held.in_queue_of(failed) and held not in spared)
