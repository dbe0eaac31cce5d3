"""Executions that are held at the server until their kernel is free."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from ...protocol.messages import ClientMessage
from .execution import Execution

__all__ = ["BACKLOG_BYTES", "HeldExecutions"]

BACKLOG_BYTES: Final = 16 * 2**20
"""Bytes of requests that may wait for one kernel before its clients are held back."""


class HeldExecutions:
    """Of one kernel, in the order in which they were asked for, each with its request."""

    def __init__(self) -> None:
        self._items: deque[tuple[Execution, ClientMessage]] = deque()
        self._interrupted: Execution | None = None
        self._asked_after: set[Execution] = set()  # the interrupt of that one
        self.bytes = 0
        """Of their requests."""

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, execution: Execution) -> bool:
        return any(held is execution for held, _ in self._items)

    @property
    def first(self) -> Execution | None:
        """The one that is next."""
        return self._items[0][0] if self._items else None

    def add(self, execution: Execution, request: ClientMessage) -> None:
        """Hold this one behind all others."""
        self._items.append((execution, request))
        self.bytes += request.size
        if self._interrupted is not None and not self._interrupted.ended:
            self._asked_after.add(execution)

    def add_first(self, execution: Execution, request: ClientMessage) -> None:
        """Hold this one before all others: it had its turn, and its request was lost."""
        self._items.appendleft((execution, request))
        self.bytes += request.size

    def pop(self) -> tuple[Execution, ClientMessage]:
        """The one that is next, and its request; not held any more."""
        execution, request = self._items.popleft()
        self.bytes -= request.size
        self._asked_after.discard(execution)
        return execution, request

    def take(self, wanted: Callable[[Execution], bool] = lambda _: True) -> list[Execution]:
        """Those that are ``wanted``, in order; not held any more."""
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
        """This one is being interrupted: what is added from now on does not wait for how it ends.

        Of several interrupts of one execution the first counts.
        """
        if execution is not self._interrupted:
            self._interrupted = execution
            self._asked_after.clear()

    def take_behind(self, failed: Execution) -> list[Execution]:
        """Those that wait in its queue, and were asked for before it was interrupted if it was."""
        spared = self._asked_after if failed is self._interrupted else ()
        return self.take(lambda held: held.in_queue_of(failed) and held not in spared)
