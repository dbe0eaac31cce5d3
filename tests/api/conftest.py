"""A server on which kernels start quickly when none is named."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conftest import servers
from tests.support.server import ServerProcess


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest) -> Iterator[ServerProcess]:
    """One server for the module; the kernel that is started when none is named is ``fake``."""
    with servers(request.config) as make_server:
        yield make_server("--default-kernel-name", "fake")
