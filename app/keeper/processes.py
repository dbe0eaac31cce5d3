"""Processes, each told apart from a later one with the same number; children and orphans."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import os
import signal
import time
from collections.abc import Callable
from typing import Final

from .looking import HAS_PROC, leader_that_writes, look, members, start_time, states_of_group
from .sights import CAN_REAP, HAS_PIDFDS, Child, Pidfd, Sight, sight

__all__ = [
    "HAS_PIDFDS",
    "HAS_PROC",
    "UNKNOWN_EXIT",
    "Process",
    "adopt_orphans",
    "child_process",
    "ended_child",
    "leader_that_writes",
    "open_pidfd",
    "open_process",
    "start_time",
    "states_of_group",
]

UNKNOWN_EXIT: Final = 256
"""In place of an exit code that nobody can tell any more. No process has it."""

POLL_SECONDS: Final = 0.3
"""Seconds between two looks at a process whose end the system does not report."""

_PROCESS_GROUP: Final = 4  # PIDFD_SIGNAL_PROCESS_GROUP, from Linux 6.9 on

_SET_CHILD_SUBREAPER: Final = 36  # prctl(2)


class Process:
    """One process, and no other that has its number later. Made by the functions below.

    ``started`` is its `start_time`; empty where that is not needed. ``is_child`` is whether it is a
    child that nobody but `exit_code` reaps. For a child with a `Child` for its sight, `watch` does
    nothing: its parent gets SIGCHLD, and asks `ended_child`.
    """

    def __init__(self, pid: int, started: str, sight: Sight, *, is_child: bool) -> None:
        self.pid = pid
        self.started = started
        self.is_child = is_child
        self._sight = sight
        self._loop: asyncio.AbstractEventLoop | None = None
        self._on_end: Callable[[], None] | None = None
        self._watched: int | None = None
        self._timer: asyncio.TimerHandle | None = None

    def has_ended(self) -> bool:
        """Whether the process has ended, reaped or not."""
        return self._sight.has_ended()

    def wait(self, seconds: float) -> bool:
        """Block until the process has ended, for so many seconds at most; whether it has."""
        deadline = time.monotonic() + seconds
        while not self.has_ended():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True

    def watch(self, on_end: Callable[[], None]) -> None:
        """Have ``on_end`` called once, by the running event loop, when the process has ended."""
        # A process that has ended already is seen all the same: a pidfd stays readable, and a queue
        # remembers (`_Kqueue`).
        self._loop = asyncio.get_running_loop()
        self._on_end = on_end
        self._watched = self._sight.fileno()
        if self._watched is not None:
            self._loop.add_reader(self._watched, self._seen)
        elif not isinstance(self._sight, Child):
            self._timer = self._loop.call_later(0, self._look_again)

    def unwatch(self) -> None:
        """Call nothing when the process ends."""
        if self._watched is not None and self._loop is not None:
            self._loop.remove_reader(self._watched)
        if self._timer is not None:
            self._timer.cancel()
        self._watched = self._timer = self._on_end = None

    def _look_again(self) -> None:
        assert self._loop is not None
        if self.has_ended():
            self._seen()
        else:
            self._timer = self._loop.call_later(POLL_SECONDS, self._look_again)

    def _seen(self) -> None:
        on_end = self._on_end
        self.unwatch()  # before the call: that may close this object, and its descriptor with it
        if on_end is not None:
            on_end()

    def signal_group(self, number: int) -> None:
        """Send a signal to the process group that the process leads, or led, and to no other.

        Raises `ProcessLookupError` when nobody is left in it.
        """
        if self.is_child:  # it is not reaped, so the number is its own
            os.killpg(self.pid, number)
            return
        # The group is signalled by the leader's pidfd, which no other process ever gets. The leader
        # may have been reaped by its parent, so its number may be another process's, while others
        # of its group live on.
        if isinstance(self._sight, Pidfd):
            try:
                signal.pidfd_send_signal(self._sight.descriptor, number, None, _PROCESS_GROUP)
                return
            except OSError as error:
                if error.errno != errno.EINVAL:  # that is what an older Linux says to the flag
                    raise
        if start_time(self.pid) not in (self.started, None):  # the number is somebody else's
            raise ProcessLookupError(errno.ESRCH, "the process group is gone")
        if HAS_PIDFDS:
            _signal_members(self.pid, number)
        else:
            # Between the look and this call the last process of the group can end, and a new one
            # get the number and lead a group of its own. Without pidfds nothing excludes that.
            # While the group has members, no new process gets its number.
            os.killpg(self.pid, number)

    def exit_code(self) -> int:
        """The exit code of the process, which has ended; minus the signal's number if one ended it.

        A child is reaped by this. Any other process has `UNKNOWN_EXIT`.
        """
        try:
            if isinstance(self._sight, Pidfd):
                ended = os.waitid(os.P_PIDFD, self._sight.descriptor, os.WEXITED)
                assert ended is not None
                return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
            if self.is_child:
                return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        except ChildProcessError:  # another process's child, which tells that one alone
            pass
        return UNKNOWN_EXIT

    def close(self) -> None:
        """Stop watching the process, and close its descriptor. The process goes on."""
        self.unwatch()
        self._sight.close()


def open_process(pid: int, started: str, *, reaping: bool = False) -> Process | None:
    """The process with this number and start time; None if it is gone.

    It may have ended and not be reaped. With ``reaping`` a child of ours is reaped by `exit_code`
    and by nobody else. Raises `OSError`, and `ValueError` for what is no process's number.
    """
    try:
        seen = sight(pid, started)
    except ProcessLookupError:
        return None
    try:
        # The race: the number may have passed to another process before the descriptor was opened.
        # This look comes after the open: if it finds the start time, the descriptor is of that very
        # process.
        found = look(pid)
    except BaseException:
        seen.close()
        raise
    if found is None or found.started != started:
        seen.close()
        return None
    is_child = reaping and found.parent == os.getpid()
    if is_child and CAN_REAP:
        seen.close()
        seen = Child(pid)
    return Process(pid, started, seen, is_child=is_child)


def child_process(pid: int, started: str = "", *, reaping: bool = False) -> Process:
    """A process that was just started here, and that nobody else reaps. Raises `OSError`.

    With ``reaping`` the caller asks `ended_child` at each SIGCHLD.
    """
    seen = Child(pid) if reaping and CAN_REAP else sight(pid, started)
    return Process(pid, started, seen, is_child=True)


def open_pidfd(pid: int, started: str) -> int | None:
    """A pidfd of the process with this number and start time; None if it is gone.

    The process may have ended and not be reaped; then the pidfd is readable.
    """
    try:
        sight = Pidfd(pid)
    except ProcessLookupError:
        return None
    if start_time(pid) == started:  # read after the pidfd was opened, see `open_process`
        return sight.descriptor
    sight.close()
    return None


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent ends. Raises `OSError`.

    Where there is no prctl(2), process 1 stays that parent.
    """
    # Kernels that a fork server has forked would otherwise be process 1's when that ends: nobody
    # would know their exit codes.
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        prctl = libc.prctl
    except AttributeError:
        return
    if prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "this process cannot adopt orphans")


