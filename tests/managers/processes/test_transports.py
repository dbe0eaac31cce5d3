"""How kernels are reached: the choice, what is remembered of it, and places for sockets."""

from __future__ import annotations

import logging
import os
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
import zmq
from jupyter_client.kernelspec import KernelSpec

from app.managers.processes.transports import (
    MAX_SOCKET_NAME,
    Transports,
    ports_taken,
    sockets_exist,
)

PORTS = ("shell_port", "iopub_port", "stdin_port", "control_port", "hb_port")


@pytest.fixture
def state_dir() -> Iterator[Path]:
    """A directory whose path is short, as that of a socket must be."""
    with tempfile.TemporaryDirectory(prefix="kk-") as directory:
        yield Path(directory)


def spec(name: str, *argv: str) -> KernelSpec:
    return KernelSpec(argv=list(argv) or ["kernel"], resource_dir=f"/kernels/{name}")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_kernel_that_nobody_knows_is_tried_over_ipc_first(state_dir: Path) -> None:
    transports = Transports("auto", state_dir)

    assert transports.choose(spec("new")) == "ipc"
    assert transports.may_fall_back(spec("new"), "ipc")
    assert not transports.may_fall_back(spec("new"), "tcp")


def test_what_works_is_remembered_by_the_next_server(state_dir: Path) -> None:
    first = Transports("auto", state_dir)
    first.remember(spec("r"), "tcp")
    first.remember(spec("python"), "ipc")

    for transports in (first, Transports("auto", state_dir)):
        assert transports.choose(spec("r")) == "tcp"
        assert transports.choose(spec("python")) == "ipc"
        assert not transports.may_fall_back(spec("python"), "ipc")
        assert transports.choose(spec("other")) == "ipc"
    assert mode(state_dir / "transports.json") == 0o600
    assert sorted(os.listdir(state_dir)) == ["ipc", "transports.json"]


def test_what_works_can_change(state_dir: Path) -> None:
    transports = Transports("auto", state_dir)
    transports.remember(spec("r"), "tcp")
    transports.remember(spec("r"), "ipc")

    assert Transports("auto", state_dir).choose(spec("r")) == "ipc"


def test_a_spec_with_another_command_is_another_kernel(state_dir: Path) -> None:
    transports = Transports("auto", state_dir)
    transports.remember(spec("r", "R", "old"), "tcp")

    assert transports.choose(spec("r", "R", "new")) == "ipc"
    assert transports.choose(spec("s", "R", "old")) == "ipc"
    assert transports.choose(spec("r", "R", "old")) == "tcp"


@pytest.mark.parametrize("setting", ["ipc", "tcp"])
def test_a_transport_that_is_asked_for_is_used_whatever_was_learned(
    state_dir: Path, setting: Literal["ipc", "tcp"]
) -> None:
    other: Literal["ipc", "tcp"] = "tcp" if setting == "ipc" else "ipc"
    Transports("auto", state_dir).remember(spec("r"), other)
    transports = Transports(setting, state_dir)
    before = (state_dir / "transports.json").read_bytes()

    assert transports.choose(spec("r")) == setting
    assert not transports.may_fall_back(spec("r"), setting)
    transports.remember(spec("r"), setting)
    assert (state_dir / "transports.json").read_bytes() == before


def test_over_tcp_no_directory_is_made(state_dir: Path) -> None:
    Transports("tcp", state_dir)

    assert os.listdir(state_dir) == []


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"[]", b"null", b"7", b'"tcp"', b'["tcp"]', b'[["a", "tcp"]]', b"\xff\xfe"),
        *(b'{"a": 1}', b'{"a": ["ipc"]}', b'{"a": {"ipc": 1}}', b'{"a": "carrier pigeon"}'),
        b"[" * 100_000,
    ],
)
def test_a_memory_that_is_damaged_is_learned_again(state_dir: Path, content: bytes) -> None:
    (state_dir / "transports.json").write_bytes(content)

    transports = Transports("auto", state_dir)
    assert transports.choose(spec("r")) == "ipc"
    transports.remember(spec("r"), "tcp")

    assert Transports("auto", state_dir).choose(spec("r")) == "tcp"


