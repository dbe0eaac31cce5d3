"""What is measured. Each measure takes a server (or the bare sockets) and returns its figures."""

from __future__ import annotations

import contextlib
import re
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from benchmarks.adopting import adoption
from benchmarks.bare import Bare
from benchmarks.chatter import all_answer, chatter, load
from benchmarks.clients import (
    QUIET_SECONDS,
    ClientTime,
    Connection,
    flood,
    receive_all,
    receive_until,
    round_trip,
)
from benchmarks.columns import BARE, BEFORE, FORWARDER, NO_FORK, OURS, STOP, WARM, is_peer
from benchmarks.figures import Figures, NotMeasured, named, percentile
from benchmarks.rest import raw_get
from benchmarks.servers import Server
from benchmarks.starting import idle_memory, starting
from benchmarks.thousands import four_thousand, thousand
from benchmarks.usage import Costs
from benchmarks.websocket import WebSocket

__all__ = ["MEASURES", "ClientLimit", "Figures", "Measure", "Scale"]

Target = Server | Bare


class ClientLimit(NotMeasured):
    """The client was busy all the time, so it was the client that was measured."""


@dataclass(frozen=True)
class Scale:
    """How much is measured: ``part`` 1 for a full run, less for a quick one."""

    part: float = 1.0

    def __call__(self, count: int, least: int = 1) -> int:
        return max(int(count * self.part), least)


@dataclass(frozen=True)
class Measure:
    """One measure; ``once`` if it takes so long that a run does it but once.

    It is made on kernelkeep, on the commit before, on the peers (unless not ``peers``), and on
    those of ``columns``: the bare ones, and kernelkeep with other settings.
    """

    name: str
    function: Callable[[Any, Scale], Figures]
    once: bool = False
    peers: bool = True
    columns: tuple[str, ...] = ()

    def is_for(self, column: str) -> bool:
        """Whether it is made on the target with this name."""
        if is_peer(column):
            return self.peers
        return column in (OURS, BEFORE, *self.columns)


T = TypeVar("T", bound=Target)


@contextlib.contextmanager
def running(target: Target, name: str, *, v1: bool = True) -> Iterator[tuple[str, Any]]:
    """A kernel that is ready, and a connection to it."""
    kernel_id, connection = target.ready(name, v1=v1)
    try:
        yield kernel_id, connection
    finally:
        connection.close()
        with contextlib.suppress(OSError, RuntimeError, ValueError):
            target.delete_kernel(kernel_id)


def _used(target: Target, before: Costs | None) -> Costs | None:
    """What was used since ``before``; nothing without a server."""
    after = target.costs()
    return None if after is None or before is None else after - before


def round_trips(target: Target, scale: Scale) -> Figures:
    """A tiny execution of the flood kernel, over both framings."""
    figures: Figures = {}
    for framing, v1 in (("v1", True), ("legacy", False)):
        if not v1 and (isinstance(target, Bare) or target.name == FORWARDER):
            continue
        with running(target, "flood", v1=v1) as (_, connection):
            before, deadline = target.costs(), time.monotonic() + 3 * scale.part + 0.5
            times: list[float] = []
            while len(times) < scale(1000, 50) and time.monotonic() < deadline:
                times.append(round_trip(connection) * 1e3)
            figures[f"round_trip_{framing}_p50"] = percentile(times, 50)
            figures[f"round_trip_{framing}_p99"] = percentile(times, 99)
            used = _used(target, before)
            if v1 and used is not None:
                figures |= used.cpu("round_trip_cpu", 1e6 / len(times))
    return figures


# Bytes of text, and messages for a fast server in a full run; the peers get a part of them.
FLOODS: Final = {"100": (100, 200_000), "10k": (10_000, 20_000), "1M": (10**6, 600)}
PEERS_PART: Final = 0.1

LARGE: Final = 50 * 10**6
LARGE_QUIET: Final = 5.0
"""Seconds without a byte after which a message of 50 MB will not come any more."""

ANSWER_SECONDS: Final = 120.0
"""For many kernels to answer once, one after the other."""

LEFT_SECONDS: Final = 5.0
"""How long after a flood what is left of its memory is looked at."""

