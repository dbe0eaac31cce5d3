"""A keeper that is killed, stopped, or stopped and continued at each step of a kernel's start."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import psutil
import pytest

from app.managers.errors import KernelStartFailed
from app.managers.handover.registry import Registry
from app.managers.kernels.construction import multi_kernel_manager
from app.managers.kernels.kernel import Kernel
from app.managers.kernels.multikernel import MultiKernelManager
from app.managers.kernels.ties import registered
from app.managers.processes.keeper import client as keeping
from app.managers.processes.keeper import link as keeper_link
from app.managers.telemetry.counters import Counters
from app.managers.telemetry.events import Events
from app.settings import Settings
from tests.keeper.conftest import connected
from tests.support.home import Home
from tests.support.keeper_relay import Cut, Relay, Side
from tests.support.kernelspecs import FAKE_SPECS, write_kernelspecs
from tests.support.processes import eventually, keepers

WAIT = 60  # seconds
ANSWER = 1.0  # where the keeper is not to answer
PAUSE = 0.3

STEPS: tuple[tuple[Side, str], ...] = (
    ("before", "launch"),
    ("after", "launch"),
    ("before", "hear"),
    ("after", "hear"),
)


Make = Callable[..., MultiKernelManager]


@pytest.fixture
async def make_manager(home: Home, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Make]:
    """A server's kernels, which are kept; the arguments are options."""
    monkeypatch.setattr(keeper_link, "ANSWER_SECONDS", ANSWER)
    monkeypatch.setattr(keeping, "QUICK_SECONDS", ANSWER)
    for name, value in home.environment().items():
        monkeypatch.setenv(name, value)
    write_kernelspecs(home.jupyter_path, FAKE_SPECS)
    made: list[MultiKernelManager] = []
    ties = registered(Registry(home.state_dir))

    def make_manager(**options: Any) -> MultiKernelManager:
        settings = Settings(
            _cli_parse_args=False,
            state_dir=home.state_dir,
            root_dir=home.root_dir,
            on_shutdown="keep",
            shutdown_wait_time=2,
            **options,
        )
        manager = multi_kernel_manager(settings, Events(), Counters(), None, ties)
        made.append(manager)
        return manager

    yield make_manager
    for manager in made:
        for kernel in manager:
            await manager.shutdown_kernel(kernel.id, now=True)
        await manager.close()
    await ties.close()
    assert not running(home)


def running(home: Home) -> set[int]:
    """The processes of kernels, listed or not."""
    found = set()
    for process in home.processes():
        try:
            if process.cwd() == str(home.root_dir):
                found.add(process.pid)
        except psutil.NoSuchProcess:
            continue
    return found


async def nothing_is_unlisted(home: Home, manager: MultiKernelManager) -> None:
    await eventually(lambda: running(home) == {kernel.pid for kernel in manager}, WAIT)
    assert manager.keepers is not None
    assert {*(await manager.keepers.kept())} == {kernel.id for kernel in manager}


async def comes_up(kernel: Kernel) -> bool:
    return await asyncio.wait_for(asyncio.shield(kernel.came_up), WAIT)


@pytest.mark.parametrize("fault", ["killed", "stopped", "paused"])
@pytest.mark.parametrize("at", STEPS, ids=" ".join)
async def test_a_start_works_or_says_why_and_leaves_nothing(
    home: Home, make_manager: Make, at: tuple[Side, str], fault: str
) -> None:
    await start_beside(home, make_manager, "fake", at, fault)


@pytest.mark.parametrize("fault", ["killed", "stopped"])
@pytest.mark.parametrize(
    "at",
    [("before", "run"), ("after", "run"), ("before", "adopt"), ("after", "adopt")],
    ids=" ".join,
)
async def test_so_does_the_start_of_a_kernel_that_is_forked(
    home: Home, make_manager: Make, at: tuple[Side, str], fault: str
) -> None:
    await start_beside(home, make_manager, "python3", at, fault)


async def start_beside(
    home: Home, make_manager: Make, name: str, at: tuple[Side, str], fault: str
) -> None:
    """Start a kernel while the keeper fails, beside one that is there, and then another."""
    # Another server's, so that there is a keeper to stand before.
    other = await connected(home.state_dir, orphan_timeout=60)
    (process,) = keepers(home.processes())
    armed, resumed = asyncio.Event(), asyncio.Event()

    async def step(side: Side, ask: str) -> None:
        if (side, ask) != at or not armed.is_set():
            return
        armed.clear()
        if fault == "killed":
            process.kill()
            raise Cut
        process.suspend()
        if fault == "paused":
            asyncio.get_running_loop().call_later(PAUSE, process.resume)
        elif side == "after":  # or the answer would have passed
            await resumed.wait()

    async with Relay(home.state_dir, step):
        manager = make_manager(fork_kernels=["python3"] if name == "python3" else [])
        await manager.adopt_kernels()
        steady = await manager.start_kernel("fake")
        assert await comes_up(steady)
        pid = steady.pid
        armed.set()
        if fault == "stopped":
            with pytest.raises(KernelStartFailed, match="keeper of kernels does not answer"):
                await asyncio.wait_for(manager.start_kernel(name), WAIT)
            assert [*manager] == [steady]
        else:
            kernel = await asyncio.wait_for(manager.start_kernel(name), WAIT)
            assert await comes_up(kernel)
            assert [*manager] == [steady, kernel]
        if fault == "stopped":
            process.resume()
            resumed.set()
        assert not armed.is_set()
        await nothing_is_unlisted(home, manager)
        assert await comes_up(await manager.start_kernel(name))
        await nothing_is_unlisted(home, manager)
        assert (steady.pid, steady.state.word) == (pid, "idle")
        await other.close()


async def test_a_kernel_is_stopped_and_restarted_although_its_keeper_is_stopped(
    home: Home, make_manager: Make
) -> None:
    manager = make_manager()
    await manager.adopt_kernels()
    deleted, other = [await manager.start_kernel("fake-no-shutdown") for _ in range(2)]
    assert await comes_up(deleted)
    assert await comes_up(other)
    (process,) = keepers(home.processes())
    process.suspend()
    await asyncio.wait_for(manager.shutdown_kernel(deleted.id), WAIT)
    assert running(home) == {other.pid}
    assert [*manager] == [other]
    process.resume()
    await manager.restart_kernel(other.id)
    assert await comes_up(other)
    await nothing_is_unlisted(home, manager)
