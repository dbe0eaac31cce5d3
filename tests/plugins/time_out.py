"""An asynchronous test whose time runs out is cancelled, and fails where it waits.

pytest-timeout ends a test from outside of the event loop: what the test has open is then closed by
nobody, and its report shows the loop instead of the test. So a coroutine ends a little sooner, by
the loop itself. Where the loop stands still, pytest-timeout ends the test as it ends others.
Loaded by `addopts` in pyproject.toml.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from typing import Any, Final

import pytest

SOONER: Final = 10
"""By how many seconds a test is cancelled before pytest-timeout ends it."""


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> None:
    """Give a test that is a coroutine the bound that its marker has, or else the option."""
    if not isinstance(item, pytest.Function) or not inspect.iscoroutinefunction(item.obj):
        return
    test = item.obj
    marker = item.get_closest_marker("timeout")
    seconds = float(marker.args[0] if marker else item.config.getini("timeout") or 0)
    if seconds <= SOONER:
        return

    @functools.wraps(test)
    async def bounded(*args: Any, **kwargs: Any) -> None:
        async with asyncio.timeout(seconds - SOONER):
            await test(*args, **kwargs)

    item.obj = bounded
