"""Processes, told apart from others that got their number later; and whose children they are.

This module knows what the platform has to see and signal processes: Linux has pidfds (from 5.3 on)
and /proc, macOS has kqueue(2), ps(1) and lsof(8). An older Linux is asked again and again.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

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
"""How often a process is looked at where the system does not tell of its end."""

TOOL_SECONDS: Final = 5.0
"""How long ps(1) and lsof(8) may take."""

_PROCESS_GROUP: Final = 4  # PIDFD_SIGNAL_PROCESS_GROUP, from Linux 6.9 on

_SET_CHILD_SUBREAPER: Final = 36  # prctl(2)

_NO_NUMBER: Final = 2**31

_ZOMBIE: Final = "Z"  # in /proc and in ps(1)


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

HAS_PROC: Final = os.path.exists("/proc/self/stat")
"""Whether /proc is there, as Linux has it [proc(5)]."""


class _Look(NamedTuple):
    """What the system tells of one process. ``started`` is to be compared for equality only."""

    state: str
    parent: int
    group: int
    started: str


def start_time(pid: int) -> str | None:
    """When a process was started, to be compared for equality only; None if there is none.

    With /proc the boot is part of the text: ticks since then meet again after the next. Raises
    `OSError` where that cannot be told.
    """
    found = _look(pid)
    return None if found is None else found.started


class _Sight(Protocol):
    """How the end of one process is seen."""

    def fileno(self) -> int | None:
        """A descriptor that is readable from the end of the process on; None if there is none."""

    def has_ended(self) -> bool:
        """Whether the process has ended, reaped or not."""

    def close(self) -> None:
        """Let go of the descriptor."""


class _Pidfd:
    """[pidfd_open(2)]. Raises `ProcessLookupError` for no process."""

    def __init__(self, pid: int) -> None:
        try:
            self.descriptor = os.pidfd_open(pid)
        except OSError as error:
            if error.errno == errno.EINVAL:
                raise ProcessLookupError(errno.ESRCH, "there is no such process") from None
            raise

    def fileno(self) -> int:
        return self.descriptor

    def has_ended(self) -> bool:
        poll = select.poll()
        poll.register(self.descriptor, select.POLLIN)
        return bool(poll.poll(0))

    def close(self) -> None:
        os.close(self.descriptor)


class _Kqueue:
    """A queue with one filter: EVFILT_PROC, NOTE_EXIT [kqueue(2)]."""

    def __init__(self, pid: int) -> None:
        system: Any = select  # which has this on BSD and macOS only
        event = system.kevent(
            pid, system.KQ_FILTER_PROC, system.KQ_EV_ADD, fflags=system.KQ_NOTE_EXIT
        )
        self._ended = False
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
        # What is taken from the queue comes no second time.
        self._ended = self._ended or bool(self._queue.control(None, 1, 0))
        return self._ended

    def close(self) -> None:
        self._queue.close()


class _Poll:
    """For a system that does not tell of an end by itself: each look asks the system anew."""

    def __init__(self, pid: int, started: str) -> None:
        self._pid = pid
        self._started = started
        self._ended = False

    def fileno(self) -> None:
        return None

    def has_ended(self) -> bool:
        if not self._ended:
            try:
                found = _look(self._pid)
            except OSError:  # unknown is not ended
                return False
            is_another = found is not None and self._started not in ("", found.started)
            self._ended = found is None or found.state == _ZOMBIE or is_another
        return self._ended

    def close(self) -> None:
        pass


def _sight(pid: int, started: str) -> _Sight:
    if pid <= 0:
        raise ProcessLookupError(errno.ESRCH, "there is no such process")
    if pid >= _NO_NUMBER:
        raise ValueError("no process has such a number")
    if HAS_PIDFDS:
        return _Pidfd(pid)
    if hasattr(select, "kqueue"):
        return _Kqueue(pid)
    return _Poll(pid, started)


class Process:
    """One process, and no other that has its number later. Made by the functions below.

    ``started`` is its `start_time`; empty where that is not needed. ``is_child`` is whether it is a
    child that nobody but `exit_code` reaps.
    """

    def __init__(self, pid: int, started: str, sight: _Sight, *, is_child: bool) -> None:
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
        self._loop = asyncio.get_running_loop()
        self._on_end = on_end
        self._watched = self._sight.fileno()
        if self._watched is not None:
            self._loop.add_reader(self._watched, self._seen)
        else:
            self._timer = self._loop.call_later(0, self._look_again)

    def unwatch(self) -> None:
        """Have nothing called any more."""
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
        self.unwatch()
        if on_end is not None:
            on_end()

    def signal_group(self, number: int) -> None:
        """Send a signal to the process group that the process leads, or led, and to no other.

        Raises `ProcessLookupError` when nobody is left in it.
        """
        if self.is_child:  # it is not reaped, so the number is its own
            os.killpg(self.pid, number)
            return
        if isinstance(self._sight, _Pidfd):
            try:
                signal.pidfd_send_signal(self._sight.descriptor, number, None, _PROCESS_GROUP)
                return
            except OSError as error:
                if error.errno != errno.EINVAL:
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
        """How the process, which has ended, did so, minus the number of a signal; a child is
        reaped.

        `UNKNOWN_EXIT` for what is no child of ours.
        """
        try:
            if isinstance(self._sight, _Pidfd):
                ended = os.waitid(os.P_PIDFD, self._sight.descriptor, os.WEXITED)
                assert ended is not None
                return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
            if self.is_child:
                return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        except ChildProcessError:
            pass
        return UNKNOWN_EXIT

    def close(self) -> None:
        """Let go of everything but the process."""
        self.unwatch()
        self._sight.close()


def open_process(pid: int, started: str, *, reaping: bool = False) -> Process | None:
    """The process with this number and start time; None if it is gone.

    It may have ended and not be reaped. With ``reaping`` a child of ours is reaped by `exit_code`
    and by nobody else. Raises `OSError`, and `ValueError` for what is no process's number.
    """
    try:
        sight = _sight(pid, started)
    except ProcessLookupError:
        return None
    try:
        # Read after the descriptor was opened: who had the number then has it still, or it differs.
        found = _look(pid)
    except BaseException:
        sight.close()
        raise
    if found is not None and found.started == started:
        return Process(pid, started, sight, is_child=reaping and found.parent == os.getpid())
    sight.close()
    return None


def child_process(pid: int, started: str = "") -> Process:
    """A process that was just started here, and that nobody else reaps. Raises `OSError`."""
    return Process(pid, started, _sight(pid, started), is_child=True)


def open_pidfd(pid: int, started: str) -> int | None:
    """A pidfd of the process with this number and start time; None if it is gone.

    The process may have ended and not be reaped; then the pidfd is readable.
    """
    try:
        sight = _Pidfd(pid)
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
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        prctl = libc.prctl
    except AttributeError:
        return
    if prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "this process cannot adopt orphans")


def leader_that_writes(pipe: Path) -> tuple[int, str] | None:
    """The session leader whose stdout is a named pipe, and its start time; None if nobody's is.

    Raises `OSError`.
    """
    try:
        wanted = pipe.stat()
    except FileNotFoundError:
        return None
    for pid in _pids() if HAS_PROC else _holders(pipe):
        if (started := start_time(pid)) is None:
            continue
        try:
            if os.getsid(pid) == pid and (not HAS_PROC or _is_stdout(pid, wanted)):
                return pid, started
        except (FileNotFoundError, ProcessLookupError, PermissionError):  # it ends, or is another's
            continue
    return None


def _is_stdout(pid: int, wanted: os.stat_result) -> bool:
    return os.path.samestat(os.stat(f"/proc/{pid}/fd/1"), wanted)


def _holders(file: Path) -> list[int]:
    """The processes that have a file as their stdout, as lsof(8) finds them."""
    text = _run("lsof", "-a", "-d", "1", "-t", "--", str(file))
    return [int(word) for word in text.split() if word.isdigit()]


def ended_child() -> int | None:
    """The number of a child that has ended, which stays to be reaped; None if there is none.

    None, too, where that cannot be asked: macOS has waitid(2) from Python 3.13 on. There each
    kernel's `Process` tells of its end.
    """
    if not hasattr(os, "waitid"):
        return None
    try:
        ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None
    return ended.si_pid if ended is not None else None


def states_of_group(pgid: int) -> dict[int, str]:
    """The processes of a process group and the state of each, Z for a zombie; empty if unknown."""
    try:
        return dict(_members(pgid))
    except (OSError, ValueError):
        return {}


def _signal_members(pgid: int, number: int) -> None:
    """Signal a process group by the pidfds of its members, where Linux is older than 6.9."""
    reached = False
    for member, _ in _members(pgid):
        with contextlib.suppress(ProcessLookupError):
            _signal_member(member, pgid, number)
            reached = True
    if not reached:
        raise ProcessLookupError(errno.ESRCH, "the process group is gone")


def _signal_member(member: int, pgid: int, number: int) -> None:
    pidfd = os.pidfd_open(member)
    try:
        found = _look(member)
        if found is None or found.group != pgid:
            raise ProcessLookupError(errno.ESRCH, "it has left the process group")
        signal.pidfd_send_signal(pidfd, number)
    finally:
        os.close(pidfd)


def _members(pgid: int) -> Iterator[tuple[int, str]]:
    """The members of a process group and their states."""
    if HAS_PROC:
        for pid in _pids():
            found = _look(pid)
            if found is not None and found.group == pgid:
                yield pid, found.state
        return
    for line in _run("ps", "-A", "-o", "pid=", "-o", "pgid=", "-o", "state=").splitlines():
        member, group, state, *_ = line.split()
        if int(group) == pgid:
            yield int(member), state[0]


def _pids() -> Iterator[int]:
    return (int(entry) for entry in os.listdir("/proc") if entry.isdigit())


def _look(pid: int) -> _Look | None:
    """What the system tells of a process; None if there is none. Raises `OSError`."""
    return _look_in_proc(pid) if HAS_PROC else _look_by_ps(pid)


def _look_in_proc(pid: int) -> _Look | None:
    """From the fields of /proc/PID/stat from the third on [proc(5)]."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(")")[2].split()  # a program's name may hold anything
    return _Look(fields[0], int(fields[1]), int(fields[2]), f"{_boot()}/{fields[19]}")


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _look_by_ps(pid: int) -> _Look | None:
    """The start time is a calendar time in whole seconds: no number is reused within one."""
    columns = ("-o", "state=", "-o", "ppid=", "-o", "pgid=", "-o", "lstart=")
    words = _run("ps", *columns, "-p", str(pid)).split()
    if len(words) < 4:
        return None
    return _Look(words[0][0], int(words[1]), int(words[2]), "-".join(words[3:]))


def _run(tool: str, *arguments: str) -> str:
    """What a tool of the system prints. Raises `OSError` if it cannot be executed, or hangs.

    It is not the one that somebody's PATH has, and prints the same in all places.
    """
    places = (f"{directory}/{tool}" for directory in ("/bin", "/usr/bin", "/usr/sbin", "/sbin"))
    program = next(filter(os.path.exists, places), None)
    if program is None:
        raise FileNotFoundError(errno.ENOENT, "there is no such program", tool)
    try:
        # Blocks the keeper's event loop for some milliseconds. In another thread the tool would be
        # a child that `ended_child` finds, and `Service.reap` would reap it before `run` does.
        done = subprocess.run(
            [program, *arguments],
            env={"LC_ALL": "C", "TZ": "UTC0"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=TOOL_SECONDS,
            check=False,
            text=True,
            errors="replace",
        )
    except subprocess.TimeoutExpired:
        raise TimeoutError(errno.ETIMEDOUT, "no answer", tool) from None
    return done.stdout
