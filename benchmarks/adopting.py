"""How soon a server that was killed has its kernels back."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import Final

from benchmarks.chatter import all_answer
from benchmarks.clients import flood, receive_all
from benchmarks.figures import Figures
from benchmarks.servers import Server
from benchmarks.thousands import until_idle
from benchmarks.websocket import WebSocket

__all__ = ["adoption"]

TURNS: Final = 3
SAID: Final = 1000
"""Messages that each kernel has said before: what a server comes back to."""

PATIENCE: Final = 60.0
"""Seconds after which a kernel that is not back will not come."""

LOG_LINE: Final = re.compile(r"kernels adopted in ([0-9.]+) s")


def adoption(target: Server, scale: Callable[[int, int], int]) -> Figures:
    """A hundred kernels, and ``kill -9`` of their server, three times.

    ``adoption`` is the time from the start of the next server until it lists all of them as they
    were, less what a start without kernels takes; ``adoption_reply`` until each has run something
    more; ``adoption_log`` is what the server says itself.
    """
    with target.fresh() as server:
        plain = median(_start(server)[0] for _ in range(TURNS))
        kernels = [server.start_kernel("flood") for _ in range(scale(100, 10))]
        for kernel_id in kernels:
            connection = server.connect(kernel_id)
            flood(connection, SAID, 100)
            receive_all([connection], SAID)
            connection.close()
        until_idle(server, kernels, time.perf_counter() + PATIENCE)
        known = _listed(server)
        listed, replied, logged = [], [], []
        for _ in range(TURNS):
            _, began = _start(server)
            listed.append(_until(server, known, began) - plain)
            _run_one_each(server, kernels)
            replied.append(time.perf_counter() - began - plain)
            if (line := server.said(LOG_LINE)) is not None:
                logged.append(float(line[1]))
        figures = {"adoption": median(listed), "adoption_reply": median(replied)}
        return figures | ({"adoption_log": median(logged)} if logged else {})


def _start(server: Server) -> tuple[float, float]:
    """Kill it and start it anew: the seconds until it answers, and when that began."""
    server.kill()
    began = time.perf_counter()
    server.revive()
    return time.perf_counter() - began, began


def _run_one_each(server: Server, kernels: Sequence[str]) -> None:
    """Over a connection for each that is closed before the next is opened."""

    def one_by_one() -> Iterator[WebSocket]:
        for kernel_id in kernels:
            connection = server.connect(kernel_id)
            try:
                yield connection
            finally:
                connection.close()

    all_answer(one_by_one(), PATIENCE)


def _listed(server: Server) -> dict[str, tuple[str, str]]:
    """The name and the state of every kernel."""
    kernels = server.rest.request("GET", "/api/kernels")
    return {each["id"]: (each["name"], each["execution_state"]) for each in kernels}


def _until(server: Server, known: dict[str, tuple[str, str]], began: float) -> float:
    """Seconds from ``began`` until all are as they were. Raises `TimeoutError`."""
    while True:
        listed = _listed(server)
        if listed == known:
            return time.perf_counter() - began
        if time.perf_counter() - began > PATIENCE:
            same = sum(listed.get(kernel_id) == facts for kernel_id, facts in known.items())
            raise TimeoutError(f"{same} of {len(known)} kernels are as they were in {PATIENCE} s")
        time.sleep(0.02)
