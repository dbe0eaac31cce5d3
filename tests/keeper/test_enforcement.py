"""How limits are enforced, and that they hold before any code runs."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from app.keeper.enforcement import Enforcement, Enforcer
from app.keeper.groups import ControlGroups
from app.keeper.limits import NO_LIMITS, ProcessLimits
from tests.support.groups import FakeGroups

LIMITS = ProcessLimits(owner="anna", memory=2**30, cpu=0.5, processes=40, open_files=77)
ANNAS = 20_000  # the id of a user who has her kernels alone
TELL = "import resource; print(*resource.getrlimit(resource.RLIMIT_{}))"


@pytest.fixture
def fake(tmp_path: Path) -> FakeGroups:
    return FakeGroups(tmp_path)


def enforcer(fake: FakeGroups) -> Enforcer:
    return Enforcer(ControlGroups("7", fake.find, fake, fake.where))


def run(enforcement: Enforcement, code: str) -> str:
    prepare = enforcement.preparation()
    done = subprocess.run(
        [sys.executable, "-c", code], preexec_fn=prepare, check=True, capture_output=True, text=True
    )
    enforcement.launched()
    return done.stdout.strip()


def test_groups_limit_all_but_the_open_files(fake: FakeGroups) -> None:
    enforcement = enforcer(fake).new("k", LIMITS)
    assert enforcement.by == {
        "cpu": "cgroup",
        "memory": "cgroup",
        "open_files": "setrlimit",
        "processes": "cgroup",
    }
    assert enforcement.group is not None
    assert run(enforcement, TELL.format("NOFILE")) == "77 77"
    assert (enforcement.group.path / "cgroup.procs").read_text() == "0"  # the child moved itself


def test_without_groups_each_process_has_its_limit(tmp_path: Path) -> None:
    enforcement = enforcer(FakeGroups(tmp_path, "")).new("k", LIMITS)
    assert enforcement.by == {
        "cpu": "none",
        "memory": "setrlimit",
        "open_files": "setrlimit",
        "processes": "none",
    }
    assert enforcement.group is None
    assert run(enforcement, TELL.format("DATA")) == f"{2**30} {2**30}"


def test_without_groups_the_processes_of_an_owners_user_are_limited(tmp_path: Path) -> None:
    enforcement = enforcer(FakeGroups(tmp_path, "")).new("k", LIMITS, ANNAS)
    assert enforcement.by["processes"] == "setrlimit"
    assert run(enforcement, TELL.format("NPROC")) == "40 40"


@pytest.mark.parametrize("uid", [None, 0, 1234])
def test_the_processes_of_root_and_of_the_service_are_not_limited(
    tmp_path: Path, uid: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root has no such limit, and the service's user has other owners' kernels."""
    monkeypatch.setattr(os, "geteuid", lambda: 1234)
    enforcement = enforcer(FakeGroups(tmp_path, "")).new("k", LIMITS, uid)
    assert enforcement.by["processes"] == "none"


def test_a_group_limits_the_processes_of_an_owners_user_as_well(fake: FakeGroups) -> None:
    assert enforcer(fake).new("k", LIMITS, ANNAS).by["processes"] == "cgroup"


def test_a_process_of_an_owners_user_that_runs_is_limited_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = ProcessLimits(processes=40)
    with subprocess.Popen(["sleep", "60"]) as process:
        again = enforcer(FakeGroups(tmp_path, "")).again("k", process.pid, limits)
        assert again.by == {"processes": "none"}
        users = {process.pid: ANNAS}
        monkeypatch.setattr("app.keeper.enforcement.user_of", users.get)
        again = enforcer(FakeGroups(tmp_path, "")).again("k", process.pid, limits)
        assert again.by == {"processes": "setrlimit"}
        again.impose([process.pid])
        assert resource.prlimit(process.pid, resource.RLIMIT_NPROC) == (40, 40)
        process.kill()


def test_a_process_that_takes_too_much_is_told_so(tmp_path: Path) -> None:
    limits = ProcessLimits(memory=2**28, open_files=20)
    enforcement = enforcer(FakeGroups(tmp_path, "")).new("k", limits)
    code = """
try:
    bytearray(2**29)
except MemoryError:
    print("memory", end=" ")
try:
    files = [open("/dev/null") for _ in range(30)]
except OSError as error:
    print(error.errno)
"""
    assert run(enforcement, code) == f"memory {errno.EMFILE}"


