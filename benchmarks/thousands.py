"""A thousand kernels on one server, and four thousand: only the server is measured by them.

The kernels are a crowd (`benchmarks.crowd`), so that most of them fit into most machines.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final, TypeVar

import psutil

from benchmarks.chatter import all_answer, chatter, load, wait_for_answer
from benchmarks.crowd import DESCRIPTORS, command
from benchmarks.figures import Figures, NotMeasured, named
from benchmarks.rest import Rest
from benchmarks.servers import ROOT, Server
from benchmarks.websocket import WebSocket

__all__ = ["crowds", "four_thousand", "raise_descriptors", "thousand", "until_idle"]

CROWD: Final = 500
"""Kernels of one process."""

KERNEL_BYTES: Final = 1_500_000
"""What a kernel takes in all: in the crowd, as a process, in the server, in its keeper."""

SPARE_BYTES: Final = 2**30
"""What is to be left for everybody else."""

AT_A_TIME: Final = 8
"""Kernels that are asked for, or asked, side by side."""

START_SECONDS: Final = 240
ANSWER_SECONDS: Final = 120

Scale = Callable[[int, int], int]
In = TypeVar("In")
Out = TypeVar("Out")


def thousand(target: Server, scale: Scale) -> Figures:
    """A thousand kernels that do nothing, and that then each say something once a second."""
    count = scale(1000, 50)
    with _crowd(target, count) as (server, names), ExitStack() as stack:
        server.start_kernel(names[0])  # the keeper lives for as long as a kernel
        time.sleep(2)
        before, began = server.costs(), time.perf_counter()
        kernels = _start(server, names, count)
        until_idle(server, kernels, began + START_SECONDS)
        figures = {"thousand_start": (time.perf_counter() - began) / count * 1000}
        time.sleep(3)
        more = server.costs() - before
        figures |= more.figures("thousand_memory", lambda usage: usage.memory / 1024 / count)
        figures |= more.figures("thousand_descriptors", lambda usage: usage.descriptors / count)
        figures |= named("thousand_idle", load(server, scale(20, 2)))
        opened: list[WebSocket] = []
        for kernel_id in kernels:
            opened.append(server.connect(kernel_id))
            stack.callback(opened[-1].close)
        all_answer(opened, ANSWER_SECONDS)
        return figures | named("thousand_chatter", chatter(server, opened, 1, scale(10, 3)))


def four_thousand(target: Server, scale: Scale) -> Figures:
    """How many of four thousand kernels run something, and how long all of it takes."""
    count = scale(4000, 100)
    with _crowd(target, count) as (server, names):
        began = time.perf_counter()
        problem, answered = "", 0
        try:
            kernels = _start(server, names, count)
        except NotMeasured as error:
            problem, kernels = str(error), list(error.kernels) if isinstance(error, _Few) else []
        end = time.monotonic() + ANSWER_SECONDS
        for outcome in _side_by_side(lambda each: _answers(server, each, end), kernels):
            answered += outcome is None
            problem = problem or outcome or ""
        figures = {"four_thousand": float(answered)}
        if answered == count:
            return figures | {"four_thousand_seconds": time.perf_counter() - began}
        if not server.is_alive:
            problem = f"the server died ({problem})"
        raise NotMeasured(f"{answered:,} answered; {problem}", figures)


class _Few(NotMeasured):
    """Not all kernels were started; ``kernels`` were."""

    def __init__(self, why: str, kernels: Sequence[str]) -> None:
        super().__init__(why)
        self.kernels = tuple(kernels)


@contextmanager
def _crowd(target: Server, count: int) -> Iterator[tuple[Server, list[str]]]:
    """The server anew, and the names of the kernelspecs of a crowd that has room for so many.

    Raises `NotMeasured` when the machine has not.
    """
    with crowds(count + 1) as specs, target.fresh(specs) as server:
        yield server, list(specs)


@contextmanager
def crowds(count: int) -> Iterator[dict[str, list[str]]]:
    """Processes that serve so many kernels: kernelspecs by name, each with room for `CROWD`.

    Raises `NotMeasured` when the machine has no room for them.
    """
    _check_room(count)
    raise_descriptors()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="crowd-")))
        specs = {}
        for number in range(-(-count // CROWD)):
            fifo = folder / str(number)
            os.mkfifo(fifo, 0o600)
            crowd = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.crowd", str(fifo)],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
            )
            stack.callback(_end, crowd)
            specs[f"crowd{number}"] = command(fifo)
        yield specs


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait(30)


def _check_room(count: int) -> None:
    needed, free = count * KERNEL_BYTES + SPARE_BYTES, psutil.virtual_memory().available
    if needed > free:
        raise NotMeasured(
            f"{count:,} kernels take about {needed / 2**30:.1f} GB, and {free / 2**30:.1f} are free"
        )
    _, descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)
    if descriptors != resource.RLIM_INFINITY and descriptors < CROWD * DESCRIPTORS:
        raise NotMeasured(
            f"{CROWD} kernels in a process take {CROWD * DESCRIPTORS:,} file descriptors, "
            f"and it may have {descriptors:,}"
        )
    _, processes = resource.getrlimit(resource.RLIMIT_NPROC)
    if processes != resource.RLIM_INFINITY and processes < 2 * count:
        raise NotMeasured(f"there may be {processes:,} processes, for {count:,} kernels")


def raise_descriptors() -> None:
    """Let this process, and all that it starts, have as many file descriptors as they may."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _start(server: Server, names: Sequence[str], count: int) -> list[str]:
    """Start so many kernels; their ids.

    Raises `_Few` when one is refused, or when it takes too long.
    """
    end = time.monotonic() + START_SECONDS
    local = threading.local()
    opened: list[Rest] = []
    refused: list[str] = []

    def one(number: int) -> str | None:
        while not refused:
            try:
                if not hasattr(local, "rest"):
                    local.rest = Rest(server.port, server.headers)
                    opened.append(local.rest)
                return server.start_kernel(names[number // CROWD], rest=local.rest)
            except (OSError, RuntimeError, ValueError) as error:
                # As many starts are under way as may be: that ends by itself.
                if " 503 " not in str(error) or time.monotonic() > end:
                    refused.append(f"{type(error).__name__}: {error}")
                time.sleep(0.05)
            if time.monotonic() > end:
                refused.append(f"it took more than {START_SECONDS} s")
        return None

    try:
        kernels = [each for each in _side_by_side(one, range(count)) if each is not None]
    finally:
        for rest in opened:
            rest.close()
    if refused:
        raise _Few(f"{len(kernels):,} of {count:,} kernels were started: {refused[0]}", kernels)
    return kernels


def until_idle(server: Server, kernels: Sequence[str], end: float) -> None:
    """Until all are listed as idle. Raises `TimeoutError` at ``end`` (`time.perf_counter`)."""
    wanted = set(kernels)
    while True:
        listed = server.rest.request("GET", "/api/kernels")
        idle = {each["id"] for each in listed if each["execution_state"] == "idle"}
        if wanted <= idle:
            return
        if time.perf_counter() > end:
            raise TimeoutError(f"{len(wanted - idle):,} of {len(wanted):,} kernels are not idle")
        time.sleep(0.1)


def _answers(server: Server, kernel_id: str, end: float) -> str | None:
    """None if a kernel runs something; else why not."""
    if time.monotonic() > end:
        return f"no answer of all in {ANSWER_SECONDS} s"
    try:
        connection = server.connect(kernel_id)
        try:
            wait_for_answer(connection)
        finally:
            connection.close()
    except (OSError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def _side_by_side(function: Callable[[In], Out], items: Iterable[In]) -> list[Out]:
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        return list(pool.map(function, items))
