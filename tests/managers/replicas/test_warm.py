"""Kernels that a replica has parked are its own, until somebody gets them."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator

import psutil
import pytest

from tests.support.executions import Executions
from tests.support.metrics import scrape
from tests.support.processes import eventually, keepers
from tests.support.replicas import TAKEOVER_SECONDS, Replicas
from tests.support.rest import RestClient

WARM = ("--warm-kernels", "fake=1")


@pytest.fixture
def replicas(url: str) -> Iterator[Replicas]:
    with Replicas(url) as replicas:
        yield replicas


async def parked(rest: RestClient) -> None:
    """Return when there is a kernel to be had."""

    async def there() -> bool:
        return (await scrape(rest))("kernelkeep_warm_kernels", type="fake") == 1

    await eventually(there, TAKEOVER_SECONDS)


async def claims(rest: RestClient) -> float:
    return (await scrape(rest))("kernelkeep_warm_claims_total", type="fake", result="hit")


async def process_of(rest: RestClient, kernel_id: str) -> int:
    ran = await Executions(rest, kernel_id).run("pid")
    return int(ran["outputs"][0]["text"])


def running(replicas: Replicas) -> set[int]:
    """The processes of all kernels."""
    (keeper,) = keepers(replicas.home.processes())
    return {one.pid for one in keeper.children() if one.status() != psutil.STATUS_ZOMBIE}


async def test_who_gets_one_keeps_it_and_the_others_end_with_their_replica(
    replicas: Replicas,
) -> None:
    first = await asyncio.to_thread(replicas.start, "first", *WARM)
    second = await asyncio.to_thread(replicas.start, "second")
    async with (
        RestClient(first.url, replicas.token) as rest,
        RestClient(second.url, replicas.token) as other,
    ):
        await parked(rest)
        # Nobody has it, so nobody is told of it.
        assert await rest.kernels() == await other.kernels() == []
        kernel_id = (await rest.start_kernel("fake"))["id"]
        assert await claims(rest) == 1
        process = await process_of(other, kernel_id)
        await parked(rest)
        # Nobody would find one by the key with which it was asked for: such a start makes its own.
        answer = await rest.http.post(
            "/api/kernels", json={"name": "fake"}, headers={"Idempotency-Key": "key"}
        )
        assert await claims(rest) == 1
        await rest.delete(answer.json()["id"])
        assert len(running(replicas)) == 2
        await asyncio.to_thread(replicas.end, "first", signal.SIGKILL)
        await eventually(lambda: running(replicas) == {process}, TAKEOVER_SECONDS)
        async with asyncio.timeout(TAKEOVER_SECONDS):
            assert await process_of(other, kernel_id) == process
        await other.delete(kernel_id)


async def test_one_that_ends_in_order_ends_what_it_has_parked(replicas: Replicas) -> None:
    first = await asyncio.to_thread(replicas.start, "first", *WARM)
    async with RestClient(first.url, replicas.token) as rest:
        await parked(rest)
        kernel_id = (await rest.start_kernel("fake"))["id"]
        process = await process_of(rest, kernel_id)
        await parked(rest)
    await asyncio.to_thread(replicas.end, "first", signal.SIGTERM)
    assert running(replicas) == {process}


async def test_one_that_was_declared_dead_gives_nobody_what_it_had_parked(
    replicas: Replicas,
) -> None:
    first = await asyncio.to_thread(replicas.start, "first", *WARM)
    await asyncio.to_thread(replicas.start, "second")
    async with RestClient(first.url, replicas.token) as rest:
        await parked(rest)
        (process,) = running(replicas)
        replicas.send("first", signal.SIGSTOP)
        await eventually(lambda: running(replicas) == set(), TAKEOVER_SECONDS)
        replicas.send("first", signal.SIGCONT)
        await eventually(lambda: len(running(replicas)) == 1, TAKEOVER_SECONDS)
        await parked(rest)
        kernel_id = (await rest.start_kernel("fake"))["id"]
        assert await claims(rest) == 1
        assert await process_of(rest, kernel_id) != process
        await rest.delete(kernel_id)