STEADY: Final = 20_000
"""Messages a second that a small machine carries with a core to spare."""


def _count(target: Target, count: int, scale: Scale) -> int:
    return scale(int(count * (PEERS_PART if is_peer(target.name) else 1.0)), 3)


def floods(target: Target, scale: Scale) -> Figures:
    """One kernel that says as much as it can to one client; its publisher never drops."""
    return _floods(target, scale, FLOODS, v1=True)


def legacy_floods(target: Target, scale: Scale) -> Figures:
    """The same in the legacy framing."""
    return _floods(target, scale, FLOODS, v1=False)


def _floods(
    target: Target, scale: Scale, sizes: dict[str, tuple[int, int]], *, v1: bool
) -> Figures:
    figures: Figures = {}
    framing = "v1" if v1 else "legacy"
    with running(target, "flood", v1=v1) as (_, connection):
        for name, (size, most) in sizes.items():
            count = _count(target, most, scale)
            before, client = target.costs(), ClientTime()
            flood(connection, count, size)
            seconds = receive_all([connection], count)
            limited = client.is_limit and not isinstance(target, Bare)
            while connection.receive(0.2):
                pass
            connection.others.clear()
            if not connection.streams:
                raise TimeoutError(f"of {count} messages of {size} B none arrived")
            rate = connection.streams / seconds
            key = f"iopub_{framing}_{name}"
            figures[key] = rate if size == 100 else rate * size / 1e6
            figures[f"{key}_lost"] = 100.0 * (1 - connection.streams / count)
            used = _used(target, before)
            if size == 100 and used is not None:
                figures |= used.cpu(f"{key}_cpu", 1e5 / connection.streams)
            if limited:
                raise ClientLimit(f"the client was measured at {name}")
    return figures


def large_outputs(target: Target, scale: Scale) -> Figures:
    """Three messages of 50 MB in a row, three times: none waits for the one before to arrive."""
    rates, arrived, turns = [], 0, scale(3)
    with running(target, "flood") as (_, connection):
        for _ in range(turns):
            flood(connection, 3, LARGE)
            seconds = receive_all([connection], 3, quiet=LARGE_QUIET)
            while connection.receive(0.2):
                pass
            connection.others.clear()
            arrived += connection.streams
            rates.append(connection.streams * LARGE / 1e6 / seconds if connection.streams else 0.0)
    lost = 100.0 * (1 - arrived / (3 * turns))
    return {"iopub_v1_50M": percentile(rates, 50), "iopub_v1_50M_lost": lost}


def steady(target: Server, scale: Scale) -> Figures:
    """What 100,000 messages of 100 B cost at a rate at which nothing waits."""
    with running(target, "flood") as (_, connection):
        count, before = scale(5 * STEADY), target.costs()
        flood(connection, count, 100, STEADY)
        receive_all([connection], count)
        if not connection.streams:
            raise TimeoutError(f"of {count} messages none arrived")
        after = target.costs()
    figures = (after - before).cpu("steady_cpu", 1e5 / connection.streams)
    return figures | ({"keeper_memory": after.keeper.memory / 2**20} if after.keeper else {})


def ten_clients(target: Server, scale: Scale) -> Figures:
    """One kernel, ten clients: deliveries a second."""
    with running(target, "flood") as (kernel_id, first):
        connections = [first, *(target.connect(kernel_id) for _ in range(9))]
        try:
            time.sleep(0.5)
            count = _count(target, 60_000, scale)
            client = ClientTime()
            flood(first, count, 100)
            seconds = receive_all(connections, count)
            if client.is_limit:
                raise ClientLimit("the client was measured")
            return {"ten_clients": sum(connection.streams for connection in connections) / seconds}
        finally:
            for connection in connections:
                connection.close()


def opening(target: Server, scale: Scale) -> Figures:
    """From opening a WebSocket on a running kernel to the first reply."""
    times = []
    with running(target, "flood") as (kernel_id, _):
        for _ in range(scale(30, 5)):
            began = time.perf_counter()
            connection = target.connect(kernel_id)
            msg_id = connection.execute("")
            receive_until(connection, msg_id, (b'"execute_reply"',), 30)
            times.append((time.perf_counter() - began) * 1e3)
            connection.close()
    return {"open_to_reply": percentile(times, 50)}


