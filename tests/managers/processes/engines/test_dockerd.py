"""The same with Docker itself, as far as it may differ from podman."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from tests.managers.processes.engines.test_docker import (
    server,  # noqa: F401 - a fixture
    test_a_container_has_no_more_than_it_is_given,  # noqa: F401
    test_a_container_that_somebody_kills_is_followed_by_another,  # noqa: F401
    test_a_kernel_there_does_what_one_here_does,  # noqa: F401
    test_output_goes_on_where_the_cable_was_pulled_for_half_a_minute,  # noqa: F401
)
from tests.support.dockerd import Dockerd
from tests.support.lively import pid_of
from tests.support.processes import eventually
from tests.support.rest import RestClient
from tests.support.server import ServerProcess


@pytest.fixture(scope="module")
def podman() -> Iterator[Dockerd]:
    """The engine."""
    dockerd = Dockerd()
    try:
        dockerd.make()
        yield dockerd
    finally:
        dockerd.remove()


async def test_an_engine_of_a_swarm_runs_its_containers_itself(
    server: ServerProcess,  # noqa: F811
    rest: RestClient,
    podman: Dockerd,
) -> None:
    await asyncio.to_thread(podman.begin_swarm)
    try:
        kernel_id = (await rest.start_kernel("box"))["id"]
        pid = await pid_of(rest, kernel_id)
        assert podman.ask("GET", "/services").json() == []
        labels = podman.container_of(kernel_id)["Config"]["Labels"]
        assert not [name for name in labels if name.startswith("com.docker.swarm")]
        await rest.restart(kernel_id)
        assert await pid_of(rest, kernel_id) != pid
        await rest.delete(kernel_id)
        await eventually(lambda: podman.containers() == [], 30)
    finally:
        await asyncio.to_thread(podman.leave_swarm)
