"""What an isolation takes is looked for before the service starts."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from app.managers.processes.isolation import checks
from app.managers.processes.isolation.checks import (
    CannotIsolate,
    check_isolation,
    missing_capabilities,
    new_sandbox,
    not_mapped,
)
from app.settings import Settings
from tests.support.commands import Commands
from tests.support.home import Home

ALL = "CapPrm:\t0\nCapEff:\t000001ffffffffff\n"


def settings(tmp_path: Path, **options: Any) -> Settings:
    asked = {"isolation": "user", "isolation_uids": "200000-200009", **options}
    return Settings(
        **{
            "isolation_dir": tmp_path / "homes",
            "root_dir": tmp_path,
            "allow_contents": False,
            "state_dir": "/nowhere/state",
            **asked,
        }
    )


def test_without_isolation_nothing_is_looked_for() -> None:
    check_isolation(Settings())


def test_the_start_is_refused_in_one_line(commands: Commands, home: Home) -> None:
    mode = "bubblewrap" if os.geteuid() == 0 else "user"
    given = ("--isolation", mode, "--isolation-dir", str(home.path / "homes"))
    ended = commands.run(
        *(*given, "--isolation-uids", "20000-20001", "--root-dir", str(home.root_dir)), home=home
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"kernelkeep: --isolation: {mode} ")


def test_users_take_root(passable: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(CannotIsolate, match=r"^--isolation: user takes root"):
        check_isolation(settings(passable))


def test_another_system_is_told_at_once(passable: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(CannotIsolate, match="this takes Linux"):
        check_isolation(settings(passable))


def test_what_owners_files_take_is_looked_for(
    passable: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_owner: dict[str, Any] = {"files_by_owner": True, "root_dir": passable}
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(CannotIsolate, match="may not make the owners' directories"):
        check_isolation(Settings(**by_owner))
    monkeypatch.undo()
    check_isolation(Settings(**by_owner))
    monkeypatch.setattr(checks, "has_user_rights", lambda: False)
    monkeypatch.setattr(checks, "has_landlock", lambda: False)
    with pytest.raises(CannotIsolate, match="no thread can have the rights of another user"):
        check_isolation(settings(passable, allow_contents=True, **by_owner))
    with pytest.raises(CannotIsolate, match="this takes Landlock"):
        check_isolation(settings(passable, isolation="bubblewrap", allow_contents=True, **by_owner))


def test_a_path_too_long_for_sockets_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CannotIsolate, match="no socket could have a name in it"):
        check_isolation(settings(tmp_path, isolation_dir=tmp_path / ("x" * 100)))


def test_capabilities_that_are_missing_are_named() -> None:
    assert missing_capabilities(ALL) == []
    assert missing_capabilities("CapEff:\t00000000000000c2\n") == ["CAP_CHOWN", "CAP_KILL"]


def test_ids_that_a_user_namespace_has_not_are_found() -> None:
    whole, some = "0 0 4294967295\n", "         0       1000          1\n 1 100000 65536\n"
    assert not not_mapped(whole, range(200_000, 300_000))
    assert not not_mapped(some, range(20_000, 65_537))
    assert not_mapped(some, range(60_000, 65_538))
    assert not_mapped("", range(1, 2))


class TestDirectory:
    """The directory of the homes."""

    @pytest.fixture(autouse=True)
    def _root(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(checks, "_check_root", lambda _: None)

    def test_it_is_made_so_that_others_can_pass_through(self, passable: Path) -> None:
        check_isolation(settings(passable))
        assert (passable / "homes").stat().st_mode & 0o777 == 0o711

    @pytest.mark.parametrize("mode", [0o700, 0o777, 0o731])
    def test_one_that_others_can_write_or_not_pass_is_refused(
        self, mode: int, passable: Path
    ) -> None:
        (passable / "homes").mkdir()
        (passable / "homes").chmod(mode)
        with pytest.raises(CannotIsolate, match="it takes another mode: chmod 0711 "):
            check_isolation(settings(passable))

    def test_so_is_one_that_nobody_gets_to(self, passable: Path) -> None:
        passable.chmod(0o700)
        with pytest.raises(CannotIsolate, match=f"chmod o\\+x {passable}"):
            check_isolation(settings(passable))

    def test_and_one_that_others_could_replace(self, passable: Path) -> None:
        passable.chmod(0o777)
        with pytest.raises(CannotIsolate, match=f"others can change {passable}"):
            check_isolation(settings(passable))

    def test_a_file_in_its_place_is_none(self, passable: Path) -> None:
        asked = settings(passable)
        (passable / "homes").write_text("")
        with pytest.raises(CannotIsolate, match=r"^--isolation-dir: "):
            check_isolation(asked)

    def test_somebody_elses_is_refused(
        self, passable: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        check_isolation(settings(passable))
        somebody = os.geteuid() + 1
        monkeypatch.setattr(os, "geteuid", lambda: somebody)
        with pytest.raises(CannotIsolate, match="no directory of the service's user"):
            check_isolation(settings(passable))


class TestSandbox:
    """What a sandbox takes."""

    def test_a_sandbox_is_not_for_root(
        self, passable: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(os, "geteuid", lambda: 0)
        with pytest.raises(CannotIsolate, match="bubblewrap is not for root"):
            check_isolation(settings(passable, isolation="bubblewrap"))

    @pytest.fixture(autouse=True)
    def _somebody(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "geteuid", lambda: 1000)
        monkeypatch.setattr(checks, "_check_directory", lambda *_, **__: None)

    def bwrap(self, directory: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
        program = directory / "bwrap"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")

    def test_without_bwrap_the_package_is_named(
        self, passable: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PATH", str(passable))
        with pytest.raises(CannotIsolate, match="install the package bubblewrap"):
            check_isolation(settings(passable, isolation="bubblewrap"))

    @pytest.mark.parametrize(
        ("script", "why"),
        [
            ("echo 'bwrap: No permissions to create new namespace' >&2; exit 1", "No permissions"),
            ("exit 1", "it says nothing"),
            ("exec sleep 60", "timed out"),
        ],
    )
    def test_what_forbids_it_is_told_in_one_line(
        self, script: str, why: str, passable: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(checks, "TRY_SECONDS", 1.0)
        self.bwrap(passable, script, monkeypatch)
        with pytest.raises(CannotIsolate, match=f"bwrap does not work here: .*{why}") as refused:
            check_isolation(settings(passable, isolation="bubblewrap"))
        assert "\n" not in str(refused.value)

    def test_what_is_hidden_and_what_can_be_read(
        self, passable: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.bwrap(passable, "exit 0", monkeypatch)
        data = passable / "data"
        data.mkdir()
        asked = settings(
            passable,
            isolation="bubblewrap",
            isolation_paths=[data],
            isolation_network=True,
            audit_log=passable / "audit",
        )
        check_isolation(asked)
        sandbox = new_sandbox(asked)
        assert {data, Path(sys.prefix), Path("/etc/resolv.conf").resolve()} <= {*sandbox.readable}
        assert {asked.state_dir, asked.isolation_dir, asked.audit_log} <= {*sandbox.hidden}
        assert sandbox.bwrap == str(passable / "bwrap")
        assert sandbox.network