def test_a_part_of_the_groups_is_used(tmp_path: Path) -> None:
    enforcement = enforcer(FakeGroups(tmp_path, "pids")).new("k", LIMITS)
    assert enforcement.by["memory"] == "setrlimit"
    assert enforcement.by["processes"] == "cgroup"
    assert enforcement.by["cpu"] == "none"


def test_no_limits_need_nothing(fake: FakeGroups) -> None:
    enforcement = enforcer(fake).new("k", NO_LIMITS)
    assert enforcement.by == {}
    assert enforcement.preparation() is None
    assert enforcement.failed() is None
    assert fake.children(fake.base) == []


def test_files_alone_take_no_group(fake: FakeGroups) -> None:
    assert enforcer(fake).new("k", ProcessLimits(open_files=50)).by == {"open_files": "setrlimit"}
    assert fake.children(fake.base) == []


def test_nobody_gets_more_than_the_service_has(fake: FakeGroups) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    enforcement = enforcer(fake).new("k", ProcessLimits(open_files=hard + 1000))
    assert run(enforcement, TELL.format("NOFILE")) == f"{hard} {hard}"


def test_a_group_that_is_gone_fails_the_launch(fake: FakeGroups) -> None:
    enforcement = enforcer(fake).new("k", LIMITS)
    assert enforcement.group is not None
    fake.remove(enforcement.group.path)
    with pytest.raises(FileNotFoundError):
        enforcement.preparation()


def test_why_a_child_could_not_be_limited_is_known(
    fake: FakeGroups, monkeypatch: pytest.MonkeyPatch
) -> None:
    enforcement = enforcer(fake).new("k", LIMITS)
    # A write to it fails, as one to a group that was removed meanwhile does.
    monkeypatch.setattr(enforcement.group, "open", lambda: os.open("/dev/full", os.O_WRONLY))
    prepare = enforcement.preparation()
    with pytest.raises(subprocess.SubprocessError):
        subprocess.run(["true"], preexec_fn=prepare, check=True)
    why = enforcement.failed()
    assert why is not None
    assert why.errno == errno.ENOSPC
    assert "its limits cannot be set" in str(why)


def test_a_process_that_runs_is_limited_as_well(fake: FakeGroups) -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        enforcement = enforcer(fake).again("k", process.pid, LIMITS)
        enforcement.impose([process.pid])
        assert enforcement.group is not None
        assert enforcement.group.pids() == [process.pid]
        assert resource.prlimit(process.pid, resource.RLIMIT_NOFILE) == (77, 77)

        changed = ProcessLimits(owner="anna", memory=5)
        again = enforcer(fake).again("k", process.pid, changed)
        assert again.group is not None
        assert again.group.path == enforcement.group.path
        assert (again.group.owner / "memory.max").read_text().strip() == "5"

        other = enforcer(fake).again("k", process.pid, ProcessLimits(owner="ben", memory=5))
        other.impose([process.pid])
        assert other.group is not None
        assert (other.group.owner.name, enforcement.group.pids()) == ("ben", [])

        lifted = enforcer(fake).again("k", process.pid, NO_LIMITS)
        assert lifted.by == {}
        assert (other.group.owner / "memory.max").read_text().strip() == "max"
        process.kill()
    enforcement.impose([process.pid])  # it has ended: no error


def test_limits_of_a_running_process_that_nobody_may_change_are_no_limits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of another user's process without the capability SYS_RESOURCE."""

    def imposed(files: int, pid: int) -> None:
        limits = ProcessLimits(open_files=files)
        enforcer(FakeGroups(tmp_path, "")).again("k", pid, limits).impose([pid])

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    with subprocess.Popen(["sleep", "60"]) as process:
        imposed(77, process.pid)
        monkeypatch.setattr(resource, "prlimit", refuse)
        imposed(77, process.pid)  # it has that already
        imposed(78, process.pid)  # and less stays less
        with pytest.raises(PermissionError):
            imposed(76, process.pid)
        process.kill()
    imposed(76, process.pid)  # it has ended


def test_a_keeper_that_follows_takes_it_as_it_is(fake: FakeGroups) -> None:
    first = enforcer(fake).new("k", LIMITS)
    assert first.group is not None
    first.group.enter(71)
    found = enforcer(fake).again("k", 71, None)
    assert found.group is not None
    assert (found.group.path, found.by) == (first.group.path, {})
