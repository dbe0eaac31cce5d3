"""A thread with an owner's rights: what it reaches of files, and what others still reach."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from app.managers.processes.isolation import file_rights
from app.managers.processes.isolation.file_rights import (
    FileRights,
    Within,
    has_landlock,
    has_user_rights,
    with_rights,
)
from tests.support.isolated import as_root
from tests.support.server import REPOSITORY

AS_USER = """
import os, sys
from pathlib import Path
from app.managers.processes.isolation.file_rights import OfUser, with_rights

here = Path(sys.argv[1])
rights = OfUser(20001, 20002)
home, secret = here / "home", here / "secret"
home.mkdir(mode=0o700)
os.chown(home, 20001, 20002)
secret.write_text("x")
secret.chmod(0o600)
(home / "link").symlink_to(secret)
(home / "away").symlink_to(here)
os.setgroups([7])
here.chmod(0o711)
shared = here / "of a group"
shared.write_text("x")
os.chown(shared, 0, 7)
shared.chmod(0o640)

def refused(work):
    try:
        work()
    except PermissionError:
        return True
    return False

def within():
    (home / "mine").write_text("m")
    found = (home / "mine").stat()
    assert (found.st_uid, found.st_gid) == (20001, 20002), found
    for work in (
        secret.read_text,
        (home / "link").read_text,
        lambda: (home / "link").write_text("y"),
        lambda: (home / "away" / "planted").write_text("y"),
        lambda: os.rename(home / "mine", here / "mine"),
        lambda: os.unlink(home / "away" / "secret"),
        shared.read_text,
    ):
        assert refused(work), work
    with rights.lifted():
        assert secret.read_text() == "x"
    assert refused(secret.read_text)
    return "done"

assert with_rights(rights, within) == "done"
assert secret.read_text() == shared.read_text() == "x"
assert os.getgroups() == [7]
print("ok")
"""


def test_the_rights_of_a_user_are_those_of_one_thread(passable: Path) -> None:
    done = subprocess.run(
        [*as_root(), sys.executable, "-c", AS_USER, str(passable)],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("ok\n", 0), done.stderr


def is_refused(work: Callable[[], object]) -> bool:
    try:
        work()
    except PermissionError:
        return True
    return False


def test_the_rights_to_a_directory_end_where_it_ends(tmp_path: Path) -> None:
    home, secret, notes = tmp_path / "home", tmp_path / "secret", tmp_path / "notes"
    home.mkdir()
    notes.mkdir()
    secret.write_text("x")
    (home / "link").symlink_to(secret)
    (home / "away").symlink_to(tmp_path)
    rights = Within((home,), (tmp_path / "notes",))

    def within() -> list[bool]:
        (home / "mine").write_text("m")
        (home / "inner").mkdir()
        os.rename(home / "mine", home / "inner" / "mine")
        assert os.listdir(notes) == []
        return [
            is_refused(secret.read_text),
            is_refused((home / "link").read_text),
            is_refused(lambda: (home / "link").write_text("y")),
            is_refused(lambda: (home / "away" / "planted").write_text("y")),
            is_refused(lambda: (home / "away" / "planted").mkdir()),
            is_refused(lambda: os.listdir(tmp_path)),
            is_refused(lambda: os.rename(home / "inner" / "mine", tmp_path / "mine")),
            is_refused(lambda: os.rename(secret, home / "stolen")),
            is_refused(secret.unlink),
            is_refused((notes / "planted").touch),
        ]

    assert all(with_rights(rights, within))
    assert sorted(os.listdir(tmp_path)) == ["home", "notes", "secret"]
    assert secret.read_text() == "x"  # this thread has kept its rights
    with_rights(rights.also(notes), (notes / "planted").touch)
    assert (notes / "planted").exists()


def test_a_home_that_is_a_link_gives_no_rights(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "home").symlink_to("real")
    with pytest.raises(NotADirectoryError):
        with_rights(Within((tmp_path / "home",)), tmp_path.stat)


def test_the_rights_of_the_service_are_all_that_it_has(tmp_path: Path) -> None:
    assert FileRights() == FileRights().also(tmp_path) != Within((tmp_path,))
    with FileRights().lifted(), Within((tmp_path,)).lifted():
        assert with_rights(FileRights(), lambda: "done") == "done"
    FileRights().take()


def test_what_is_raised_is_passed_on(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        with_rights(Within((tmp_path,)), lambda: 1 / 0)


def test_another_machine_has_none_of_this(monkeypatch: pytest.MonkeyPatch) -> None:
    assert has_user_rights()
    assert has_landlock()
    monkeypatch.setattr(platform, "machine", lambda: "unknown")
    assert not has_user_rights()
    monkeypatch.setattr(file_rights, "_landlock_version", lambda: 1)
    assert not has_landlock()
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not has_user_rights()
    assert not has_landlock()
