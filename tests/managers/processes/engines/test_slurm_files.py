"""The directory that a service and its jobs share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from app.managers.processes.engines.slurm_files import TAIL_BYTES, JobFiles
from app.managers.processes.hosts.errors import HostFull, HostUnusable


def files(directory: Path) -> JobFiles:
    return JobFiles(str(directory), "own-")


def test_files_of_a_job_are_its_users_alone(tmp_path: Path) -> None:
    shared = tmp_path / "new" / "shared"
    own = files(shared)
    assert own.names() == []
    own.remove("own-1")
    own.write("own-1", b"secret")
    assert shared.stat().st_mode & 0o777 == 0o700
    assert {each.name: each.stat().st_mode & 0o777 for each in shared.iterdir()} == {
        "own-1.in": 0o600,
        "own-1.out": 0o600,
    }
    assert Path(own.path("own-1", "in")).read_bytes() == b"secret"
    (shared / "other-1.out").touch()
    assert own.names() == ["own-1"]
    own.remove("own-1", "in")
    assert own.names() == ["own-1"]
    own.remove("own-1")
    assert own.names() == []
    assert [each.name for each in shared.iterdir()] == ["other-1.out"]


def test_the_last_of_what_a_job_has_written_is_read(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    own = files(tmp_path)
    assert own.tail("own-1") == ""
    (tmp_path / "own-1.out").write_bytes(b"a" * TAIL_BYTES + b"b\n\xff\n")
    assert own.tail("own-1").endswith("ab\n\N{REPLACEMENT CHARACTER}")
    assert len(own.tail("own-1")) < TAIL_BYTES
    (tmp_path / "own-2.out").symlink_to("/etc/passwd")
    assert own.tail("own-2") == ""


def test_a_directory_that_is_open_to_others_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o710)
    own = files(tmp_path)
    with pytest.raises(HostUnusable, match=r"open to others \(010\): chmod 700"):
        own.write("own-1", b"secret")
    with pytest.raises(HostUnusable, match="open to others"):
        own.names()
    assert own.tail("own-1") == ""
    assert [*tmp_path.iterdir()] == []


def test_a_directory_of_another_user_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o700)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(HostUnusable, match="another user's"):
        files(tmp_path).write("own-1", b"secret")


def test_what_cannot_be_written_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(HostUnusable, match="cannot be written"):
        files(Path("/proc/nothing")).write("own-1", b"")
    (tmp_path / "file").touch()
    with pytest.raises(HostUnusable, match="cannot be read"):
        files(tmp_path / "file").names()
    with pytest.raises(HostUnusable, match="stay in"):
        files(tmp_path / "file").remove("own-1")
    shared = tmp_path / "shared"

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(HostFull, match="No space left"):
        files(shared).write("own-1", b"secret")
    assert [*shared.iterdir()] == []
