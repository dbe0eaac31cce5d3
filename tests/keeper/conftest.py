"""Servers' connections to a keeper of a home."""

from __future__ import annotations

import asyncio
import shlex
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Unpack

import pytest
from jupyter_client.connect import write_connection_file

from app.keeper.hearings import Heard
from app.managers.log.entries import Position
from app.managers.log.message_log import Entry, Gap, Reader
from app.managers.messages.line import Line
from app.managers.messages.traffic import Traffic
from app.managers.processes.keeper.client import Keeper
from app.managers.processes.keeper.greeting import KeeperOptions
from app.managers.processes.keeper.keepers import Keepers
from app.managers.processes.keeper.kept import Kept
from app.managers.state import KernelState
from app.managers.telemetry.counters import Counters
from app.protocol.compose import make_parts
from app.protocol.link import Bell
from app.protocol.messages import ClientMessage
from app.settings import Settings
from tests.kernels.driver import free_ports
from tests.support.home import Home
from tests.support.kernelspecs import FAKE_KERNEL
from tests.support.processes import eventually

WAIT = 30  # seconds

EPOCH = "0123456789abcdef"

Open = Callable[..., Awaitable[Keeper]]


@pytest.fixture
async def open_keeper(home: Home) -> AsyncIterator[Open]:
    """A server's connection to the keeper of :func:`home`; whatever it leaves is killed."""
    opened: list[Keeper] = []
    (home.state_dir / "output").mkdir(mode=0o700)

    async def open_keeper(
        *,
        state_dir: Path = home.state_dir,
        log_bytes: int = 10**8,
        log_total_bytes: int = 10**9,
        orphan_timeout: float = 3600,
    ) -> Keeper:
        keeper = Keeper(
            state_dir,
            log_bytes=log_bytes,
            log_total_bytes=log_total_bytes,
            orphan_timeout=orphan_timeout,
            output_bytes=10_000,
        )
        opened.append(keeper)
        await keeper.connect()
        return keeper

    yield open_keeper
    for keeper in opened:
        for kernel_id in await keeper.kept() if keeper.pid else ():
            await keeper.end(kernel_id)
    await asyncio.gather(*(keeper.close() for keeper in opened))


async def connected(state_dir: Path, **options: Unpack[KeeperOptions]) -> Keeper:
    """A connection to the keeper of this directory, made now."""
    keeper = Keeper(state_dir, **options)
    await keeper.connect()
    return keeper


async def launch(keeper: Keeper, home: Home, script: str, kernel_id: str = "k") -> Kept:
    """A process of /bin/sh."""
    return await keeper.launch(
        kernel_id,
        ["/bin/sh", "-c", script],
        env=home.environment(),
        cwd=str(home.root_dir),
        output=home.state_dir / "output" / f"kernel-{kernel_id}.log",
    )


class Ear:
    """Who speaks over a line, and notes what that tells."""

    def __init__(self, keeper: Keeper | Keepers, kernel_id: str = "k") -> None:
        self.line = Line(keeper, kernel_id, "ours", EPOCH, self)
        self.heard: list[Heard] = []
        self.bells: list[Bell] = []
        self.malformed: list[tuple[int, str, str]] = []
        self.lost: list[str] = []
        self.writable = 0

    @property
    def next(self) -> int:
        """The number behind the last in the log, as far as that is told."""
        return self.bells[-1].end[0]

    def on_bell(self, bell: Bell) -> None:
        self.bells.append(bell)

    def on_writable(self) -> None:
        self.writable += 1

    def on_heard(self, heard: Heard) -> None:
        self.heard.append(heard)
        self.bells.append(heard.bell)

    def on_lost(self, why: str) -> None:
        self.lost.append(why)

    def on_malformed(self, count: int, channel: str, reason: str) -> None:
        self.malformed.append((count, channel, reason))


async def ended(keeper: Keeper, kernel_id: str = "k") -> int:
    return await asyncio.wait_for(asyncio.shield(keeper.exited(kernel_id)), WAIT)


CLIENT = "client"


class Client:
    """A client of one kernel, and what it has got; from a ``start``, or from now on."""

    def __init__(self, traffic: Traffic, start: Position | None = None) -> None:
        self.traffic = traffic
        self.reader: Reader = traffic.clients.attach(CLIENT, start)
        self.entries: list[Entry] = []
        self.gaps: list[Gap] = []

    def look(self) -> list[Entry]:
        """All that has come so far."""
        while self.reader.behind:
            gap, entries = self.reader.take()
            self.gaps += [gap] if gap is not None else []
            self.entries += entries
        return self.entries

    @property
    def told(self) -> list[str]:
        """The states that were told of no request."""
        return [
            entry.message.part(3).tobytes().decode().split('"')[3]
            for entry in self.look()
            if entry.message.msg_type == "status" and not entry.message.parent.msg_id
        ]

    def text(self, name: str) -> int:
        """How often this text has come as output."""
        found = [e for e in self.look() if e.message.msg_type == "stream"]
        return sum(name.encode() in bytes(entry.message.part(3)) for entry in found)

    def run(self, code: str, **content: Any) -> ClientMessage:
        """Ask for an execution; returns the request."""
        header, parts = make_parts("execute_request", {"code": code, **content}, CLIENT)
        message = ClientMessage("shell", header, parts)
        self.traffic.submit(message, CLIENT)
        return message

    async def ran(self, code: str) -> None:
        """Run code to its end."""
        request = self.run(code)
        await eventually(lambda: self.has_ended(request), WAIT)

    def has_reply(self, request: ClientMessage) -> bool:
        return any(
            entry.message.channel == "shell"
            and entry.message.parent.msg_id == request.header.msg_id
            for entry in self.look()
        )

    def has_ended(self, request: ClientMessage) -> bool:
        """Whether all that the kernel says of it has come: a reply may overtake what was published.

        The last that is published is that the kernel is idle.
        """
        return self.has_reply(request) and any(
            entry.message.msg_type == "status"
            and entry.message.parent.msg_id == request.header.msg_id
            and b'"idle"' in bytes(entry.message.part(3))
            for entry in self.look()
        )


Speak = Callable[[Keeper], Awaitable[Client]]


@pytest.fixture
def speak(home: Home) -> Speak:
    """``await speak(keeper)``: a client of a fake kernel of that keeper, which is ready."""

    async def speak(keeper: Keeper) -> Client:
        ports: dict[str, Any] = free_ports()
        where = str(home.path / "k.json")
        file, info = write_connection_file(where, ip="127.0.0.1", key=b"secret", **ports)
        command = shlex.join([sys.executable, str(FAKE_KERNEL), "-f", file])
        await launch(keeper, home, f"exec {command}")
        state = KernelState()
        settings = Settings(_cli_parse_args=False)
        spoken = Traffic("k", state, home.path / "log", keeper, settings, Counters())
        await spoken.connect(info)

        async def is_reachable() -> bool:
            spoken.own.probe()
            return spoken.own.answered and spoken.own.heard_iopub

        await eventually(is_reachable, WAIT)
        spoken.ready()
        client = Client(spoken)
        await client.ran("print up")
        client.entries.clear()
        return client

    return speak
