"""How one kernel is launched as its owner's user; what comes of it is in `test_isolation`."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from app.keeper.launching import AsUser as UserOfKeeper
from app.keeper.launching import _open_below
from app.managers.errors import IsolationUnavailable
from app.managers.processes.isolation.accounts import Account
from app.managers.processes.isolation.places import KernelPlace
from app.managers.processes.isolation.user import AsUser, barrier, make_home

SOMEBODY = os.getuid() + 1


def account(home: Path, *, own: bool = True, uid: int | None = None) -> Account:
    return Account(os.getuid() if uid is None else uid, os.getgid(), "anna", home, own)


def as_user(directory: Path, uid: int | None = None) -> AsUser:
    one = AsUser(KernelPlace(directory, "id"), lambda: account(directory / "anna", uid=uid))
    one.prepare()
    return one


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o7777


def test_the_keeper_is_asked_to_launch_it_as_the_user(tmp_path: Path) -> None:
    one = as_user(tmp_path)
    home = tmp_path / "anna"
    launch = one.launch(["python", "-m", "kernel"], {"A": "1"}, str(home / "work"), "")
    assert (launch.command, launch.env, launch.cwd) == (
        *(["python", "-m", "kernel"], {"A": "1"}, str(home / "work")),
    )
    who = {"uid": os.getuid(), "gid": os.getgid(), "home": str(home)}
    assert launch.fields == {"as_user": who}
    assert one.environment({"HOME": "/root"}, {})["HOME"] == str(home)


def test_the_keeper_finds_a_home_that_lies_behind_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "home").symlink_to(tmp_path / "disk")
    one = as_user(tmp_path / "home")
    work = (tmp_path / "home" / "anna").resolve() / "work"
    work.mkdir()
    launch = one.launch(["python"], {}, str(work), "")
    user = UserOfKeeper.of(launch.fields["as_user"] | {"uid": SOMEBODY, "gid": SOMEBODY})
    assert user is not None
    descriptor = _open_below(user.home, launch.cwd)
    try:
        assert os.path.samestat(os.fstat(descriptor), work.stat())
    finally:
        os.close(descriptor)


def test_what_it_needs_is_made_again_and_again_and_removed(tmp_path: Path) -> None:
    one = as_user(tmp_path)
    one.prepare()
    one.place.connection_file.write_text("{}")
    one.hand_over()
    assert mode(tmp_path / "anna") == 0o700
    assert mode(one.place.directory) == 0o711
    assert mode(one.place.sockets) == 0o700
    assert mode(one.place.connection_file) == 0o600
    one.remove()
    one.remove()
    assert {path.name for path in tmp_path.iterdir()} == {"anna"}


def test_a_home_that_is_not_the_users_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "file").write_text("")
    for home in ("link", "file"):
        with pytest.raises(IsolationUnavailable, match="is no directory of the user"):
            make_home(account(tmp_path / home))
    with pytest.raises(IsolationUnavailable, match=f"chown -R {SOMEBODY} "):
        make_home(account(tmp_path / "elsewhere", uid=SOMEBODY))
    with pytest.raises(IsolationUnavailable, match="is not there"):
        make_home(account(tmp_path / "missing", own=False))


def test_two_starts_that_make_a_home_at_once_make_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "anna"

    def first_another(path: str, *_: int) -> None:
        home.mkdir()
        (home / "file").write_text("")

    monkeypatch.setattr(os, "chown", first_another)
    make_home(account(home))
    assert [path.name for path in tmp_path.rglob("*")] == ["anna", "file"]


def test_a_home_that_cannot_be_made_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: object) -> None:
        raise PermissionError(errno.EPERM, "no")

    monkeypatch.setattr(os, "chown", forbidden)
    with pytest.raises(PermissionError):
        make_home(account(tmp_path / "anna"))
    assert [*tmp_path.iterdir()] == []


def test_what_keeps_a_user_from_a_program_is_found(passable: Path) -> None:
    program = passable / "venv" / "bin" / "python"
    program.parent.mkdir(parents=True, mode=0o755)
    (passable / "venv").chmod(0o755)
    program.parent.chmod(0o755)
    program.write_text("")
    program.chmod(0o755)
    link = passable / "link"
    link.symlink_to("venv/../venv/bin/python")
    absolute = passable / "absolute"
    absolute.symlink_to(link)
    for way in (program, link, absolute):
        assert barrier(way, SOMEBODY, SOMEBODY) is None
    program.chmod(0o750)
    assert barrier(absolute, SOMEBODY, SOMEBODY) == program
    assert barrier(program, SOMEBODY, os.getgid()) is None
    (passable / "venv").chmod(0o700)
    assert barrier(absolute, SOMEBODY, SOMEBODY) == passable / "venv"
    assert barrier(program, os.getuid(), SOMEBODY) is None


def test_of_what_is_not_there_or_goes_in_circles_nothing_is_said(passable: Path) -> None:
    (passable / "one").symlink_to("other")
    (passable / "other").symlink_to("one")
    assert barrier(passable / "one", SOMEBODY, SOMEBODY) is None
    assert barrier(passable / "missing", SOMEBODY, SOMEBODY) is None


def test_an_error_is_explained_if_permissions_are_the_reason(passable: Path) -> None:
    one = as_user(passable, uid=os.getuid())
    one._account = account(passable / "anna", uid=SOMEBODY)._replace(gid=SOMEBODY)
    (passable / "bin").mkdir(mode=0o700)
    program = passable / "bin" / "kernel"
    program.write_text("")
    program.chmod(0o755)
    env = {"PATH": str(passable / "bin")}
    denied, missing = OSError(errno.EACCES, "denied"), OSError(errno.ENOENT, "missing")
    assert f"as {passable / 'bin'} is closed to it" in one.explain(denied, ["kernel"], env)
    assert one.explain(missing, ["kernel"], env) == ""
    (passable / "bin").chmod(0o755)
    assert one.explain(denied, [str(program)], env) == ""
