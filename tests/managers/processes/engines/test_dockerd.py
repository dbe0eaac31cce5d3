"""The same with Docker itself, as far as it may differ from podman."""

from __future__ import annotations

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


@pytest.fixture(scope="module")
def podman() -> Iterator[Dockerd]:
    """The engine."""
    dockerd = Dockerd()
    try:
        dockerd.make()
        yield dockerd
    finally:
        dockerd.remove()
