"""What runs on a host before there is a keeper: what it says when it fails.

With that come the tests of `app.managers.processes.hosts.pythons`.

That it works, `test_ssh` shows.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from app.managers.processes.hosts import bootstrap
from app.managers.processes.hosts.pythons import Failed

ORDER = {"name": "s", "digest": "d", "size": 4, "module": "nowhere"}

Answers = list[dict[str, Any]]


def ordered(path: Path, data: bytes = b"", **more: Any) -> Answers:
    """What it answers to an order."""
    answers: Answers = []
    order = json.dumps({**ORDER, "path": str(path), **more}).encode()
    bootstrap.main(io.BytesIO(order + b"\n" + data), lambda **answer: answers.append(answer))
    return answers


def test_an_old_python_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 8, 2, "final", 0))
    (answer,) = ordered(tmp_path)
    assert answer["failed"] == "host_without_python"
    assert "is Python 3.8.2" in answer["text"]


def test_missing_packages_are_told_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "zmq", None)
    (answer,) = ordered(tmp_path)
    assert answer["failed"] == "host_without_python"
    assert answer["text"].endswith(f"{sys.executable} -m pip install pyzmq")


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    send, failed = ordered(tmp_path, b"PK..")
    assert send == {"send": True}
    assert failed["failed"] == "host_full"
    assert "No space left" in failed["text"]
    assert [*tmp_path.glob("keeper-*")] == []


def test_a_directory_of_somebody_else_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    (failed,) = ordered(tmp_path)
    assert failed["failed"] == "host_unusable"
    assert "another user" in failed["text"]


def test_a_connection_that_ends_while_the_keeper_is_brought_leaves_nothing(tmp_path: Path) -> None:
    _, failed = ordered(tmp_path, b"PK")
    assert failed["failed"] == "host_unreachable"
    assert [*tmp_path.glob("keeper-*")] == []


def test_a_keeper_that_does_not_start_is_told(tmp_path: Path) -> None:
    _, failed = ordered(tmp_path, b"PK..")  # which is no zip
    assert failed["failed"] == "host_unusable"
    log = tmp_path / "services" / "s" / "keeper" / "log"
    assert str(log) in failed["text"]
    assert "No module named" in log.read_text()
    log.write_bytes(bytes(2**20 + 1))
    _, failed = ordered(tmp_path, b"PK..", digest=hashlib.sha256(b"PK..").hexdigest())
    (failed,) = ordered(tmp_path, digest=hashlib.sha256(b"PK..").hexdigest())
    assert log.stat().st_size < 2**20


def test_one_that_never_listens_is_not_waited_for_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootstrap, "PATIENCE", 0.1)
    monkeypatch.setattr(bootstrap, "start", lambda *_: None)
    (failed,) = ordered(tmp_path, b"PK..")[1:]
    assert "no keeper listens" in failed["text"]


def test_a_keeper_that_takes_no_connections_is_not_waited_for(tmp_path: Path) -> None:
    address = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener, contextlib.ExitStack() as waiting:
        listener.bind(address)
        listener.listen(0)
        for _ in range(3):
            one = waiting.enter_context(socket.socket(socket.AF_UNIX))
            one.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                one.connect(address)
        with pytest.raises(Failed, match="is its process stopped"):
            bootstrap.listens(address)


def test_relative_paths_begin_in_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for path in ("a/b", "~/a/b"):
        ordered(Path(path), b"PK..")
        assert (tmp_path / "a" / "b" / "services" / "s").stat().st_mode & 0o777 == 0o700
        for file in (tmp_path / "a" / "b").glob("keeper-*"):
            file.unlink()


def test_the_keeper_gets_no_other_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    passed = bootstrap.passed()
    assert passed["LC_ALL"] == "C.UTF-8"
    assert "AWS_SECRET_ACCESS_KEY" not in passed
