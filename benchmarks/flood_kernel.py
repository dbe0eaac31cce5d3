"""A kernel that costs next to nothing, so that what is measured is the server.

A program of its own: ``python flood_kernel.py -f CONNECTION_FILE [--hwm MESSAGES]``, with pyzmq and
nothing else. Code that is empty is a tiny execution: busy, reply, idle. Any other code is JSON:
``count`` stream messages of ``size`` bytes of text, ``rate`` a second, or as fast as it can. They
are signed before the kernel goes busy, and sent over and over. With ``timed`` they are not: each
begins with the time at which it was sent (``@`` and ``time.monotonic()``). `benchmarks.crowd` plays
many such kernels in one process.

``--hwm`` is the high-water mark of its publisher: 0 never drops a message, 1000 is what most
kernels have.
"""

from __future__ import annotations

import argparse
import hmac
import json
import signal
import time
from dataclasses import dataclass
from typing import Any, Final

import zmq

RING_MESSAGES: Final = 20_000
RING_BYTES: Final = 32 * 2**20
DELIMITER: Final = b"<IDS|MSG>"


@dataclass(frozen=True)
class Request:
    """What was asked, of whom (``socket``), by whom (``identities``); ``flood`` is what to send."""

    socket: zmq.Socket[bytes]
    identities: list[bytes]
    header: bytes
    msg_type: str
    flood: dict[str, Any]


