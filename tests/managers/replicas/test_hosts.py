"""Replicas of several hosts: two state directories, TLS between them, and one registry.

The clock of the second host is an hour ahead.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest

from app.managers.processes.hosts.authority import Signer, new_authority, write_private
from tests.support.channels import JupyterChannels
from tests.support.commands import Commands
from tests.support.executions import Executions
from tests.support.postgresql import PostgreSQL, tells_password
from tests.support.processes import eventually
from tests.support.replicas import TAKEOVER_SECONDS, Replicas
from tests.support.rest import RestClient, RestError
from tests.support.server import run_server

FAR = "far"
LISTEN = ("--replica-listen", "127.0.0.1:0")


@pytest.fixture(scope="module")
def replicas(postgresql: PostgreSQL) -> Iterator[Replicas]:
    with Replicas(postgresql.new_database(), *LISTEN) as replicas:
        replicas.start("near")
        replicas.start("far", host=FAR, is_fast=True)
        yield replicas


@pytest.fixture
async def near(replicas: Replicas) -> AsyncIterator[RestClient]:
    async with RestClient(replicas.servers["near"].url, replicas.token) as rest:
        yield rest


@pytest.fixture
async def far(replicas: Replicas) -> AsyncIterator[RestClient]:
    async with RestClient(replicas.servers["far"].url, replicas.token) as rest:
        yield rest


def is_listed(rest: RestClient, kernel_id: str, **fields: Any) -> Callable[[], Any]:
    """Whether a replica lists a kernel with these fields."""

    async def found() -> bool:
        models = {one["id"]: one for one in await rest.kernels()}
        return kernel_id in models and fields.items() <= models[kernel_id].items()

    return found


async def test_a_kernel_of_another_host_is_used_as_any_other(
    replicas: Replicas, near: RestClient, far: RestClient
) -> None:
    kernel = await far.start_kernel("python3")
    executions = Executions(near, kernel["id"])
    done = await executions.run("print('hello')\n6 * 7")
    assert done["state"] == "ok"
    assert any("hello" in str(event) for event in await executions.all_events(done["id"]))
    await eventually(is_listed(near, kernel["id"]))
    (row,) = (await near.request("GET", "/api/overview")).json()
    assert row["log_bytes"] > 0  # which its own replica alone can tell
    async with AsyncExitStack() as stack:
        channels = await stack.enter_async_context(
            await JupyterChannels.connect(
                replicas.servers["near"].ws_url, kernel["id"], replicas.token
            )
        )
        exchange = await channels.execute("print('a' * 100_000)\n6 * 7")
        assert len(exchange.stream()) > 100_000
        assert exchange.result == "42"
    asked = {"path": "b.ipynb", "type": "notebook", "kernel": {"id": kernel["id"]}}
    session = (await near.request("POST", "/api/sessions", 201, json=asked)).json()
    assert session["kernel"]["id"] == kernel["id"]
    async with RestClient(replicas.servers["near"].url, "wrong") as stranger:
        await stranger.request("GET", f"/api/kernels/{kernel['id']}", 403)
    await near.delete(kernel["id"])
    with pytest.raises(RestError) as gone:
        await far.request("GET", f"/api/kernels/{kernel['id']}")
    assert gone.value.error["code"] == "kernel_not_found"


async def test_a_token_is_good_at_all_replicas_and_ends_at_all(
    replicas: Replicas, near: RestClient, far: RestClient, commands: Commands
) -> None:
    async def is_refused(token: str) -> bool:
        """Whether the other replica knows that the token has ended."""
        async with RestClient(replicas.servers["far"].url, token) as rest:
            answer: httpx.Response = await rest.http.get("/api/kernels")
            return answer.status_code == 403

    kernel = await near.start_kernel("fake")
    # The clock of this host is an hour behind that of the other one.
    asked = {"name": "laptop", "scopes": ["kernels:execute!owner=anonymous"], "expires_in": 7200}
    made = (await near.request("POST", "/api/tokens", 201, json=asked)).json()
    async with RestClient(replicas.servers["far"].url, made["token"]) as rest:
        assert [one["id"] for one in await rest.kernels()] == [kernel["id"]]
    channels = await JupyterChannels.connect(
        replicas.servers["far"].ws_url, kernel["id"], made["token"]
    )
    async with channels:
        await channels.execute("1")
        await near.request("DELETE", f"/api/tokens/{made['id']}", 204)
        assert (await channels.closed()).code == 4401
    await eventually(lambda: is_refused(made["token"]))

    def command(*arguments: str) -> str:
        ran = commands.run(
            *("tokens", *arguments),
            home=replicas.home,
            env={
                "KERNELKEEP_REGISTRY_URL": replicas.url,
                "KERNELKEEP_TOKEN": replicas.token,
                "KERNELKEEP_ON_SHUTDOWN": "keep",
            },
        )
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    token = await asyncio.to_thread(command, "create", "ci", "--scopes", "user")
    async with RestClient(replicas.servers["far"].url, token.strip()) as rest:
        assert await rest.kernels() == []
    assert "ci" in await asyncio.to_thread(command, "list")
    await asyncio.to_thread(command, "revoke", "ci")
    await eventually(lambda: is_refused(token.strip()))
    await near.delete(kernel["id"])


async def test_kernels_of_a_host_go_to_its_other_replica_and_wait_for_one_if_there_is_none(
    replicas: Replicas, near: RestClient
) -> None:
    """Whoever dies is killed: nothing is handed over."""
    other = await asyncio.to_thread(replicas.start, "other", host=FAR)
    async with RestClient(other.url, replicas.token) as rest:
        kernel = await rest.start_kernel("python3")
        given_up = (await rest.start_kernel("fake"))["id"]
    executions = Executions(near, kernel["id"])
    running = await executions.begin("x = 1\nimport time; time.sleep(4); print('done')")
    await asyncio.to_thread(replicas.end, "other")

    async def is_taken_over() -> bool:
        return await asyncio.to_thread(replicas.owner_of, kernel["id"]) == "far"

    await eventually(is_taken_over, TAKEOVER_SECONDS)
    async with asyncio.timeout(TAKEOVER_SECONDS):
        assert (await executions.ended(running))["state"] == "ok"

    await asyncio.to_thread(replicas.end, "far")
    await eventually(is_listed(near, kernel["id"], execution_state="unknown"), TAKEOVER_SECONDS)
    path = f"/api/kernels/{kernel['id']}"
    refused: httpx.Response = await near.http.get(path)
    assert (refused.status_code, refused.json()["code"]) == (503, "replica_unreachable")
    assert refused.headers["Retry-After"] == "1"
    assert replicas.query("SELECT replica FROM kernelkeep.kernel") == 2 * [(None,)]
    (lost,) = [
        process
        for process in replicas.homes[FAR].processes()
        if any(given_up in word for word in process.cmdline())
    ]
    await near.request("DELETE", f"/api/kernels/{given_up}", 503)
    await near.request("DELETE", f"/api/kernels/{given_up}?give_up=true", 204)
    await near.request("GET", f"/api/kernels/{given_up}", 404)
    assert lost.is_running()

    await asyncio.to_thread(replicas.start, "far", host=FAR, is_fast=True)
    await eventually(is_taken_over, TAKEOVER_SECONDS)
    # Until the other host knows of that, it answers at once that nobody reaches the kernel.
    await eventually(is_listed(near, kernel["id"], execution_state="idle"), TAKEOVER_SECONDS)
    assert (await executions.run("print(x)"))["state"] == "ok"
    await near.delete(kernel["id"])
    # What the two that were killed have left, and nobody knows, is ended, and they are forgotten.
    await eventually(lambda: not lost.is_running(), TAKEOVER_SECONDS)
    count = "SELECT count(*) FROM kernelkeep.gone"
    await eventually(lambda: replicas.query(count) == [(0,)], TAKEOVER_SECONDS)


def test_a_replica_with_certificates_of_another_authority_is_refused_in_one_line(
    replicas: Replicas,
) -> None:
    """Those of the others are of the registry's authority."""
    home = replicas.home_of("stranger")
    signer = Signer(new_authority())
    file = home.path / "replica.pem"
    write_private(file, (signer.issue_replica("stranger") + signer.own).encode())
    ended = run_server(
        *("--port", "0", "--root-dir", str(home.root_dir), "--state-dir", str(home.state_dir)),
        *("--on-shutdown", "keep", "--replica-name", "stranger", "--token", replicas.token),
        *(*LISTEN, "--replica-certificate", str(file)),
        home=home,
        env={"KERNELKEEP_REGISTRY_URL": replicas.url},
    )
    assert ended.returncode == 2, ended
    (line,) = ended.stderr.splitlines()
    assert "--registry-url: replica " in line
    assert "and this one do not take each other's certificates" in line
    assert "(replica_certificate)" in line
    assert "PRIVATE" not in line
    assert not tells_password(line)
    assert "stranger" not in [
        name for (name,) in replicas.query("SELECT name FROM kernelkeep.replica")
    ]


async def test_a_replica_that_cannot_be_dialled_is_told_of_once_and_its_kernels_are_not_reached(
    replicas: Replicas, near: RestClient
) -> None:
    """It has told the others an address where nobody listens."""
    lost = await asyncio.to_thread(
        replicas.start, "lost", "--replica-address", "127.0.0.1:1", host="lost"
    )
    async with RestClient(lost.url, replicas.token) as rest:
        kernel = await rest.start_kernel("fake")
        await rest.request("GET", "/readyz", 200)
        path = f"/api/kernels/{kernel['id']}"
        for _ in range(2):  # the first waits for a takeover, the other one does not
            refused = await near.http.get(path, timeout=TAKEOVER_SECONDS)
            assert (refused.status_code, refused.json()["code"]) == (503, "replica_unreachable")
        assert refused.headers["Retry-After"] == "1"
        assert (await rest.kernel(kernel["id"]))["id"] == kernel["id"]
        await rest.delete(kernel["id"])
    output = replicas.servers["near"].output()
    assert output.count("replica lost cannot be reached at 127.0.0.1:1:") == 1
    await asyncio.to_thread(replicas.end, "lost", signal.SIGTERM)
    assert not any(tells_password(server.output()) for server in replicas.servers.values())