def test_a_memory_that_cannot_be_read_or_written_is_no_reason_to_fail(
    state_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (state_dir / "transports.json").mkdir()
    (state_dir / "transports.json" / "in the way").touch()

    with caplog.at_level(logging.WARNING):
        transports = Transports("auto", state_dir)
        transports.remember(spec("r"), "tcp")

    assert transports.choose(spec("r")) == "tcp"
    assert [record.message.split(":")[0] for record in caplog.records] == [
        "what was known of transports is not readable",
        "cannot remember transports",
    ]


def test_sockets_lie_where_only_their_owner_comes(state_dir: Path) -> None:
    transports = Transports("auto", state_dir)

    address = Path(transports.new_address())

    assert address.parent == state_dir / "ipc"
    assert mode(address.parent) == 0o700
    transports.close()
    assert address.parent.is_dir()


def test_a_directory_of_sockets_that_was_open_is_closed(state_dir: Path) -> None:
    (state_dir / "ipc").mkdir(mode=0o755)
    (state_dir / "ipc").chmod(0o755)

    Transports("auto", state_dir)

    assert mode(state_dir / "ipc") == 0o700


@pytest.mark.parametrize("length", [60, 90, 91, 92, 120, 200])
def test_addresses_are_as_short_as_sockets_need(state_dir: Path, length: int) -> None:
    long_dir = state_dir / ("x" * (length - len(str(state_dir)) - 1))
    long_dir.mkdir()
    transports = Transports("auto", long_dir)
    try:
        address = transports.new_address()
        directory = Path(address).parent

        assert len(f"{address}-5") <= MAX_SOCKET_NAME
        assert mode(directory) == 0o700
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        with context, context.socket(zmq.ROUTER) as bound:
            bound.bind(f"ipc://{address}-5")
            assert os.path.exists(f"{address}-5")
    finally:
        transports.close()

    assert directory.exists() == directory.is_relative_to(long_dir)


def test_a_directory_of_its_own_is_removed_with_what_is_in_it(state_dir: Path) -> None:
    long_dir = state_dir / ("x" * 120)
    long_dir.mkdir()
    transports = Transports("auto", long_dir)
    left = Path(f"{transports.new_address()}-1")
    left.touch()

    transports.close()
    transports.close()

    assert not left.parent.exists()


def test_no_two_kernels_share_an_address(state_dir: Path) -> None:
    transports = Transports("auto", state_dir)

    assert len({transports.new_address() for _ in range(1000)}) == 1000


def test_a_kernel_that_has_bound_a_socket_speaks_ipc(state_dir: Path) -> None:
    info = {"ip": str(state_dir / "k"), "transport": "ipc", "shell_port": 1, "control_port": 4}
    assert not sockets_exist(info)

    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(f"{info['ip']}-4")
        assert sockets_exist(info)


def test_ports_that_others_took_are_told_from_free_ones() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        taken = other.getsockname()[1]
        for name in PORTS:
            # Port 0 is one that is always free.
            info = {"ip": "127.0.0.1", **dict.fromkeys(PORTS, 0), name: taken}
            assert ports_taken(info)

    assert not ports_taken({"ip": "127.0.0.1", **dict.fromkeys(PORTS, 0)})


def test_a_port_that_a_kernel_listened_on_is_free_again() -> None:
    with socket.socket() as kernel:
        kernel.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        kernel.bind(("127.0.0.1", 0))
        kernel.listen()
        info = {"ip": "127.0.0.1", **dict.fromkeys(PORTS, 0)}
        info["hb_port"] = kernel.getsockname()[1]
        assert ports_taken(info)
        with socket.create_connection(kernel.getsockname()) as client:
            accepted, _ = kernel.accept()
            accepted.close()
            assert client.recv(1) == b""

    # The connection is in TIME_WAIT now; a kernel can bind the port all the same.
    assert not ports_taken(info)
