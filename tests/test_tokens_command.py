"""``kernelkeep tokens``: what it makes, shows and ends, and what it says of wrong input.

These are the tests of `app.commands`, `app.token_places` and `app.tokens_cli`, too.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest

from app.managers.owners.tokens import FILE
from tests.support.commands import Commands
from tests.support.home import Home
from tests.support.server import REPOSITORY

TOKEN = re.compile(r"kk_[0-9a-f]{64}")

Ended = subprocess.CompletedProcess[str]


@pytest.fixture
def tokens(commands: Commands, home: Home) -> Any:
    """``tokens("create", …)``: the command, which has ended."""

    def run(*arguments: str) -> Ended:
        return commands.run("tokens", *arguments, home=home)

    return run


def refusal(ended: Ended, code: int = 2) -> str:
    """The one line with which something was refused."""
    assert (ended.returncode, ended.stdout) == (code, ""), ended
    (line,) = ended.stderr.splitlines()
    assert line.isprintable()
    return line.removeprefix("kernelkeep: ")


def made(ended: Ended) -> str:
    """The token, which stands alone on stdout, and nowhere else."""
    assert ended.returncode == 0, ended
    (token,) = ended.stdout.splitlines()
    assert TOKEN.fullmatch(token)
    assert token not in ended.stderr
    return token


def listed(ended: Ended) -> list[dict[str, Any]]:
    assert ended.returncode == 0, ended
    found: list[dict[str, Any]] = json.loads(ended.stdout)
    return found


def test_one_is_made_listed_and_revoked(tokens: Any, home: Home) -> None:
    assert listed(tokens("list", "--json")) == []
    assert not (home.state_dir / FILE).exists()
    token = made(
        tokens("create", "ci", "--owner", "anna", "--scopes", "kernels:read,kernels:execute")
    )
    path = home.state_dir / FILE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert token.encode() not in path.read_bytes()
    (found,) = listed(tokens("list", "--json"))
    assert found["scopes"] == ["kernels:execute", "kernels:read"]
    assert (found["id"], found["name"], found["owner"]) == (token[:11], "ci", "anna")
    assert (found["state"], found["last_used"], found["groups"]) == ("valid", None, [])
    assert round((found["expires"] - found["created"]) / 86400) == 90
    assert found["made_with"].startswith(f"uid:{os.getuid()}")
    shown = tokens("list").stdout
    assert token[:11] in shown
    assert token not in shown
    ended = tokens("revoke", "ci")
    assert (ended.returncode, ended.stdout) == (0, "")
    assert token[:11] in ended.stderr
    assert listed(tokens("list", "--json")) == []
    (found,) = listed(tokens("list", "--all", "--json"))
    assert (found["state"], found["revoked_by"]) == ("revoked", found["made_with"])


def test_owner_groups_scopes_and_end_are_as_they_are_given(tokens: Any) -> None:
    arguments = ("--scopes", "kernels:read", "--scopes", "user,sessions:admin", "--groups", "b, a")
    made(tokens("create", "anna", *arguments, "--groups", "a", "--expires", "never"))
    made(tokens("create", "root", "--scopes", "admin", "--expires", "12h"))
    first, second = listed(tokens("list", "--json"))
    assert (first["owner"], first["expires"], first["groups"]) == ("anna", None, ["a", "b"])
    assert {"kernels:read", "kernels:write", "sessions:admin"} < set(first["scopes"])
    assert second["scopes"] == ["*"]
    assert round(second["expires"] - second["created"]) == 12 * 3600
    shown = tokens("list", "--owner", "root").stdout.splitlines()
    assert len(shown) == 2
    assert re.search(r"root +root +valid +in 11h +never +admin$", shown[1])


def test_a_name_is_taken_in_any_form_of_its_letters(tokens: Any) -> None:
    made(tokens("create", "José", "--scopes", "user"))
    for name in ("JOSÉ", "jose\u0301"):
        assert "José" in refusal(tokens("create", name, "--scopes", "user"), 1)
    (found,) = listed(tokens("list", "--json"))
    assert tokens("revoke", "Jose\u0301").returncode == 0
    made(tokens("create", "jose\u0301", "--scopes", "user"))
    assert listed(tokens("list", "--json"))[0]["id"] != found["id"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["create"], "NAME"),
        (["create", "a"], "--scopes"),
        (["create", "a", "--scopes", "users"], "--scopes: not a scope: 'users'"),
        (["create", "a", "--scopes", ""], "--scopes: not a scope: ''"),
        (["create", "a", "--scopes", "kernels:read,,user"], "--scopes: not a scope: ''"),
        (["create", "a", "--scopes", "kernels:read!owner=a/b"], "--scopes: kernels:read!owner: a"),
        (["create", "a", "--scopes", "x" * 5000], "--scopes: not a scope: 'xxx"),
        (["create", "a/b", "--scopes", "user"], "NAME: a name has no slash"),
        (["create", "", "--scopes", "user"], "NAME: a name is not empty"),
        (["create", "a\x1b[31m\u202e", "--scopes", "user"], "NAME: a name has no"),
        (["create", "a" * 1000, "--scopes", "user"], "NAME: a name has at most 255 bytes"),
        (["create", "a", "--scopes", "user", "--owner", ".."], "--owner: a name is not"),
        (["create", "a", "--scopes", "user", "--groups", "b,"], "--groups: a name is not empty"),
        (["create", "a", "--scopes", "user", "--expires", "3y"], "--expires: a span of time is"),
        (["create", "a", "--scopes", "user", "--expires", "0d"], "--expires: a span of time has"),
        (["create", "a", "--scopes", "user", "--expires", ""], "--expires: a span of time is"),
        (["create", "a", "\x1b[31m"], "required: --scopes"),
        (["revoke"], "name tokens, or say --all"),
        (["revoke", "a", "--all"], "name tokens, or say --all"),
        (["dance\x1b[31m"], "invalid choice"),
        ([], "command"),
        (["list", "--state-dir", "~nobody-at-all"], "--state-dir"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(
    tokens: Any, home: Home, arguments: Sequence[str], words: str
) -> None:
    line = refusal(tokens(*arguments))
    assert words in line
    assert len(line) < 300
    assert not (home.state_dir / FILE).exists()


def test_what_is_not_there_or_not_clear_is_not_revoked(tokens: Any) -> None:
    assert refusal(tokens("revoke", "a\x1b"), 1) == "there is no token a?"
    for owner in ("anna", "ben"):
        made(tokens("create", "ci", "--owner", owner, "--scopes", "user"))
    assert refusal(tokens("revoke", "ci"), 1).endswith("(--owner): anna, ben")
    assert tokens("revoke", "ci", "--owner", "ben").returncode == 0
    made(tokens("create", "two", "--owner", "anna", "--scopes", "user"))
    made(tokens("create", "carl", "--scopes", "user"))
    assert tokens("revoke", "--all", "--owner", "anna").returncode == 0
    assert [found["owner"] for found in listed(tokens("list", "--json"))] == ["carl"]
    assert tokens("revoke", "--all").returncode == 0
    assert listed(tokens("list", "--json")) == []
    ended = tokens("revoke", "--all")
    assert (ended.returncode, ended.stdout) == (0, "")


def test_a_token_that_nobody_has_read_is_not_in_force(tokens: Any, home: Home) -> None:
    command = [sys.executable, "-m", "app", "tokens", "create", "a", "--scopes", "user"]
    environment = home.environment({"KERNELKEEP_STATE_DIR": str(home.state_dir)})
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            command, cwd=REPOSITORY, env=environment, stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert "could not be printed" in line
    assert listed(tokens("list", "--json")) == []


@pytest.mark.parametrize("fault", ["open", "garbage", "newer", "locked", "a directory"])
def test_a_file_that_cannot_be_used_is_told_in_one_line(
    tokens: Any, home: Home, fault: str
) -> None:
    made(tokens("create", "a", "--scopes", "user"))
    path = home.state_dir / FILE
    with contextlib.ExitStack() as stack:
        if fault == "open":
            path.chmod(0o644)
        elif fault == "garbage":
            path.write_bytes(b"garbage" * 1000)
        elif fault == "newer":
            with contextlib.closing(sqlite3.connect(path)) as connection:
                connection.execute("PRAGMA user_version = 99")
        elif fault == "locked":
            other = sqlite3.connect(path, isolation_level=None)
            stack.enter_context(contextlib.closing(other))
            other.execute("BEGIN EXCLUSIVE")
        else:
            path.unlink()
            path.mkdir()
        words = {"open": "chmod 0600", "garbage": "damaged", "newer": "newer", "locked": "locked"}
        for arguments in (["list"], ["create", "b", "--scopes", "user"], ["revoke", "a"]):
            line = refusal(tokens(*arguments), 1)
            assert str(path) in line
            assert words.get(fault, "is not a file") in line
