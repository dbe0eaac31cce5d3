"""The names of tests that pass only when they are tried again are in the last lines of that run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = """
import pathlib

def test_sound():
    pass

def test_now_and_then():
    seen = pathlib.Path("seen")
    if not seen.exists():
        seen.touch()
        assert not "the first time"

def test_broken():
    assert not "ever"
"""
ROOT = Path(__file__).parents[2]


def run(directory: Path, *options: str) -> tuple[int, list[str]]:
    """The exit code of pytest in a directory, and the lines that it writes."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-ra", "-p", "tests.plugins.second_try"),
            *("-p", "no:schemathesis", *options),
        ],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    return done.returncode, done.stdout.strip().splitlines()


@pytest.mark.parametrize(("broken", "workers"), [(False, ()), (True, ("-n", "2"))])
def test_it_is_named(tmp_path: Path, broken: bool, workers: tuple[str, ...]) -> None:
    text = TESTS if broken else TESTS.partition("def test_broken")[0]
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_some.py").write_text(text)

    code, lines = run(tmp_path, *workers)
    assert code == 1
    assert not any(line.startswith("FLAKY") for line in lines)

    code, lines = run(tmp_path, "-n", "0", "--last-failed")
    assert code == int(broken)
    assert [line for line in lines if line.startswith("FLAKY")] == [
        "FLAKY test_some.py::test_now_and_then"
    ]
    *_, flaky, numbers = lines
    assert flaky.startswith("FLAKY")
    assert "1 passed" in numbers
    assert ("1 failed" in numbers) is broken
