"""What is known before a launch: that it would fail."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.kernelspec import KernelSpec

from app.managers.errors import KernelStartFailed
from app.managers.processes.launchable import check_launchable


@pytest.fixture
def program(tmp_path: Path) -> Path:
    program = tmp_path / "bin" / "a-kernel"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    return program


def check(directory: Path, *argv: str) -> None:
    spec = KernelSpec(argv=[*argv], resource_dir=str(directory))
    check_launchable(spec, directory, {"PATH": str(directory / "bin")}, directory)


@pytest.mark.parametrize(
    "name",
    [
        *("a-kernel", "bin/a-kernel", "{resource_dir}/bin/a-kernel"),
        *("python", "python3", "{prefix}/bin/python", "{connection_file}"),
    ],
)
def test_what_is_there_can_be_launched(program: Path, tmp_path: Path, name: str) -> None:
    check(tmp_path, name, "-f", "{connection_file}")


def test_the_path_is_the_kernelspecs_with_that_of_the_kernel_in_it(
    program: Path, tmp_path: Path
) -> None:
    for path in ("bin", "/nowhere:$PATH", "${PATH}:/nowhere"):
        spec = KernelSpec(argv=["a-kernel"], env={"PATH": path})
        check_launchable(spec, tmp_path, {"PATH": str(program.parent)}, tmp_path)
    spec = KernelSpec(argv=["a-kernel"], env={"PATH": "/nowhere"})
    with pytest.raises(KernelStartFailed, match="no program a-kernel"):
        check_launchable(spec, tmp_path, {"PATH": str(program.parent)}, tmp_path)


@pytest.mark.parametrize("name", ["another-kernel", "./a-kernel", "/nowhere/a-kernel", "bin"])
def test_a_program_that_is_not_there(program: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(KernelStartFailed, match="could not be launched: there is no program"):
        check(tmp_path, name)


def test_a_program_that_cannot_be_executed(program: Path, tmp_path: Path) -> None:
    program.chmod(0o644)
    with pytest.raises(KernelStartFailed, match="that can be executed"):
        check(tmp_path, "a-kernel")


def test_a_kernelspec_without_a_command(tmp_path: Path) -> None:
    with pytest.raises(KernelStartFailed, match="no argv"):
        check(tmp_path)


def test_directories(program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, env = KernelSpec(argv=["python"]), {"PATH": "/bin"}
    with pytest.raises(KernelStartFailed, match="no directory"):
        check_launchable(spec, tmp_path / "gone", env, tmp_path)
    system_access = os.access
    for refused, text in ((tmp_path, "cannot be entered"), (program.parent, "no connection file")):

        def access(path: Any, mode: int, refused: Path = refused) -> bool:
            return Path(path) != refused and system_access(path, mode)

        monkeypatch.setattr(os, "access", access)  # root may enter any
        with pytest.raises(KernelStartFailed, match=text):
            check_launchable(spec, tmp_path, env, program.parent)
