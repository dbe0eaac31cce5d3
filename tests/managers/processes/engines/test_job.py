"""What runs in a job before its keeper does: by an interpreter of its own, as it does there.

So does `app.managers.processes.hosts.pythons`, of which these are tests, too.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from app.managers.processes.engines.order import PROGRAM, stdin_of
from app.managers.processes.hosts.pythons import MARK


def run(stdin: bytes, directory: Path, *options: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, *options, "-c", PROGRAM],
        input=stdin,
        capture_output=True,
        env={"TMPDIR": str(directory)},
        timeout=60,
        check=False,
    )


def failed(done: subprocess.CompletedProcess[bytes]) -> dict[str, str]:
    (line,) = [each for each in done.stderr.decode().splitlines() if each.startswith(MARK)]
    found: dict[str, str] = json.loads(line.removeprefix(MARK))
    assert done.returncode == 1
    return found


def test_the_keeper_is_run_and_reads_the_document(tmp_path: Path) -> None:
    done = run(stdin_of(b'{"join": 2}'), tmp_path)
    # It is the keeper that says this: there is no such version of a document.
    assert done.returncode == 3
    assert b"the join document cannot be used: it is of another version" in done.stderr
    (directory,) = tmp_path.iterdir()
    assert directory.stat().st_mode & 0o777 == 0o700


def test_an_interpreter_without_what_a_keeper_takes_says_so(tmp_path: Path) -> None:
    told = failed(run(stdin_of(b"{}"), tmp_path, "-S"))
    assert told["failed"] == "host_without_python"
    assert "lacks pyzmq msgspec" in told["text"]


@pytest.mark.parametrize("left", [0.02, 0.9])
def test_a_connection_that_ends_early_is_told(tmp_path: Path, left: float) -> None:
    whole = stdin_of(b"{}")
    program = len(whole[: whole.index(b"\n")]) + int(whole[: whole.index(b"\n")]) + 1
    at = program if left < 0.1 else int(len(whole) * left)
    assert failed(run(whole[:at], tmp_path))["failed"] == "host_unreachable"


def test_nothing_at_all_is_no_order(tmp_path: Path) -> None:
    assert run(b"", tmp_path).returncode == 0


def test_a_document_that_no_pipe_holds_is_refused(tmp_path: Path) -> None:
    told = failed(run(stdin_of(b"x" * 2**17), tmp_path))
    assert told == {"failed": "host_unusable", "text": "the join document is too long"}
