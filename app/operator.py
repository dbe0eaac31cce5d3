"""The socket through which ``kernelkeep kernels`` speaks to a running server.

It is a Unix socket (0600) in the state directory. A process of the same user that can connect needs
no token, so that no token has to be stored. The request is one line with a JSON object, and so is
the answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from pathlib import Path
from typing import Any, Final

from .keeper.protocol import address_of, is_own_peer
from .managers.errors import KernelkeepError
from .managers.kernels.multikernel import MultiKernelManager

__all__ = ["MAX_LINE", "OLD_FILE", "SOCKET", "OperatorSocket", "open_socket"]

SOCKET: Final = "server.sock"
OLD_FILE: Final = "server.json"
"""A file that servers of older versions have left behind; it holds a token, and is removed."""

MAX_LINE: Final = 65536
ASK_SECONDS: Final = 10.0
"""How long a client may take to send its request, and again to read the answer."""


class OperatorSocket:
    """Takes the commands of one server's operator."""

    def __init__(self, state_dir: Path, kernels: MultiKernelManager) -> None:
        self._path = state_dir / SOCKET
        self._kernels = kernels
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Listen on the socket. Raises `OSError`.

        A socket that is there already is one that a dead server has left: only one server at a time
        has the state directory.
        """
        self._path.unlink(missing_ok=True)
        self._path.with_name(OLD_FILE).unlink(missing_ok=True)
        # Nobody can connect between `bind` and `chmod`: the socket does not listen yet.
        with address_of(self._path) as name:
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(name)
            os.chmod(name, 0o600)
        self._server = await asyncio.start_unix_server(self._answer, sock=listener, limit=MAX_LINE)

    def close(self) -> None:
        """Listen no longer; requests that are under way go on."""
        if self._server is not None:
            self._server.close()
            self._path.unlink(missing_ok=True)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with (
            contextlib.closing(writer),
            contextlib.suppress(OSError, TimeoutError, ValueError, RecursionError),
        ):
            if not is_own_peer(writer.get_extra_info("socket")):
                return
            # The waits for the client have bounds. The command itself (the stop of a kernel) has
            # its own, and goes on even if the client is gone meanwhile: that shows only when the
            # answer is written.
            async with asyncio.timeout(ASK_SECONDS):
                asked = json.loads(await reader.readline())
            try:
                answer = await self._do(asked)
            except KernelkeepError as error:
                answer = {"message": error.message, "code": error.code}
            writer.write(json.dumps(answer).encode() + b"\n")
            async with asyncio.timeout(ASK_SECONDS):
                await writer.drain()

    async def _do(self, asked: Any) -> dict[str, str]:
        match asked:
            case {"ask": "shut_down", "kernel_id": str(kernel_id)}:
                await self._kernels.shutdown_kernel(kernel_id)
                return {"id": kernel_id}
            case {"ask": "adopt", "file": str(file)}:
                return {"id": (await self._kernels.adopt_file(file, owned=False)).id}
        return {"message": "this server does not know what is asked of it", "code": "unknown"}


def open_socket(state_dir: Path) -> socket.socket:
    """A connection to the server that has this state directory. Raises `OSError`."""
    connection = socket.socket(socket.AF_UNIX)
    try:
        with address_of(state_dir / SOCKET) as name:
            connection.connect(name)
        if not is_own_peer(connection):
            raise PermissionError("the server is another user's")
    except BaseException:
        connection.close()
        raise
    return connection
