"""Many flood kernels in one process, so that thousands fit into a machine.

A program of its own: ``python -m benchmarks.crowd FIFO``. What a server starts as a kernel is a
process that writes its id and its connection file into the FIFO and then sleeps (`command`); the
crowd binds the sockets of that file, answers on them as `benchmarks.flood_kernel` does, and ends
the process when the kernel is told to shut down. So a server has a process for each kernel, which
costs a fraction of what an interpreter costs.

Messages at a rate, ``timed``, are said side by side. Any other flood holds up the whole crowd.
"""

from __future__ import annotations

import heapq
import json
import os
import selectors
import signal
import sys
import time
from itertools import count
from pathlib import Path
from typing import Any, Final

import zmq

from benchmarks.flood_kernel import FloodKernel, Request

__all__ = ["DESCRIPTORS", "command"]

MAX_SOCKETS: Final = 60_000
DESCRIPTORS: Final = 20
"""What the crowd needs for each kernel: two for each of five sockets, one for each connection."""

_START: Final = 'trap "" INT; echo "$$ $0" > "$1"; exec sleep 2147483647'


def command(fifo: Path) -> list[str]:
    """What starts a kernel of the crowd that reads from ``fifo``."""
    return ["/bin/sh", "-c", _START, "{connection_file}", str(fifo)]


class _Kernel(FloodKernel):
    """One of the crowd; ``pid`` is the process that stands for it."""

    def __init__(self, connection: dict[str, Any], context: zmq.Context[Any], pid: int) -> None:
        super().__init__(connection, 0, context)
        self.pid = pid
        self.timed: Request | None = None
        self.said = 0
        self.next = 0.0  # when it says something again, by the monotonic clock

    def descriptors(self) -> list[int]:
        """What wakes it. Its iopub is not among them: it looks itself whenever it sends."""
        return [int(each.getsockopt(zmq.FD)) for each in self._heard()]

    def _heard(self) -> tuple[zmq.Socket[bytes], ...]:
        return self._control, self._shell, self._heartbeat

    def serve_all(self) -> bool:
        """Serve all that is there; False when it was told to shut down.

        The descriptor of a socket tells that something has changed, once: so until nothing is left.
        """
        served = True
        while served:
            served = False
            for socket in self._heard():
                while int(socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
                    served = True
                    if socket is self._heartbeat:
                        socket.send(socket.recv())
                    elif not self._take(socket):
                        return False
        return True

    def _take(self, socket: zmq.Socket[bytes]) -> bool:
        request = self.receive(socket)
        if request.flood.get("timed"):
            self.timed, self.said, self.next = request, 0, time.monotonic()
            self.begin(request)
            return True
        return self.run_request(request)

    def say(self) -> bool:
        """Say what is due; whether there will be more."""
        assert self.timed is not None
        flood = self.timed.flood
        self.tick(self.timed)
        self.said += 1
        self.next += 1 / flood["rate"]
        if self.said < flood["count"]:
            return True
        self.finish(self.timed)
        self.timed = None
        return False

    def close(self) -> None:
        """Close the sockets, and end the process."""
        for socket in (*self._heard(), self._iopub, self._stdin):
            socket.close()
        try:
            os.kill(self.pid, signal.SIGTERM)
        except ProcessLookupError:
            pass


class Crowd:
    """Serves all kernels that come by way of a FIFO, for as long as the process lives."""

    def __init__(self, fifo: Path) -> None:
        self._context: zmq.Context[Any] = zmq.Context()
        self._context.set(zmq.MAX_SOCKETS, MAX_SOCKETS)
        self._selector = selectors.DefaultSelector()
        # Written to as well, so that it does not end with the first kernel that has written.
        self._fifo = os.open(fifo, os.O_RDWR | os.O_NONBLOCK)
        self._selector.register(self._fifo, selectors.EVENT_READ)
        self._read = b""
        self._due: list[tuple[float, int, _Kernel]] = []
        self._order = count()

    def run(self) -> None:
        """Serve."""
        while True:
            wait = self._due[0][0] - time.monotonic() if self._due else None
            for key, _ in self._selector.select(None if wait is None else max(wait, 0)):
                if key.data is None:
                    self._join()
                elif key.fd in self._selector.get_map():  # it may have left in this turn
                    self._serve(key.data)
            self._say()

    def _join(self) -> None:
        *lines, self._read = (self._read + os.read(self._fifo, 65536)).split(b"\n")
        for line in lines:
            pid, _, file = line.decode().partition(" ")
            kernel = _Kernel(json.loads(Path(file).read_bytes()), self._context, int(pid))
            for descriptor in kernel.descriptors():
                self._selector.register(descriptor, selectors.EVENT_READ, kernel)
            self._serve(kernel)

    def _serve(self, kernel: _Kernel) -> None:
        timed = kernel.timed
        if not kernel.serve_all():
            for descriptor in kernel.descriptors():
                self._selector.unregister(descriptor)
            kernel.timed = None
            kernel.close()
        elif kernel.timed is not None and kernel.timed is not timed:
            self._await(kernel)

    def _await(self, kernel: _Kernel) -> None:
        heapq.heappush(self._due, (kernel.next, next(self._order), kernel))

    def _say(self) -> None:
        now = time.monotonic()
        while self._due and self._due[0][0] <= now:
            at, _, kernel = heapq.heappop(self._due)
            # Not if it has left, or has been asked for something else, meanwhile.
            if kernel.timed is None or kernel.next != at:
                continue
            if kernel.say():
                self._await(kernel)
            else:
                self._serve(kernel)


def main() -> None:
    """Read the command line, and serve."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Crowd(Path(sys.argv[1])).run()


if __name__ == "__main__":
    main()
