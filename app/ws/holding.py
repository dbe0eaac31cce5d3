"""Holding a client in its handshake until its kernel answers.

nbconvert, voila and papermill run notebooks on another server with jupyter_server's gateway client.
That client gives up a kernel that does not answer within a second of the handshake, for a Jupyter
server completes the handshake only when the kernel has answered. This server knows that client by
the missing ``session_id``.
"""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import WebSocket

from ..managers.errors import InvalidRequest, KernelNotRunning, ServerStopping
from ..managers.kernels.finding import Permission
from ..managers.kernels.kernel import Kernel
from ..managers.kernels.sharing import no_longer_shared

__all__ = ["held"]


async def held(
    websocket: WebSocket, kernel: Kernel, seconds: float, permission: Permission
) -> bool:
    """Wait until a kernel that comes up answers, at most so many seconds.

    Returns whether the client is still there; its handshake is not answered meanwhile. A kernel
    that is not coming up (it runs, is dead, or is being stopped) is not waited for. Raises
    `KernelNotFound` if the client has no ``permission`` any more, `KernelNotRunning`, with the
    reason, if the kernel dies or is shut down meanwhile, `ServerStopping`, and `InvalidRequest` if
    the client sends a frame meanwhile.
    """
    if not kernel.state.coming_up:
        return True
    await websocket.receive()  # the event `websocket.connect`
    loop = asyncio.get_running_loop()
    # Before the handshake is answered, the next event can only be that the client has gone.
    leaving: asyncio.Task[Any] = loop.create_task(websocket.receive())
    answering = loop.create_task(_came_up(kernel, permission))
    try:
        await asyncio.wait(
            {leaving, answering}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED
        )
    finally:
        leaving.cancel()
        answering.cancel()
        await asyncio.wait({leaving, answering})
    # This looks first whether the client has gone: then it is owed no answer and no error, whatever
    # has become of the kernel.
    if not leaving.cancelled():
        if leaving.result()["type"] == "websocket.disconnect":
            return False
        raise InvalidRequest("A frame has come before the handshake was answered")
    # Each of the following may have come true in the same turn of the loop, or in the waits above.
    if not permission():
        raise no_longer_shared(kernel)
    if kernel.executions.closing:
        raise ServerStopping()
    if not (kernel.state.coming_up or kernel.state.running):
        raise KernelNotRunning(kernel.state.reason or f"Kernel {kernel.id} was shut down")
    return True


async def _came_up(kernel: Kernel, permission: Permission) -> None:
    """Return when the kernel answers, or is known not to, or the client may not use it any more."""
    # Each change of the state or of the shares wakes the readers of the log. No change is missed
    # between the look at them and the wait: nothing awaits there, so no other task runs.
    while kernel.state.coming_up and not kernel.executions.closing and permission():
        await kernel.traffic.log.wait()
