"""Any replica takes any request: for kernels of another it is answered by that one.

`app.api.relay` sends it on, by what `app.managers.replicas.group` and
`app.managers.replicas.directory` know (`app.managers.handover.elsewhere`); errors are those of
`app.managers.replicas.errors`, sessions those of `app.managers.sessions.shared`. A replica's ties
to the others (`app.managers.kernels.shared_ties`) are behind all of it.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack

import pytest

from app.ws.channels import KERNEL_GONE
from tests.support.channels import JupyterChannels
from tests.support.executions import Executions
from tests.support.postgresql import PostgreSQL
from tests.support.processes import eventually
from tests.support.replicas import TAKEOVER_SECONDS, Replicas
from tests.support.rest import RestClient, RestError


@pytest.fixture(scope="module")
def replicas(postgresql: PostgreSQL) -> Iterator[Replicas]:
    with Replicas(postgresql.new_database()) as replicas:
        for name in ("first", "second"):
            replicas.start(name)
        yield replicas


@pytest.fixture
async def first(replicas: Replicas) -> AsyncIterator[RestClient]:
    async with RestClient(replicas.servers["first"].url, replicas.token) as rest:
        yield rest


@pytest.fixture
async def second(replicas: Replicas) -> AsyncIterator[RestClient]:
    async with RestClient(replicas.servers["second"].url, replicas.token) as rest:
        yield rest


async def code_of(rest: RestClient, path: str) -> str:
    """The code of the error that a request gets."""
    with pytest.raises(RestError) as refused:
        await rest.request("GET", path)
    return refused.value.error["code"]


async def test_a_kernel_is_listed_and_used_by_every_replica(
    replicas: Replicas, first: RestClient, second: RestClient
) -> None:
    kernel = await first.start_kernel("python3")
    kernel_id = kernel["id"]
    # At once: what is not known yet is looked up.
    assert (await second.kernel(kernel_id))["name"] == "python3"

    async def is_listed() -> bool:
        return kernel_id in [each["id"] for each in await second.kernels()]

    await eventually(is_listed)
    executions = Executions(second, kernel_id)
    done = await executions.run("print('hello')\n6 * 7")
    assert done["state"] == "ok"
    events = await executions.all_events(done["id"])
    assert any("hello" in str(event) for event in events)
    path = f"/api/kernels/{kernel_id}/executions/none"
    assert await code_of(second, path) == "execution_not_found"
    await second.restart(kernel_id)
    await second.delete(kernel_id)
    assert [each["id"] for each in await first.kernels()] == []
    assert await code_of(second, f"/api/kernels/{kernel_id}") == "kernel_not_found"


async def test_the_status_tells_which_replicas_there_are(
    first: RestClient, second: RestClient
) -> None:
    kernel_id = (await first.start_kernel("fake"))["id"]

    async def is_told() -> bool:
        told = [(await rest.request("GET", "/api/status")).json() for rest in (first, second)]
        (one, other), same = told[0]["replicas"], told[1]["replicas"]
        return (
            [one["asked"], other["asked"]] == [True, False]
            and [each["asked"] for each in same] == [False, True]
            and [each["id"] for each in same] == [one["id"], other["id"]]
            and [one["kernels"], other["kernels"]] == [1, 0]
            and {one["state"], other["state"]} == {"joined"}
        )

    await eventually(is_told)
    await first.delete(kernel_id)


async def test_a_websocket_by_another_replica_is_like_any_other(
    replicas: Replicas, first: RestClient, second: RestClient
) -> None:
    kernel = await first.start_kernel("python3")
    server = replicas.servers["second"]
    async with AsyncExitStack() as stack:
        channels = await stack.enter_async_context(
            await JupyterChannels.connect(server.ws_url, kernel["id"], replicas.token)
        )
        exchange = await channels.execute("print('a' * 100_000)\n6 * 7")
        assert len(exchange.stream()) > 100_000
        assert exchange.result == "42"
        await first.delete(kernel["id"])
        assert (await channels.closed()).code == KERNEL_GONE


async def test_who_may_not_may_not_by_another_replica_either(
    replicas: Replicas, first: RestClient
) -> None:
    kernel = await first.start_kernel("fake")
    async with RestClient(replicas.servers["second"].url, "wrong") as stranger:
        await stranger.request("GET", f"/api/kernels/{kernel['id']}", 403)
    await first.delete(kernel["id"])


async def test_sessions_are_everybodys(
    replicas: Replicas, first: RestClient, second: RestClient
) -> None:
    asked = {"path": "a.ipynb", "type": "notebook", "kernel": {"name": "fake"}}
    made = (await first.request("POST", "/api/sessions", 201, json=asked)).json()

    async def same() -> bool:
        found = await second.request("GET", "/api/sessions")
        return [each["id"] for each in found.json()] == [made["id"]]

    await eventually(same)
    again = (await second.request("POST", "/api/sessions", 201, json=asked)).json()
    assert again["id"] == made["id"]
    assert again["kernel"]["id"] == made["kernel"]["id"]
    await second.request("DELETE", f"/api/sessions/{made['id']}", 204)
    assert await first.kernels() == []


async def test_kernels_of_all_replicas_count(replicas: Replicas, first: RestClient) -> None:
    kernel = await first.start_kernel("fake")
    limited = await asyncio.to_thread(replicas.start, "limited", "--max-kernels", "1")
    async with RestClient(limited.url, replicas.token) as rest:
        with pytest.raises(RestError) as refused:
            await rest.start_kernel("fake")
        assert refused.value.error["code"] == "too_many_kernels"
        with pytest.raises(RestError) as taken:
            await rest.start_kernel("fake", kernel_id=kernel["id"])
        assert taken.value.error["code"] == "kernel_elsewhere"
        await rest.delete(kernel["id"])
    await asyncio.to_thread(replicas.end, "limited", signal.SIGTERM)


async def test_a_request_for_a_kernel_of_a_replica_that_dies_waits_for_the_next(
    replicas: Replicas, second: RestClient
) -> None:
    third = await asyncio.to_thread(replicas.start, "third")
    async with RestClient(third.url, replicas.token) as rest:
        kernel = await rest.start_kernel("python3")
        begun = await Executions(rest, kernel["id"]).begin("import time; time.sleep(5)")
    await asyncio.to_thread(replicas.end, "third", signal.SIGKILL)
    async with asyncio.timeout(TAKEOVER_SECONDS):
        found = await Executions(second, kernel["id"]).get(begun)
    assert found["id"] == begun
    await second.delete(kernel["id"])
