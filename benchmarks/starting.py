"""What it takes to start kernels, and what fifty of them take when they do nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from typing import Final

from benchmarks.clients import Connection, receive_until
from benchmarks.servers import Server

__all__ = ["idle_memory", "starting"]

REFILL_SECONDS: Final = 1.5
"""Between two starts: what was claimed is replaced meanwhile, as it is between two people."""

Scale = Callable[[int, int], int]


def starting(target: Server, scale: Scale) -> dict[str, float]:
    """ipykernel to the 201 and to the first reply; a restart; twenty at once, side by side.

    From the second start on: the first is not counted, and what it brings up has some time. Each
    kernel of ours has a new directory and a new environment.
    """
    answers, replies, restarts = [], [], []
    _gone(target, [_timed(target)[2]])  # the first pays for what is read from the disk
    for _ in range(scale(5, 2)):
        time.sleep(REFILL_SECONDS)
        answered, replied, kernel_id = _timed(target)
        answers.append(answered * 1e3)
        replies.append(replied * 1e3)
        began = time.perf_counter()
        target.rest.request("POST", f"/api/kernels/{kernel_id}/restart", {})
        first_reply(target, kernel_id).close()
        restarts.append((time.perf_counter() - began) * 1e3)
        _gone(target, [kernel_id])
    figures = {
        "start_to_201": median(answers),
        "start_to_reply": median(replies),
        "restart_to_reply": median(restarts),
    }
    count = scale(20, 5)
    with ThreadPoolExecutor(count) as pool:
        began = time.perf_counter()
        kernels = [kernel_id for *_, kernel_id in pool.map(_timed, [target] * count)]
        figures["twenty_starts"] = time.perf_counter() - began
    _gone(target, kernels)
    return figures


def idle_memory(target: Server, scale: Scale) -> dict[str, float]:
    """What the kernels, and what they are forked from, take in memory of their own (PSS)."""
    kernels: list[str] = []
    for _ in range(scale(50, 5)):
        kernel_id = target.start_kernel("ipykernel")
        kernels.append(kernel_id)
        first_reply(target, kernel_id).close()
    time.sleep(2)
    pss = sum(process.memory_full_info().pss for process in target.kernels())
    _gone(target, kernels)
    return {"idle_kernels_pss": pss / 1e6 / len(kernels) * 50}


def _timed(target: Server) -> tuple[float, float, str]:
    """Seconds to the 201 and to the first reply of a new kernel, and its id."""
    began = time.perf_counter()
    kernel_id = target.start_kernel("ipykernel", anew=True)
    answered = time.perf_counter() - began
    first_reply(target, kernel_id).close()
    return answered, time.perf_counter() - began, kernel_id


def first_reply(target: Server, kernel_id: str) -> Connection:
    """A connection on which a kernel has answered."""
    connection = target.connect(kernel_id)
    receive_until(connection, connection.execute("1"), (b'"execute_reply"',), 90)
    return connection


def _gone(target: Server, kernels: Sequence[str]) -> None:
    for kernel_id in kernels:
        target.delete_kernel(kernel_id)
