"""Connection files that a keeper writes for kernels whose server is elsewhere."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from app.keeper import connection_files
from app.keeper.connection_files import prepare, remove_prepared

INFO = {"transport": "ipc", "key": "secret"}


@pytest.fixture(autouse=True)
def state_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory in which such a keeper works."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "output").mkdir()
    return tmp_path


@pytest.mark.parametrize("transport", ["ipc", "tcp"])
def test_a_kernel_is_told_where_to_listen(state_dir: Path, transport: str) -> None:
    monkey = {**INFO, "transport": transport}
    answer = prepare({"kernel_id": "k-1", "info": monkey})
    file, info = Path(answer["file"]), answer["info"]
    assert file == state_dir / "runtime" / "kernel-k-1.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert json.loads(file.read_text()) == info
    assert info["key"] == "secret"
    ports = [value for name, value in info.items() if name.endswith("_port")]
    assert len({*ports}) == 5
    if transport == "tcp":
        assert info["ip"] == "127.0.0.1"
    else:
        assert info["ip"].startswith(str(state_dir))


def test_another_process_and_another_kernel_get_their_own(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_files, "MAX_SOCKET_NAME", 500)
    first = prepare({"kernel_id": "a" * 13 + "1", "info": INFO})
    other = prepare({"kernel_id": "a" * 13 + "2", "info": INFO})
    assert first["info"]["ip"] != other["info"]["ip"]
    socket = Path(f"{first['info']['ip']}-1")
    socket.touch()  # of a process that was killed
    assert prepare({"kernel_id": "a" * 13 + "1", "info": INFO}) == first
    assert not socket.exists()


def test_all_of_a_kernel_goes_and_nothing_else(state_dir: Path) -> None:
    prepare({"kernel_id": "other", "info": {**INFO, "transport": "tcp"}})
    info = prepare({"kernel_id": "k", "info": {**INFO, "transport": "tcp"}})["info"]
    assert info["ip"] == "127.0.0.1"
    for name in ("kernel-k.log", "kernel-k.log.1", "kernel-other.log"):
        (state_dir / "output" / name).touch()
    os.mkfifo(state_dir / "output" / "kernel-k.log.pipe")
    remove_prepared("k")
    remove_prepared("k")
    left = [path.name for path in state_dir.rglob("*") if not path.is_dir()]
    assert sorted(left) == ["kernel-other.json", "kernel-other.log"]


@pytest.mark.parametrize("kernel_id", ["", "../k", "a/b", "k\n", "x" * 65])
def test_an_id_that_is_a_path_is_refused(kernel_id: str) -> None:
    with pytest.raises(ValueError, match="id of a kernel"):
        prepare({"kernel_id": kernel_id, "info": INFO})
    with pytest.raises(ValueError, match="id of a kernel"):
        remove_prepared(kernel_id)


def test_a_path_that_is_too_long_for_a_socket_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_files, "MAX_SOCKET_NAME", 20)
    with pytest.raises(ValueError, match="too long"):
        prepare({"kernel_id": "k", "info": INFO})
