"""The short form of `scripts/replica-drill`: three replicas behind nginx, and what can go wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.support.postgresql import PostgreSQL
from tests.support.replica_drill import NAMES, OPTIONS, Balancer, Ground, drill, free_port
from tests.support.replicas import Replicas


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    ports = {name: free_port() for name in NAMES}
    with (
        PostgreSQL() as postgresql,  # which is stopped here
        Replicas(postgresql.new_database(), *OPTIONS) as replicas,
    ):
        for name in NAMES:
            replicas.start(name, port=ports[name])
        place = tmp_path_factory.mktemp("balancer")
        with Balancer(place, [*ports.values()]) as balancer:
            yield Ground(replicas, postgresql, balancer, ports)


@pytest.mark.timeout(400)
@pytest.mark.parametrize("action", ["kill", "sigstop", "store-kill"])
async def test_nothing_is_lost_or_done_twice(
    ground: Ground, action: str, record_property: Callable[[str, object], None]
) -> None:
    told = await drill(ground, action, kernels=2, count=60, queued=2)
    record_property("figures", f"replicas: {told}")
