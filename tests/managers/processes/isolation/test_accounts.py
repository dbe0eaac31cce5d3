"""Which user an owner's kernels run as."""

from __future__ import annotations

import os
import pwd
import sqlite3
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from app.managers.errors import IsolationUnavailable
from app.managers.processes.isolation.accounts import FILE, Accounts, first_free, least_uid

IDS = range(3_000_000, 3_000_010)


def accounts(directory: Path, ids: range = IDS, *, by_name: bool = False) -> Accounts:
    return Accounts(directory, ids, by_name=by_name)


def entry(uid: int, gid: int = 1500) -> pwd.struct_passwd:
    return pwd.struct_passwd(("anna", "x", uid, gid, "", "/home/anna", "/bin/sh"))


def test_an_owner_has_one_id_for_good(tmp_path: Path) -> None:
    anna = accounts(tmp_path).find("anna")
    assert (anna.uid, anna.gid, anna.name, anna.home) == (
        *(IDS.start, IDS.start, "anna", tmp_path / "anna"),
    )
    assert accounts(tmp_path).find("ben").uid == IDS.start + 1
    assert accounts(tmp_path).find("anna") == anna
    # The ids that there are may change; whose they were does not.
    assert accounts(tmp_path, range(4_000_000, 4_000_001)).find("anna") == anna
    assert stat.S_IMODE((tmp_path / FILE).stat().st_mode) == 0o600


def test_names_that_look_alike_are_different_owners(tmp_path: Path) -> None:
    names = ("Amélie", "amélie", "AMÉLIE", "am_lie")
    found = [accounts(tmp_path).find(name) for name in names]
    assert len({one.uid for one in found}) == len({str(one.home).lower() for one in found}) == 4


def test_many_starts_at_once_are_allotted_different_ids(tmp_path: Path) -> None:
    with ThreadPoolExecutor(10) as pool:
        names = [f"owner-{number % 10}" for number in range(40)]
        found = [*pool.map(lambda name: accounts(tmp_path).find(name).uid, names)]
    assert {*found} == {*IDS}
    assert len({*zip(names, found, strict=True)}) == 10


def test_another_look_in_this_process_leaves_the_lock_on_the_list(tmp_path: Path) -> None:
    accounts(tmp_path).find("anna")
    holder = sqlite3.connect(tmp_path / FILE, isolation_level=None)
    with closing(holder):
        holder.execute("BEGIN IMMEDIATE")
        with accounts(tmp_path)._open():
            pass
        code = "import sqlite3, sys; sqlite3.connect(sys.argv[1], 0).execute('BEGIN IMMEDIATE')"
        command = [sys.executable, "-c", code, str(tmp_path / FILE)]
        other = subprocess.run(command, capture_output=True, text=True)
        assert "database is locked" in other.stderr
        holder.execute("ROLLBACK")


def test_a_link_in_the_place_of_the_list_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / FILE).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(IsolationUnavailable, match="symbolic links"):
        accounts(tmp_path).find("anna")
    assert not (tmp_path / "elsewhere").exists()


def test_when_all_are_taken_there_are_no_more(tmp_path: Path) -> None:
    one = accounts(tmp_path, range(3_000_000, 3_000_001))
    one.find("anna")
    with pytest.raises(IsolationUnavailable, match="every id of isolation_uids is taken"):
        one.find("ben")


def test_a_list_that_cannot_be_used_allots_nothing(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("damaged " * 100)
    with pytest.raises(IsolationUnavailable, match=r"the list of ids, .* cannot be used"):
        accounts(tmp_path).find("anna")
    (tmp_path / FILE).unlink()
    (tmp_path / FILE).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(IsolationUnavailable):
        accounts(tmp_path).find("anna")
    assert not (tmp_path / "elsewhere").exists()


def test_ids_of_the_system_and_nobodys_are_passed_over() -> None:
    here = os.getuid()
    assert first_free(range(here, here + 1), ()) is None
    assert first_free(range(65_534, 65_537), {65_536}) is None


@pytest.mark.parametrize(
    ("uid", "why"),
    [
        (0, "one of the system's own: its id 0 is below"),
        (999, "one of the system's own: its id 999 is below"),
        (65_534, "no kernel runs as the user with the id 65534"),
        (IDS.start, "which is in isolation_uids"),
    ],
)
def test_some_accounts_are_nobodys_to_take(
    uid: int, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pwd, "getpwnam", lambda _: entry(uid))
    with pytest.raises(IsolationUnavailable, match=why):
        accounts(tmp_path, by_name=True).find("anna")


def test_the_services_own_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pwd, "getpwnam", lambda _: entry(1500))
    monkeypatch.setattr(os, "geteuid", lambda: 1500)
    with pytest.raises(IsolationUnavailable, match="no kernel runs as the user"):
        accounts(tmp_path, by_name=True).find("anna")


def test_an_account_of_the_same_name_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pwd, "getpwnam", lambda _: entry(1500, 1600))
    found = accounts(tmp_path, by_name=True).find("anna")
    assert (found.uid, found.gid, found.home, found.own) == (1500, 1600, Path("/home/anna"), False)
    assert accounts(tmp_path).find("anna").uid == IDS.start


def test_without_an_account_and_ids_there_is_no_user(tmp_path: Path) -> None:
    with pytest.raises(IsolationUnavailable, match="no account of the owner's name"):
        accounts(tmp_path, range(0), by_name=True).find("nobody-has-this-name")


@pytest.mark.parametrize(
    ("text", "least"), [("UID_MIN\t\t 500\n", 500), ("# UID_MIN 5\n", 1000), (None, 1000)]
)
def test_where_the_accounts_of_people_begin(text: str | None, least: int, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "login.defs").write_text(text)
    assert least_uid(tmp_path / "login.defs") == least


def test_whether_the_system_has_an_owners_account_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pwd, "getpwnam", lambda _: entry(5000))
    assert accounts(tmp_path, by_name=True).is_of_system("anna")
    assert not accounts(tmp_path).is_of_system("anna")
    monkeypatch.setattr(pwd, "getpwnam", lambda _: entry(1))  # one of the system's own is refused
    assert not accounts(tmp_path, by_name=True).is_of_system("anna")
    assert not (tmp_path / FILE).exists()  # to ask allots nothing
