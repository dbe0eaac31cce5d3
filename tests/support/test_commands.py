"""When the tests are killed, nothing that they have started is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil

from tests.support.processes import eventually_sync, mentions
from tests.support.rooms import REPOSITORY

TEST = """
import asyncio
from pathlib import Path

from tests.support.running import kernels_of
from tests.support.server import CommandServer

async def test_that_does_not_end(make_server, home):
    kept = make_server("--on-shutdown", "keep", home=home)
    command = make_server(kind=CommandServer)
    async with kernels_of(kept) as start, kernels_of(command) as start_too:
        await start("fake")
        await start_too("fake")
        Path("homes.new").write_text(f"{kept.home.path} {command.home.path}")
        Path("homes.new").rename("homes")
        await asyncio.Event().wait()
"""
START_SECONDS = 200
END_SECONDS = 60


def running(homes: list[str]) -> list[psutil.Process]:
    return [
        process for process in psutil.process_iter() if any(mentions(process.pid, h) for h in homes)
    ]


def test_servers_keepers_and_kernels_end_with_a_pytest_that_is_killed(tmp_path: Path) -> None:
    (tmp_path / "test_killed.py").write_text(TEST)
    pytest = subprocess.Popen(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "tests.conftest", "test_killed.py"),
            *("-p", "no:cacheprovider", "-c", str(REPOSITORY / "pyproject.toml")),
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        told = tmp_path / "homes"
        eventually_sync(lambda: told.exists() or pytest.poll() is not None, START_SECONDS)
        assert told.exists(), pytest.communicate(timeout=1)[0]
        homes = told.read_text().split()
        # For each: a server, a keeper and a kernel.
        assert len(running(homes)) >= 6
    finally:
        pytest.send_signal(signal.SIGTERM)
        pytest.communicate()

    assert eventually_sync(lambda: not running(homes), END_SECONDS), running(homes)
    assert eventually_sync(lambda: not any(map(os.path.exists, homes)), END_SECONDS)
