"""The least that a server can do: read a kernel's sockets, frame what was read, and write it.

Made of kernelkeep's own reading, framing and writing, and of nothing else: no signature is checked,
no message looked at, numbered, kept, limited or logged, nobody has to say who they are, and a
client that does not read is not waited for. What it costs is what Python, libzmq, uvloop and the
machine take for themselves; what kernelkeep costs more is what kernelkeep does.

A program of its own: ``python -m benchmarks.forwarder --port PORT --home DIRECTORY``.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import uvicorn
import zmq
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from app.keeper.sockets import read_frames
from app.keeper.turns import MESSAGES_ALONE
from app.protocol import v1
from app.protocol.compose import make_parts
from app.protocol.messages import ClientMessage
from app.protocol.wire import DELIMITER, LEADING_FRAMES
from app.ws.sending import EXTENSION
from app.ws.uvicorn_protocol import KernelkeepWebSocketProtocol
from benchmarks.bare import BareKernel

START_SECONDS: Final = 30


class Kernel:
    """A kernel process, its sockets, and the clients that hear it."""

    def __init__(self, argv: list[str], context: zmq.Context[Any]) -> None:
        self._process = BareKernel(argv)
        self.clients: set[KernelkeepWebSocketProtocol] = set()
        self._heard = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._sockets: dict[str, zmq.Socket[bytes]] = {}
        for channel, kind in (("iopub", zmq.SUB), ("shell", zmq.DEALER), ("control", zmq.DEALER)):
            socket: zmq.Socket[bytes] = context.socket(kind)
            self._sockets[channel] = socket
            socket.rcvhwm = socket.linger = 0
            socket.reconnect_ivl = 10
            if kind == zmq.SUB:
                socket.subscribe(b"")
            info = self._process.info
            socket.connect(f"ipc://{info['ip']}-{info[f'{channel}_port']}")
            self._loop.add_reader(int(socket.getsockopt(zmq.FD)), self._read, channel)
            self._loop.call_soon(self._read, channel)

    async def ready(self) -> None:
        """Return when its iopub is heard: a subscription takes effect some time after it is made.

        Raises `TimeoutError` when that takes too long.
        """
        async with asyncio.timeout(START_SECONDS):
            while not self._heard.is_set():
                header, parts = make_parts("kernel_info_request", {}, "benchmark")
                self.send(ClientMessage("control", header, parts))
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._heard.wait(), 0.05)

    def send(self, message: ClientMessage) -> None:
        """Send a client's message; the flood kernel does not ask for a signature."""
        socket = self._sockets[message.channel]
        socket.send_multipart([DELIMITER, b"", *message.parts], zmq.NOBLOCK)
        self._loop.call_soon(self._read, message.channel)

    def _read(self, channel: str) -> None:
        socket = self._sockets.get(channel)
        if socket is None:
            return
        leading = LEADING_FRAMES[channel]
        flags = (int(zmq.NOBLOCK),) * leading
        frames = []
        for _ in range(MESSAGES_ALONE):
            parts = read_frames(socket, flags)
            if not parts:
                break
            frames.append((v1.encode(channel, parts[leading - 3 :])[0], False))
        else:
            self._loop.call_soon(self._read, channel)
        if frames and channel == "iopub":
            self._heard.set()
        if frames and self.clients:
            chunks = KernelkeepWebSocketProtocol.join(frames)
            for client in self.clients:
                client.transport.writelines(chunks)

    def stop(self) -> None:
        """Close the sockets and kill the process."""
        for socket in self._sockets.values():
            self._loop.remove_reader(int(socket.getsockopt(zmq.FD)))
            socket.close(linger=0)
        self._sockets.clear()
        self._process.stop()


def application(home: Path) -> Starlette:
    """Starts, lists, ends and forwards kernels whose kernelspecs are below ``home``."""
    context: zmq.Context[Any] = zmq.Context()
    kernels: dict[str, Kernel] = {}

    async def start(request: Request) -> Response:
        name = (await request.json())["name"]
        spec = json.loads((home / "jupyter" / "kernels" / name / "kernel.json").read_text())
        kernel_id = uuid4().hex
        kernels[kernel_id] = kernel = Kernel(spec["argv"], context)
        await kernel.ready()
        return JSONResponse({"id": kernel_id}, 201)

    async def list_all(_: Request) -> Response:
        return JSONResponse([{"id": kernel_id} for kernel_id in kernels])

    async def get(request: Request) -> Response:
        return JSONResponse({"id": request.path_params["kernel_id"]})

    async def delete(request: Request) -> Response:
        kernels.pop(request.path_params["kernel_id"]).stop()
        return Response(status_code=204)

    async def channels(websocket: WebSocket) -> None:
        kernel = kernels[websocket.path_params["kernel_id"]]
        await websocket.accept(v1.SUBPROTOCOL)
        client: KernelkeepWebSocketProtocol = websocket.scope["extensions"][EXTENSION]
        kernel.clients.add(client)
        try:
            while True:
                kernel.send(v1.decode(await websocket.receive_bytes(), "benchmark"))
        except WebSocketDisconnect:
            pass
        finally:
            kernel.clients.discard(client)

    return Starlette(
        routes=[
            Route("/api/kernels", list_all),
            Route("/api/kernels", start, methods=["POST"]),
            Route("/api/kernels/{kernel_id}", get),
            Route("/api/kernels/{kernel_id}", delete, methods=["DELETE"]),
            WebSocketRoute("/api/kernels/{kernel_id}/channels", channels),
        ]
    )


def main() -> None:
    """Read the command line, and serve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--home", type=Path, required=True)
    arguments = parser.parse_args()
    uvicorn.run(
        application(arguments.home),
        host="127.0.0.1",
        port=arguments.port,
        ws=KernelkeepWebSocketProtocol,
        log_level="warning",
    )


if __name__ == "__main__":
    main()
