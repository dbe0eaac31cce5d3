"""Fixtures that run fake kernels without a server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from tests.kernels.driver import (
    Kernel,
    StartKernel,
    Transport,
    running_fake,
)
from tests.support.home import Home


@pytest.fixture
async def launch(home: Home) -> AsyncIterator[StartKernel]:
    """Starts a fake kernel with flags; ``ready=False`` does not wait for it."""
    async with AsyncExitStack() as stack:

        async def start(*flags: str, transport: Transport = "tcp", ready: bool = True) -> Kernel:
            fake = running_fake(home, flags, transport, ready=ready)
            return await stack.enter_async_context(fake)

        yield start


@pytest.fixture
async def kernel(launch: StartKernel) -> Kernel:
    return await launch()
