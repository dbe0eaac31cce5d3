"""What the processes of a kernel use of the machine, as the parent of the kernel sees it.

Where the kernel has a control group, the group counts; elsewhere Linux tells it of each process in
/proc, and macOS by ps(1). A figure that cannot be had is None.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Final, Literal, NamedTuple, Optional

import msgspec

from .groups import Group
from .looking import HAS_PROC, run_tool

__all__ = ["MAX_PROCESSES", "Usage", "load", "orphans", "processes_of", "sample"]

MAX_PROCESSES: Final = 256
"""How many processes of a kernel are looked at. Only a control group counts more of them."""

MAX_SHARED: Final = 16
"""For at most so many processes the system is asked for the part that each has of shared memory.
That takes the system up to a millisecond for each hundred megabytes."""

MAX_DESCRIPTORS: Final = 100_000

_TICKS: Final = os.sysconf("SC_CLK_TCK")
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")

MemoryKind = Literal["cgroup", "pss", "rss"]
"""How memory is counted: all that the group is charged with, files that it has read included; each
process's own and its part of what it shares; or each process's own and all that it shares."""


class Usage(msgspec.Struct, omit_defaults=True):
    """What a kernel's processes use. Memory is in bytes, processors' time in seconds."""

    cpu_seconds: Optional[float] = None
    memory: Optional[int] = None
    memory_kind: Optional[MemoryKind] = None
    owner_memory: Optional[int] = None
    processes: Optional[int] = None
    threads: Optional[int] = None
    open_files: Optional[int] = None


class Figures(NamedTuple):
    """What the system tells of one process."""

    parent: int
    session: int
    cpu_seconds: float
    resident: int
    threads: int | None


def figures(pid: int) -> Figures | None:
    """The figures of a process, from /proc/PID/stat [proc(5)]; None if there is none.

    Its time includes that of the children that it has reaped.
    """
    text = _read(f"/proc/{pid}/stat")
    fields = text.rpartition(b")")[2].split()  # a program's name may hold anything
    if len(fields) < 22:
        return None
    ticks = sum(map(int, fields[11:15]))
    return Figures(
        int(fields[1]), int(fields[3]), ticks / _TICKS, int(fields[21]) * _PAGE, int(fields[17])
    )


def processes_of(pid: int, orphans: Iterable[int] = ()) -> list[int]:
    """A kernel's process and those that come from it, `MAX_PROCESSES` at most.

    ``orphans`` are children of the keeper: those of the kernel's session are the kernel's.
    """
    # The processes are not found at one moment: one that is forked or ends meanwhile may be missed.
    # ``found`` is a dict, so that no number counts twice.
    found = {pid: None}
    for orphan in orphans:
        seen = figures(orphan) if orphan != pid else None
        if seen is not None and seen.session == pid:
            found[orphan] = None
    waiting = [*found]
    while waiting and len(found) < MAX_PROCESSES:
        for child in children_of(waiting.pop()):
            if child not in found:
                found[child] = None
                waiting.append(child)
    return [*found][:MAX_PROCESSES]


def children_of(pid: int) -> Iterator[int]:
    """The children of a process, of all its threads [proc(5), from Linux 3.5 on]."""
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return
    for thread in threads:
        yield from map(int, _read(f"/proc/{pid}/task/{thread}/children").split())


def load() -> float:
    """How many processes of this machine want to run, for each processor, in the last minute."""
    return os.getloadavg()[0] / (os.cpu_count() or 1)


def orphans() -> list[int]:
    """The children of this process."""
    return [*children_of(os.getpid())] if HAS_PROC else []


async def sample(pid: int, group: Group | None) -> Usage:
    """What a kernel uses now. After each process the event loop has its turn."""
    if not HAS_PROC:  # which blocks the loop for some milliseconds: see `run_tool`
        return _by_ps(pid, run_tool("ps", "-A", *_COLUMNS))
    pids = group.pids()[:MAX_PROCESSES] if group is not None else processes_of(pid, orphans())
    usage = await _sum(pids, shared=group is None or group.figure("memory.current") is None)
    if group is not None:
        _count_by_group(usage, group)
    return usage


async def _sum(pids: list[int], *, shared: bool) -> Usage:
    """What these processes use together. Only with ``shared`` is their memory measured."""
    usage = Usage(cpu_seconds=0.0, memory=0, processes=0, threads=0, open_files=0)
    usage.memory_kind = "pss" if len(pids) <= MAX_SHARED else "rss"
    resident = 0
    # At each await a process may end, and its number pass to another: one sample then counts a
    # process too few, or one that is none of the kernel's.
    for pid in pids:
        await asyncio.sleep(0)
        found = figures(pid)
        if found is None:
            continue
        usage.processes = (usage.processes or 0) + 1
        usage.cpu_seconds = (usage.cpu_seconds or 0) + found.cpu_seconds
        usage.threads = (usage.threads or 0) + (found.threads or 0)
        usage.open_files = _added(usage.open_files, open_files(pid))
        resident += found.resident
        if shared and usage.memory_kind == "pss":
            part = proportional_bytes(pid)
            usage.memory = _added(usage.memory, part)
            if part is None:
                usage.memory_kind = "rss"
    if usage.memory_kind == "rss":
        usage.memory = resident
    return usage


def _added(one: int | None, more: int | None) -> int | None:
    return None if one is None or more is None else one + more


def _count_by_group(usage: Usage, group: Group) -> None:
    """Take from the group what it counts itself: that includes processes that have ended."""
    spent = group.figure("cpu.stat", "usage_usec")
    if spent is not None:
        usage.cpu_seconds = spent / 1e6
    memory = group.figure("memory.current")
    if memory is not None:
        usage.memory, usage.memory_kind = memory, "cgroup"
        usage.owner_memory = group.figure("memory.current", of_owner=True)
    threads = group.figure("pids.current")
    if threads is not None:
        usage.threads = threads
    usage.processes = len(group.pids()) or usage.processes


def proportional_bytes(pid: int) -> int | None:
    """The memory of a process with its part of what it shares [proc(5), from Linux 4.14 on].

    None where that is not told; 0 for a process that has ended meanwhile.
    """
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            for line in file:
                if line.startswith(b"Pss:"):
                    return int(line.split()[1]) * 1024
    except ProcessLookupError:
        return 0
    except (OSError, ValueError):
        return None
    return 0


def open_files(pid: int) -> int | None:
    """How many descriptors a process has; None where that is not told, or there are too many."""
    # Linux does not tell this of another user's process, as where owners have accounts of their
    # own.
    directory = f"/proc/{pid}/fd"
    try:
        if count := os.stat(directory).st_size:  # Linux tells it from 6.2 on
            return count
        with os.scandir(directory) as entries:
            return sum(1 for _ in islice(entries, MAX_DESCRIPTORS))
    except FileNotFoundError:
        return 0
    except OSError:
        return None


def _read(path: str) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read()
    except OSError:
        return b""


# macOS

_COLUMNS: Final = tuple(
    word for column in ("pid", "ppid", "pgid", "time", "rss") for word in ("-o", f"{column}=")
)


def _by_ps(pid: int, text: str) -> Usage:
    """The usage of a kernel, from what ps(1) prints of all processes.

    Counted are the kernel's process, its process group, and the descendants of those.
    """
    rows = [line.split() for line in text.splitlines()]
    known = {
        int(row[0]): (int(row[1]), int(row[2]), seconds_of(row[3]), int(row[4]) * 1024)
        for row in rows
        if len(row) == 5
    }
    ours = {each for each, (_, group, _, _) in known.items() if group == pid or each == pid}
    grown = True
    while grown:
        more = {each for each, (parent, _, _, _) in known.items() if parent in ours} - ours
        ours |= more
        grown = bool(more)
    return Usage(
        cpu_seconds=sum(known[each][2] for each in ours),
        memory=sum(known[each][3] for each in ours),
        memory_kind="rss",
        processes=len(ours),
    )


def seconds_of(text: str) -> float:
    """Processors' time as ps(1) writes it: [[DAYS-]HOURS:]MINUTES:SECONDS."""
    days, _, clock = text.rpartition("-")
    seconds = 0.0
    for part in clock.split(":"):
        seconds = 60 * seconds + float(part)
    return 86400 * int(days or 0) + seconds
