"""A thread for work that waits for a disk or a database, and may wait for ever."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from queue import SimpleQueue
from typing import Any, TypeVar

__all__ = ["WorkThread"]

T = TypeVar("T")


class WorkThread(Executor):
    """One thread, which does one work after the other.

    It is a daemon, unlike those of `ThreadPoolExecutor`: the end of the process, which would wait
    for those, does not wait for work that never ends.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._queue: SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = SimpleQueue()
        self._is_ended = False
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def submit(self, work: Callable[..., T], /, *arguments: Any, **options: Any) -> Future[T]:
        """Have work done behind the one before. Raises `RuntimeError` after `shutdown`."""
        if self._is_ended:
            raise RuntimeError(f"the thread {self._name} is closed")
        done: Future[T] = Future()
        self._queue.put((lambda: work(*arguments, **options), done))
        return done

    def shutdown(self, wait: bool = False, *, cancel_futures: bool = False) -> None:  # noqa: ARG002
        """Take no more; the thread ends behind the work that it has, for which nobody waits."""
        self._is_ended = True
        self._queue.put(None)

    def _run(self) -> None:
        while (found := self._queue.get()) is not None:
            work, done = found
            if not done.set_running_or_notify_cancel():
                continue
            try:
                done.set_result(work())
            except BaseException as error:
                done.set_exception(error)
