"""The operator's socket: no token is on disk, and who may not speak to a server does not."""

from __future__ import annotations

import json
import stat
from pathlib import Path

from app.operator import OLD_FILE, SOCKET, open_socket
from tests.conftest import MakeServer
from tests.support.home import Home


def _ask(state_dir: Path, line: bytes) -> bytes:
    with open_socket(state_dir) as connection:
        connection.settimeout(30)
        connection.sendall(line)
        with connection.makefile("rb") as answers:
            return answers.readline()


def test_no_file_holds_the_token_that_was_given(make_server: MakeServer, home: Home) -> None:
    old = home.state_dir / OLD_FILE
    old.write_text('{"token": "of an older version"}')
    server = make_server("--on-shutdown", "keep", home=home)
    path = home.state_dir / SOCKET
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not old.exists()
    for file in home.state_dir.rglob("*"):
        if file.is_file():
            assert server.token.encode() not in file.read_bytes(), file
    server.stop()
    assert not path.exists()


def test_what_makes_no_sense_is_answered_or_ended(make_server: MakeServer, home: Home) -> None:
    make_server("--on-shutdown", "keep", home=home)
    unknown = json.loads(_ask(home.state_dir, b'{"ask": "dance"}\n'))
    assert unknown["code"] == "unknown"
    gone = json.loads(_ask(home.state_dir, b'{"ask": "shut_down", "kernel_id": "x"}\n'))
    assert gone["code"] == "kernel_not_found"
    for line in (b"no JSON\n", b"[" * 60000 + b"\n", b"x" * 2**17 + b"\n"):
        assert _ask(home.state_dir, line) == b""
    assert json.loads(_ask(home.state_dir, b"[]\n"))["code"] == "unknown"
