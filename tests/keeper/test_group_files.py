"""Where the control group of a process is, and whether it is the service's to use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from app.keeper import group_files
from app.keeper.group_files import SERVICE, GroupFiles, Unusable, find_base, group_of
from tests.support.groups import FakeGroups

MOUNT = "30 23 0:26 {begin} {point} rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
OTHERS = (
    "22 1 8:1 / / rw - ext4 /dev/sda rw\n31 23 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw\n"
)


class Machine:
    """A root directory with the files that tell of groups."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "proc/self").mkdir(parents=True)
        self.mounts(MOUNT.format(begin="/", point="/sys/fs/cgroup"))
        self.own("/unit")
        self.files = GroupFiles()

    def mounts(self, text: str) -> None:
        (self.root / "proc/self/mountinfo").write_text(OTHERS + text)

    def own(self, path: str) -> None:
        (self.root / "proc/self/cgroup").write_text(f"1:cpu:/other\n0::{path}\n")

    def group(self, path: str) -> Path:
        group = self.root / "sys/fs/cgroup" / path.strip("/")
        group.mkdir(parents=True, exist_ok=True)
        FakeGroups(group)
        return group

    def base(self, *, lasting: bool = False) -> group_files.Base:
        return find_base(self.files, lasting=lasting, root=self.root)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.mark.parametrize(
    ("begin", "point", "own", "found"),
    [
        ("/", "/sys/fs/cgroup", "/unit", "sys/fs/cgroup/unit"),
        ("/", "/sys/fs/cgroup", "/", "sys/fs/cgroup"),
        ("/docker/7", "/sys/fs/cgroup", "/docker/7", "sys/fs/cgroup"),
        ("/docker/7", "/sys/fs/cgroup", "/docker/7/sub", "sys/fs/cgroup/sub"),
        ("/docker/7", "/sys/fs/cgroup", "/docker/78", None),
        ("/", "/mnt/with\\040blank", "/unit", "mnt/with blank/unit"),
        ("/", "/sys/fs/cgroup", "/../outside", None),
        ("/", "/sys/fs/cgroup", "/gone (deleted)", "sys/fs/cgroup/gone"),
    ],
)
def test_the_group_of_a_process_is_found(
    machine: Machine, begin: str, point: str, own: str, found: str | None
) -> None:
    machine.mounts(MOUNT.format(begin=begin, point=point))
    machine.own(own)
    expected = None if found is None else machine.root / found
    assert group_of("self", machine.root) == expected


def test_without_version_2_there_is_none(machine: Machine) -> None:
    machine.mounts("")
    assert group_of("self", machine.root) is None
    (machine.root / "proc/self/cgroup").write_text("1:cpu:/\n")
    assert group_of("self", machine.root) is None
    assert group_of(77, machine.root) is None
    with pytest.raises(Unusable, match="no control groups of version 2"):
        machine.base()


def test_a_group_that_the_service_can_write_is_the_base(machine: Machine) -> None:
    group = machine.group("/unit")
    assert machine.base() == (group, False)


def test_the_root_of_the_machine_needs_no_room_to_be_made(machine: Machine) -> None:
    machine.own("/")
    group = machine.group("/")
    (group / "cgroup.type").unlink()
    assert machine.base() == (group, True)


def test_a_service_that_has_moved_finds_the_same_base(machine: Machine) -> None:
    group = machine.group("/unit")
    machine.group(f"/unit/{SERVICE}")
    machine.own(f"/unit/{SERVICE}")
    assert machine.base().path == group


def test_a_group_of_threads_is_of_no_use(machine: Machine) -> None:
    (machine.group("/unit") / "cgroup.type").write_text("threaded\n")
    with pytest.raises(Unusable, match="'threaded'"):
        machine.base()


@pytest.mark.parametrize("name", ["cgroup.procs", "cgroup.subtree_control"])
def test_a_group_that_may_not_be_written_is_not_used(
    machine: Machine, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.group("/unit")
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda path, how: path.name != name and allowed(path, how))
    with pytest.raises(Unusable, match=f"{name} cannot be written"):
        machine.base()


def test_what_systemd_has_not_given_away_is_its_own(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.group("/unit")
    (machine.root / "run/systemd/system").mkdir(parents=True)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(Unusable, match="Delegate=yes"):
        machine.base()


def delegated(monkeypatch: pytest.MonkeyPatch, group: Path) -> None:
    """systemd has marked this group."""

    def getxattr(path: Path, name: str) -> bytes:
        if path == group and name == "user.delegate":
            return b"1"
        raise OSError

    monkeypatch.setattr(os, "getxattr", getxattr, raising=False)


def test_a_delegated_group_is_used(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    group = machine.group("/unit")
    (machine.root / "run/systemd/system").mkdir(parents=True)
    delegated(monkeypatch, group)
    assert machine.base().path == group


def test_systemd_must_be_able_to_start_the_service_again(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = machine.group("/unit")
    delegated(monkeypatch, group)
    with pytest.raises(Unusable, match="DelegateSubgroup"):
        machine.base(lasting=True)

    machine.group("/unit/main")
    machine.own("/unit/main")
    assert machine.base(lasting=True).path == group
