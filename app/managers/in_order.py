"""Calls that are made one after the other, in the threads of an executor that others use too."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from functools import partial
from threading import Lock
from typing import Any, ParamSpec, TypeVar

__all__ = ["InOrder"]

P = ParamSpec("P")
T = TypeVar("T")


class InOrder(Executor):
    """Makes the calls that it is given in their order, and never two at a time.

    What one kernel writes must not overtake itself; another kernel's has threads to itself.
    """

    def __init__(self, threads: Executor) -> None:
        self._threads = threads
        self._lock = Lock()
        self._calls: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._running = False

    def submit(  # the method of `Executor`, whose first parameter has no name to others
        self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
    ) -> Future[T]:
        """Make a call when all before it have been made."""
        future: Future[T] = Future()
        with self._lock:
            self._calls.append((future, partial(fn, *args, **kwargs)))
            if self._running:
                return future
            self._running = True
        self._threads.submit(self._run)
        return future

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._calls:
                    self._running = False
                    return
                future, call = self._calls.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(call())
            except BaseException as error:
                future.set_exception(error)
