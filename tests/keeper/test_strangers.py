"""Processes of other users at the keeper's socket, on either side of it.

Only root can be somebody else: whoever else runs this is its own stranger, and let in.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import sys
import tempfile
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest

from app.keeper import protocol
from app.keeper.protocol import are_own, is_own_xucred, keeper_dir
from app.managers.errors import KeeperUnavailable
from app.managers.processes.keeper.client import Keeper
from tests.keeper.conftest import connected
from tests.support.home import Home

WAIT = 30  # seconds

STRANGER = 65534 if os.geteuid() == 0 else os.geteuid()

# The file system goes on to take it for its owner: the permissions alone would stop it.
PROCESS = """
import ctypes, os, socket, sys
uid, what = int(sys.argv[1]), sys.argv[2]
connection = socket.socket(socket.AF_UNIX)
if what == "listen":
    connection.bind("socket")
    os.chmod("socket", 0o600)
owner = os.geteuid()
if uid != owner:
    os.seteuid(uid)
    ctypes.CDLL(None).setfsuid(owner)
if what == "listen":
    connection.listen()
    print("listens", flush=True)
    connection, _ = connection.accept()
    connection.sendall(b"no keeper")
else:
    connection.connect("socket")
print(connection.recv(1000))
"""


@pytest.mark.parametrize("uid", sorted({os.geteuid(), STRANGER}))
async def test_whoever_is_of_another_user_is_sent_away(home: Home, uid: int) -> None:
    directory = keeper_dir(home.state_dir)
    stranger = await _stranger(home.state_dir, uid, "listen")
    assert stranger.stdout is not None
    assert await asyncio.wait_for(stranger.stdout.readline(), WAIT) == b"listens\n"
    why = "is no keeper" if uid == os.geteuid() else "process of another user listens"
    with pytest.raises(KeeperUnavailable, match=why):
        await _keeper(home)
    await asyncio.wait_for(stranger.communicate(), WAIT)
    (directory / "socket").unlink()

    keeper = await _keeper(home)
    try:
        stranger = await _stranger(home.state_dir, uid, "connect")
        said, _ = await asyncio.wait_for(stranger.communicate(), WAIT)
        log = (directory / "log").read_text()
        if uid == os.geteuid():
            assert b'"keeper"' in said
        else:
            assert said == b"b''\n"
            assert "a process of another user was refused" in log
    finally:
        await keeper.close()


def test_only_the_user_counts() -> None:
    assert are_own(struct.pack("iII", 1, os.geteuid(), os.getegid() + 1))
    assert not are_own(struct.pack("iII", os.getpid(), os.geteuid() + 1, os.getegid()))
    assert not are_own(struct.pack("iII", 0, 2**32 - 1, 0))  # nobody's, or not of this namespace


async def _keeper(home: Home) -> Keeper:
    return await connected(home.state_dir, orphan_timeout=60)


async def _stranger(state_dir: Path, uid: int, what: str) -> asyncio.subprocess.Process:
    directory = keeper_dir(state_dir)
    directory.mkdir(mode=0o700, exist_ok=True)
    return await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROCESS, str(uid), what, cwd=directory, stdout=PIPE
    )


def test_only_the_user_counts_on_macos() -> None:
    groups = struct.pack("hxxI60x", 1, os.getegid())  # struct xucred, 76 bytes
    assert is_own_xucred(struct.pack("=II", 0, os.geteuid()) + groups)
    assert not is_own_xucred(struct.pack("=II", 0, os.geteuid() + 1) + groups)
    assert not is_own_xucred(struct.pack("=II", 1, os.geteuid()) + groups)  # of another layout
    assert not is_own_xucred(b"")


@pytest.mark.parametrize("length", [10, 200], ids=["short", "long"])
def test_a_socket_has_an_address_without_proc(
    home: Home, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    monkeypatch.setattr(protocol, "HAS_PROC", False)
    temporary = home.path / "tmp"
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    directory = home.path / ("d" * length)
    directory.mkdir()
    descriptor = os.open(directory, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        with protocol.socket_address(descriptor, directory) as address:
            assert len(address) <= protocol.MAX_ADDRESS
            listener.bind(address)
        assert (directory / "socket").is_socket()
        listener.listen()
        with protocol.socket_address(descriptor, directory) as address:
            client.connect(address)
    os.close(descriptor)
    assert os.listdir(temporary) == []
