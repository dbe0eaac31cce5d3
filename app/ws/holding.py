"""Holding a client in its handshake until its kernel answers.

jupyter_server's gateway client, with which nbconvert, voila and papermill run notebooks elsewhere,
gives up a kernel that does not answer within a second of the handshake: a Jupyter server ends the
handshake when the kernel has answered. That client is known by bringing no session.
"""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import WebSocket

from ..managers.errors import InvalidRequest, KernelNotRunning, ServerStopping
from ..managers.kernels.kernel import Kernel

__all__ = ["held"]


async def held(websocket: WebSocket, kernel: Kernel, seconds: float) -> bool:
    """Wait for the kernel to answer, at most so many seconds; whether the client is still there.

    The handshake is not answered meanwhile. Of a kernel that is not about to answer (it runs, is
    dead, or is being stopped) nothing is waited for. Raises `KernelNotRunning`, with the reason,
    when the kernel dies or is shut down meanwhile, `ServerStopping`, and `InvalidRequest` for a
    client that does not wait itself.
    """
    if not kernel.state.coming_up:
        return True
    await websocket.receive()  # the request for the handshake
    loop = asyncio.get_running_loop()
    # A server hands out nothing else before the handshake is answered.
    leaving: asyncio.Task[Any] = loop.create_task(websocket.receive())
    answering = loop.create_task(_came_up(kernel))
    try:
        await asyncio.wait(
            {leaving, answering}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED
        )
    finally:
        leaving.cancel()
        answering.cancel()
        await asyncio.wait({leaving, answering})
    if not leaving.cancelled():
        if leaving.result()["type"] == "websocket.disconnect":
            return False
        raise InvalidRequest("A frame has come before the handshake was answered")
    if kernel.executions.closing:
        raise ServerStopping()
    if not (kernel.state.coming_up or kernel.state.running):
        raise KernelNotRunning(kernel.state.reason or f"Kernel {kernel.id} was shut down")
    return True


async def _came_up(kernel: Kernel) -> None:
    """Return when the kernel answers, or will not. Each change is announced in its log."""
    while kernel.state.coming_up and not kernel.executions.closing:
        await kernel.traffic.log.wait()
