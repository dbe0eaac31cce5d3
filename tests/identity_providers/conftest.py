"""A service to be asked, and settings that name one."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.support.services import Service


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    async with Service() as service:
        yield service
