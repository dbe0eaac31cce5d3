"""A kernel that the tests of a module share, for those that do it no harm."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack

import pytest

from tests.support.channels import Connector
from tests.support.rest import RestClient
from tests.support.running import RunningKernel
from tests.support.server import ServerProcess


async def _start(server: ServerProcess) -> str:
    async with RestClient(server.url, server.token) as rest:
        kernel_id = (await rest.start_kernel("fake"))["id"]
        await rest.wait_for_state(kernel_id, "idle")
        return kernel_id


async def _delete(server: ServerProcess, kernel_id: str) -> None:
    async with RestClient(server.url, server.token) as rest:
        await rest.delete(kernel_id)


@pytest.fixture(scope="module")
def shared_kernel(server: ServerProcess) -> Iterator[str]:
    """The id of a fake kernel that lives as long as the module's server."""
    kernel_id = asyncio.run(_start(server))
    yield kernel_id
    asyncio.run(_delete(server, kernel_id))


@pytest.fixture
async def kernel(server: ServerProcess, shared_kernel: str) -> AsyncIterator[RunningKernel]:
    """The shared kernel with a client of this test's own, after its greeting."""
    async with RestClient(server.url, server.token) as rest, AsyncExitStack() as stack:
        connector = Connector(server.ws_url, server.token, stack)
        channels = await connector(shared_kernel)
        await channels.recv()
        yield RunningKernel(shared_kernel, rest, connector, channels)
