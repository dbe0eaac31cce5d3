"""Threads for work that blocks, and that may never end: a disk hangs, or a database.

The threads are daemons. The interpreter would wait for those of a `ThreadPoolExecutor` before it
ends; so a server whose disk hangs still stops.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from functools import partial
from queue import SimpleQueue
from typing import Any, TypeVar

__all__ = ["DaemonThreads"]

T = TypeVar("T")


class DaemonThreads(Executor):
    """At most ``number`` threads, each of which does one work after the other, in their order.

    Its methods are called in one thread, the event loop's.
    """

    def __init__(self, number: int, name: str) -> None:
        self._left = number  # threads that are not started yet
        self._name = name
        self._threads: list[threading.Thread] = []
        self._queue: SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = SimpleQueue()
        self._is_ended = False

    def submit(self, work: Callable[..., T], /, *arguments: Any, **options: Any) -> Future[T]:
        """Have work done when the work submitted before has begun, and a thread is free.

        Raises `RuntimeError` after `shutdown`, and if no thread can be started now.
        """
        if self._is_ended:
            raise RuntimeError(f"the {self._name} are closed")
        # A thread that cannot be started does not count, and its work is not left in the queue: the
        # next call tries again.
        if self._left:
            thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            thread.start()
            self._left -= 1
            self._threads.append(thread)
        done: Future[T] = Future()
        self._queue.put((partial(work, *arguments, **options), done))
        return done

    def shutdown(self, wait: bool = False, *, cancel_futures: bool = False) -> None:  # noqa: ARG002
        """Take no more work; the threads end after the work that waits. This waits for none."""
        # `submit` is called in the same thread as this, so no work can come meanwhile.
        self._is_ended = True
        for _ in self._threads:
            self._queue.put(None)

    def _run(self) -> None:
        while (found := self._queue.get()) is not None:
            work, done = found
            # Work whose caller has given up before it began is not done.
            if done.set_running_or_notify_cancel():
                # Whatever the work raises goes to its future; the thread goes on with the next.
                try:
                    done.set_result(work())
                except BaseException as error:
                    done.set_exception(error)
            del work, done, found  # so that the thread holds none of them while it waits
