"""Kernels, and their executions."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.support.executions import Executions
from tests.support.rest import RestClient
from tests.support.running import KernelStarter, RunningKernel
from tests.support.server import ServerProcess
from tests.support.shared import lasting_kernel


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


@pytest.fixture(scope="module")
def python_kernel(server: ServerProcess) -> Iterator[str]:
    with lasting_kernel(server, "python3") as kernel_id:
        yield kernel_id


@pytest.fixture
async def python(rest: RestClient, python_kernel: str) -> Executions:
    """The executions of a Python kernel that the tests of this module share."""
    return Executions(rest, python_kernel)
