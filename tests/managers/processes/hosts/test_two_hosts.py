"""Kernels on one of two hosts, each behind a real sshd with a home of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.drill import Servers
from tests.support.executions import Executions
from tests.support.home import Home
from tests.support.kernelspecs import write_kernelspec
from tests.support.lively import pid_of
from tests.support.processes import eventually, keepers
from tests.support.rest import RestClient, RestError
from tests.support.server import ServerProcess
from tests.support.sshd import Sshd


@pytest.fixture
def labs(home: Home) -> Iterator[dict[str, Sshd]]:
    """Two hosts, by their homes, which a kernelspec names."""
    labs: dict[str, Sshd] = {}
    try:
        for name in ("one", "two"):
            lab = Sshd(home.path / name)
            labs[str(lab.far)] = lab
            lab.far.mkdir()
            begin(lab)
        one = next(iter(labs.values()))
        config = one.directory / "ssh_config_of_both"
        for name, lab in zip(("one", "two"), labs.values(), strict=True):
            text = lab.config.read_text().replace("Host lab", f"Host {name}")
            config.write_text((config.read_text() if config.exists() else "") + text)
        may_set = {"host": ["two"], "directory": ["/"]}
        options: dict[str, Any] = {"host": ["one", "two"], "caller_may_set": may_set}
        options |= {"ssh_config": str(config), "path": "k"}
        write_kernelspec(home.jupyter_path, "far", one.spec(options))
        yield labs
    finally:
        for lab in labs.values():
            lab.remove()


def begin(lab: Sshd) -> None:
    """Start it: whoever logs in there has this home."""
    lab.start(f"SetEnv HOME={lab.far}")


@pytest.fixture
async def server(servers: Servers, labs: dict[str, Sshd]) -> AsyncIterator[ServerProcess]:
    server = await asyncio.to_thread(servers.start)
    yield server
    for lab in labs.values():  # a test that has failed has stopped some
        if not lab.is_there:
            begin(lab)
    assert servers.present is not None
    async with RestClient(servers.present.url, servers.present.token) as rest:
        for model in await rest.kernels():
            await rest.delete(model["id"])
    await asyncio.to_thread(servers.present.stop)
    servers.present = None


async def home_of(rest: RestClient, kernel_id: str) -> str:
    run = await Executions(rest, kernel_id).run("env HOME")
    return str(run["outputs"][0]["text"]).strip()


async def test_kernels_are_spread_and_stay_where_they_are(
    server: ServerProcess, servers: Servers, labs: dict[str, Sshd], home: Home
) -> None:
    async with RestClient(server.url, server.token) as rest:
        models = await asyncio.gather(*(rest.start_kernel("far") for _ in range(2)))
        kernels = {await home_of(rest, model["id"]): model["id"] for model in models}
        assert kernels.keys() == labs.keys()
        # One of them goes away for others: what is started meanwhile is on the other.
        away, there = labs
        labs[away].stop()
        third = (await rest.start_kernel("far", engine_options={"directory": "/"}))["id"]
        assert await home_of(rest, third) == there
        assert (await Executions(rest, third).run("cwd"))["outputs"][0]["text"] == "/\n"
        shown = (await rest.request("GET", "/api/overview")).json()
        hosts = {row["kernel"]["id"]: row["host"] for row in shown if "kernel" in row}
        assert hosts[third] == ("one" if there.endswith("one") else "two")
        # With none there is no kernel, and the reason names all of them.
        labs[there].stop()
        with pytest.raises(RestError) as raised:
            await rest.start_kernel("far")
        error = raised.value.error
        assert error["cause"] == "host_unreachable"
        assert all(f"{name}: " in error["message"] for name in ("one", "two"))
        for lab in labs.values():
            begin(lab)
        for kernel_id in (*kernels.values(), third):
            await rest.wait_for_state(kernel_id, "idle", timeout=60)
        pid = await pid_of(rest, third)
    servers.crash()
    server = await asyncio.to_thread(servers.start)
    async with RestClient(server.url, server.token) as rest:
        assert await pid_of(rest, third) == pid
        # In its next process, too, it has the host and the option that it was started with.
        await rest.restart(third)
        assert await home_of(rest, third) == there
        assert (await Executions(rest, third).run("cwd"))["outputs"][0]["text"] == "/\n"
        for kernel_id in (*kernels.values(), third):
            await rest.delete(kernel_id)
        # A keeper that was only looked at ends, too.
        one = (await rest.start_kernel("far", engine_options={"host": "two"}))["id"]
        assert Path(await home_of(rest, one)).name == "two"
        await rest.delete(one)
        await eventually(lambda: not far_keepers(home, labs), 30)


def far_keepers(home: Home, labs: dict[str, Sshd]) -> list[int]:
    found = keepers(home.processes())
    return [one.pid for one in found if any(lab in " ".join(one.cmdline()) for lab in labs)]
