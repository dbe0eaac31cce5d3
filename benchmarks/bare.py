"""The bare ZMQ sockets: a kernel without a server, and a client of its own sockets."""

from __future__ import annotations

import hmac
import json
import os
import secrets
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

import zmq

from benchmarks.clients import receive_until
from benchmarks.columns import BARE

__all__ = ["Bare", "BareConnection", "BareKernel"]


class Bare:
    """What `benchmarks.servers.Server` is, without a server."""

    name = BARE
    is_alive = True
    version = f"pyzmq {zmq.__version__}"

    def __init__(self, kernels: Mapping[str, Sequence[str]]) -> None:
        self._argv = kernels
        self._kernels: dict[str, BareKernel] = {}

    def start(self) -> Self:
        """Nothing to start."""
        return self

    def stop(self) -> None:
        """Kill the kernels."""
        for kernel_id in tuple(self._kernels):
            self.delete_kernel(kernel_id)

    def costs(self) -> None:
        """There is no server that could use anything."""

    def ready(self, name: str, *, v1: bool = True) -> tuple[str, BareConnection]:
        """A kernel that has answered, and a connection to it. There is only one framing."""
        if not v1:
            raise NotImplementedError("ZMQ has one framing")
        kernel_id = uuid4().hex
        kernel = self._kernels[kernel_id] = BareKernel(self._argv[name])
        return kernel_id, BareConnection(kernel.info)

    def connect(self, kernel_id: str, *, v1: bool = True) -> BareConnection:
        """One more connection."""
        assert v1, "ZMQ has one framing"
        return BareConnection(self._kernels[kernel_id].info)

    def delete_kernel(self, kernel_id: str) -> None:
        """Kill a kernel."""
        self._kernels.pop(kernel_id).stop()


class BareKernel:
    """A kernel process that nobody but its client knows."""

    def __init__(self, argv: Sequence[str]) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="bare-")
        folder = Path(self._directory.name)
        self.info: dict[str, Any] = {
            "transport": "ipc",
            "ip": str(folder / "kernel"),
            "key": secrets.token_hex(16),
            "signature_scheme": "hmac-sha256",
            **{f"{name}_port": n for n, name in enumerate(("hb", "shell", "iopub", "stdin"), 1)},
            "control_port": 5,
        }
        file = folder / "connection.json"
        file.write_text(json.dumps(self.info))
        command = [str(file) if word == "{connection_file}" else word for word in argv]
        self.process = subprocess.Popen(
            command, env={**os.environ}, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )

    def stop(self) -> None:
        """Kill it."""
        self.process.kill()
        self.process.wait(10)
        self._directory.cleanup()


class BareConnection:
    """What `benchmarks.websocket.WebSocket` is to a server, in one thread with pyzmq."""

    is_v1 = True

    def __init__(self, info: dict[str, Any]) -> None:
        self.streams = 0
        self.others: list[bytes] = []
        self.delays: list[float] | None = None
        self._key = info["key"].encode()
        self._session = uuid4().hex
        self._context = zmq.Context()
        self._iopub = self._connect(zmq.SUB, info, "iopub")
        self._iopub.subscribe(b"")
        self._shell = self._connect(zmq.DEALER, info, "shell")
        self._control = self._connect(zmq.DEALER, info, "control")
        self._poller = zmq.Poller()
        self._poller.register(self._iopub, zmq.POLLIN)
        self._poller.register(self._shell, zmq.POLLIN)
        self._nudge()

    def _connect(self, kind: int, info: dict[str, Any], name: str) -> zmq.Socket[bytes]:
        socket: zmq.Socket[bytes] = self._context.socket(kind)
        socket.rcvhwm = 0
        socket.linger = 0
        socket.reconnect_ivl = 20
        socket.connect(f"ipc://{info['ip']}-{info[f'{name}_port']}")
        return socket

    def _nudge(self) -> None:
        """Ask until iopub is heard: a subscription takes effect some time after it is made."""
        for _ in range(100):
            msg_id = self.request("kernel_info_request", {})
            try:
                receive_until(self, msg_id, [b'"idle"'], 0.3)
            except TimeoutError:
                continue
            while self.receive(0.1):
                self.others.clear()
            return
        raise TimeoutError("the kernel does not answer")

    def request(self, msg_type: str, content: dict[str, Any]) -> str:
        """Send a request; its id. A shutdown goes to control, all else to shell."""
        msg_id = uuid4().hex
        header = {
            "msg_id": msg_id,
            "msg_type": msg_type,
            "session": self._session,
            "username": "benchmark",
            "date": "2026-01-01T00:00:00.000000Z",
            "version": "5.3",
        }
        parts = [json.dumps(header).encode(), b"{}", b"{}", json.dumps(content).encode()]
        signature = hmac.digest(self._key, b"".join(parts), "sha256").hex().encode()
        socket = self._control if msg_type == "shutdown_request" else self._shell
        socket.send_multipart([b"<IDS|MSG>", signature, *parts])
        return msg_id

    def execute(self, code: str) -> str:
        """Send an ``execute_request``; its id."""
        content = {"code": code, "silent": False, "store_history": False, "allow_stdin": False}
        return self.request("execute_request", content)

    def receive(self, timeout: float | None = None) -> bool:
        """Take what has arrived; False if nothing has for ``timeout`` seconds."""
        ready = self._poller.poll(None if timeout is None else int(timeout * 1000))
        for socket, _ in ready:
            self._drain(socket)
        return bool(ready)

    def _drain(self, socket: zmq.Socket[bytes]) -> None:
        receive = socket.recv_multipart
        try:
            for _ in range(1000):
                frames = receive(zmq.NOBLOCK)
                if b'"stream"' in frames[3]:
                    self.streams += 1
                    if self.delays is not None:
                        content = frames[-1]
                        at = content.index(b"@")
                        sent = float(content[at + 1 : content.index(b" ", at)])
                        self.delays.append(time.monotonic() - sent)
                else:
                    self.others.append(b"".join(frames))
        except zmq.Again:
            pass

    def close(self) -> None:
        """Close at once."""
        self._context.destroy(linger=0)
