"""Many kernels that each say little: what a server uses for them, and how late it is."""

from __future__ import annotations

import json
import select
import time
from collections.abc import Iterable, Sequence

from benchmarks.clients import receive_until
from benchmarks.figures import Figures, percentile
from benchmarks.servers import Server
from benchmarks.websocket import WebSocket

__all__ = ["all_answer", "chatter", "load", "wait_for_answer"]


def chatter(target: Server, opened: Sequence[WebSocket], rate: int, seconds: float) -> Figures:
    """Each kernel says something ``rate`` times a second; they do not all begin in one instant.

    The CPU as ``cpu`` in percent of a core, and the delay of messages in ms as ``p99``.
    """
    code = json.dumps({"count": 10**6, "size": 100, "rate": rate, "timed": True})
    poller = select.poll()
    by_descriptor = {}
    for connection in opened:
        connection.execute(code)
        time.sleep(1 / rate / len(opened))
        by_descriptor[connection.socket.fileno()] = connection
        poller.register(connection.socket, select.POLLIN)
    deadline = time.monotonic() + 1  # until all have begun
    for end in (deadline, deadline + seconds):
        for connection in opened:
            connection.delays = []
        before, began = target.costs(), time.perf_counter()
        while time.monotonic() < end:
            for descriptor, _ in poller.poll(100):
                by_descriptor[descriptor].receive(1)
    figures = (target.costs() - before).cpu("cpu", 100 / (time.perf_counter() - began))
    delays = [delay * 1e3 for connection in opened for delay in connection.delays or ()]
    return figures | {"p99": percentile(delays, 99)}


def load(target: Server, seconds: float) -> Figures:
    """The CPU, as ``cpu`` in percent of a core, over some seconds in which nothing is asked."""
    before, began = target.costs(), time.perf_counter()
    time.sleep(seconds)
    return (target.costs() - before).cpu("cpu", 100 / (time.perf_counter() - began))


def all_answer(connections: Iterable[WebSocket], seconds: float) -> None:
    """Until a request on each is answered. Raises `TimeoutError` when that takes longer in all."""
    end = time.monotonic() + seconds
    for connection in connections:
        wait_for_answer(connection)
        if time.monotonic() > end:
            raise TimeoutError(f"the kernels have not all answered in {seconds:.0f} s")


def wait_for_answer(connection: WebSocket) -> None:
    """Until a request is answered: some servers lose the first. Raises `TimeoutError`."""
    for _ in range(6):
        try:
            receive_until(connection, connection.execute(""), (b'"execute_reply"',), 10)
            return
        except TimeoutError:
            continue
    raise TimeoutError("a kernel does not answer")
