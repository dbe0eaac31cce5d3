"""One connection to one keeper's process, and how such a process is started."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final, Protocol

import app
from app.keeper.protocol import (
    Fields,
    Garbled,
    is_own_peer,
    keeper_dir,
    pack,
    receive,
    socket_address,
)
from app.managers.errors import KeeperUnavailable

__all__ = ["ANSWER_SECONDS", "KeeperLink", "execute_keeper"]

logger = logging.getLogger(__name__)

ANSWER_SECONDS: Final = 10.0
"""How long the keeper may take for an answer."""

MAX_LOG_BYTES: Final = 2**20


class LinkOwner(Protocol):
    """Who has the connection."""

    def on_event(self, fields: Fields) -> None:
        """The keeper tells something that was not asked for."""

    def on_end(self, link: KeeperLink) -> None:
        """The connection has ended."""


class KeeperLink:
    """One connection to one keeper's process."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        greeting: Fields,
        owner: LinkOwner,
    ) -> None:
        self.protocol: int = greeting["keeper"]
        self.pid: int = greeting["pid"]
        self._reader = reader
        self._writer = writer
        self._owner = owner
        # It answers in the order in which it is asked.
        self._asked: deque[asyncio.Future[tuple[Any, bytes]]] = deque()
        self._open = True
        self._task = asyncio.get_running_loop().create_task(self._read(), name="keeper")

    @classmethod
    async def open(cls, directory: int, owner: LinkOwner) -> KeeperLink | None:
        """A connection to whoever listens; None if nobody does.

        Raises `Garbled` for what is no keeper, and `PermissionError` for somebody else's.
        """
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.setblocking(False)
        try:
            connection.connect(socket_address(directory))
        except (FileNotFoundError, ConnectionRefusedError):
            connection.close()
            return None
        except BaseException:
            connection.close()
            raise
        if not is_own_peer(connection):
            connection.close()
            raise PermissionError("a process of another user listens on its socket")
        reader, writer = await asyncio.open_unix_connection(sock=connection)
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                greeting, _ = await receive(reader)
            if type(greeting.get("keeper")) is not int or type(greeting.get("pid")) is not int:
                raise Garbled("no greeting")
            return cls(reader, writer, greeting, owner)
        except (ConnectionError, asyncio.IncompleteReadError) as error:
            writer.close()
            if getattr(error, "partial", b""):
                raise Garbled(_FOREIGN) from None
            await asyncio.sleep(0.05)  # it is about to end
            return None
        except (Garbled, TimeoutError):
            writer.close()
            raise Garbled(_FOREIGN) from None

    async def ask(self, fields: Fields) -> tuple[Any, bytes]:
        """The answer and its bytes. Raises `KeeperUnavailable`, and `OSError` as the keeper did."""
        if not self._open:
            raise KeeperUnavailable("The keeper of kernels has ended")
        answer: asyncio.Future[tuple[Any, bytes]] = asyncio.get_running_loop().create_future()
        self._asked.append(answer)
        self._writer.write(pack(fields))
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return await answer
        except TimeoutError:
            self._writer.transport.abort()
            raise KeeperUnavailable("The keeper of kernels does not answer") from None

    async def drain(self) -> list[Fields]:
        """Have it let go of its kernels and end; what it knows of them."""
        answer, _ = await self.ask({"ask": "drain"})
        await self.close()
        return list(answer)

    async def close(self) -> None:
        """Close the connection."""
        self._writer.close()
        self._task.cancel()
        await asyncio.wait({self._task})

    async def _read(self) -> None:
        try:
            while True:
                fields, data = await receive(self._reader)
                if "event" in fields:
                    self._owner.on_event(fields)
                elif self._asked:
                    _settle(self._asked.popleft(), fields, data)
        except (ConnectionError, asyncio.IncompleteReadError, Garbled) as error:
            logger.debug("the connection to the keeper has ended: %s", error)
        finally:
            self._open = False
            self._writer.close()
            for answer in self._asked:
                if not answer.done():
                    answer.set_exception(KeeperUnavailable("The keeper of kernels has ended"))
            self._owner.on_end(self)


_FOREIGN: Final = "what listens on its socket is no keeper; end that process or remove the socket"


def _settle(answer: asyncio.Future[tuple[Any, bytes]], fields: Fields, data: bytes) -> None:
    if answer.done():  # whoever asked has given up
        return
    if "answer" in fields:
        answer.set_result((fields["answer"], data))
    elif "errno" in fields:
        error = OSError(fields["errno"], fields["strerror"], fields["filename"])
        answer.set_exception(error)
    else:
        answer.set_exception(KeeperUnavailable(f"The keeper of kernels refuses: {fields['error']}"))


def execute_keeper(state_dir: Path, output: int) -> subprocess.Popen[bytes]:
    """A keeper's process, in a session of its own: no Ctrl+C of our terminal reaches it."""
    log = keeper_dir(state_dir) / "log"
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(log, flags, 0o600)
    try:
        if os.fstat(descriptor).st_size > MAX_LOG_BYTES:
            os.truncate(descriptor, 0)
        return subprocess.Popen(
            [sys.executable, "-m", "app.keeper", str(state_dir)],
            cwd="/",
            env=_environment(os.environ),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=descriptor,
            start_new_session=True,
        )
    finally:
        os.close(descriptor)


KEEPER_ENVIRONMENT: Final = (
    *("PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_*", "TZ", "TZDIR", "TMPDIR"),
    *("LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONHOME", "PYTHONUSERBASE", "PYTHONDONTWRITEBYTECODE"),
    *("PYTHONWARNINGS", "PYTHONUTF8", "PYTHONIOENCODING", "VIRTUAL_ENV"),
)
"""Variables of the server's environment that the keeper gets; * is a wildcard."""


def _environment(server: Mapping[str, str]) -> dict[str, str]:
    """What an interpreter needs to start and to find the same `app`, and nothing else.

    Code in a kernel can read the environment of its parent process. A kernel's own environment
    comes with the request to launch it.
    """
    env = {
        name: value
        for name, value in server.items()
        if any(fnmatchcase(name, pattern) for pattern in KEEPER_ENVIRONMENT)
    }
    root = str(Path(app.__file__).parents[1])
    env["PYTHONPATH"] = os.pathsep.join(filter(None, (root, env.get("PYTHONPATH"))))
    return env