def neighbour(target: Server, scale: Scale) -> Figures:
    """Another kernel's round trip, and REST, while one floods a client in another process."""
    figures: Figures = {}
    for name, rate in (("20000", 20_000), ("max", 0)):
        with running(target, "flood") as (_, quiet), running(target, "dropping") as (noisy_id, _):
            drain = target.drain(noisy_id)
            try:
                noisy = target.connect(noisy_id)
                flood(noisy, 10**9, 100, rate)
                noisy.close()  # the drain reads it
                trips, requests = [], []
                deadline = time.monotonic() + max(3 * scale.part, 1.0)
                while time.monotonic() < deadline:
                    trips.append(round_trip(quiet) * 1e3)
                    began = time.perf_counter()
                    target.rest.request("GET", "/api/kernels")
                    requests.append((time.perf_counter() - began) * 1e3)
            finally:
                drain.stop()
        figures[f"neighbour_{name}"] = percentile(trips, 50)
        figures[f"neighbour_rest_{name}_p50"] = percentile(requests, 50)
        figures[f"neighbour_rest_{name}_p99"] = percentile(requests, 99)
    return figures


PRINT: Final = "for i in range({count}): print(i, flush=True)"


def losses(target: Target, scale: Scale) -> Figures:
    """What does not arrive: of ipykernel, and of a publisher that drops above 1,000 messages."""
    figures: Figures = {}
    with running(target, "ipykernel") as (_, connection):
        count = scale(10_000, 1000)
        connection.streams = 0
        connection.execute(PRINT.format(count=count))
        receive_all([connection], count)
        figures["lost_ipykernel"] = 100.0 * max(1 - connection.streams / count, 0)
    for name, rate, seconds in (("40000", 40_000, 3.0), ("max", 0, 3.0)):
        with running(target, "dropping") as (_, connection):
            count = scale(int((rate or 100_000) * seconds), 20_000)
            flood(connection, count, 100, rate)
            receive_all([connection], count)
            figures[f"lost_{name}"] = 100.0 * (1 - connection.streams / count)
    return figures


def slow_reader(target: Server, scale: Scale) -> Figures:
    """Two clients, one of which reads nothing of 500 MB: what the other gets; the memory."""
    with target.fresh() as server, running(server, "flood") as (kernel_id, reader):
        stopped = server.connect(kernel_id)
        stopped.receive(1)
        before = server.costs()
        samples: list[Costs] = []
        count, size = scale(50_000, 2000), 10_000
        flood(reader, count, size)
        while reader.streams < count and reader.receive(QUIET_SECONDS):
            if reader.streams % 50 == 0:
                samples.append(server.costs() - before)
        samples.append(server.costs() - before)
        time.sleep(LEFT_SECONDS)
        left = server.costs() - before
        stopped.close()
    figures = {
        "slow_reader_lost": 100.0 * (1 - reader.streams / count),
        "slow_reader_memory": max(each.server.memory for each in samples) / 2**20,
    }
    keepers = [each.keeper.memory for each in samples if each.keeper is not None]
    if keepers:
        figures["slow_reader_memory_keeper"] = max(keepers) / 2**20
    return figures | left.figures("slow_reader_left", lambda usage: usage.memory / 2**20)


def connections(target: Server, scale: Scale) -> Figures:
    """Memory of idle connections to one kernel; how many of a thousand open in 30 s."""
    opened: list[Connection] = []
    with target.fresh() as server, running(server, "flood") as (kernel_id, _):
        before, deadline = server.usage().memory, time.monotonic() + 30
        wanted = scale(1000, 100)
        try:
            while len(opened) < wanted and time.monotonic() < deadline:
                opened.append(server.connect(kernel_id))
            time.sleep(1)
            used = server.usage().memory - before
        finally:
            for connection in opened:
                connection.close()
    return {"connection_memory": used / 1024 / len(opened), "connections": float(len(opened))}


