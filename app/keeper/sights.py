"""How the end of one process is seen: by a pidfd, a kqueue, as its parent, or by looking again.

Linux has pidfds (from 5.3 on), macOS has kqueue(2). An older Linux is asked again and again.
"""

from __future__ import annotations

import errno
import os
import select
import signal
from typing import Any, Final, Protocol

from .looking import ZOMBIE, look

__all__ = ["CAN_REAP", "HAS_PIDFDS", "Child", "Pidfd", "Sight", "sight"]

_NO_NUMBER: Final = 2**31

CAN_REAP: Final = hasattr(os, "waitid")
"""Whether a parent can ask which of its children have ended (`app.keeper.processes.ended_child`).
macOS has waitid(2) from Python 3.13 on."""


def _has_pidfds() -> bool:
    if not hasattr(os, "pidfd_open") or not hasattr(signal, "pidfd_send_signal"):
        return False
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError as error:  # an older Linux than the one that Python was built on
        return error.errno not in (errno.ENOSYS, errno.EPERM)
    return True


HAS_PIDFDS: Final = _has_pidfds()
"""Whether a process can be held by a descriptor, which no other process ever gets."""


class Sight(Protocol):
    """How the end of one process is seen."""

    def fileno(self) -> int | None:
        """A descriptor that is readable from the end of the process on; None if there is none."""

    def has_ended(self) -> bool:
        """Whether the process has ended, reaped or not."""

    def close(self) -> None:
        """Let go of the descriptor."""


class Pidfd:
    """A process seen by a pidfd [pidfd_open(2)]. Raises `ProcessLookupError` if there is none."""

    def __init__(self, pid: int) -> None:
        try:
            self.descriptor = os.pidfd_open(pid)
        except OSError as error:
            if error.errno == errno.EINVAL:  # a thread's number, which is no process's
                raise ProcessLookupError(errno.ESRCH, "there is no such process") from None
            raise

    def fileno(self) -> int:
        return self.descriptor

    def has_ended(self) -> bool:
        # poll(2), as select(2) takes no descriptor from 1024 on.
        poll = select.poll()
        poll.register(self.descriptor, select.POLLIN)
        return bool(poll.poll(0))

    def close(self) -> None:
        os.close(self.descriptor)


class _Kqueue:
    """A process seen by a queue with one filter: EVFILT_PROC, NOTE_EXIT [kqueue(2)]."""

    def __init__(self, pid: int) -> None:
        system: Any = select  # which has this on BSD and macOS only
        event = system.kevent(
            pid, system.KQ_FILTER_PROC, system.KQ_EV_ADD, fflags=system.KQ_NOTE_EXIT
        )
        self._ended = False
        # From `control` on, no end is missed. `open_process` looks afterwards whether the number is
        # still that of the process which is meant.
        self._queue = system.kqueue()
        try:
            self._queue.control([event], 0)
        except ProcessLookupError:  # macOS does so for a process that has ended and is not reaped
            self._ended = True
        except BaseException:
            self._queue.close()
            raise

    def fileno(self) -> int | None:
        return None if self._ended else int(self._queue.fileno())

    def has_ended(self) -> bool:
        # The queue reports the end only once, so that is remembered here.
        self._ended = self._ended or bool(self._queue.control(None, 1, 0))
        return self._ended

    def close(self) -> None:
        self._queue.close()


class Child:
    """A child of this process, whose parent hears of its end by SIGCHLD. Needs `CAN_REAP`.

    It takes no descriptor: until it is reaped, nobody else gets its number.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._ended = False

    def fileno(self) -> None:
        return None

    def has_ended(self) -> bool:
        if not self._ended:
            try:
                found = os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:  # it is reaped
                self._ended = True
            else:
                self._ended = found is not None
        # Remembered: once it is reaped the number may be that of another child.
        return self._ended

    def close(self) -> None:
        pass


class _Poll:
    """A process on a system that does not report its end: each look asks the system anew."""

    def __init__(self, pid: int, started: str) -> None:
        self._pid = pid
        self._started = started
        self._ended = False

    def fileno(self) -> None:
        return None

    def has_ended(self) -> bool:
        if not self._ended:
            try:
                found = look(self._pid)
            except OSError:  # unknown is not ended
                return False
            is_another = found is not None and self._started not in ("", found.started)
            self._ended = found is None or found.state == ZOMBIE or is_another
        return self._ended

    def close(self) -> None:
        pass


def sight(pid: int, started: str) -> Sight:
    """The best that the platform has for a process that need not be a child.

    Raises `ProcessLookupError` if there is no such process, `ValueError` if ``pid`` cannot be the
    number of a process, and `OSError`.
    """
    if pid <= 0:
        raise ProcessLookupError(errno.ESRCH, "there is no such process")
    if pid >= _NO_NUMBER:
        raise ValueError("no process has such a number")
    if HAS_PIDFDS:
        return Pidfd(pid)
    if hasattr(select, "kqueue"):
        return _Kqueue(pid)
    return _Poll(pid, started)
