"""Which files in a directory are taken for connection files of kernels."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from app.managers.errors import InvalidPath
from app.managers.kernels.external import (
    MAX_FILE_BYTES,
    find_connection_file,
    find_connection_files,
    is_near,
)

GOOD: dict[str, Any] = {
    "kernel_name": "python3",
    "key": "secret",
    "transport": "tcp",
    "ip": "127.0.0.1",
    "shell_port": 50001,
    "iopub_port": 50002,
    "stdin_port": 50003,
    "control_port": 50004,
    "hb_port": 50005,
    "signature_scheme": "hmac-sha256",
}
GARBAGE: dict[str, Any] = {
    "no object": [GOOD],
    "null": None,
    "text": "kernel",
    "number": 1,
    "empty": {},
    **{f"without {name}": {n: v for n, v in GOOD.items() if n != name} for name in [*GOOD][:9]},
    **{f"{name} null": {**GOOD, name: None} for name in GOOD},
    "empty key": {**GOOD, "key": ""},
    "empty name": {**GOOD, "kernel_name": ""},
    "empty address": {**GOOD, "ip": ""},
    "name is a list": {**GOOD, "kernel_name": ["python3"]},
    "unknown transport": {**GOOD, "transport": "inproc"},
    "port is text": {**GOOD, "shell_port": "50001"},
    "port is a float": {**GOOD, "shell_port": 50001.0},
    "port is a bool": {**GOOD, "hb_port": True},
    "port 0": {**GOOD, "iopub_port": 0},
    "negative port": {**GOOD, "iopub_port": -1},
    "huge port": {**GOOD, "iopub_port": 65536},
    "scheme is a number": {**GOOD, "signature_scheme": 5},
    "curve key is a number": {**GOOD, "curve_publickey": 5},
}


def test_a_file_is_found_with_all_that_it_holds(tmp_path: Path) -> None:
    more = {**GOOD, "jupyter_session": "n.ipynb", "curve_publickey": "p", "curve_secretkey": "s"}
    (tmp_path / "b.json").write_text(json.dumps(GOOD))
    (tmp_path / "a.json").write_text(json.dumps(more))
    found = find_connection_files(tmp_path)
    assert [*found.items()] == [(tmp_path / "a.json", more), (tmp_path / "b.json", GOOD)]


def test_what_need_not_be_there_need_not(tmp_path: Path) -> None:
    (tmp_path / "k.json").write_text(json.dumps({**GOOD, "transport": "ipc", "ip": "/run/k"}))
    plain = {name: value for name, value in GOOD.items() if name != "signature_scheme"}
    (tmp_path / "plain.json").write_text(json.dumps(plain))
    assert len(find_connection_files(tmp_path)) == 2


@pytest.mark.parametrize("name", GARBAGE)
def test_what_does_not_describe_a_kernel_is_passed_over(tmp_path: Path, name: str) -> None:
    (tmp_path / "garbage.json").write_text(json.dumps(GARBAGE[name]))
    (tmp_path / "good.json").write_text(json.dumps(GOOD))
    assert [*find_connection_files(tmp_path)] == [tmp_path / "good.json"]


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"\xff\xfe{}", b"[" * 60_000, json.dumps(GOOD).encode() + b" " * MAX_FILE_BYTES],
    ids=["empty", "cut off", "not UTF-8", "deep", "too large"],
)
def test_what_cannot_be_read_is_passed_over(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "garbage.json").write_bytes(data)
    (tmp_path / "good.json").write_text(json.dumps(GOOD))
    assert [*find_connection_files(tmp_path)] == [tmp_path / "good.json"]


def test_what_is_no_file_is_passed_over(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")  # to read it would wait for ever
    (tmp_path / "directory.json").mkdir()
    (tmp_path / "nowhere.json").symlink_to("missing")
    (tmp_path / "loop.json").symlink_to("loop.json")
    (tmp_path / "good.txt").write_text(json.dumps(GOOD))
    assert find_connection_files(tmp_path) == {}


def test_a_directory_that_is_not_there_holds_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert find_connection_files(tmp_path / "missing") == {}
    assert find_connection_files(tmp_path / "file") == {}


def test_links_are_passed_over(tmp_path: Path) -> None:
    directory = tmp_path / "external"
    directory.mkdir()
    (directory / "near.json").write_text(json.dumps(GOOD))
    (tmp_path / "elsewhere.json").write_text(json.dumps(GOOD))
    (directory / "link.json").symlink_to(tmp_path / "elsewhere.json")
    assert [file.stem for file in find_connection_files(directory)] == ["near"]
    with pytest.raises(InvalidPath):
        find_connection_file(directory, "link.json")


@pytest.mark.parametrize(
    ("where", "is_one_s_own"),
    [
        ({"ip": "127.0.0.1"}, True),
        ({"ip": "::1"}, True),
        ({"ip": "localhost"}, True),
        ({"ip": "/run/kernel", "transport": "ipc"}, True),
        ({"ip": "192.0.2.7"}, False),
        ({"ip": "0.0.0.0"}, False),
        ({"ip": "host.invalid"}, False),
    ],
)
def test_a_kernel_is_on_this_machine_or_in_a_named_network(
    where: dict[str, str], is_one_s_own: bool
) -> None:
    info = {**GOOD, **where}
    assert is_near(info, []) is is_one_s_own
    assert is_near(info, ["192.0.2.0/24"]) is (is_one_s_own or where["ip"] == "192.0.2.7")


def test_a_file_of_somebody_else_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "theirs.json"
    file.write_text(json.dumps(GOOD))
    real = os.fstat

    def belongs_to(owner: int) -> None:
        """Only root could make the file another user's, and the tests run as anybody."""

        def fstat(descriptor: int) -> os.stat_result:
            status = [*real(descriptor)]
            status[stat.ST_UID] = owner
            return os.stat_result(status)

        monkeypatch.setattr(os, "fstat", fstat)

    belongs_to(os.geteuid() + 1)
    assert find_connection_files(tmp_path) == {}
    with pytest.raises(InvalidPath):
        find_connection_file(tmp_path, "theirs.json")
    belongs_to(0)
    assert [*find_connection_files(tmp_path)] == [file]
