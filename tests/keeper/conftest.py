"""Servers' connections to a keeper of a home."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from app.keeper.hearings import Heard
from app.managers.keeping import Keeper, Kept
from app.managers.line import Line
from app.protocol.link import Bell
from tests.support.home import Home

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

    def __init__(self, keeper: Keeper, kernel_id: str = "k") -> None:
        self.line = Line(keeper, kernel_id, "ours", EPOCH, self)
        self.heard: list[Heard] = []
        self.bells: list[Bell] = []
        self.malformed: list[tuple[int, str, str]] = []
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

    def on_malformed(self, count: int, channel: str, reason: str) -> None:
        self.malformed.append((count, channel, reason))


async def ended(keeper: Keeper, kernel_id: str = "k") -> int:
    return await asyncio.wait_for(asyncio.shield(keeper.exited(kernel_id)), WAIT)
