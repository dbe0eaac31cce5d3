"""Tells coverage.py which test file each line is run for; `tests.support.covered` loads it.

coverage.py itself can name the function that runs (``dynamic_context``), but not for tests that
hypothesis makes, nor for what a coroutine does behind its first `await`.
"""

from __future__ import annotations

from collections.abc import Generator

import pytest
from coverage import Coverage


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """From here on, everything is run for this test's file, its fixtures too."""
    coverage = Coverage.current()
    assert coverage is not None, "coverage.py does not measure"
    coverage.switch_context(item.nodeid.split("::")[0])
    try:
        return (yield)
    finally:
        coverage.switch_context("")
