"""What can be seen of a process from outside, and waiting for what can only be polled."""

from __future__ import annotations

import asyncio
import gc
import inspect
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar, overload

import psutil

T = TypeVar("T")

SELDOM_SECONDS = 0.25  # between two looks at what takes long

HAS_PROC = os.path.exists("/proc/self/environ")  # psutil needs ten times as long for the same


@dataclass(frozen=True)
class Usage:
    """Counts of what a process holds; ``children`` counts descendants of every generation."""

    descriptors: int
    threads: int
    children: int


def usage(pid: int) -> Usage:
    process = psutil.Process(pid)
    return Usage(process.num_fds(), process.num_threads(), len(process.children(recursive=True)))


def own_descriptors() -> int:
    """How many descriptors the tests' own process has.

    What an earlier test has left is closed first: it would be in the middle of this one otherwise.
    """
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def read_process(pid: int, file: str) -> bytes:
    """A file of a process below /proc: ``cmdline``, for one.

    Raises:
        OSError: it has ended, or is another user's.
    """
    with open(f"/proc/{pid}/{file}", "rb", buffering=0) as opened:
        return opened.read()


def mentions(pid: int, text: str) -> bool:
    """Whether a text is in a process's command line, environment or working directory.

    A process that has ended mentions nothing, nor does one of the system's own. One that becomes
    another program just now has no command line for a moment, but its working directory.
    """
    wanted = text.encode()
    try:
        if HAS_PROC:
            return (
                wanted in read_process(pid, "cmdline")
                or wanted in read_process(pid, "environ")
                or text in os.readlink(f"/proc/{pid}/cwd")
            )
        process = psutil.Process(pid)
        words = process.cmdline()
        return bool(words) and any(
            text in said for said in (*words, *process.environ().values(), process.cwd())
        )
    except (OSError, psutil.Error):
        return False


def resident_memory(pid: int) -> int:
    """Bytes of resident memory."""
    return int(psutil.Process(pid).memory_info().rss)


def children(pid: int) -> list[psutil.Process]:
    """Descendants of every generation, but for keeper and fork servers; none if it is gone.

    The keeper comes before the first kernel, a fork server behind the first Python kernel, and they
    stay.
    """
    try:
        found = psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    ours = {*keepers(found)}
    return [process for process in found if process not in ours and not is_fork_server(process)]


def is_fork_server(process: psutil.Process) -> bool:
    """Forked kernels have its command line; but they work somewhere, and it does not."""
    try:
        return "fork_server.py" in " ".join(process.cmdline()) and process.cwd() == "/"
    except psutil.Error:
        return False


def keepers(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that keep kernels."""
    found = []
    for process in processes:
        try:
            if any(word.endswith(".keeper") for word in process.cmdline()):
                found.append(process)
        except psutil.NoSuchProcess:  # or it is a zombie
            continue
    return found


def is_alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def kill_all(processes: list[psutil.Process], timeout: float = 5) -> None:
    """SIGKILL for each, then waits until they are gone, up to ``timeout`` seconds."""
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            pass
    psutil.wait_procs(processes, timeout=timeout)


@overload
async def eventually(
    predicate: Callable[[], Awaitable[T]], timeout: float = 10, interval: float = 0.05
) -> T: ...
@overload
async def eventually(
    predicate: Callable[[], T], timeout: float = 10, interval: float = 0.05
) -> T: ...
async def eventually(
    predicate: Callable[[], Any], timeout: float = 10, interval: float = 0.05
) -> Any:
    """The first true value of ``predicate``, which may be a coroutine function.

    An AssertionError that it raises means "not yet". After ``timeout`` seconds the last
    one, or one that tells the last value, is raised. ``interval`` is the first between two looks.
    """
    began = time.monotonic()
    deadline = began + timeout
    while True:
        try:
            value = predicate()
            result = await value if inspect.isawaitable(value) else value
            if result:
                return result
            failure = AssertionError(f"still {result!r} after {timeout} s")
        except AssertionError as error:
            failure = error
        if time.monotonic() > deadline:
            raise failure
        await asyncio.sleep(_next_look(interval, began))


def eventually_sync(
    predicate: Callable[[], T],
    timeout: float = 10,
    interval: float = 0.05,
) -> T:
    """The first true value of ``predicate``, or its last value after ``timeout`` seconds."""
    began = time.monotonic()
    while not (value := predicate()) and time.monotonic() < began + timeout:
        time.sleep(_next_look(interval, began))
    return value


def _next_look(interval: float, began: float) -> float:
    """Seconds until the next look: a tenth of the time that was waited so far, within bounds.

    A look costs milliseconds of work, and many workers wait at the same time.
    """
    waited = time.monotonic() - began
    return max(interval, min(waited / 10, SELDOM_SECONDS))
