"""The control groups of kernels, by the rules that the system has for them."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

import pytest

from app.keeper.group_files import SERVICE, Base, GroupFiles, Unusable
from app.keeper.groups import ControlGroups, Group, state_key
from app.keeper.limits import ProcessLimits
from tests.support.groups import FakeGroups

LIMITS = ProcessLimits(owner="anna", memory=2**28, cpu=0.5, processes=40)


@pytest.fixture
def fake(tmp_path: Path) -> FakeGroups:
    return FakeGroups(tmp_path)


def made(fake: FakeGroups) -> ControlGroups:
    return ControlGroups("7", fake.find, fake, fake.where)


def text(group: Path, name: str) -> str:
    return (group / name).read_text().strip()


def test_nothing_is_touched_before_the_first_kernel_with_a_limit(fake: FakeGroups) -> None:
    groups = made(fake)
    groups.resume()
    assert fake.children(fake.base) == []
    assert groups.controllers == {"cpu", "memory", "pids"}


def test_the_services_own_processes_make_room(fake: FakeGroups) -> None:
    fake.write(fake.base, "cgroup.procs", "11")
    fake.write(fake.base, "cgroup.procs", "12")
    groups = made(fake)

    assert groups.controllers == {"cpu", "memory", "pids"}
    assert text(fake.base, "cgroup.procs") == ""
    assert text(fake.base / SERVICE, "cgroup.procs").split() == ["11", "12"]


def test_one_that_ends_meanwhile_is_no_error(fake: FakeGroups) -> None:
    fake.write(fake.base, "cgroup.procs", "11")
    fake.gone.add("11")
    with (fake.base / "cgroup.procs").open("w") as file:
        file.write("")
    assert made(fake).controllers


def test_the_limits_are_those_of_the_owner(fake: FakeGroups) -> None:
    groups = made(fake)
    one, two = groups.new("k1", LIMITS), groups.new("k2", LIMITS)

    assert one.owner == two.owner == fake.base / "kernelkeep-7" / "anna"
    assert text(one.owner, "memory.max") == str(2**28)
    assert text(one.owner, "memory.swap.max") == "0"
    assert text(one.owner, "cpu.max") == "50000 100000"
    assert text(one.owner, "pids.max") == "40"
    assert text(one.path, "memory.oom.group") == "1"
    assert text(one.path, "memory.max") == "max"


def test_a_kernel_without_an_owner_shares_its_limits_with_none(fake: FakeGroups) -> None:
    groups = made(fake)
    one, two = (groups.new(kernel_id, ProcessLimits(memory=5)) for kernel_id in ("k1", "k2"))
    assert one.owner != two.owner


def test_a_process_that_follows_has_a_group_of_its_own(fake: FakeGroups) -> None:
    groups = made(fake)
    one, two = groups.new("k", LIMITS), groups.new("k", LIMITS)
    assert one.path != two.path


@pytest.mark.parametrize(
    ("cpu", "written"),
    [
        (None, "max 100000"),
        (2.0, "200000 100000"),
        (0.01, "1000 100000"),
        (0.005, "5000 1000000"),
        (0.0000001, "1000 1000000"),
        (1e300, "max 100000"),
    ],
)
def test_the_quota_is_one_that_the_system_takes(
    fake: FakeGroups, cpu: float | None, written: str
) -> None:
    group = made(fake).new("k", ProcessLimits(cpu=cpu, processes=1))
    assert text(group.owner, "cpu.max") == written


def test_groups_go_with_what_was_in_them(fake: FakeGroups) -> None:
    groups = made(fake)
    one, two = groups.new("k1", LIMITS), groups.new("k2", LIMITS)
    one.enter(71)
    groups.end(one)
    assert not one.path.exists()
    assert two.path.exists()
    groups.end(two)
    groups.close()
    assert {path.name for path in fake.children(fake.base)} == {SERVICE}


def test_one_that_is_slow_to_end_goes_later(fake: FakeGroups) -> None:
    groups = made(fake)
    group = groups.new("k", LIMITS)
    group.enter(71)
    fake.dies_late = True
    groups.end(group)
    assert group.path.exists()
    assert groups.sweep()

    (group.path / "cgroup.procs").write_text("")
    assert not groups.sweep()
    assert not group.owner.exists()


def test_a_process_is_found_again_by_its_group(fake: FakeGroups) -> None:
    made(fake).new("k", LIMITS).enter(71)
    groups = made(fake)
    found = groups.found(71)
    assert found is not None
    assert (found.owner.name, found.path.name) == ("anna", "k-k.1")
    assert groups.found(72) is None
    assert ControlGroups("8", fake.find, fake, fake.where).found(71) is None


def test_what_an_earlier_keeper_left_goes_unless_something_runs(fake: FakeGroups) -> None:
    before = made(fake)
    empty, full = before.new("k1", LIMITS), before.new("k2", LIMITS)
    (full.path / "cgroup.events").write_text("populated 1\n")
    groups = made(fake)
    groups.resume()
    assert not empty.path.exists()
    assert full.path.exists()

    groups.end_all_of("k2")
    assert not full.owner.exists()


def test_a_controller_that_is_missing_is_left_out(tmp_path: Path) -> None:
    fake = FakeGroups(tmp_path, "cpu pids")
    groups = made(fake)
    assert groups.controllers == {"cpu", "pids"}
    group = groups.new("k", LIMITS)
    assert not (group.owner / "memory.max").exists()


def test_without_any_there_are_no_groups(tmp_path: Path) -> None:
    groups = made(FakeGroups(tmp_path, ""))
    assert groups.controllers == frozenset()
    assert "has neither of" in groups.why_not


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_why_no_group_can_be_made_is_said(fake: FakeGroups, number: int) -> None:
    fake.fail("make", "kernelkeep-7", number)
    groups = made(fake)
    assert groups.controllers == frozenset()
    assert os.strerror(number) in groups.why_not


def test_one_that_is_busy_is_tried_again_and_then_left_out(fake: FakeGroups) -> None:
    fake.fail("write", "cgroup.subtree_control", errno.EBUSY)
    groups = made(fake)
    assert groups.controllers == frozenset()
    assert groups.why_not


@pytest.mark.parametrize(
    ("operation", "name", "number"),
    [
        ("make", "anna", errno.ENOSPC),
        ("make", "k-k.1", errno.ENOSPC),
        ("write", "memory.max", errno.EBUSY),
        ("write", "cpu.max", errno.EINVAL),
    ],
)
def test_a_group_that_cannot_be_made_is_an_error(
    fake: FakeGroups, operation: str, name: str, number: int
) -> None:
    groups = made(fake)
    assert groups.controllers
    fake.fail(operation, name, number)
    with pytest.raises(OSError, match=re.escape(os.strerror(number))) as raised:
        groups.new("k", LIMITS)
    assert raised.value.errno == number


def test_an_owners_group_that_another_removes_meanwhile_is_made_again(fake: FakeGroups) -> None:
    class Removing(FakeGroups):
        times = 2

        def write(self, group: Path, name: str, text: str) -> None:
            if name == "memory.max" and self.times:
                self.times -= 1
                for child in self.children(group):
                    self.remove(child)
                self.remove(group)
            super().write(group, name, text)

    removing = Removing(fake.base)
    assert made(removing).new("k", LIMITS).path.exists()
    removing.times = 100
    with pytest.raises(FileNotFoundError):
        made(removing).new("k2", LIMITS)


def test_an_older_system_has_fewer_files(fake: FakeGroups) -> None:
    fake.fail("write", "memory.swap.max", errno.ENOENT)
    fake.fail("write", "memory.oom.group", errno.ENOENT)
    fake.fail("write", "cgroup.kill", errno.ENOENT)
    groups = made(fake)
    group = groups.new("k", LIMITS)
    groups.end(group)
    assert not group.path.exists()


def test_figures_are_read_as_far_as_there_are(fake: FakeGroups) -> None:
    group = made(fake).new("k", LIMITS)
    (group.path / "memory.current").write_text("4096\n")
    (group.path / "cpu.stat").write_text("usage_usec 1500000\nuser_usec 7\n")
    assert group.figure("memory.current") == 4096
    assert group.figure("cpu.stat", "usage_usec") == 1500000
    assert group.figure("cpu.stat", "nothing") is None
    assert group.figure("memory.max") is None
    assert group.figure("no.such") is None
    assert group.figure("memory.max", of_owner=True) == 2**28
    assert Group(Path("/nowhere/at/all"), GroupFiles()).pids() == []


def test_where_the_base_cannot_be_used_that_is_said(tmp_path: Path) -> None:
    def find(_files: GroupFiles) -> Base:
        raise Unusable("nobody has given it")

    groups = ControlGroups("7", find)
    groups.resume()
    assert groups.controllers == frozenset()
    assert groups.why_not == "nobody has given it"
    assert groups.found(os.getpid()) is None
    groups.end_all_of("k")
    groups.close()


def test_a_state_directory_keeps_its_key(tmp_path: Path) -> None:
    (tmp_path / "keeper").mkdir()
    directory = os.open(tmp_path / "keeper", os.O_RDONLY)
    try:
        key = state_key(directory)
        (tmp_path / "keeper").rename(tmp_path / "keeper.4.1")
        assert state_key(directory) == key
    finally:
        os.close(directory)
