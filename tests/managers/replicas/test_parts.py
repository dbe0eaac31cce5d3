"""Whoever asks one replica is told of all: status, overview, events, owners, users.

`app.api.parts` asks the others.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from tests.support.channels import JupyterChannels
from tests.support.events import EventListener, listening
from tests.support.executions import Executions
from tests.support.overview import followed
from tests.support.postgresql import PostgreSQL
from tests.support.processes import eventually
from tests.support.replicas import TAKEOVER_SECONDS, Replicas
from tests.support.rest import RestClient

SLEEP = "import time; time.sleep(600)"
NAMES = ("first", "second", "third")
LIMITS = ("--owner-limits", '{"websockets": 2}')


@pytest.fixture(scope="module")
def replicas(postgresql: PostgreSQL) -> Iterator[Replicas]:
    with Replicas(postgresql.new_database()) as replicas:
        for name in NAMES:
            replicas.start(name)
        yield replicas


@pytest.fixture
async def rests(replicas: Replicas) -> AsyncIterator[list[RestClient]]:
    """A client of each replica; afterwards there is no kernel."""
    async with AsyncExitStack() as stack:
        rests = [
            await stack.enter_async_context(RestClient(server.url, replicas.token))
            for server in replicas.servers.values()
        ]
        yield rests
        for kernel in await rests[0].kernels():
            await rests[0].delete(kernel["id"])

        async def are_gone() -> bool:
            return [await rest.kernels() for rest in rests] == [[]] * len(rests)

        await eventually(are_gone)


async def told(rest: RestClient, path: str) -> Any:
    return (await rest.request("GET", path)).json()


async def test_the_status_is_that_of_all(replicas: Replicas, rests: list[RestClient]) -> None:
    kernels = [(await rest.start_kernel("fake"))["id"] for rest in (*rests, rests[0])]
    async with await JupyterChannels.connect(
        replicas.servers["third"].ws_url, kernels[1], replicas.token
    ):

        async def is_told() -> bool:
            found = [await told(rest, "/api/status") for rest in rests]
            return all(
                (each["kernels"], each["connections"], each["started"])
                == (4, 1, found[0]["started"])
                for each in found
            )

        await eventually(is_told)
    # The use of the API counts, wherever that was.
    before = (await told(rests[0], "/api/status"))["last_activity"]
    await rests[2].request("GET", "/api/kernelspecs")
    assert (await told(rests[0], "/api/status"))["last_activity"] > before


async def test_the_overview_is_that_of_all(replicas: Replicas, rests: list[RestClient]) -> None:
    kernels = [(await rest.start_kernel("python3"))["id"] for rest in rests]
    async with AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(followed(rest)) for rest in rests]
        for stream in streams:
            await stream.until(lambda event: event["type"] == "whole")
        for stream in streams:
            await stream.holds(lambda rows: rows.keys() == {*kernels})
        executions = Executions(rests[0], kernels[2])
        begun = await executions.begin(f"x = 1\n{SLEEP}")
        for stream in streams:
            await stream.holds(lambda rows: _runs(rows.get(kernels[2]), begun))
            assert stream.rows[kernels[2]]["running"]["code"] == "x = 1"
            await stream.holds(lambda rows: rows[kernels[2]]["memory"] is not None)
        for rest in rests:
            rows = await told(rest, "/api/overview")
            assert [row["kernel"]["id"] for row in rows] == kernels
            assert _runs(rows[2], begun)
            own = await told(rest, "/api/overview?owner=anonymous")
            assert [row["kernel"]["id"] for row in own] == kernels
            assert _runs(own[2], begun)
            assert await told(rest, "/api/overview?owner=ben") == []
        await rests[1].delete(kernels[0])
        for stream in streams:
            await stream.holds(lambda rows: kernels[0] not in rows)
            # Its replica tells the others why.
            await stream.holds(lambda _: kernels[0] in stream.ended)  # noqa: B023
            assert stream.ended[kernels[0]]["kernel"]["reason"]


def _runs(row: dict[str, Any] | None, execution_id: str) -> bool:
    running = None if row is None else row["running"]
    return running is not None and running["execution_id"] == execution_id


async def test_a_subscriber_gets_the_events_of_all(
    replicas: Replicas, rests: list[RestClient]
) -> None:
    async with AsyncExitStack() as stack:
        listeners = [
            await stack.enter_async_context(listening(server))
            for server in replicas.servers.values()
        ]
        kernels = [(await rest.start_kernel("fake"))["id"] for rest in rests]
        for listener in listeners:
            await _ready(listener, kernels)
        await rests[0].delete(kernels[1])
        for listener in listeners:
            await listener.action("shutdown", kernel_id=kernels[1], status="success")
            # Each is told once.
            starts = [one for one in listener.told(kernels[1]) if one.startswith("start ")]
            assert len(starts) == 1


async def _ready(listener: EventListener, kernel_ids: list[str]) -> None:
    missing = {*kernel_ids}
    while missing:
        event = await listener.recv()
        if event.get("event") == "ready":
            missing.discard(event["kernel_id"])


async def test_a_replica_that_comes_later_is_heard_too(
    replicas: Replicas, rests: list[RestClient]
) -> None:
    async with listening(replicas.servers["first"]) as listener, followed(rests[0]) as stream:
        server = await asyncio.to_thread(replicas.start, "later")
        try:
            async with RestClient(server.url, replicas.token) as rest:
                async with asyncio.timeout(TAKEOVER_SECONDS):
                    while not listener.log:
                        kernel = await rest.start_kernel("python3")
                        begun = await Executions(rest, kernel["id"]).begin(SLEEP)
                        await stream.holds(lambda rows: _runs(rows.get(kernel["id"]), begun))  # noqa: B023
                        await rest.delete(kernel["id"])
                        # Events may be followed some seconds later than the overview is, where the
                        # first connection was refused: then another kernel has to make some.
                        with contextlib.suppress(TimeoutError):
                            async with asyncio.timeout(2):
                                await listener.recv()
        finally:
            await asyncio.to_thread(replicas.end, "later", signal.SIGTERM)


async def test_owners_use_what_they_use_of_all(replicas: Replicas, rests: list[RestClient]) -> None:
    kernel = await rests[0].start_kernel("fake")
    await rests[0].wait_for_state(kernel["id"], "idle")
    async with AsyncExitStack() as stack:
        for server in replicas.servers.values():
            await stack.enter_async_context(listening(server))
        for rest in rests:
            (owner,) = await told(rest, "/api/owners")
            # What replicas ask each other for on somebody's behalf is not that one's.
            assert owner["usage"]["websockets"] == len(NAMES)
            assert owner["usage"]["kernels"] == 1
            assert owner["usage"]["log_bytes"] > 0
            one = await told(rest, f"/api/owners/{owner['name']}")
            assert one["usage"]["websockets"] == len(NAMES)


async def test_a_user_has_one_name_everywhere(rests: list[RestClient]) -> None:
    for number, rest in enumerate(rests):
        name = f"Ada {number}"
        await rest.request("PATCH", "/api/me", json={"display_name": name})
        for each in rests:
            assert (await told(each, "/api/me"))["identity"]["display_name"] == name


async def test_a_kernel_is_found_that_is_named_elsewhere_than_in_the_path(
    rests: list[RestClient],
) -> None:
    kernel = (await rests[0].start_kernel("python3"))["id"]
    for rest in rests:
        usage = await told(rest, f"/api/metrics/v1/kernel_usage/get_usage/{kernel}")
        assert usage["content"]["pid"]
        resolved = await told(rest, f"/api/resolvePath?path=/nowhere/x.py&kernel={kernel}")
        assert "could not be found" not in json.dumps(resolved)
        session = {"path": f"{id(rest)}.ipynb", "type": "notebook", "kernel": {"id": kernel}}
        made = (await rest.request("POST", "/api/sessions", 201, json=session)).json()
        assert made["kernel"]["id"] == kernel


@asynccontextmanager
async def _two(url: str) -> AsyncIterator[Replicas]:
    replicas = await asyncio.to_thread(Replicas(url).__enter__)
    try:
        for name in NAMES[:2]:
            await asyncio.to_thread(replicas.start, name)
        yield replicas
    finally:
        await asyncio.to_thread(replicas.__exit__, None, None, None)


async def test_nobody_waits_for_a_replica_that_is_stopped_or_gone(postgresql: PostgreSQL) -> None:
    async with _two(postgresql.new_database()) as replicas:
        first, second = (replicas.servers[name] for name in NAMES[:2])
        async with (
            RestClient(first.url, replicas.token) as rest,
            RestClient(second.url, replicas.token) as other,
            followed(rest) as stream,
            listening(first) as listener,
        ):
            kernel = (await other.start_kernel("python3"))["id"]
            await stream.holds(lambda rows: kernel in rows)
            replicas.send("second", signal.SIGSTOP)
            began = time.monotonic()
            for _ in range(3):
                status = await told(rest, "/api/status")
            # The first of these waits for it, for a second.
            assert time.monotonic() - began < 3
            assert status["kernels"] == 1
            assert [row["kernel"]["id"] for row in await told(rest, "/api/overview")] == [kernel]
            await asyncio.to_thread(replicas.end, "second")
            # Meanwhile the kernel stays what it is in the list of kernels.
            async with asyncio.timeout(TAKEOVER_SECONDS):
                begun = await Executions(rest, kernel).begin(SLEEP)
                await stream.holds(lambda rows: _runs(rows[kernel], begun))
            assert kernel not in stream.gone
            await rest.delete(kernel)
            await listener.action("shutdown", kernel_id=kernel, status="success")
            await stream.holds(lambda rows: kernel not in rows)


async def test_a_part_counts_where_the_whole_was_asked_for(postgresql: PostgreSQL) -> None:
    with Replicas(postgresql.new_database(), *LIMITS) as replicas:
        for name in NAMES[:2]:
            await asyncio.to_thread(replicas.start, name)
        async with AsyncExitStack() as stack:
            for name in NAMES[:2]:
                await stack.enter_async_context(listening(replicas.servers[name]))
