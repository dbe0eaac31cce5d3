"""Tests that pass on this platform, on platforms that have less: without pidfds, without /proc.

Each runs in an interpreter that is made to have less (`tests/support/platforms`), and so do the
servers and keepers that it starts.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.support.home import PLATFORMS
from tests.support.server import REPOSITORY

SECONDS: Final = 400

PROCESSES: Final = ("tests/keeper/test_processes.py", "tests/keeper/test_server_end.py")

# What is seen of processes, who may connect, and what is left in the end. Each takes as long as it
# does anywhere, so these are the files that meet most of what differs.
# Each run imports all that tests need, so there are few.
RUNS: Final = {
    ("old_linux", "processes"): PROCESSES,
    ("macos", "keeper"): (
        *PROCESSES,
        "tests/keeper/test_keeper.py",
    ),
    ("macos", "server"): (
        "tests/managers/processes/test_keeping.py",
        "tests/managers/processes/test_ending_with_the_server.py",
    ),
}

HAS: Final = {
    "old_linux": "pidfds False, /proc True, kqueue False, forking False",
    "macos": "pidfds False, /proc False, kqueue True, forking False",
}

pytestmark = pytest.mark.timeout(SECONDS + 30)


@pytest.fixture(autouse=True)
def tools() -> None:
    """What it takes to be one of these platforms."""
    for tool, package in (("ps", "procps"), ("lsof", "lsof")):
        assert shutil.which(tool), f"{tool} is missing: apt-get install {package}"


def environment(platform: str) -> dict[str, str]:
    """Ours, on another platform."""
    # Without what pytest tells its own workers.
    ours = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return {**ours, "PYTHONPATH": str(PLATFORMS / platform)}


@pytest.mark.parametrize("platform", sorted(HAS))
def test_it_has_less(platform: str, tmp_path: Path) -> None:
    code = (
        "import select; from app.keeper.processes import HAS_PIDFDS, HAS_PROC;"
        "from app.managers.processes.forking.link import SUPPORTED;"
        "print(f'pidfds {HAS_PIDFDS}, /proc {HAS_PROC}, kqueue {hasattr(select, \"kqueue\")}, '"
        "f'forking {SUPPORTED}')"
    )
    path = f"{PLATFORMS / platform}:{REPOSITORY}"
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env={**environment(platform), "PYTHONPATH": path},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout.strip() == HAS[platform]


@pytest.mark.parametrize(("platform", "what"), RUNS)
def test_what_holds_here_holds_there(platform: str, what: str) -> None:
    files = RUNS[platform, what]
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files],
        env=environment(platform),
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )
    assert ran.returncode == 0, ran.stdout[-10_000:]
