"""The way to a host behind SSH: through jump hosts, and with a key that only an agent has."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from app.managers.processes.hosts import ssh
from app.managers.processes.hosts.errors import (
    HostKeyRefused,
    HostLoginRefused,
    HostUnreachable,
    HostUnusable,
)
from app.managers.processes.hosts.jumps import MAX_JUMPS, Way
from app.managers.processes.hosts.options import SSHOptions
from tests.support.drill import Servers
from tests.support.executions import Executions
from tests.support.home import Home
from tests.support.kernelspecs import write_kernelspec
from tests.support.lively import started
from tests.support.processes import eventually, eventually_sync
from tests.support.rest import RestClient
from tests.support.sshd import Sshd

PYTHON = (sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}")


@pytest.fixture
def lab(home: Home) -> Iterator[Sshd]:
    lab = Sshd(home.path / "far")
    lab.start()
    yield lab
    lab.remove()


@pytest.fixture
def gate(home: Home) -> Iterator[Sshd]:
    """The jump host on the way to ``lab``."""
    gate = Sshd(home.path / "gate")
    gate.start()
    yield gate
    gate.remove()


def options_of(lab: Sshd) -> SSHOptions:
    return SSHOptions(**lab.spec().metadata["kernel_provisioner"]["config"])


def connections(host: Sshd) -> int:
    return len(host.processes()) - 1


async def test_python_runs_behind_a_jump_host(servers: Servers, lab: Sshd, gate: Sshd) -> None:
    lab.write_config(ProxyJump="gate")
    lab.add_host("gate", gate)
    write_kernelspec(servers.home.jupyter_path, "far", lab.spec(argv=PYTHON))
    async with started(servers) as server, RestClient(server.url, server.token) as rest:
        kernel_id = (await rest.start_kernel("far"))["id"]
        runs = Executions(rest, kernel_id)
        assert (await runs.run("1+1"))["outputs"][0]["data"]["text/plain"] == "2"
        one = connections(gate)
        assert one > 0
        # The way breaks, at the host and at the jump host: there is one connection again.
        for host in (lab, gate):
            stays = await runs.begin("import time; time.sleep(3); 2+2")
            await runs.until(stays, "started")
            await asyncio.to_thread(host.cut)
            ended = await runs.ended(stays)
            assert ended["outputs"][0]["data"]["text/plain"] == "4"
            await eventually(lambda: connections(gate) == one)
        # A jump host that is away is told by its name.
        await asyncio.to_thread(gate.stop)
        model = await rest.wait_for_state(kernel_id, "unknown", timeout=20)
        await asyncio.to_thread(gate.start)
        await rest.wait_for_state(kernel_id, "idle", timeout=30)
        assert "lab cannot be reached" in model["reason"]
        assert (await runs.run("1+1"))["outputs"][0]["data"]["text/plain"] == "2"
        await rest.delete(kernel_id)
        # The connection to the jump host ends with the one to the host.
        await eventually(lambda: connections(gate) == 0, 20)


async def test_what_is_wrong_at_a_jump_host_is_told_and_nothing_stays_open(
    lab: Sshd, gate: Sshd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh, "CONNECT_SECONDS", 3.0)

    async def fails(
        kind: type[HostUnusable], text: str, jump: str = "gate", port: int = lab.port
    ) -> None:
        lab.write_config(ProxyJump=jump, Port=str(port))
        lab.add_host("gate", gate)
        with pytest.raises(kind, match=text):
            await ssh.connect(options_of(lab))
        await eventually(lambda: connections(gate) == 0)
        assert connections(lab) == 0

    with full() as port:
        await fails(HostUnreachable, "^lab does not answer within 3 s", port=port)
    await fails(HostUnreachable, "^lab cannot be reached", port=1)
    second = "ada@127.0.0.1:1"
    text = f"^{second}, on the way to lab, cannot be reached"
    await fails(HostUnreachable, text, f"gate,{second}")
    lab.trust("stranger")
    await fails(HostKeyRefused, "key of lab is not")
    lab.trust("host")
    gate.trust("stranger")
    await fails(HostKeyRefused, "key of gate, on the way to lab, is not")
    gate.trust("host")
    gate.write_config("stranger")
    await fails(HostLoginRefused, "^gate, on the way to lab, does not let the user in")
    gate.write_config(ProxyJump="gate")
    await fails(HostUnusable, f"more than {MAX_JUMPS} hosts")
    gate.write_config(Port="x")
    await fails(HostUnusable, "for gate, on the way to lab, cannot be used")
    gate.write_config()
    # What is wrong behind a jump host in the list is told before that one is connected.
    for wrong in ("again:x", "again:65536", "again/x", "::1", "", ",".join(["gate"] * MAX_JUMPS)):
        await fails(HostUnusable, "^ssh's configuration for lab cannot be used", f"gate,{wrong}")
    await fails(HostUnusable, "configuration for lab cannot be used", "none", port=65536)


@pytest.mark.parametrize(
    ("text", "host", "given"),
    [
        ("gate", "gate", {}),
        ("ada@gate", "gate", {"username": "ada"}),
        ("ada@lab@gate:22", "gate", {"username": "ada@lab", "port": 22}),
        ("ssh://ada@gate:2222", "gate", {"username": "ada", "port": 2222}),
        ("[::1]", "::1", {}),
        ("ada@[fe80::1%eth0]:22", "fe80::1%eth0", {"username": "ada", "port": 22}),
    ],
)
def test_how_a_jump_host_is_named(text: str, host: str, given: dict[str, Any]) -> None:
    assert Way("lab", None)._jump(text) == (text, host, given)


async def test_a_jump_host_may_be_behind_another_and_named_with_user_and_port(
    lab: Sshd, gate: Sshd
) -> None:
    user = lab.config.read_text().split("User ", 1)[1].split()[0]
    lab.write_config(ProxyJump=f"gate,{user}@again:{gate.port}")
    lab.add_host("gate", gate)
    gate.write_config(User="nobody", Port="1")
    lab.add_host("again", gate)
    connection = await ssh.connect(options_of(lab))
    assert connections(gate) > 0
    assert (await connection.run("echo $((1+1))")).stdout == "2\n"
    connection.abort()
    await eventually(lambda: connections(gate) == 0)
    await eventually(lambda: connections(lab) == 0)


@contextmanager
def full() -> Iterator[int]:
    """A port that does not answer, as no more connections wait there than may."""
    with socket.socket() as listener, socket.socket() as waits:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        waits.connect(listener.getsockname())
        yield listener.getsockname()[1]


@contextmanager
def agent(lab: Sshd) -> Iterator[Path]:
    """An agent that alone has the user's key: its file takes a passphrase from then on."""
    path, key = lab.directory / "agent", str(lab.directory / "user")
    nothing = subprocess.DEVNULL
    process = subprocess.Popen(["ssh-agent", "-D", "-a", str(path)], stdout=nothing)
    try:
        eventually_sync(path.exists)
        env = {**os.environ, "SSH_AUTH_SOCK": str(path)}
        subprocess.run(["ssh-add", "-q", key], env=env, check=True, stdin=nothing)
        change = ["ssh-keygen", "-q", "-p", "-P", "", "-N", "a phrase", "-f", key]
        subprocess.run(change, check=True, stdin=nothing, stdout=nothing)
        yield path
    finally:
        process.terminate()
        process.wait()


