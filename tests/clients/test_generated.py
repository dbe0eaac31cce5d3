"""Clients generated from docs/openapi.json by the commands in docs/clients.md: they do what the
programs there say, against a real server with a real kernel."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.documented import block, blocks
from tests.support.node import NODE, NPM, environment
from tests.support.server import REPOSITORY, ServerProcess

pytestmark = pytest.mark.timeout(420)

TIMEOUT = 300  # seconds that one command may take: npm asks again where a registry hangs (.npmrc)
TYPESCRIPT = Path(__file__).parent / "typescript"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copy(REPOSITORY / "docs" / "openapi.json", tmp_path)
    return tmp_path


def command(tool: str) -> list[str]:
    """The command in docs/clients.md that this tool is run by, in words."""
    return shlex.split(block("sh", f"{tool} "))


def run(folder: Path, *words: str | Path, server: ServerProcess | None = None) -> str:
    """What a command writes on stdout. Raises AssertionError when it fails or complains."""
    env = environment()
    if server is not None:
        env |= {"KERNELKEEP": server.url, "TOKEN": server.token, "NO_PROXY": "127.0.0.1"}
    done = subprocess.run(
        words, cwd=folder, env=env, capture_output=True, text=True, timeout=TIMEOUT, check=False
    )
    assert done.returncode == 0, f"{words} failed\n{done.stdout}\n{done.stderr}"
    return done.stdout


def followed(lines: Sequence[str]) -> list[str]:
    """The numbers that the run of several seconds has printed."""
    return re.findall(r"\d", "".join(line for line in lines if line.startswith("stream")))


def check(output: str) -> None:
    lines = output.splitlines()
    assert lines[0] == "ok 42"
    assert followed(lines[1:]) == ["0", "1", "2"]
    assert lines[-3:] == ["ended ok", "cancelled", "204"]


def test_a_python_client_starts_runs_follows_cancels_and_stops(
    server: ServerProcess, folder: Path
) -> None:
    generate = command("openapi-python-client")
    run(folder, *generate, "--fail-on-warning")
    run(folder, sys.executable, "-m", "compileall", "-q", "kernelkeep_client")
    (program,) = blocks("python")
    (folder / "program.py").write_text(program)
    check(run(folder, sys.executable, "-W", "error", "program.py", server=server))


def test_a_typescript_client_starts_runs_follows_cancels_and_stops(
    server: ServerProcess, folder: Path
) -> None:
    for name in ("package.json", "package-lock.json", ".npmrc", "tsconfig.json"):
        shutil.copy(TYPESCRIPT / name, folder)
    modules = Path("node_modules")
    run(folder, NODE, NPM, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error")
    _, tool, *options = command("npx")
    run(folder, NODE, modules / tool / "bin" / "cli.js", *options)
    (program,) = blocks("ts")
    (folder / "program.ts").write_text(program)
    run(folder, NODE, modules / "typescript" / "bin" / "tsc")
    check(run(folder, NODE, "program.ts", server=server))
