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


def keeping(target: Server, scale: Callable[[int, int], int]) -> dict[str, float]:
    """Floods, in turn without a keeper and with one; nothing for any other server."""
    if target.name != "kernelkeep":
        return {}
    count = scale(MESSAGES, 1000)
    kept = kernelkeep("kernelkeep-keep", options=["--on-shutdown", "keep"]).start()
    try:
        rates: dict[str, list[float]] = {"without": [], "with": []}
        kernel_id, connection = kept.ready("flood")  # the keeper lives for as long as a kernel
        connection.close()
        before = _keeper(kept)
        for _ in range(TURNS):
            rates["without"].append(_rate(target, count))
            rates["with"].append(_rate(kept, count))
        after = _keeper(kept)
        kept.delete_kernel(kernel_id)
        without, with_keeper = median(rates["without"]), median(rates["with"])
        return {
            "keep_without_100": without,
            "keep_100": with_keeper,
            "keep_cost": 100.0 * (1 - with_keeper / without),
            "keeper_memory": before.memory / 2**20,
            "keeper_cpu": (after.cpu - before.cpu) / (TURNS * count) * 1e5,
        }
    finally:
        kept.stop()


def _rate(server: Server, count: int) -> float:
    """Messages a second of one kernel to one client."""
    kernel_id, connection = server.ready("flood")
    try:
        flood(connection, count, SIZE)
        return count / receive_all([connection], count)
    finally:
        connection.close()
        server.delete_kernel(kernel_id)


def _keeper(server: Server) -> Usage:
    """What the server's keeper has used."""
    children = psutil.Process(server.pid).children()
    (keeper,) = [child for child in children if "app.keeper" in child.cmdline()]
    return Usage(keeper.pid)
