"""What an asynchronous test has open is closed when the time of the test runs out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.plugins.time_out import SOONER
from tests.support.server import REPOSITORY

TESTS = """
import asyncio
import contextlib

import pytest

@contextlib.asynccontextmanager
async def opened():
    try:
        yield
    finally:
        await asyncio.sleep(0)
        print("closed")

@pytest.mark.timeout({seconds})
async def test_marked():
    async with opened():
        await asyncio.Event().wait()

async def test_in_time():
    await asyncio.sleep(0)

def test_that_is_no_coroutine():
    pass
"""


def test_it_ends_where_it_waits(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(TESTS.format(seconds=SOONER + 0.1))
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n"
        "filterwarnings = error\n"
    )
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "tests.plugins.time_out"),
            *("-p", "no:schemathesis", "--timeout=100", str(tmp_path)),
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 1, done.stdout
    assert "1 failed, 2 passed" in lines[-1]
    assert "closed" in lines
    assert any("await asyncio.Event().wait()" in line for line in lines if line.startswith(">"))
