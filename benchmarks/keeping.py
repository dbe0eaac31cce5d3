"""What it costs that kernels outlive the server: the data path with a keeper and without."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

import psutil

from benchmarks.clients import flood, receive_all
from benchmarks.servers import Server, Usage, kernelkeep

__all__ = ["keeping"]

TURNS = 3
SIZE = 100  # bytes of text
MESSAGES = 200_000
STEADY = 20_000
"""Messages a second that a small machine carries with a core to spare."""


def keeping(target: Server, scale: Callable[[int, int], int]) -> dict[str, float]:
    """Floods, in turn without a keeper and with one; nothing for any other server."""
    if target.name != "kernelkeep":
        return {}
    count = scale(MESSAGES, 1000)
    kept = kernelkeep("kernelkeep-keep", options=["--on-shutdown", "keep"]).start()
    try:
        rates: dict[str, list[float]] = {"without": [], "with": []}
        costs: dict[str, list[float]] = {"without": [], "with": []}
        kernel_id, connection = kept.ready("flood")  # the keeper lives for as long as a kernel
        connection.close()
        before = _keeper(kept)
        for _ in range(TURNS):
            for name, server in (("without", target), ("with", kept)):
                rates[name].append(_flood(server, count)[0])
                costs[name].append(_flood(server, count // 2, STEADY)[1])
        after = _keeper(kept)
        kept.delete_kernel(kernel_id)
        without, with_keeper = median(rates["without"]), median(rates["with"])
        return {
            "keep_without_100": without,
            "keep_100": with_keeper,
            "keep_cost": 100.0 * (1 - with_keeper / without),
            "keep_without_cpu": median(costs["without"]),
            "keep_cpu": median(costs["with"]),
            "keeper_memory": before.memory / 2**20,
            "keeper_cpu": (after.cpu - before.cpu) / (TURNS * 1.5 * count) * 1e5,
        }
    finally:
        kept.stop()


def _flood(server: Server, count: int, rate: int = 0) -> tuple[float, float]:
    """Messages a second of one kernel to one client, and the server's CPU s per 100,000."""
    kernel_id, connection = server.ready("flood")
    try:
        before = server.usage()
        flood(connection, count, SIZE, rate)
        seconds = receive_all([connection], count)
        return count / seconds, (server.usage().cpu - before.cpu) / count * 1e5
    finally:
        connection.close()
        server.delete_kernel(kernel_id)


def _keeper(server: Server) -> Usage:
    """What the server's keeper has used."""
    children = psutil.Process(server.pid).children()
    (keeper,) = [child for child in children if "app.keeper" in child.cmdline()]
    return Usage(keeper.pid)
