"""Processes, told apart from others that got their number later; and whose children they are.

Linux only: it takes pidfds (5.3) and /proc.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import select
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Final

__all__ = [
    "UNKNOWN_EXIT",
    "adopt_orphans",
    "ended_child",
    "exit_code",
    "has_ended",
    "is_child",
    "leader_that_writes",
    "open_process",
    "signal_group",
    "start_time",
    "states_of_group",
]

UNKNOWN_EXIT: Final = 256
"""In place of an exit code that nobody can tell any more. No process has it."""

_PROCESS_GROUP: Final = 4  # PIDFD_SIGNAL_PROCESS_GROUP, from Linux 6.9 on

_SET_CHILD_SUBREAPER: Final = 36  # prctl(2)


def start_time(pid: int) -> str | None:
    """When a process was started, to be compared for equality only; None if there is none.

    The boot is part of it: ticks since then meet again after the next.
    """
    fields = _stat(pid)
    return None if fields is None else f"{_boot()}/{fields[19]}"


def open_process(pid: int, started: str) -> int | None:
    """A pidfd of the process with this number and start time; None if it is gone.

    The process may have ended and not be reaped; then the pidfd is readable.
    """
    try:
        pidfd = os.pidfd_open(pid)
    except OSError as error:
        if error.errno in (errno.ESRCH, errno.EINVAL):
            return None
        raise
    # Read after the pidfd was opened: who had the number then has it still, or it differs.
    if start_time(pid) == started:
        return pidfd
    os.close(pidfd)
    return None


def has_ended(pidfd: int) -> bool:
    """Whether the process has ended, reaped or not."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent ends. Raises `OSError`."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "this process cannot adopt orphans")


def is_child(pid: int) -> bool:
    """Whether the process is ours to reap."""
    fields = _stat(pid)
    return fields is not None and int(fields[1]) == os.getpid()


def leader_that_writes(pipe: Path) -> tuple[int, str] | None:
    """The session leader whose stdout is a named pipe, and its start time; None if nobody's is."""
    try:
        wanted = pipe.stat()
    except FileNotFoundError:
        return None
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or (started := start_time(int(entry))) is None:
            continue
        try:
            if os.getsid(int(entry)) == int(entry) and os.path.samestat(
                os.stat(f"/proc/{entry}/fd/1"), wanted
            ):
                return int(entry), started
        except (FileNotFoundError, ProcessLookupError, PermissionError):  # it ends, or is another's
            continue
    return None


def ended_child() -> int | None:
    """The number of a child that has ended, which stays to be reaped; None if there is none."""
    try:
        ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None
    return ended.si_pid if ended is not None else None


def exit_code(pidfd: int) -> int:
    """How a process that has ended did so, minus the number of a signal; a child is reaped.

    `UNKNOWN_EXIT` for what is no child of ours.
    """
    try:
        ended = os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
    except ChildProcessError:
        return UNKNOWN_EXIT
    assert ended is not None
    return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status


def signal_group(pidfd: int, pid: int, started: str, number: int) -> None:
    """Send a signal to the process group that the process ``pid`` leads, or led.

    ``pidfd`` and ``started`` are that process's, so that no other group of the same number is ever
    hit. Raises `ProcessLookupError` when nobody is left in it.
    """
    try:
        signal.pidfd_send_signal(pidfd, number, None, _PROCESS_GROUP)
        return
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    if start_time(pid) not in (started, None):  # the number is somebody else's by now
        raise ProcessLookupError(errno.ESRCH, "the process group is gone")
    reached = False
    for member in _members(pid):
        with contextlib.suppress(ProcessLookupError):
            _signal_member(member, pid, number)
            reached = True
    if not reached:
        raise ProcessLookupError(errno.ESRCH, "the process group is gone")


def states_of_group(pgid: int) -> dict[int, str]:
    """The processes of a process group and the state of each, as /proc has it: Z is a zombie."""
    states = {}
    try:
        for member in _members(pgid):
            fields = _stat(member)
            if fields is not None:
                states[member] = fields[0]
    except OSError:  # there is no /proc
        return {}
    return states


def _signal_member(member: int, pgid: int, number: int) -> None:
    pidfd = os.pidfd_open(member)
    try:
        fields = _stat(member)
        if fields is None or int(fields[2]) != pgid:
            raise ProcessLookupError(errno.ESRCH, "it has left the process group")
        signal.pidfd_send_signal(pidfd, number)
    finally:
        os.close(pidfd)


def _members(pgid: int) -> Iterator[int]:
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            fields = _stat(int(entry))
            if fields is not None and int(fields[2]) == pgid:
                yield int(entry)


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from the third on: state, parent, process group... [proc(5)]."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text.rpartition(")")[2].split()  # a program's name may hold anything


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
