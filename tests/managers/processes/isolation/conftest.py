"""Two owners' kernels on a module's ``isolated`` server; directories that other users can get to,
as those of pytest are not."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.support.isolated import Owner, start_for
from tests.support.server import ServerProcess


@pytest.fixture
def passable() -> Iterator[Path]:
    """A directory of mode 0711 in the system's temporary one."""
    directory = Path(tempfile.mkdtemp(prefix="kk-")).resolve()
    directory.chmod(0o711)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def kernels(isolated: ServerProcess) -> dict[str, str]:
    """The ids of a kernel of Anna's and one of Ben's, by their names."""
    return start_for(isolated, "anna", "ben")


@pytest.fixture
async def anna(isolated: ServerProcess, kernels: dict[str, str]) -> AsyncIterator[Owner]:
    async with Owner(isolated, "anna", kernels["anna"]) as anna:
        yield anna


@pytest.fixture
async def ben(isolated: ServerProcess, kernels: dict[str, str]) -> AsyncIterator[Owner]:
    async with Owner(isolated, "ben", kernels["ben"]) as ben:
        yield ben
