"""The page's modules without a browser: their own tests, `web/src/**/*.test.ts`, all pass."""

from __future__ import annotations

import asyncio
import subprocess

from tests.support.node import NODE, environment
from tests.support.page import SOURCES, packages

SECONDS = 300
VITEST = SOURCES / "node_modules/vitest/vitest.mjs"


async def test_the_modules_of_the_page() -> None:
    done = await asyncio.to_thread(outcome)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(SOURCES.rglob("src/**/*.test.ts")), "there are tests"


def outcome() -> subprocess.CompletedProcess[str]:
    """Runs all of them."""
    packages()
    return subprocess.run(
        [NODE, VITEST, "run", "--root", SOURCES, "--no-color", "--no-isolate"],
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
