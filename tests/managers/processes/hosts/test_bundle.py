"""The keeper as a file that any Python runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import pytest

from app.managers.processes.engines.order import stdin_of
from app.managers.processes.hosts import bootstrap
from app.managers.processes.hosts.bundle import MODULE, bundle, program
from app.managers.processes.hosts.errors import HostWithoutPython
from app.managers.processes.hosts.options import SSHOptions
from app.managers.processes.hosts.pythons import MARK
from app.managers.processes.hosts.ssh import _converse


def test_it_is_the_same_each_time_and_runs_by_itself(tmp_path: Path) -> None:
    first = bundle()
    bundle.cache_clear()
    assert bundle() == first
    path = tmp_path / "keeper.zip"
    path.write_bytes(first.data)
    # A state directory that is open to others is refused, by the keeper itself.
    (tmp_path / "state").mkdir(mode=0o755)
    ran = subprocess.run(
        [sys.executable, "-m", MODULE, str(tmp_path / "state")],
        env={"PYTHONPATH": str(path)},
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert "chmod 0700" in ran.stdout
    assert ran.stderr == ""


def test_a_program_runs_by_itself_without_any_package() -> None:
    ran = subprocess.run(
        [sys.executable, "-S", "-I", "-c", program(bootstrap.__file__)],
        input=b"{}\n",
        capture_output=True,
        timeout=30,
        check=True,
    )
    told = json.loads(ran.stdout.decode().removeprefix(MARK))
    assert told["failed"] == "host_without_python"
    assert "lacks pyzmq msgspec" in told["text"]


async def test_an_upgrade_beneath_a_server_changes_nothing_of_what_it_sends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def upgraded(path: Path) -> NoReturn:
        raise AssertionError(f"{path} is read again")

    async def nothing(*_: int) -> bytes:
        return b""

    monkeypatch.setattr(Path, "read_bytes", upgraded)
    bundle.cache_clear()
    assert stdin_of(b"{}").endswith(bundle().data)
    sent: list[bytes] = []
    process = SimpleNamespace(
        stdin=SimpleNamespace(write=sent.append),
        stdout=SimpleNamespace(readline=nothing),
        stderr=SimpleNamespace(read=nothing),
        wait=nothing,
        exit_status=1,
    )
    with pytest.raises(HostWithoutPython):
        await _converse(process, SSHOptions("host", path="state"), "service")
    assert b"kernelkeep" in sent[0]
