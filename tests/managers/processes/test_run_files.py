"""Where the files of one run of the server are, and who removes them."""

from __future__ import annotations

import fcntl
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

from app.keeper.notes import Notes
from app.keeper.processes import start_time
from app.managers.processes.run_files import (
    RunFiles,
    UnusableDirectory,
    check_directories,
    clear_mirrors,
)
from app.settings import Settings

WAIT = 30  # seconds


def run_files(state_dir: Path, on_shutdown: Literal["keep", "stop"] = "stop") -> RunFiles:
    return RunFiles(Settings(_cli_parse_args=False, state_dir=state_dir, on_shutdown=on_shutdown))


def abandon(files: RunFiles) -> None:
    """As where the server is killed."""
    assert files._lock is not None
    os.close(files._lock)
    files._lock = None


def runs(state_dir: Path) -> set[Path]:
    return {*(state_dir / "run").iterdir()}


@pytest.fixture
def sleeping() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    yield process
    process.kill()
    process.wait()


def note(files: RunFiles, pid: int, started: str) -> Path:
    """What a keeper notes of a kernel; its directory."""
    directory = files.path / "keeper"
    directory.mkdir()
    (directory / "lock").touch()
    descriptor = os.open(directory, os.O_RDONLY)
    Notes(descriptor).write([("k", pid, started, str(files.output / "k.log"))])
    os.close(descriptor)
    return directory


def test_what_is_kept_is_in_the_state_directory_and_stays(tmp_path: Path) -> None:
    files = run_files(tmp_path / "state", "keep")
    where = tmp_path / "state"
    assert (files.path, files.runtime, files.output) == (where, where / "runtime", where / "output")
    assert files.logs == where / "logs" / "kept"
    assert files.own == []
    files.close()
    assert files.logs.is_dir()
    assert not (where / "run").exists()


def test_what_ends_with_the_server_is_in_a_directory_of_its_own(tmp_path: Path) -> None:
    first, second = run_files(tmp_path), run_files(tmp_path)
    assert runs(tmp_path) == {first.path, second.path}
    assert first.own == [first.path]
    for directory in (first.path, first.runtime, first.output, first.logs):
        assert directory.stat().st_mode & 0o777 == 0o700
        assert directory.is_relative_to(first.path)
    first.close()
    assert runs(tmp_path) == {second.path}
    second.close()
    assert runs(tmp_path) == set()


@pytest.mark.parametrize("on_shutdown", ["keep", "stop"])
def test_what_a_run_that_was_killed_has_left_the_next_clears_away(
    tmp_path: Path, sleeping: subprocess.Popen[bytes], on_shutdown: Literal["keep", "stop"]
) -> None:
    started = start_time(sleeping.pid)
    assert started is not None
    living, killed, bare = run_files(tmp_path), run_files(tmp_path), run_files(tmp_path)
    note(killed, sleeping.pid, started)
    abandon(killed)
    abandon(bare)
    files = run_files(tmp_path, on_shutdown)
    assert sleeping.wait(WAIT) == -9
    assert runs(tmp_path) == {living.path, *files.own}


def test_a_process_that_has_got_the_number_of_a_kernel_is_left_alone(
    tmp_path: Path, sleeping: subprocess.Popen[bytes]
) -> None:
    killed = run_files(tmp_path)
    note(killed, sleeping.pid, "of another process")
    abandon(killed)
    files = run_files(tmp_path)
    assert runs(tmp_path) == {files.path}
    assert sleeping.poll() is None


def test_a_keeper_that_is_still_there_clears_away_itself(
    tmp_path: Path, sleeping: subprocess.Popen[bytes]
) -> None:
    started = start_time(sleeping.pid)
    assert started is not None
    killed = run_files(tmp_path)
    keeper = note(killed, sleeping.pid, started)
    abandon(killed)
    lock = os.open(keeper / "lock", os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    files = run_files(tmp_path)
    assert runs(tmp_path) == {killed.path, files.path}
    assert sleeping.poll() is None
    os.close(lock)


def replica_files(state_dir: Path, replica: str) -> RunFiles:
    settings = Settings(_cli_parse_args=False, state_dir=state_dir, on_shutdown="keep")
    return RunFiles(settings, replica)


def test_each_replica_has_mirrors_of_its_own_while_it_lives(tmp_path: Path) -> None:
    state_dir = tmp_path / "state"
    alone = run_files(state_dir, "keep")
    assert alone.mirrors == alone.logs
    first, killed = replica_files(state_dir, "a1"), replica_files(state_dir, "b2")
    assert first.mirrors != killed.mirrors
    for files in (first, killed):
        assert files.logs == alone.logs
        (files.mirrors / "k").mkdir()
    clear_mirrors(state_dir)
    assert (killed.mirrors / "k").exists()
    assert killed._mirrors_lock is not None
    os.close(killed._mirrors_lock)  # as where it is killed
    killed._mirrors_lock = None
    clear_mirrors(state_dir)
    assert not killed.mirrors.exists()
    # The one that is started next finds it gone, or removes it.
    (state_dir / "logs" / "mirrors" / "c3").mkdir()
    third = replica_files(state_dir, "d4")
    assert {path.name for path in third.mirrors.parent.iterdir()} == {"a1", "d4"}
    for files in (first, third):
        files.close()
        assert not files.mirrors.exists()


def kept(state_dir: Path, agent_listen: str = "") -> Settings:
    settings = Settings(_cli_parse_args=False, state_dir=state_dir, on_shutdown="keep")
    return settings.model_copy(update={"agent_listen": agent_listen})


def refusal(settings: Settings) -> str:
    with pytest.raises(UnusableDirectory) as caught:
        check_directories(settings)
    return str(caught.value)


@pytest.mark.parametrize("name", ["runtime", "logs/kept", "logs/mirrors", "invitations"])
def test_what_is_no_directory_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.touch()
    assert refusal(kept(tmp_path, "127.0.0.1:0")) == f"{path} is no directory"
    path.unlink()
    path.symlink_to(tmp_path / "nowhere")
    assert refusal(kept(tmp_path, "127.0.0.1:0")) == f"{path} is a link to nowhere"
    (tmp_path / "nowhere").mkdir()
    check_directories(kept(tmp_path, "127.0.0.1:0"))


def test_what_a_run_does_not_need_may_be_anything(tmp_path: Path) -> None:
    for name in ("runtime", "logs", "invitations"):
        (tmp_path / name).touch()
    check_directories(Settings(_cli_parse_args=False, state_dir=tmp_path, on_shutdown="stop"))
    assert refusal(kept(tmp_path)) == f"{tmp_path / 'runtime'} is no directory"


def test_a_directory_that_cannot_be_used_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "output").mkdir()
    (tmp_path / "logs").symlink_to("logs")
    # Root may write where nobody else may.
    monkeypatch.setattr(os, "access", lambda path, _: path != tmp_path / "output")
    assert refusal(kept(tmp_path)).startswith(f"{tmp_path / 'output'} cannot be written by user ")
    (tmp_path / "output").rmdir()
    assert refusal(kept(tmp_path)).startswith(f"{tmp_path / 'logs'} cannot be used: ")
