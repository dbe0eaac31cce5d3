"""Giving memory back to the system after a flood.

libzmq queues what a kernel sends faster than it is read, without a bound, as nothing may be lost.
When the queue has been read, its memory stays with the C library's allocator: hundreds of megabytes
after a flood. glibc gives it back when it is told to [malloc_trim(3)]. Other C libraries have no
such call; macOS and musl give back more by themselves.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
from collections.abc import Callable
from typing import Final

__all__ = ["Memory", "anonymous_bytes"]

LOOK_SECONDS: Final = 1.0
"""How many seconds without a message pass before memory is given back."""

BUSY_LOOKS: Final = 10
"""After how many looks memory is given back although messages still come."""

SPARE_BYTES: Final = 2**24
"""How much the process may grow before memory is given back: less is soon needed again."""

_PAGE: Final = os.sysconf("SC_PAGE_SIZE")


class Memory:
    """Gives memory back when the kernels have become quiet. `close` it.

    ``used`` tells how many bytes the process has. Nothing is done, and no timer runs, while no
    message comes.
    """

    def __init__(self, used: Callable[[], int] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._used = used or anonymous_bytes
        self._trim = _malloc_trim()
        self._floor = self._used()  # what was left when it was last quiet
        self._busy_floor = self._floor  # what was left while messages came
        self._active = False
        self._looks = 0
        self._timer: asyncio.TimerHandle | None = None

    def note(self) -> None:
        """Note that messages were read in this turn of the loop."""
        # Called in every turn that reads anything: this does no more than set a flag.
        self._active = True
        if self._timer is None and self._trim is not None:
            self._timer = self._loop.call_later(LOOK_SECONDS, self._look)

    def close(self) -> None:
        """Cancel the timer: no more memory is given back."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        assert self._trim is not None
        self._looks += 1
        active, self._active = self._active, False
        if not active or self._looks >= BUSY_LOOKS:
            self._looks = 0
            # The memory that is left during a flood holds messages that wait. It is free once they
            # were read, so that figure is no floor for the time after the flood.
            floor = self._busy_floor if active else self._floor
            # Giving memory back takes up to a quarter of a millisecond per megabyte, in which no
            # kernel is read.
            if self._used() > floor + SPARE_BYTES:
                self._trim(0)
                self._busy_floor = self._used()
                if not active:
                    self._floor = self._busy_floor
        self._timer = self._loop.call_later(LOOK_SECONDS, self._look) if active else None


def anonymous_bytes() -> int:
    """The resident memory of this process that no file has; 0 where that is not told [proc(5)]."""
    try:
        with open("/proc/self/statm", "rb") as file:
            _, resident, shared, *_ = file.read().split()
    except OSError:
        return 0
    return (int(resident) - int(shared)) * _PAGE


def _malloc_trim() -> Callable[[int], int] | None:
    try:
        trim: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError):  # it is glibc's alone
        return None
    return trim
