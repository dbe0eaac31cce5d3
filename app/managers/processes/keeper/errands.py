"""The errands of a keeper: processes that are to be ended, and logs that are to be removed.

An errand is remembered until a keeper, this one or the next, has said that it is done.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Container
from typing import Any

from ....keeper.protocol import Fields
from ...errors import KeeperUnavailable
from .connection import Connection
from .link import ANSWER_SECONDS, KeeperLink, LinkLost

__all__ = ["Errands"]

logger = logging.getLogger(__name__)

Unwanted = tuple[str, str | int]
"""A kernel's id, and the id of its process or the name of the request that launched it."""


class Errands:
    """The errands of one keeper. ``on_done`` is called when an errand is done, or given up."""

    def __init__(self, connection: Connection, on_done: Callable[[], None]) -> None:
        self._connection = connection
        self._on_done = on_done
        self._unwanted: dict[Unwanted, Fields] = {}
        self._dropped: dict[str, Fields] = {}
        self._answers: set[asyncio.Future[Any]] = set()

    def __len__(self) -> int:
        return len(self._unwanted) + len(self._dropped)

    def end(self, kernel_id: str, **which: str | int) -> None:
        """Have a process ended: the one of ``pid``, or the one that the request ``launch`` made.

        ``launch`` is the name of the request (`Keeper.launch`). One of the two is given.
        """
        (value,) = which.values()
        what = kernel_id, value
        self._unwanted[what] = {"ask": "end", "kernel_id": kernel_id, **which}
        # While a keeper is greeted there is no open link: `tell`, at the end of the greeting, then
        # tells it of this errand.
        if (link := self._connection.open_link) is not None:
            self._tell_end(link, what)
        else:
            self._connection.recover_soon()

    def is_unwanted(self, kernel_id: str, pid: int) -> bool:
        """Whether a process is to be ended."""
        return (kernel_id, pid) in self._unwanted

    def drop(self, kernel_id: str, **which: str) -> None:
        """Have the log of a kernel that is gone removed; ``directory`` tells where it is."""
        self._dropped[kernel_id] = {"ask": "drop", "kernel_id": kernel_id, **which}
        if (link := self._connection.open_link) is not None:
            self._tell_drop(link, kernel_id)
        else:
            self._connection.recover_soon()

    def is_dropped(self, kernel_id: str) -> bool:
        """Whether a kernel's log is to go."""
        return kernel_id in self._dropped

    def keep(self, kernel_id: str) -> None:
        """Give up the removal of a log: another kernel has this id, and its log is to stay."""
        self._dropped.pop(kernel_id, None)

    def tell(self, link: KeeperLink) -> None:
        """Tell a keeper of all errands that are not done."""
        for what in [*self._unwanted]:
            self._tell_end(link, what)
        self.tell_drops(link)

    def tell_drops(self, link: KeeperLink) -> None:
        """Tell a keeper of all logs that are to go."""
        for kernel_id in [*self._dropped]:
            self._tell_drop(link, kernel_id)

    async def ended(self, link: KeeperLink) -> set[str]:
        """Have a keeper end the unwanted processes; returns the ids of kernels of which it had one.

        Raises `KeeperUnavailable` if the keeper does not answer.
        """
        answers = {what: self._tell_end(link, what) for what in [*self._unwanted]}
        if answers:
            # The answers are awaited before this keeper is asked to launch anything: otherwise the
            # process that is to be ended could be taken for the kernel's new one, or both run.
            _, late = await asyncio.wait(answers.values(), timeout=ANSWER_SECONDS)
            if late:
                raise KeeperUnavailable("The keeper of kernels does not answer")
        return {kernel_id for (kernel_id, _), answer in answers.items() if _was_done(answer)}

    async def answered(self, seconds: float) -> None:
        """Return when all ends that were told are answered, or after so many seconds."""
        if self._answers:
            await asyncio.wait(self._answers, timeout=seconds)

    def take_from(self, other: Errands, heard: Container[str]) -> None:
        """Take the errands of a keeper that is gone; logs of kernels ``heard`` here are to stay."""
        self._unwanted |= other._unwanted
        # While the other keeper was dying, a kernel may have been deleted there, and another have
        # been started here under the same id. Both have their log in the same directory.
        self._dropped |= {each: drop for each, drop in other._dropped.items() if each not in heard}
        other._unwanted.clear()
        other._dropped.clear()

    def _tell_drop(self, link: KeeperLink, kernel_id: str) -> None:
        def on_answer(answer: asyncio.Future[Any]) -> None:
            # An errand without an answer stays, and the greeting of the next link tells it again.
            # An errand that is refused would be refused again: it is given up.
            error = answer.exception()
            if isinstance(error, LinkLost):
                return
            # Another kernel of this id may have been dropped meanwhile, whose answer comes later.
            if self._dropped.get(kernel_id) is asked:
                del self._dropped[kernel_id]
            if error is not None:
                logger.error("kernel %s: its log stays: %s", kernel_id, error)
            self._on_done()

        asked = self._dropped[kernel_id]
        link.tell(asked).add_done_callback(on_answer)

    def _tell_end(self, link: KeeperLink, what: Unwanted) -> asyncio.Future[Any]:
        def on_answer(answer: asyncio.Future[Any]) -> None:
            error = answer.exception()
            if isinstance(error, OSError):  # the keeper may be short of memory or descriptors now
                self._connection.retry(self._end_again, what)
            elif not isinstance(error, LinkLost):
                self._unwanted.pop(what, None)
                self._on_done()

        # Nothing cancels this future, as `asyncio.wait` does not cancel what it waits for. So the
        # callbacks may call `exception`.
        answer = link.tell(self._unwanted[what])
        answer.add_done_callback(on_answer)
        self._answers.add(answer)
        answer.add_done_callback(self._answers.discard)
        return answer

    def _end_again(self, what: Unwanted) -> None:
        link = self._connection.open_link
        if what in self._unwanted and link is not None:
            self._tell_end(link, what)


def _was_done(answer: asyncio.Future[tuple[Any, bytes]]) -> bool:
    return answer.exception() is None and answer.result()[0] is True