def many_kernels(target: Server, scale: Scale) -> Figures:
    """Lists of kernels, memory, and what many quiet and many chatty kernels cost."""
    figures: Figures = {}
    most = scale(200, 20)
    with target.fresh() as server, contextlib.ExitStack() as stack:
        kernels = [server.start_kernel("flood")]
        time.sleep(1)
        before = server.costs()  # with a keeper, which lives for as long as a kernel
        for wanted in (1, 20, most):
            while len(kernels) < wanted:
                kernels.append(server.start_kernel("flood"))
            if wanted == most:
                time.sleep(2)
                more = server.costs() - before
                figures |= more.figures(
                    "kernel_memory", lambda usage: usage.memory / 1024 / (most - 1)
                )
            figures[f"list_{wanted}" if wanted < most else "list_200"] = requests(
                server, "/api/kernels", scale
            )
        figures["get_one"] = requests(server, f"/api/kernels/{kernels[0]}", scale)
        opened: list[WebSocket] = []
        for kernel_id in kernels[: most * 3 // 4]:
            opened.append(server.connect(kernel_id))
            stack.callback(opened[-1].close)
        all_answer(opened, ANSWER_SECONDS)
        for connection in opened:  # as any client: it reads on, and so answers the last ping
            while connection.receive(0.02):
                pass
        time.sleep(1)
        # As long as from one keepalive ping of a WebSocket to the next.
        figures |= named("idle", load(server, 20 * scale.part + 1))
        figures |= named("chatter", chatter(server, opened, 10, 6 * scale.part + 2))
    return figures


def requests(target: Server, path: str, scale: Scale) -> float:
    """GET requests a second, over four connections with one request on the way on each."""
    request = raw_get(target.port, path, target.headers)
    with contextlib.ExitStack() as stack:
        connections = [
            stack.enter_context(socket.create_connection(("127.0.0.1", target.port), timeout=30))
            for _ in range(4)
        ]
        for connection in connections:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.sendall(request)
        count, client, began = 0, ClientTime(), time.perf_counter()
        while time.perf_counter() - began < max(1.5 * scale.part, 0.5):
            for connection in connections:
                _read_response(connection)
                connection.sendall(request)
                count += 1
        if client.is_limit:
            raise ClientLimit("the client was measured")
        return count / (time.perf_counter() - began)


def _read_response(connection: socket.socket) -> None:
    """Read one response, whose length is in its head."""
    data = _more(connection)
    while (end := data.find(b"\r\n\r\n")) < 0:
        data += _more(connection)
    match = _LENGTH.search(data, 0, end)
    if match is None or not data.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(f"no response that can be measured: {data[:100]!r}")
    left = end + 4 + int(match[1]) - len(data)
    while left > 0:
        left -= len(_more(connection))


_LENGTH: Final = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")


def _more(connection: socket.socket) -> bytes:
    data = connection.recv(2**20)
    if not data:
        raise ConnectionError("the server closed the connection")
    return data


MEASURES: Final = (
    Measure("round trips", round_trips, columns=(BARE, FORWARDER, STOP)),
    Measure("floods", floods, columns=(BARE, FORWARDER, STOP)),
    Measure("large outputs", large_outputs, columns=(BARE, FORWARDER, STOP)),
    Measure("steady", steady, peers=False, columns=(FORWARDER, STOP)),
    Measure("legacy floods", legacy_floods),
    Measure("ten clients", ten_clients, columns=(FORWARDER, STOP)),
    Measure("opening", opening),
    Measure("neighbour", neighbour),
    Measure("starting", starting, columns=(NO_FORK, WARM)),
    Measure("losses", losses, columns=(BARE,)),
    Measure("many kernels", many_kernels, once=True, columns=(FORWARDER,)),
    Measure("thousand kernels", thousand, once=True, peers=False),
    Measure("four thousand kernels", four_thousand, once=True, peers=False),
    Measure("adoption", adoption, once=True, peers=False),
    Measure("slow reader", slow_reader, once=True),
    Measure("connections", connections, once=True),
    Measure("idle memory", idle_memory, once=True, columns=(NO_FORK, WARM)),
)
