"""Launching as another user: what is refused. `test_isolation` has what comes of it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.keeper import launching
from app.keeper.launching import ARGUMENTS, AsUser, launch_process


@pytest.fixture
def output() -> Iterator[int]:
    descriptor = os.open(os.devnull, os.O_WRONLY)
    yield descriptor
    os.close(descriptor)


def user(home: Path) -> AsUser:
    return AsUser(20_000, 20_000, str(home))


@pytest.mark.parametrize(
    ("uid", "gid"), [(0, 5), (5, 0), (-1, 5), ("5", "5"), (True, 5), (5, None), (1234, 5)]
)
def test_root_and_the_keepers_own_user_are_refused(
    uid: Any, gid: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1234)
    with pytest.raises(ValueError, match="neither root's nor the keeper's"):
        AsUser.of({"uid": uid, "gid": gid, "home": "/"})


def test_without_the_field_it_is_the_keepers_own() -> None:
    assert AsUser.of(None) is None
    assert AsUser.of({"uid": 7, "gid": 8, "home": "/home"}) == (7, 8, "/home")


def test_no_link_below_the_home_is_followed(tmp_path: Path, output: int) -> None:
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    (home / "real").mkdir(parents=True)
    elsewhere.mkdir()
    (home / "link").symlink_to(elsewhere)
    (home / "real" / "link").symlink_to(elsewhere)
    for path in ("link", "real/link", "missing"):
        with pytest.raises((NotADirectoryError, FileNotFoundError)):
            launch_process(["true"], {}, str(home / path), output, user(home))
    for outside in (tmp_path, elsewhere, home / ".." / "elsewhere"):
        with pytest.raises(ValueError, match=r"below its home|not in the subpath"):
            launch_process(["true"], {}, str(outside), output, user(home))
    with pytest.raises(NotADirectoryError):
        launch_process(["true"], {}, str(home / "link"), output, user(home / "link"))


def test_arguments_are_read_from_a_descriptor(tmp_path: Path) -> None:
    script = "import os, sys; print(os.read(int(sys.argv[1]), 999), file=open('told', 'w'))"
    command = [sys.executable, "-c", script, ARGUMENTS]
    with open(os.devnull, "wb") as nothing:
        arguments = ["--secret", "a b", ""]
        process = launch_process(command, {}, str(tmp_path), nothing.fileno(), arguments=arguments)
    assert process.wait(10) == 0
    assert (tmp_path / "told").read_text() == "b'--secret\\x00a b\\x00\\x00'\n"


@pytest.mark.parametrize(
    ("arguments", "who", "why"),
    [(["a\0--bind"], None, "has a NUL in it"), ([], AsUser(5, 5, "/"), "keeper's own user")],
)
def test_arguments_that_mean_something_else_are_refused(
    arguments: list[str], who: AsUser | None, why: str, output: int
) -> None:
    with pytest.raises(ValueError, match=why):
        launch_process(["true"], {}, "/", output, who, arguments)


def test_what_forbids_the_user_is_told_and_nothing_is_executed(
    tmp_path: Path, output: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As another user than root this process cannot become anybody; as root it loses no privileges
    # here, for it would be without them for good.
    monkeypatch.setattr(launching, "_forbid_privileges", lambda: None)
    monkeypatch.setattr(os, "fchown", lambda *_: None)
    beyond = AsUser(2**32 - 2, 2**32 - 2, str(tmp_path))

    def fails(*_: object, cwd: str, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted", cwd)

    monkeypatch.setattr(subprocess, "Popen", fails)
    with pytest.raises(PermissionError, match="cannot be that of the user 4294967294"):
        launch_process(["true"], {}, str(tmp_path), output, beyond)


def test_an_error_of_the_program_is_told_as_it_is(
    tmp_path: Path, output: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise FileNotFoundError(2, "No such file or directory", "kernel")

    monkeypatch.setattr(launching, "_forbid_privileges", lambda: None)
    monkeypatch.setattr(os, "fchown", lambda *_: None)
    monkeypatch.setattr(subprocess, "Popen", fails)
    with pytest.raises(FileNotFoundError, match="'kernel'"):
        launch_process(["kernel"], {}, str(tmp_path), output, user(tmp_path))
