"""How Slurm's commands are run."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import uvloop

from app.managers.processes.engines import slurm_commands
from app.managers.processes.engines.slurm_commands import Answer, Commands
from app.managers.processes.hosts.errors import EngineNotInstalled, HostUnreachable, HostUnusable
from tests.support.processes import eventually, is_alive


@pytest.fixture
def commands(tmp_path: Path) -> Commands:
    """Commands of this directory."""
    return Commands({"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_CONF": "/c", "SECRET": "x"})


def write(tmp_path: Path, text: str) -> None:
    """Have a command ``slurm``."""
    path = tmp_path / "slurm"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


async def test_a_command_gets_its_words_its_stdin_and_little_else(
    tmp_path: Path, commands: Commands
) -> None:
    write(tmp_path, 'echo "$1" "${SECRET-}" "$SLURM_CONF" "$MORE" "$LC_ALL"; cat')
    answer = await commands.run(
        "slurm", "$(a) b;c", seconds=30, given=b"x" * 100_000, env={"MORE": "more"}
    )
    assert answer == Answer(0, "$(a) b;c  /c more C\n" + "x" * 100_000, "")


async def test_what_it_complains_of_is_one_line(tmp_path: Path, commands: Commands) -> None:
    lines = "slurm: error: one\nslurm: error: one\n\nslurm: fatal: two\nthree"
    # It does not read its stdin, and that is no fault.
    write(tmp_path, f"exec <&-; echo '{lines}' >&2; exit 3")
    answer = await commands.run("slurm", seconds=30, given=b"x" * 100_000)
    assert answer == Answer(3, "", "one; two; three")
    assert not answer.is_of_nobody
    assert Answer(1, "", "Unable to contact slurm controller").is_of_nobody
    assert not Answer(0, "", "Unable to contact slurm controller").is_of_nobody


async def test_one_that_does_not_end_is_ended(
    tmp_path: Path, commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "echo $$ >pid; echo 'slurm: error: busy' >&2; exec sleep 600")
    monkeypatch.chdir(tmp_path)
    began = time.monotonic()
    with pytest.raises(HostUnreachable, match=r"does not answer within 2 s \(slurm\): busy"):
        await commands.run("slurm", seconds=2)
    assert time.monotonic() - began < 60
    assert not is_alive(int((tmp_path / "pid").read_text()))


@pytest.mark.parametrize(
    "loop", [uvloop.new_event_loop, asyncio.new_event_loop], ids=["uvloop", "asyncio"]
)
@pytest.mark.parametrize("given", [b"", b"x"])
def test_one_that_ends_at_once_is_heard(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    loop: Callable[[], asyncio.AbstractEventLoop],
    given: bytes,
) -> None:
    execute = asyncio.create_subprocess_exec

    async def late(*words: str, **options: Any) -> asyncio.subprocess.Process:
        process = await execute(*words, **options)
        await process.wait()
        return process

    async def run() -> Answer:
        commands = Commands({"PATH": f"{tmp_path}:/usr/bin:/bin"})
        return await commands.run("slurm", seconds=30, given=given)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", late)
    write(tmp_path, "echo said; exit 2")
    with asyncio.Runner(loop_factory=loop) as runner:
        assert runner.run(run()) == Answer(2, "said\n", "")


async def test_one_that_says_too_much_is_ended(
    tmp_path: Path, commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm_commands, "OUTPUT_BYTES", 1000)
    write(tmp_path, "exec yes")
    before = psutil.Process().num_fds()
    with pytest.raises(HostUnreachable, match="says more than 1000 bytes"):
        await commands.run("slurm", seconds=30)
    await eventually(lambda: psutil.Process().num_fds() == before)  # its pipes are closed


async def test_one_that_is_not_there(tmp_path: Path, commands: Commands) -> None:
    with pytest.raises(EngineNotInstalled, match="there is no slurm"):
        await commands.run("slurm", seconds=30)
    write(tmp_path, "")
    (tmp_path / "slurm").write_text("#!/nowhere/sh\n")
    with pytest.raises((EngineNotInstalled, HostUnusable)):
        await commands.run("slurm", seconds=30)
