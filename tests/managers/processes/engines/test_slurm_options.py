"""The options of jobs of Slurm's, and what Slurm is asked for."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.kernelspec import KernelSpec

from app.keeper.limits import NO_LIMITS, ProcessLimits
from app.managers.errors import KernelStartFailed
from app.managers.processes.engines.order import PROGRAM
from app.managers.processes.engines.slurm_options import (
    PROVISIONER,
    SlurmOptions,
    arguments,
    measure,
    script,
    slurm_options,
)


def read(**config: Any) -> SlurmOptions | None:
    stanza = {"provisioner_name": PROVISIONER, "config": config}
    return slurm_options(KernelSpec(metadata={"kernel_provisioner": stanza}))


def asked(limits: ProcessLimits = NO_LIMITS, **config: Any) -> list[str]:
    options = read(**config)
    assert options is not None
    return arguments(options, limits)


def test_what_is_not_given_slurm_says() -> None:
    assert asked() == []
    options = read()
    assert options is not None
    home = os.path.expanduser("~")
    assert options.engine == f"{home}/.local/state/kernelkeep/slurm"
    assert options.patience > options.pending_timeout
    assert slurm_options(KernelSpec(metadata={})) is None


def test_nodes_that_share_the_home_have_the_files_in_the_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = tmp_path / "real"
    (real / "books").mkdir(parents=True)
    home = tmp_path / "home"
    home.symlink_to(real)  # as the nodes have the home, too
    monkeypatch.setenv("HOME", str(home))

    def there(root: Path, /, **config: Any) -> str:
        options = read(**config)
        assert options is not None
        return options.root_there(root)

    assert there(real) == str(home)
    assert there(real / "books") == f"{home}/books"
    assert there(tmp_path) == ""
    # Either of the home's names may be what is said of each.
    assert there(home / "books") == f"{home}/books"
    assert there(real / "books", shared=f"{real}/slurm") == f"{home}/books"
    # What is said comes first.
    assert there(real, root_dir="") == ""
    assert there(tmp_path, root_dir="/srv/books") == "/srv/books"
    assert there(real, directory="/scratch") == ""
    assert there(real, directory="/scratch", root_dir="/srv/books") == "/srv/books"
    # Where the home is not known to be shared, nothing is guessed.
    assert there(real, shared="/srv/kernelkeep") == ""


def test_what_is_given_is_asked_for_in_words_of_their_own() -> None:
    given: dict[str, Any] = {
        "partition": "a,b",
        "account": "lab",
        "qos": "high",
        "time": "2-12:30:00",
    }
    words = asked(**given, memory="2GiB", cpus=4, gpus="a100:2", constraint="a&(b|c)")
    assert words == [
        *("--partition=a,b", "--account=lab", "--qos=high", "--time=2-12:30:00"),
        *("--constraint=a&(b|c)", "--mem=2097152K", "--cpus-per-task=4", "--gres=gpu:a100:2"),
    ]
    assert asked(gpus=2, memory=2**26 + 1) == ["--mem=65537K", "--gres=gpu:2"]


def test_an_owner_has_no_more_than_its_limits() -> None:
    limits = ProcessLimits(memory=2**30, cpu=2.5)
    words = asked(limits, memory="2GiB", cpus=4)
    assert words == ["--mem=1048576K", "--cpus-per-task=2"]
    assert asked(limits, memory="512MiB", cpus=1) == ["--mem=524288K", "--cpus-per-task=1"]
    assert asked(ProcessLimits(cpu=0.5), cpus=4) == ["--cpus-per-task=1"]
    assert asked(limits) == []  # as the partition has it, which may be less


@pytest.mark.parametrize(
    "config",
    [
        {"partitoin": "x"},
        {"partition": "--wrap=x"},
        {"account": "a b"},
        {"qos": ""},
        {"time": "soon"},
        {"time": "90\n"},
        {"partition": "short\n"},
        {"python": "python3\n"},
        {"shared": "/shared\n"},
        {"time": "1:00; x"},
        {"memory": "much"},
        {"cpus": 0},
        {"gpus": "many"},
        {"gpus": "-a:1"},
        {"constraint": "-x"},
        {"shared": "relative"},
        {"shared": "/a/%j"},
        {"shared": "/a\n/b"},
        {"python": "python\n3"},
        {"address": "nowhere"},
        {"pending_timeout": 0},
    ],
)
def test_what_cannot_be_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(KernelStartFailed, match="options of kernelkeep-slurm"):
        read(**config)


def run(python: str, home: Path, stdin: bytes) -> subprocess.CompletedProcess[bytes]:
    """Run a batch script as Slurm does."""
    file = home / "script"
    file.write_bytes(script(python))
    env = {"HOME": str(home), "PATH": "/usr/bin:/bin", "TMPDIR": str(home)}
    return subprocess.run(["/bin/sh", file], input=stdin, env=env, capture_output=True, check=False)


def test_the_script_runs_what_comes_on_its_stdin_and_leaves_nothing(tmp_path: Path) -> None:
    odd = tmp_path / "it's $(odd)"
    odd.mkdir()
    (odd / "python").symlink_to(sys.executable)
    program = b"import os, sys; open(os.environ['TMPDIR'] + '/x', 'w'); sys.exit(7)"
    stdin = b"%d\n%s" % (len(program), program)
    for python in (sys.executable, str(odd / "python"), "~/it's $(odd)/python"):
        done = run(python, tmp_path, stdin)
        assert (done.returncode, done.stderr) == (7, b"")
    assert run("/nowhere/python", tmp_path, stdin).returncode == 127
    assert {each.name for each in tmp_path.iterdir()} == {odd.name, "script"}
    assert shlex.quote(PROGRAM).encode() in script("python3")


@pytest.mark.parametrize(
    ("name", "value", "means"),
    [
        ("time", 45, 45 * 60),
        ("time", "90", 90 * 60),
        ("time", "90:30", 90 * 60 + 30),
        ("time", "12:00:05", 12 * 3600 + 5),
        ("time", "2-12", 60 * 3600),
        ("time", "2-12:30", 60 * 3600 + 30 * 60),
        ("time", "1-00:00:01", 86401),
        ("memory", "2G", 2 * 10**9),
        ("cpus", 3, 3),
    ],
)
def test_values_of_callers_are_measured(name: str, value: str | int, means: int) -> None:
    assert measure(name, value) == means


@pytest.mark.parametrize(
    ("name", "value"),
    [("time", "soon"), ("time", "-1"), ("time", "1:2:3:4"), ("memory", "much"), ("cpus", "3")],
)
def test_a_value_that_is_no_such_thing_is_refused(name: str, value: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        measure(name, value)
