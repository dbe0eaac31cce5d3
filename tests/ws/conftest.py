"""A kernel that the tests of a module share, for those that do it no harm."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from tests.support.channels import Connector
from tests.support.rest import RestClient
from tests.support.running import RunningKernel
from tests.support.server import ServerProcess


@pytest.fixture
async def kernel(server: ServerProcess, shared_kernel: str) -> AsyncIterator[RunningKernel]:
    """The shared kernel with a client of this test's own, after its greeting."""
    async with RestClient(server.url, server.token) as rest, AsyncExitStack() as stack:
        connector = Connector(server.ws_url, server.token, stack)
        channels = await connector(shared_kernel)
        await channels.recv()
        kernel = RunningKernel(shared_kernel, rest, connector, channels)
        # The clients of the test before are gone, and what they asked for is done.
        await kernel.has_connections(1)
        await channels.request("kernel_info_request")
        channels.log.clear()
        yield kernel
