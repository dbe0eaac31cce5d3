"""Driving connections: until all has arrived, several at a time, and in a process of their own."""

from __future__ import annotations

import json
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Final, Protocol

from benchmarks.websocket import WebSocket

__all__ = [
    "QUIET_SECONDS",
    "ClientTime",
    "Connection",
    "Drain",
    "flood",
    "receive_all",
    "receive_until",
    "round_trip",
]

QUIET_SECONDS: Final = 2.0
"""After so long without a message none will come any more."""


class Connection(Protocol):
    """A client's connection: to a server (`WebSocket`), or to a kernel (`BareConnection`)."""

    streams: int
    others: list[bytes]
    delays: list[float] | None

    def execute(self, code: str) -> str: ...

    def receive(self, timeout: float | None = None) -> bool: ...

    def close(self) -> None: ...


class ClientTime:
    """Whether this process, the client, was busy nearly all the time: then it was measured."""

    def __init__(self) -> None:
        self._cpu, self._clock = time.process_time(), time.perf_counter()

    @property
    def is_limit(self) -> bool:
        """Whether more than nine tenths of the time since were spent in this process."""
        clock = time.perf_counter() - self._clock
        return time.process_time() - self._cpu > 0.9 * clock


def receive_until(
    connection: Connection, msg_id: str, marks: Sequence[bytes], timeout: float
) -> None:
    """Take messages until there is one with ``msg_id`` for each of ``marks``.

    Raises `TimeoutError` when that takes longer than ``timeout`` seconds in all.
    """
    wanted, missing = msg_id.encode(), set(marks)
    deadline = time.monotonic() + timeout
    while True:
        for frame in connection.others:
            if wanted in frame:
                missing -= {mark for mark in missing if mark in frame}
        connection.others.clear()
        if not missing:
            return
        left = deadline - time.monotonic()
        if left <= 0 or not connection.receive(left):
            raise TimeoutError(f"no {missing} in {timeout} s")


def round_trip(connection: Connection) -> float:
    """Seconds of one tiny execution, from the request until the reply and the idle status."""
    began = time.perf_counter()
    msg_id = connection.execute("")
    receive_until(connection, msg_id, (b'"execute_reply"', b'"idle"'), 30)
    return time.perf_counter() - began


def flood(connection: Connection, count: int, size: int, rate: int = 0) -> None:
    """Let the kernel send; returns when it has begun."""
    connection.streams = 0
    options = {"count": count, "size": size, **({"rate": rate} if rate else {})}
    receive_until(connection, connection.execute(json.dumps(options)), (b'"busy"',), 60)


def receive_all(
    connections: Sequence[Connection],
    count: int,
    limit: float = 60.0,
    quiet: float = QUIET_SECONDS,
) -> float:
    """Take ``count`` stream messages on each; seconds until the last one that came.

    Returns early after ``quiet`` seconds without any, and after ``limit`` seconds.
    """
    began = last = time.perf_counter()
    if len(connections) == 1:
        (only,) = connections
        while only.streams < count and only.receive(quiet):
            last = time.perf_counter()
            if last - began > limit:
                break
        return last - began
    poller = select.poll()
    by_descriptor: dict[int, WebSocket] = {}
    for connection in connections:
        assert isinstance(connection, WebSocket)
        by_descriptor[connection.socket.fileno()] = connection
        poller.register(connection.socket, select.POLLIN)
    while any(connection.streams < count for connection in connections):
        ready = poller.poll(quiet * 1000)
        for descriptor, _ in ready:
            by_descriptor[descriptor].receive(1)
        if not ready or time.perf_counter() - began > limit:
            break
        last = time.perf_counter()
    return last - began


class Drain:
    """A process that takes all that a kernel says, so that this one can measure something else."""

    def __init__(self, port: int, path: str, headers: Sequence[str]) -> None:
        command = [sys.executable, "-m", "benchmarks.clients", str(port), path, *headers]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        self._process.stdout.readline()  # it is connected

    def stop(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()


def main() -> None:
    """Be a `Drain`: PORT PATH HEADER…"""
    port, path, *headers = sys.argv[1:]
    connection = WebSocket(int(port), path, headers, v1=True)
    print("connected", flush=True)
    while connection.receive(600):
        connection.others.clear()


if __name__ == "__main__":
    main()
