"""Join secrets: they work once, for one keeper, for some time, and are not stored."""

from __future__ import annotations

import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from app.managers.processes.hosts.authority import Credential
from app.managers.processes.hosts.invitations import Invitations, Refused
from tests.support.watched_lock import WatchedLock


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def invitations(tmp_path: Path, clock: Clock) -> Invitations:
    return Invitations(tmp_path / "invitations", clock)


def refusal(invitations: Invitations, keeper_id: str, secret: str, nonce: str = "n") -> str:
    with pytest.raises(Refused) as refused:
        invitations.join(keeper_id, secret, nonce)
    assert not refused.value.ends
    return refused.value.code


def test_a_secret_is_for_one_keeper_and_its_digest_is_all_that_is_stored(
    invitations: Invitations, tmp_path: Path
) -> None:
    credential, secret = invitations.invite("k", 60)
    assert len(bytes.fromhex(secret)) == 32
    assert invitations.join("k", secret, "n") == credential
    (file,) = (tmp_path / "invitations").iterdir()
    assert secret not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_secret_that_was_used_is_refused_to_all_but_the_one_that_has_used_it(
    invitations: Invitations,
) -> None:
    credential, secret = invitations.invite("k", 60)
    invitations.join("k", secret, "mine")
    assert refusal(invitations, "k", secret, "another's") == "join_secret_used"
    assert invitations.join("k", secret, "mine") == credential  # the answer was lost
    invitations.check(credential)  # it has its certificate
    assert refusal(invitations, "k", secret, "mine") == "join_secret_used"
    assert refusal(invitations, "k", secret, "") == "join_secret_used"


def test_a_secret_expires_by_the_clock_of_this_machine(
    invitations: Invitations, clock: Clock
) -> None:
    _, secret = invitations.invite("k", 60)
    clock.now += 60
    assert refusal(invitations, "k", secret) == "join_secret_expired"


@pytest.mark.parametrize("keeper_id", ["l", "", "nobody", "../k", "K", "x" * 101, "k\0", "."])
def test_a_secret_of_another_keeper_is_not_told_from_a_wrong_one(
    invitations: Invitations, keeper_id: str
) -> None:
    _, secret = invitations.invite("k", 60)
    invitations.invite("l", 60)
    assert refusal(invitations, keeper_id, secret) == "join_secret_unknown"


@pytest.mark.parametrize("secret", ["", "0" * 64, "é", "\ud800"])
def test_what_is_no_secret_is_refused(invitations: Invitations, secret: str) -> None:
    invitations.invite("k", 60)
    assert refusal(invitations, "k", secret) == "join_secret_unknown"


def test_a_new_invitation_ends_every_keeper_before(invitations: Invitations) -> None:
    first, secret = invitations.invite("k", 60)
    invitations.join("k", secret, "n")
    second, _ = invitations.invite("k", 60)
    assert second.generation == first.generation + 1
    assert refusal(invitations, "k", secret) == "join_secret_unknown"
    with pytest.raises(Refused) as refused:
        invitations.check(first)
    assert (refused.value.code, refused.value.ends) == ("keeper_replaced", True)
    invitations.check(second)


def test_a_keeper_that_comes_while_its_id_is_invited_does_not_undo_that(
    invitations: Invitations, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = invitations.invite("k", 60)
    read = invitations._read
    invited: list[Credential] = []

    def invite() -> None:
        invited.append(invitations.invite("k", 60)[0])

    another = threading.Thread(target=invite)
    lock = WatchedLock()

    def slowly(keeper_id: str) -> Any:
        found = read(keeper_id)
        monkeypatch.setattr(invitations, "_read", read)
        another.start()
        lock.is_wanted.wait(10)  # it is not to be done before the keeper's coming is stored
        return found

    monkeypatch.setattr(invitations, "_lock", lock)
    monkeypatch.setattr(invitations, "_read", slowly)
    invitations.check(first)
    another.join()
    invitations.check(*invited)


def test_a_keeper_that_is_forgotten_is_to_end_and_its_id_does_not_begin_anew(
    invitations: Invitations, clock: Clock
) -> None:
    first, _ = invitations.invite("k", 60)
    invitations.check(first)
    invitations.forget("k")
    invitations.forget("k")
    with pytest.raises(Refused) as refused:
        invitations.check(first)
    assert (refused.value.code, refused.value.ends) == ("keeper_forgotten", True)
    clock.now += 1
    again, _ = invitations.invite("k", 60)
    with pytest.raises(Refused):
        invitations.check(first)
    assert again != first


@pytest.mark.parametrize("keeper_id", ["", "../k", ".k", "a/b", "x" * 101, "k\n"])
def test_an_id_that_none_can_have_is_refused(invitations: Invitations, keeper_id: str) -> None:
    with pytest.raises(ValueError, match="the id of a keeper"):
        invitations.invite(keeper_id, 60)


def test_the_next_server_knows_who_is_invited(tmp_path: Path) -> None:
    credential, secret = Invitations(tmp_path).invite("k", 60)
    assert Invitations(tmp_path).join("k", secret, "n") == credential
    Invitations(tmp_path).check(credential)


def test_a_damaged_file_is_an_error_and_lets_nobody_in(tmp_path: Path) -> None:
    invitations = Invitations(tmp_path)
    _, secret = invitations.invite("k", 60)
    (tmp_path / "k.json").write_text("{")
    with pytest.raises(OSError, match="damaged"):
        invitations.join("k", secret, "n")
    # As a file system has it that does not tell upper from lower case.
    (tmp_path / "l.json").write_text(
        '{"keeper_id": "L", "generation": 1, "secret": "", "expires": 9e9}'
    )
    with pytest.raises(Refused):
        invitations.check(Credential("l", 1))
