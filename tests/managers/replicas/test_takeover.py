"""Kernels of a replica that dies, or is stopped, go on with another, executions and all.

`app.managers.replicas.member` takes them, `app.managers.replicas.handover` adopts them, by
`app.managers.replicas.registry`.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator

import pytest

from tests.support.executions import Executions
from tests.support.processes import eventually
from tests.support.replicas import TAKEOVER_SECONDS, Replicas
from tests.support.rest import RestClient

COUNT = "import time\nfor number in range(40):\n    print(number)\n    time.sleep(0.1)\n"


@pytest.fixture
def replicas(url: str) -> Iterator[Replicas]:
    with Replicas(url) as replicas:
        yield replicas


async def test_a_kernel_of_a_replica_that_is_killed_goes_on_with_another(
    replicas: Replicas,
) -> None:
    first = await asyncio.to_thread(replicas.start, "first")
    second = await asyncio.to_thread(replicas.start, "second")
    async with RestClient(first.url, replicas.token) as rest:
        kernel = await rest.start_kernel("python3")
        executions = Executions(rest, kernel["id"])
        running = await executions.begin(COUNT)
        queued = await executions.begin("print('queued')")
    assert replicas.owner_of(kernel["id"]) == "first"
    await asyncio.to_thread(replicas.end, "first")

    async def is_taken_over() -> bool:
        return await asyncio.to_thread(replicas.owner_of, kernel["id"]) == "second"

    await eventually(is_taken_over, TAKEOVER_SECONDS)
    async with RestClient(second.url, replicas.token) as rest:
        executions = Executions(rest, kernel["id"])
        await eventually(lambda: executions.get(running), TAKEOVER_SECONDS)
        ended = await executions.ended(running)
        assert ended["state"] == "ok"
        assert (await executions.ended(queued))["state"] == "ok"
        await rest.delete(kernel["id"])
    assert replicas.query("SELECT * FROM kernelkeep.kernel") == []


async def test_a_replica_that_was_stopped_finds_that_its_kernel_is_anothers(
    replicas: Replicas,
) -> None:
    first = await asyncio.to_thread(replicas.start, "first")
    second = await asyncio.to_thread(replicas.start, "second")
    async with RestClient(first.url, replicas.token) as rest:
        kernel = await rest.start_kernel("python3")
        running = await Executions(rest, kernel["id"]).begin(COUNT)
    replicas.send("first", signal.SIGSTOP)

    async def is_taken_over() -> bool:
        return await asyncio.to_thread(replicas.owner_of, kernel["id"]) == "second"

    await eventually(is_taken_over, TAKEOVER_SECONDS)
    async with RestClient(second.url, replicas.token) as rest:
        executions = Executions(rest, kernel["id"])
        await executions.known(running)
        replicas.send("first", signal.SIGCONT)

        async def has_let_go() -> bool:
            return "kernels are taken over" in second.output() and (
                "have its kernels" in first.output() or "fenced" in first.output()
            )

        await eventually(has_let_go, TAKEOVER_SECONDS)
        assert (await executions.ended(running))["state"] == "ok"
        # It has joined again, and both take kernels.
        count = await asyncio.to_thread(replicas.query, "SELECT count(*) FROM kernelkeep.replica")
        assert count == [(2,)]
        await rest.delete(kernel["id"])


async def test_a_replica_that_ends_hands_its_kernels_over(replicas: Replicas) -> None:
    first = await asyncio.to_thread(replicas.start, "first")
    second = await asyncio.to_thread(replicas.start, "second")
    async with RestClient(first.url, replicas.token) as rest:
        kernel = await rest.start_kernel("python3")
        running = await Executions(rest, kernel["id"]).begin(COUNT)
    await asyncio.to_thread(replicas.end, "first", signal.SIGTERM)
    async with RestClient(second.url, replicas.token) as rest:
        executions = Executions(rest, kernel["id"])
        await executions.known(running)
        assert (await executions.ended(running))["state"] == "ok"
        await rest.delete(kernel["id"])
