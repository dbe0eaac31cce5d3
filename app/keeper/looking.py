"""What the system tells of processes: Linux by /proc, macOS by ps(1) and lsof(8)."""

from __future__ import annotations

import errno
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

__all__ = [
    "HAS_PROC",
    "ZOMBIE",
    "leader_that_writes",
    "look",
    "members",
    "run_tool",
    "start_time",
    "states_of_group",
    "user_of",
]

TOOL_SECONDS: Final = 5.0
"""How long ps(1) and lsof(8) may take."""

_USERS: Final = re.compile(r"^Uid:\s+([0-9]+)", re.MULTILINE)  # in /proc/PID/status

ZOMBIE: Final = "Z"  # in /proc and in ps(1)

HAS_PROC: Final = os.path.exists("/proc/self/stat")
"""Whether /proc is there, as Linux has it [proc(5)]."""


class Look(NamedTuple):
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
    found = look(pid)
    return None if found is None else found.started


def leader_that_writes(pipe: Path) -> tuple[int, str] | None:
    """The session leader whose stdout is a named pipe, and its start time; None if nobody's is.

    Raises `OSError`.
    """
    try:
        wanted = pipe.stat()
    except FileNotFoundError:
        return None
    for pid in _pids() if HAS_PROC else _holders(pipe):
        # The start time is read before the rest is looked at. If the number passes to another
        # process in between, whoever opens the process finds another start time (`open_process`).
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
    text = run_tool("lsof", "-a", "-d", "1", "-t", "--", str(file))
    return [int(word) for word in text.split() if word.isdigit()]


def user_of(pid: int) -> int | None:
    """The real user of a process; None if there is no process, or no /proc to tell that."""
    try:
        text = Path(f"/proc/{pid}/status").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    found = _USERS.search(text)
    return int(found[1]) if found is not None else None


def states_of_group(pgid: int) -> dict[int, str]:
    """The processes of a process group and the state of each, Z for a zombie; empty if unknown."""
    try:
        return dict(members(pgid))
    except (OSError, ValueError):
        return {}


def members(pgid: int) -> Iterator[tuple[int, str]]:
    """The members of a process group and their states."""
    if HAS_PROC:
        for pid in _pids():
            found = look(pid)
            if found is not None and found.group == pgid:
                yield pid, found.state
        return
    for line in run_tool("ps", "-A", "-o", "pid=", "-o", "pgid=", "-o", "state=").splitlines():
        member, group, state, *_ = line.split()
        if int(group) == pgid:
            yield int(member), state[0]


def _pids() -> Iterator[int]:
    return (int(entry) for entry in os.listdir("/proc") if entry.isdigit())


def look(pid: int) -> Look | None:
    """What the system tells of a process; None if there is none. Raises `OSError`."""
    return _look_in_proc(pid) if HAS_PROC else _look_by_ps(pid)


def _look_in_proc(pid: int) -> Look | None:
    """From the fields of /proc/PID/stat from the third on [proc(5)]."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(")")[2].split()  # a program's name may hold anything
    return Look(fields[0], int(fields[1]), int(fields[2]), f"{_boot()}/{fields[19]}")


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _look_by_ps(pid: int) -> Look | None:
    """The start time is a calendar time in whole seconds: no number is reused within one."""
    columns = ("-o", "state=", "-o", "ppid=", "-o", "pgid=", "-o", "lstart=")
    words = run_tool("ps", *columns, "-p", str(pid)).split()
    if len(words) < 4:
        return None
    return Look(words[0][0], int(words[1]), int(words[2]), "-".join(words[3:]))


def run_tool(tool: str, *arguments: str) -> str:
    """What a tool of the system prints. Raises `OSError` if it cannot be executed, or hangs.

    PATH does not count, and the locale is C, so that the tool prints the same everywhere.
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
