"""Where a host's keeper is, and which versions are spoken."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from app.managers.processes.hosts import place, ssh
from app.managers.processes.hosts.errors import (
    EngineNotInstalled,
    HostKeeperIncompatible,
    HostUnreachable,
)
from app.managers.processes.hosts.options import SSHOptions
from app.managers.processes.hosts.place import SSHPlace, keeper_name
from app.managers.processes.hosts.service import OwnService
from app.managers.processes.hosts.ssh import SocketRefused
from app.managers.processes.keeper.link import KeeperLink
from tests.support.sshd import Sshd


class Nobody:
    """Is told what comes over a link."""

    def on_event(self, _fields: object) -> None: ...

    def on_bells(self, _data: bytes) -> None: ...

    def on_end(self, _link: KeeperLink) -> None: ...


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Sshd]:
    lab = Sshd(tmp_path / "far")
    lab.start()
    yield lab
    lab.remove()


async def test_a_keeper_of_another_version_is_told_and_left_alone(
    lab: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = lab.spec().metadata["kernel_provisioner"]["config"]
    # Its socket's path is short, as that of pytest's directories is not.
    options = SSHOptions(**{**config, "path": str(lab.directory / "k")})
    monkeypatch.setattr(place, "SPOKEN", (998, 999))
    with pytest.raises(HostKeeperIncompatible, match="this server 998 and 999"):
        await SSHPlace(options, OwnService(tmp_path)).find(Nobody(), lambda _: None)
    monkeypatch.undo()
    found = SSHPlace(options, OwnService(tmp_path))
    link = await found.find(Nobody(), lambda _: None)
    assert isinstance(link, KeeperLink)
    assert found.host is not None
    await link.ask({"ask": "stop"})
    await asyncio.wait_for(link._ended.wait(), 10)  # nothing was kept there
    await link.close()


async def test_an_sshd_that_leads_to_no_socket_is_told(lab: Sshd, tmp_path: Path) -> None:
    config = lab.spec().metadata["kernel_provisioner"]["config"]
    lab.restart("AllowStreamLocalForwarding no")
    options = SSHOptions(**{**config, "path": str(lab.directory / "k")})
    with pytest.raises(SocketRefused, match="AllowStreamLocalForwarding"):
        await SSHPlace(options, OwnService(tmp_path)).find(Nobody(), lambda _: None)
    lab.restart()
    link = await SSHPlace(options, OwnService(tmp_path)).find(Nobody(), lambda _: None)
    await link.ask({"ask": "stop"})
    await asyncio.wait_for(link._ended.wait(), 10)
    await link.close()


async def test_a_host_that_falls_silent_while_a_keeper_is_brought_has_its_time_and_no_more(
    lab: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def silence(*_: object) -> None:
        lab.freeze()
        await asyncio.Event().wait()

    monkeypatch.setattr(ssh, "_converse", silence)
    monkeypatch.setattr(ssh, "START_SECONDS", 3.0)
    options = SSHOptions(**lab.spec().metadata["kernel_provisioner"]["config"])
    async with asyncio.timeout(20):
        with pytest.raises(HostUnreachable, match="no keeper ready within 3 s"):
            await SSHPlace(options, OwnService(tmp_path)).find(Nobody(), lambda _: None)


async def test_a_server_without_the_package_tells_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "asyncssh", None)
    with pytest.raises(EngineNotInstalled, match=r"kernelkeep\[ssh\]"):
        await SSHPlace(SSHOptions("lab"), OwnService(tmp_path)).find(Nobody(), lambda _: None)


def test_a_keeper_has_a_name_of_its_own_for_each_service_and_each_way_to_be_reached() -> None:
    key = SSHOptions("lab").key
    name = keeper_name("0123456789abcdef", key)
    assert len(name) == 16  # as long as a service's: sockets lie below
    assert set(name) <= set("0123456789abcdef")
    assert name == keeper_name("0123456789abcdef", SSHOptions("lab", directory="/data").key)
    others = (
        SSHOptions("lab", python="python3.12").key,
        SSHOptions("lab", port=2222).key,
        SSHOptions("lab", user="ada").key,
    )
    names = {name, *(keeper_name("0123456789abcdef", other) for other in others)}
    assert len({*names, keeper_name("0123456789abcdee", key)}) == 5


async def test_kernelspecs_that_differ_and_have_one_path_have_a_keeper_each(
    lab: Sshd, tmp_path: Path
) -> None:
    config = lab.spec().metadata["kernel_provisioner"]["config"]
    first = SSHOptions(**{**config, "path": str(lab.directory / "k")})
    python = Path(sys.executable)
    others = ({"port": lab.port}, {"python": f"{python.parent}/./{python.name}"})
    ways = [first, *(msgspec.structs.replace(first, **other) for other in others)]
    service = OwnService(tmp_path)
    links = [await SSHPlace(way, service).find(Nobody(), lambda _: None) for way in ways]
    # None has ended the link of another: each still answers, and ends by itself.
    assert len({link.pid for link in links}) == len(ways)
    assert not any(link._ended.is_set() for link in links)
    for link in links:
        await link.ask({"ask": "stop"})
        await asyncio.wait_for(link._ended.wait(), 10)
        await link.close()
    assert len([*(lab.directory / "k" / "services").iterdir()]) == len(ways)
