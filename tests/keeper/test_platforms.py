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

SECONDS: Final = 240

# What is seen of processes, who may connect, and what is left in the end.
FILES: Final = (
    *("tests/keeper/test_processes.py", "tests/keeper/test_server_end.py"),
    *("tests/keeper/test_keeper.py", "tests/keeper/test_strangers.py"),
    *("tests/keeper/test_trouble.py", "tests/keeper/test_lost_link.py"),
    *("tests/managers/processes/test_keeping.py", "tests/managers/handover/test_adoption.py"),
    *("tests/managers/processes/test_ending_with_the_server.py",),
    *("tests/managers/handover/test_kernels_command.py",),
)

HAS: Final = {
    "old_linux": "False True False",
    "macos": "False False True",
}

pytestmark = pytest.mark.timeout(SECONDS + 30)


@pytest.fixture(params=sorted(HAS))
def platform(request: pytest.FixtureRequest) -> str:
    """The name of a platform, for which there is all that it takes to be one."""
    for tool, package in (("ps", "procps"), ("lsof", "lsof")):
        assert shutil.which(tool), f"{tool} is missing: apt-get install {package}"
    name: str = request.param
    return name


def environment(platform: str) -> dict[str, str]:
    """Ours, on another platform."""
    return {**os.environ, "PYTHONPATH": str(PLATFORMS / platform)}


def test_it_has_less(platform: str, tmp_path: Path) -> None:
    code = (
        "from app.keeper.processes import HAS_PIDFDS, HAS_PROC; import select;"
        "print(HAS_PIDFDS, HAS_PROC, hasattr(select, 'kqueue'))"
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


@pytest.mark.parametrize("file", FILES)
def test_what_holds_here_holds_there(platform: str, file: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", file],
        env=environment(platform),
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )
    assert ran.returncode == 0, ran.stdout[-10_000:]
