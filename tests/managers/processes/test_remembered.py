"""Kernels without a process of the keeper's: the dead, and those that others have started."""

from __future__ import annotations

import asyncio
import json
import resource
import signal
import sqlite3
from pathlib import Path
from typing import Any
from uuid import uuid4

from tests.kernels.driver import running_fake
from tests.support.channels import JupyterChannels
from tests.support.drill import KEEP, Servers
from tests.support.executions import Executions
from tests.support.home import Home
from tests.support.metrics import scrape
from tests.support.processes import eventually
from tests.support.registry import open_registry, row_of
from tests.support.rest import RestClient
from tests.support.server import run_server

MAX_DEAD = 32


def give_away(home: Home, connection_file: str) -> Path:
    """The directory of connection files, with that of a kernel as ``k.json``."""
    directory = home.path / "external"
    directory.mkdir()
    info = json.loads(Path(connection_file).read_text())
    Path(connection_file).unlink()
    (directory / "k.json").write_text(json.dumps({**info, "kernel_name": "fake"}))
    return directory


async def log_of(rest: RestClient, kernel_id: str) -> dict[str, Any]:
    """All of a kernel's log that fits into one page."""
    response = await rest.http.get(f"/api/kernels/{kernel_id}/messages?after=0&limit=1000")
    page: dict[str, Any] = response.json()
    return page


async def parked(rest: RestClient) -> bool:
    """Whether a kernel is kept warm."""
    return (await scrape(rest))("kernelkeep_warm_kernels", type="fake") == 1


def add_dead(home: Home, like: str, count: int) -> None:
    """Rows of kernels that died, later than any other."""
    with open_registry(home.state_dir) as connection:
        connection.row_factory = sqlite3.Row
        row = dict(connection.execute("SELECT * FROM kernel WHERE id = ?", (like,)).fetchone())
        for number in range(count):
            other = {**row, "id": str(uuid4()), "created": row["created"] + 1 + number}
            marks = ", ".join("?" * len(other))
            query = f"INSERT INTO kernel ({', '.join(other)}) VALUES ({marks})"
            connection.execute(query, [*other.values()])


def rows(home: Home) -> set[str]:
    """The kernels in the registry."""
    with open_registry(home.state_dir) as connection:
        found = {row[0] for row in connection.execute("SELECT id FROM kernel")}
    return found


async def test_a_disk_that_is_full_costs_no_kernel_and_is_made_up_for(
    servers: Servers, home: Home
) -> None:
    server = await asyncio.to_thread(servers.start)
    async with RestClient(server.url, server.token) as rest:
        first, deleted = [(await rest.start_kernel("fake"))["id"] for _ in range(2)]
        await Executions(rest, first).run("print before")
        _, hard = resource.prlimit(server.pid, resource.RLIMIT_FSIZE)
        # No file of the server's grows beyond this; that of the registry is larger already.
        resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (8192, hard))
        second = (await rest.start_kernel("fake"))["id"]
        await rest.delete(deleted)
        for kernel_id in (first, second):
            done = await Executions(rest, kernel_id).run("print meanwhile")
            assert done["state"] == "ok"
        assert rows(home) == {first, deleted}
        assert server.output().count("the registry cannot be written") == 1
        resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (hard, hard))
        await eventually(lambda: rows(home) == {first, second}, 30)
        await eventually(lambda: row_of(home.state_dir, done["id"]), 30)
    servers.crash()
    server = await asyncio.to_thread(servers.start)
    async with RestClient(server.url, server.token) as rest:
        assert {model["id"] for model in await rest.kernels()} == {first, second}
        assert (await Executions(rest, second).get(done["id"]))["state"] == "ok"
        for kernel_id in (first, second):
            assert (await Executions(rest, kernel_id).run("print after"))["state"] == "ok"
            await rest.delete(kernel_id)
    await asyncio.to_thread(server.stop)


async def test_the_dead_and_those_of_others_are_known_to_the_next_server(
    servers: Servers, home: Home
) -> None:
    async with running_fake(home, (), "tcp", ready=True) as fake:
        directory = give_away(home, fake.connection_file)
        external = ("--external-connection-dir", str(directory))
        servers.arguments = (*KEEP, "--no-autorestart", *external, "--warm-kernels", "fake=1")
        server = await asyncio.to_thread(servers.start)
        async with RestClient(server.url, server.token) as rest:
            await eventually(lambda: parked(rest), 60)
            warm = await rest.start_kernel("fake")
            assert warm["execution_state"] == "idle"
            dead = (await rest.start_kernel("fake"))["id"]
            other = (await rest.start_kernel(connection_file="k.json", owned=True))["id"]
            await rest.wait_for_state(other, "idle")
            done = await Executions(rest, other).run("print of another")
            died = await Executions(rest, dead).begin("print words\ndie 13")
            model = await rest.wait_for_state(dead, "dead")
            assert "exited with code 13" in model["reason"]
            ended = await Executions(rest, dead).ended(died)
            logs = {known: await log_of(rest, known) for known in (warm["id"], dead, other)}
        for more_dead in (0, MAX_DEAD - 1):
            if more_dead:
                server.send_signal(signal.SIGTERM)
                assert await asyncio.to_thread(server.wait) in (0, -signal.SIGTERM)
                add_dead(home, dead, more_dead)
            else:
                servers.crash()
            server = await asyncio.to_thread(servers.start)
            async with RestClient(server.url, server.token) as rest:
                found = {found["id"]: found for found in await rest.kernels()}
                assert list(found)[:3] == list(logs)
                assert found[dead] == model
                assert await Executions(rest, dead).get(died) == ended
                assert await log_of(rest, dead) == logs[dead]
                assert found[other]["execution_state"] == "idle"
                runs = Executions(rest, other)
                assert (await runs.get(done["id"]))["state"] == "ok"
                assert (await runs.run("print still there"))["state"] == "ok"
                for known in (warm["id"], other):
                    told = await log_of(rest, known)
                    assert told["epoch"] == logs[known]["epoch"]
                    sent = logs[known]["messages"]
                    assert told["messages"][: len(sent)] == sent
                    assert (told["first"], sent[0]["seq"]) == (1, 1)
        listed = run_server("kernels", "list", "--state-dir", str(home.state_dir), home=home)
        assert f"{dead}  fake" in listed.stdout
        async with RestClient(server.url, server.token) as rest:
            assert len(await rest.kernels()) == MAX_DEAD + 2
            await rest.restart(dead)
            channels = await JupyterChannels.connect(server.ws_url, dead, server.token)
            assert (await channels.execute("print risen")).text == "risen\n"
            await channels.close()
            await rest.delete(other)
            assert await asyncio.to_thread(fake.process.wait, 30) == 0
            await asyncio.gather(*(rest.delete(found["id"]) for found in await rest.kernels()))
        (directory / "k.json").unlink()
        await asyncio.to_thread(server.stop)
