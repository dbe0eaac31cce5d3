"""``kernelkeep audit``: the lines that it prints, and what it says of a log that it cannot read.

These are the tests of `app.audit_cli`, too.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from app.protocol.messages import format_timestamp
from tests.support.commands import Commands
from tests.support.home import Home

NOW = time.time()
HOUR = 3600.0

Record = dict[str, Any]


def record(action: str, hours_ago: float, **more: Any) -> Record:
    when = format_timestamp(NOW - hours_ago * HOUR)
    return {"time": when, "action": action, "outcome": "done", **more}


OLD = [
    record("start", 50, user="anna", owner="anna", kernel_id="aaaa", credential="kk_00000001"),
    record("execute", 49, user="ben", owner="anna", kernel_id="aaaa", credential="kk_00000002"),
]
NEW = [
    record("culled", 10, owner="anna", kernel_id="aaaa"),
    record("token_revoked", 2, user="root", token="kk_00000001", token_owner="anna"),
    record("refused", 1, outcome="refused", user="b\x1b[31m", asked="GET /\u202e", kernel_id="ab"),
]


class Audit:
    """A log of two files, and the command."""

    def __init__(self, commands: Commands, home: Home) -> None:
        self._commands = commands
        self._home = home
        self.path = home.path / "audit.jsonl"
        self._write(Path(f"{self.path}.1"), OLD, 49)
        self._write(self.path, NEW, 0)

    def _write(self, path: Path, records: Sequence[Record], hours_ago: float) -> None:
        path.write_text("".join(json.dumps(each) + "\n" for each in records))
        os.utime(path, (NOW - hours_ago * HOUR,) * 2)

    def __call__(
        self, *arguments: str, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        env = {"KERNELKEEP_AUDIT_LOG": str(self.path)} if env is None else env
        return self._commands.run("audit", *arguments, home=self._home, env=env)

    def records(self, *arguments: str) -> list[Record]:
        ended = self("--json", *arguments)
        assert (ended.returncode, ended.stderr) == (0, ""), ended
        return [json.loads(line) for line in ended.stdout.splitlines()]


@pytest.fixture
def audit(commands: Commands, home: Home) -> Audit:
    return Audit(commands, home)


def test_all_files_are_read_the_oldest_first(audit: Audit) -> None:
    assert audit.records() == OLD + NEW
    ended = audit("--audit-log", str(audit.path), env={})
    assert len(ended.stdout.splitlines()) == 5
    assert all(line.isprintable() for line in ended.stdout.splitlines())


@pytest.mark.parametrize(
    ("arguments", "fitting"),
    [
        (["--owner", "anna"], [*OLD, *NEW[:2]]),
        (["--owner", "ben"], OLD[1:]),
        (["--owner", "ann"], []),
        (["--kernel", "aa"], [*OLD, NEW[0]]),
        (["--action", "culled"], NEW[:1]),
        (["--outcome", "refused"], NEW[2:]),
        (["--token", "kk_00000001"], [OLD[0], NEW[1]]),
        (["--since", "400m"], NEW[1:]),
        (["--since", "1d"], NEW),
        (["--since", "2000-01-01"], OLD + NEW),
        (["--since", "1900-01-01T10:00"], OLD + NEW),
        (["--owner", "anna", "--action", "execute", "--since", "3d"], OLD[1:]),
    ],
)
def test_lines_are_chosen(audit: Audit, arguments: list[str], fitting: list[Record]) -> None:
    assert audit.records(*arguments) == fitting


def test_a_line_tells_a_person_what_was_done(audit: Audit) -> None:
    (line,) = audit("--action", "start").stdout.splitlines()
    assert line.split()[1:] == ["start", "anna", "kk_00000001", "-", "aaaa", "owner=anna"]
    (line,) = audit("--outcome", "refused").stdout.splitlines()
    assert "outcome=refused" in line
    assert 'asked="GET /?"' in line


def test_what_a_client_has_chosen_is_one_value(audit: Audit) -> None:
    """A path, or a name, could tell of an actor or an outcome in a line for people."""
    path = 'a  actor=root\u2028"outcome=done'
    more = record("file_deleted", 0, user="eve  -", path=path, checkpoint_id=1)
    with open(audit.path, "a") as file:
        file.write(json.dumps(more) + "\n")
    (line,) = audit("--action", "file_deleted").stdout.splitlines()
    cells = line.split("  ", 2)[2]
    assert cells.startswith('"eve  -"  -  -  -  path="a  actor=root?\\"outcome=done"')
    assert cells.endswith("  checkpoint_id=1")


def test_what_is_no_record_is_left_out_and_counted(audit: Audit) -> None:
    with open(audit.path, "ab") as file:
        file.write(b'torn {"time"\n\n[1]\n\xff\xfe\n' + b"[" * 100_000 + b"\n{}\n")
    ended = audit("--json")
    assert ended.returncode == 0
    assert len(ended.stdout.splitlines()) == 6
    assert ended.stderr == "kernelkeep: 4 lines are no records, and were left out\n"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--audit-log", "/nonexistent/log"], 1, "/nonexistent/log: No such file"),
        (["--audit-log", "/"], 1, "Is a directory"),
        (["--since", "yesterday"], 2, "--since: a span of time"),
        (["--since", "99999-01-01"], 2, "--since: a span of time"),
        (["--outcome", "good"], 2, "--outcome: invalid choice"),
        (["dance\x1b[31m"], 2, "unrecognized arguments"),
    ],
)
def test_what_cannot_be_done_is_told_in_one_line(
    audit: Audit, arguments: list[str], code: int, words: str
) -> None:
    ended = audit(*arguments)
    assert (ended.returncode, ended.stdout) == (code, "")
    (line,) = ended.stderr.splitlines()
    assert line.isprintable()
    assert words in line


def test_a_server_that_has_no_audit_log_is_told_of(audit: Audit) -> None:
    ended = audit(env={})
    assert ended.returncode == 2
    assert "--audit-log FILE" in ended.stderr
