"""The limit on executions that wait at an owner's kernels, as one of the kernels sees it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Final, Protocol

from ..errors import KernelkeepError
from ..owners.ownership import Ownership

__all__ = ["ANY_QUEUE", "QueuePlace", "QueueShare", "Queues"]


class QueuePlace:
    """A place for an execution that waits, or the error that refuses the execution."""

    __slots__ = ("_error",)

    def __init__(self, error: KernelkeepError | None = None) -> None:
        self._error = error

    def check(self) -> None:
        """Raise the error, if there is no place."""
        if self._error is not None:
            raise self._error


class Queues(Protocol):
    """The places for executions that wait, of all owners."""

    def check_queue(self, ownership: Ownership) -> None:
        """Raise an error if no further execution may wait at the kernels of this owner."""

    def queue_place(self, ownership: Ownership) -> AbstractAsyncContextManager[QueuePlace] | None:
        """A place for an execution that waits from the end of the ``async with`` block on.

        Nothing may be awaited in the block. None if no other server has to be asked: then
        `check_queue` decides.
        """

    def queue_changed(self, ownership: Ownership) -> None:
        """Take note that the number of executions that wait at this owner's kernels has changed."""


class _AnyQueue:
    def check_queue(self, ownership: Ownership) -> None:
        pass

    def queue_place(
        self,
        ownership: Ownership,  # noqa: ARG002
    ) -> AbstractAsyncContextManager[QueuePlace] | None:
        return None

    def queue_changed(self, ownership: Ownership) -> None:
        pass


ANY_QUEUE: Final[Queues] = _AnyQueue()
"""The queues of owners that have no limit."""


class QueueShare:
    """The places for executions that wait at the kernels of one kernel's owner.

    The kernel may get another owner: a warm kernel does.
    """

    def __init__(
        self,
        queues: Callable[[], Queues] = lambda: ANY_QUEUE,
        ownership: Callable[[], Ownership] = Ownership,
    ) -> None:
        self._queues = queues
        self._ownership = ownership

    def check(self, place: QueuePlace | None = None) -> None:
        """Raise the error of ``place``, if it has one; without a ``place``, if there is no room."""
        if place is None:
            self._queues().check_queue(self._ownership())
        else:
            place.check()

    def place(self) -> AbstractAsyncContextManager[QueuePlace] | None:
        """As `Queues.queue_place`."""
        return self._queues().queue_place(self._ownership())

    def changed(self) -> None:
        """As `Queues.queue_changed`."""
        self._queues().queue_changed(self._ownership())
