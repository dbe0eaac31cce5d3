"""A lock that tells when it is held up."""

from __future__ import annotations

import threading

__all__ = ["WatchedLock"]


class WatchedLock:
    """A lock, in place of one of the code under test; ``is_wanted`` is set when a thread waits."""

    def __init__(self) -> None:
        self.is_wanted = threading.Event()
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            self.is_wanted.set()
            self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()
