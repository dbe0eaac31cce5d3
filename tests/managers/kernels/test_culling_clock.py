"""Idle time is no matter of the wall clock: a machine that was suspended, or whose clock was set,
culls nothing before its time, and what is due on time."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from tests.conftest import servers
from tests.support.kernelspecs import Spec
from tests.support.processes import eventually
from tests.support.rest import KernelModel, RestClient
from tests.support.running import KernelStarter
from tests.support.wall_clock import JumpingServer

SPECS = {"fake": Spec(), "short-lived": Spec(metadata={"cull_idle_timeout": 0.2})}
AN_HOUR = timedelta(hours=1)


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest) -> Iterator[JumpingServer]:
    """Culls kernels that were idle for an hour, and looks ten times a second."""
    culling = ("--cull-idle-timeout", "3600", "--cull-interval", "0.1")
    with servers(request.config) as make_server:
        server = make_server(*culling, specs=SPECS, kind=JumpingServer)
        assert isinstance(server, JumpingServer)
        yield server


def ahead_of_us(model: KernelModel) -> timedelta:
    """How far the server's wall clock is ahead, told by a kernel that was just active."""
    return datetime.fromisoformat(model["last_activity"]) - datetime.now(UTC)


async def the_culler_has_looked(rest: RestClient) -> KernelModel:
    """A kernel with a shorter life is culled; returns what it was while it lived."""
    model = await rest.start_kernel("short-lived")

    async def is_culled() -> bool:
        return model["id"] not in [kernel["id"] for kernel in await rest.kernels()]

    await eventually(is_culled, 30)
    return model


async def test_a_jump_ahead_culls_nothing(server: JumpingServer, start: KernelStarter) -> None:
    connected, left_alone = await start(), await start()
    await left_alone.channels.close()
    server.jump_ahead()
    try:
        witness = await the_culler_has_looked(start.rest)
        assert ahead_of_us(witness) > AN_HOUR
        for kernel in (left_alone, connected):
            assert (await kernel.model())["execution_state"] == "idle"
            # It was idle for a day, by the wall clock, and is used now.
            assert ahead_of_us(await kernel.model()) < AN_HOUR
        assert (await connected.channels.execute("print here")).text == "here\n"
        assert ahead_of_us(await connected.model()) > AN_HOUR
    finally:
        server.jump_back()


async def test_a_jump_back_saves_nothing(server: JumpingServer, start: KernelStarter) -> None:
    before = await start.rest.start_kernel("short-lived")
    server.jump_back()
    try:
        after = await the_culler_has_looked(start.rest)
        assert ahead_of_us(after) < -AN_HOUR

        async def is_culled() -> bool:
            return before["id"] not in [kernel["id"] for kernel in await start.rest.kernels()]

        await eventually(is_culled, 30)
    finally:
        server.jump_ahead()
