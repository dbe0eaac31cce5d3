"""A server on which kernels start quickly when none is named."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.conftest import servers
from tests.support.executions import Executions
from tests.support.rest import RestClient
from tests.support.running import KernelStarter, RunningKernel
from tests.support.server import ServerProcess


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest) -> Iterator[ServerProcess]:
    """One server for the module; the kernel that is started when none is named is ``fake``."""
    with servers(request.config) as make_server:
        yield make_server("--default-kernel-name", "fake")


@pytest.fixture
async def kernel(start: KernelStarter) -> RunningKernel:
    """A fake kernel, and a client of it."""
    return await start("fake")


@pytest.fixture
async def executions(kernel: RunningKernel) -> Executions:
    """The executions of that kernel."""
    return Executions(kernel.rest, kernel.id)


@pytest.fixture
async def shared(rest: RestClient, shared_kernel: str) -> AsyncIterator[Executions]:
    """The executions of the module's kernel, all of which end with the test."""
    executions = Executions(rest, shared_kernel)
    yield executions
    for found in await executions.listed():
        if not found["ended"]:
            await executions.cancel(found["id"])
            await executions.ended(found["id"])
