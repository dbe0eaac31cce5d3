"""A keeper that somebody else than a server has started, as a container of its own does.

These are tests of `app.keeper.main`.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.keeper.conftest import connected
from tests.support.home import Home
from tests.support.server import REPOSITORY


@pytest.fixture
def process(home: Home) -> Iterator[subprocess.Popen[bytes]]:
    """The keeper, which is ready."""
    command = [sys.executable, "-m", "app.keeper", str(home.state_dir), "--stay"]
    with subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process
        process.terminate()
        assert process.wait(30) == 0


async def test_it_stays_without_kernels_and_servers(
    home: Home, process: subprocess.Popen[bytes]
) -> None:
    for _ in range(3):
        keeper = await connected(home.state_dir, orphan_timeout=60.0)
        # There would be another one if the end of the last server had been the keeper's.
        assert keeper.pid == process.pid
        await keeper.close()
    assert process.poll() is None