def ended_child() -> int | None:
    """The number of a child that has ended, which stays to be reaped; None if there is none.

    None, too, where that cannot be asked: macOS has waitid(2) from Python 3.13 on. There each
    kernel's `Process` tells of its end.
    """
    if not hasattr(os, "waitid"):
        return None
    # WNOWAIT: to reap it here would free its number, by which its group is still to be killed.
    try:
        ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None
    return ended.si_pid if ended is not None else None


def _signal_members(pgid: int, number: int) -> None:
    """Signal a process group by the pidfds of its members, where Linux is older than 6.9."""
    # A process that one of them forks between the look and its signal is missed.
    reached = False
    for member, _ in members(pgid):
        with contextlib.suppress(ProcessLookupError):
            _signal_member(member, pgid, number)
            reached = True
    if not reached:
        raise ProcessLookupError(errno.ESRCH, "the process group is gone")


def _signal_member(member: int, pgid: int, number: int) -> None:
    # The pidfd first, as in `open_process`: the look behind it is at the process that is signalled.
    pidfd = os.pidfd_open(member)
    try:
        found = look(member)
        if found is None or found.group != pgid:
            raise ProcessLookupError(errno.ESRCH, "it has left the process group")
        signal.pidfd_send_signal(pidfd, number)
    finally:
        os.close(pidfd)