class FloodKernel:
    """Serves one request after the other, until it is told to shut down."""

    def __init__(
        self, connection: dict[str, Any], hwm: int, context: zmq.Context[Any] | None = None
    ) -> None:
        self._key = connection["key"].encode()
        self._count = 0
        context = context or zmq.Context()
        self._iopub = self._bind(context, zmq.PUB, connection, "iopub", hwm)
        self._shell = self._bind(context, zmq.ROUTER, connection, "shell")
        self._control = self._bind(context, zmq.ROUTER, connection, "control")
        self._stdin = self._bind(context, zmq.ROUTER, connection, "stdin")
        self._heartbeat = self._bind(context, zmq.REP, connection, "hb")

    @staticmethod
    def _bind(
        context: zmq.Context[Any], kind: int, connection: dict[str, Any], name: str, hwm: int = 0
    ) -> zmq.Socket[bytes]:
        socket: zmq.Socket[bytes] = context.socket(kind)
        socket.set_hwm(hwm)
        socket.linger = 1000
        separator = "-" if connection["transport"] == "ipc" else ":"
        port = connection[f"{name}_port"]
        socket.bind(f"{connection['transport']}://{connection['ip']}{separator}{port}")
        return socket

    def run(self) -> None:
        """Serve until a shutdown request."""
        poller = zmq.Poller()
        for socket in (self._shell, self._control, self._heartbeat):
            poller.register(socket, zmq.POLLIN)
        while True:
            ready = dict(poller.poll())
            if self._heartbeat in ready:
                self._heartbeat.send(self._heartbeat.recv())
            for socket in (self._control, self._shell):
                if socket in ready and not self.run_request(self.receive(socket)):
                    return

    @staticmethod
    def receive(socket: zmq.Socket[bytes]) -> Request:
        """Take one request."""
        frames = socket.recv_multipart()
        start = frames.index(DELIMITER)
        header, content = frames[start + 2], json.loads(frames[start + 5])
        msg_type: str = json.loads(header)["msg_type"]
        flood = json.loads(content.get("code") or "{}") if msg_type == "execute_request" else {}
        return Request(socket, frames[:start], header, msg_type, flood)

    def run_request(self, request: Request) -> bool:
        """Serve one request; whether to go on."""
        flood, parent = request.flood, request.header
        ring = self._ring(flood, parent) if flood and not flood.get("timed") else []
        self.begin(request)
        running = True
        if ring:
            running = self._flood(ring, flood["count"], flood.get("rate"))
        elif flood:
            running = self._ticks(request)
        self.finish(request)
        return running and request.msg_type != "shutdown_request"

    def begin(self, request: Request) -> None:
        """Be busy with a request."""
        self._publish("status", request.header, b'{"execution_state": "busy"}')

    def finish(self, request: Request) -> None:
        """Answer a request, and be idle."""
        parent, reply = request.header, self._reply(request.msg_type)
        header = self._header(request.msg_type.removesuffix("_request") + "_reply")
        signed = self._signed(header, parent, reply)
        request.socket.send_multipart([*request.identities, DELIMITER, *signed])
        self._publish("status", parent, b'{"execution_state": "idle"}')

    @staticmethod
    def _reply(msg_type: str) -> bytes:
        if msg_type == "kernel_info_request":
            language = {"name": "flood", "version": "1", "mimetype": "", "file_extension": ""}
            return json.dumps(
                {
                    "status": "ok",
                    "protocol_version": "5.3",
                    "implementation": "flood",
                    "implementation_version": "1",
                    "language_info": language,
                    "banner": "",
                    "help_links": [],
                }
            ).encode()
        if msg_type == "shutdown_request":
            return b'{"status": "ok", "restart": false}'
        return b'{"status": "ok", "execution_count": 1, "user_expressions": {}}'

    def _ring(self, flood: dict[str, Any], parent: bytes) -> list[list[bytes]]:
        """The messages that a flood sends over and over, signed."""
        size = flood["size"]
        length = max(1, min(flood["count"], RING_MESSAGES, RING_BYTES // size))
        ring = []
        for number in range(length):
            text = f"{number} ".encode().ljust(size, b"x")
            signed = self._signed(self._header("stream"), parent, _stream(text))
            ring.append([b"stream", DELIMITER, *signed])
        return ring

    def _flood(self, ring: list[list[bytes]], count: int, rate: int | None) -> bool:
        """Send messages; whether it was not told to shut down meanwhile."""
        step = max(rate // 1000, 1) if rate else 1000  # at a rate: what is due in 1 ms
        began, sent = time.monotonic(), 0
        while sent < count:
            start = sent % len(ring)
            batch = ring[start : start + min(step, count - sent)]
            self._send(batch)
            sent += len(batch)
            if rate:
                time.sleep(max(began + sent / rate - time.monotonic(), 0))
            if self._control.poll(0):
                return self.run_request(self.receive(self._control))
        return True

    def _send(self, messages: list[list[bytes]]) -> None:
        send, more = self._iopub.send, int(zmq.SNDMORE)
        for frames in messages:
            for frame in frames[:-1]:
                send(frame, more)
            send(frames[-1])

    def _ticks(self, request: Request) -> bool:
        """Send messages at a rate; whether it was not told to shut down meanwhile."""
        rate, began = request.flood["rate"], time.monotonic()
        for number in range(request.flood["count"]):
            wait = began + number / rate - time.monotonic()
            # Below a millisecond poll() does not wait: those that are due go together.
            if wait > 0 and self._control.poll(max(int(wait * 1000), 1)):
                return self.run_request(self.receive(self._control))
            self.tick(request)
        return True

    def tick(self, request: Request) -> None:
        """Send a message that says when."""
        text = b"@%.6f " % time.monotonic()
        self._publish("stream", request.header, _stream(text.ljust(request.flood["size"], b"x")))

    def _publish(self, msg_type: str, parent: bytes, content: bytes) -> None:
        signed = self._signed(self._header(msg_type), parent, content)
        self._iopub.send_multipart([msg_type.encode(), DELIMITER, *signed])

    def _header(self, msg_type: str) -> bytes:
        self._count += 1
        return (
            b'{"msg_id": "2b6f4d08-9f1f61e2ac1d5b0c7d0b3d5e_%d", "msg_type": "%b", '
            b'"username": "flood", "session": "2b6f4d08-9f1f61e2ac1d5b0c7d0b3d5e", '
            b'"date": "2026-01-01T00:00:00.000000Z", "version": "5.3"}'
            % (self._count, msg_type.encode())
        )

    def _signed(self, header: bytes, parent: bytes, content: bytes) -> list[bytes]:
        parts = [header, parent, b"{}", content]
        signature = hmac.digest(self._key, b"".join(parts), "sha256").hex().encode()
        return [signature if self._key else b"", *parts]


def _stream(text: bytes) -> bytes:
    return b'{"name": "stdout", "text": "%b"}' % text


def main() -> None:
    """Read the command line, and serve."""
    parser = argparse.ArgumentParser()
    parser.add_argument("-f", dest="connection_file", required=True)
    parser.add_argument("--hwm", type=int, default=0)
    arguments = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with open(arguments.connection_file) as file:
        connection = json.load(file)
    FloodKernel(connection, arguments.hwm).run()


if __name__ == "__main__":
    main()
