"""Keepers that dial in, without an engine: they are processes of this machine.

It is the service's side of it, in this process, in a directory that another can take over.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from app.managers.log.entries import Position
from app.managers.messages.traffic import Traffic
from app.managers.processes.hosts.authority import Authority
from app.managers.processes.hosts.joined_place import JoinedPlace
from app.managers.processes.hosts.joining import Joining, Replicas
from app.managers.processes.keeper.client import Keeper
from app.managers.processes.keeper.greeting import ReplicaTerms
from app.managers.processes.keeper.remote import RemoteKeeper
from app.managers.state import KernelState
from app.managers.telemetry.counters import Counters
from app.settings import Settings
from tests.support.home import Home
from tests.support.kernelspecs import FAKE_KERNEL
from tests.support.processes import eventually

WAIT = 30.0

LOGS: dict[str, Any] = {"log_bytes": 10**9, "log_total_bytes": 4 * 10**9, "log_age": 3600.0}


class JoinedService:
    """Where keepers dial in, until it is closed; ``address`` is an IP address of this machine.

    It may be one of several ``replicas``, in the ``terms`` that it has of them.
    """

    def __init__(
        self,
        directory: Path,
        port: int = 0,
        address: str = "127.0.0.1",
        replicas: Replicas | None = None,
        terms: ReplicaTerms | None = None,
    ) -> None:
        self.directory = directory
        pem = None if replicas is None else replicas.authority
        self.authority = Authority(directory / "authority", [address], None, pem)
        self._terms = terms
        server = socket.socket()
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((address, port))
        server.listen(1024)
        server.setblocking(False)
        self.port = server.getsockname()[1]
        where = [f"{address}:{self.port}"]
        self.joining = Joining(
            *(directory / "invitations", self.authority, server, where), replicas=replicas
        )
        self._keepers: list[RemoteKeeper] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    def keeper(self, keeper_id: str, *, lasts: bool = True, **options: Any) -> RemoteKeeper:
        """The service's client of a keeper."""
        place = JoinedPlace(self.joining, keeper_id, f"lab {keeper_id}")
        orphan_timeout = 3600.0 if lasts else None
        options = {**LOGS, "output_bytes": 10_000, "terms": self._terms, **options}
        keeper = RemoteKeeper(place, orphan_timeout=orphan_timeout, **options)
        self._keepers.append(keeper)
        return keeper

    async def close(self) -> None:
        """End as a server does that keeps its kernels."""
        for keeper in self._keepers:
            await keeper.close()
        await self.joining.close()

    async def kill(self) -> None:
        """End without a word, as far as that can be in this process."""
        for keeper in self._keepers:
            if (link := keeper._connection.link) is not None:
                keeper._connection.is_closed = True
                link._transport.abort()
        await self.close()


def start_keeper(
    document: bytes,
    *arguments: str,
    env: Mapping[str, str],
    stderr: int | None = None,
    command: Sequence[str] = (sys.executable, "-m", "app.keeper"),
) -> subprocess.Popen[bytes]:
    """A keeper that joins by a document, which it gets on its stdin."""
    process = subprocess.Popen(
        [*command, "--join", "-", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=stderr,
        env={"PYTHONPATH": os.getcwd(), **env},
        start_new_session=True,
    )
    assert process.stdin is not None
    with process.stdin:
        process.stdin.write(document)
    process.stdin = None  # or `communicate` would flush what is closed
    return process


async def speak(
    keeper: RemoteKeeper | Keeper, home: Home, kernel_id: str, *, directory: Path | None = None
) -> Traffic:
    """The traffic of a new fake kernel of a keeper, which is ready."""
    asked = {"transport": "ipc", "key": "secret", "signature_scheme": "hmac-sha256"}
    assert isinstance(keeper, RemoteKeeper)
    file, info = await keeper.prepare(kernel_id, asked)
    await keeper.launch(
        kernel_id,
        [sys.executable, str(FAKE_KERNEL), "-f", file],
        env=home.environment(),
        cwd=str(home.root_dir),
        output=home.path / f"kernel-{kernel_id}.log",
    )
    return await connect(keeper, home, kernel_id, info)


def _traffic(keeper: Keeper, directory: Path, kernel_id: str) -> Traffic:
    settings = Settings(_cli_parse_args=False)
    return Traffic(kernel_id, KernelState(), directory, keeper, settings, Counters())


async def resume(
    keeper: Keeper, directory: Path, kernel_id: str, info: Mapping[str, Any]
) -> Traffic:
    """The traffic of a kernel that another server has left; its mirror is in a directory."""
    await asyncio.to_thread(directory.mkdir, exist_ok=True)
    resumed = _traffic(keeper, directory / kernel_id, kernel_id)
    await resumed.resume(await resumed.meet(dict(info), Position(1, 0)))
    resumed.ready()
    return resumed


async def connect(keeper: Keeper, home: Home, kernel_id: str, info: Mapping[str, Any]) -> Traffic:
    """The traffic of a kernel that a keeper has launched, once the kernel answers."""
    mirrors = home.path / "mirrors"
    await asyncio.to_thread(mirrors.mkdir, exist_ok=True)
    spoken = _traffic(keeper, mirrors / kernel_id, kernel_id)
    await spoken.connect(dict(info))

    async def is_reachable() -> bool:
        spoken.own.probe()
        await asyncio.sleep(0.01)
        return spoken.own.answered and spoken.own.heard_iopub

    await eventually(is_reachable, WAIT)
    spoken.ready()
    return spoken
