"""Fixtures of servers that come one after the other."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.drill import Servers
from tests.support.home import Home
from tests.support.kernelspecs import FAKE_SPECS, write_kernelspecs


@pytest.fixture
def servers(home: Home) -> Iterator[Servers]:
    """Servers that keep their kernels, one after the other; ``arguments`` may be changed."""
    write_kernelspecs(home.jupyter_path, FAKE_SPECS)
    servers = Servers(home)
    yield servers
    if servers.present is not None:
        servers.present.crash()