async def test_python_runs_where_an_agent_has_the_key(servers: Servers, lab: Sshd) -> None:
    lab.write_config(IdentityAgent=None)
    write_kernelspec(servers.home.jupyter_path, "far", lab.spec(argv=PYTHON))
    with agent(lab) as path:
        servers.env["SSH_AUTH_SOCK"] = str(path)
        async with started(servers) as server, RestClient(server.url, server.token) as rest:
            kernel_id = (await rest.start_kernel("far"))["id"]
            ran = await Executions(rest, kernel_id).run("1+1")
            assert ran["outputs"][0]["data"]["text/plain"] == "2"


@pytest.mark.parametrize("only", ["", "user", "user.pub"])
async def test_the_configuration_names_an_agent_also_at_a_jump_host(
    lab: Sshd, gate: Sshd, only: str
) -> None:
    (gate.directory / "authorized_keys").write_text((lab.directory / "user.pub").read_text())
    with agent(lab) as path:
        file, alone = (str(lab.directory / only), "yes") if only else (None, "no")
        for host, jump in ((lab, "gate"), (gate, None)):
            host.write_config(
                IdentityAgent=str(path), IdentityFile=file, IdentitiesOnly=alone, ProxyJump=jump
            )
        lab.add_host("gate", gate)
        connection = await ssh.connect(options_of(lab))
        assert (await connection.run("echo $((1+1))")).stdout == "2\n"
        connection.abort()
        await eventually(lambda: connections(gate) == 0)
    with pytest.raises(HostLoginRefused):  # the agent has gone
        await ssh.connect(options_of(lab))
