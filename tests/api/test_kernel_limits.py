"""How many kernels there may be, and how many may start at a time."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
from collections import Counter
from functools import partial

import httpx
import pytest

from tests.api.errors import error_of
from tests.conftest import MakeServer
from tests.support.kernelspecs import FAKE_SPECS, shell_spec
from tests.support.metrics import scrape
from tests.support.processes import eventually, keepers
from tests.support.rest import RestClient, RestError
from tests.support.running import kernels_of
from tests.support.server import ServerProcess


async def test_a_hundred_requests_at_once_get_max_kernels_and_the_rest_a_clear_refusal(
    make_server: MakeServer,
) -> None:
    server = make_server("--max-kernels", "10", "--start-queue-limit", "200")
    async with RestClient(server.url, server.token) as rest:

        async def post(number: int) -> httpx.Response:
            if number % 2:
                return await rest.http.post("/api/kernels", json={"name": "fake"})
            body = {
                "path": f"{number}.ipynb",
                "type": "notebook",
                "name": "",
                "kernel": {"name": "fake"},
            }
            return await rest.http.post("/api/sessions", json=body)

        responses = await asyncio.gather(*(post(number) for number in range(100)))
        assert Counter(response.status_code for response in responses) == {201: 10, 429: 90}
        refusals = [response.json() for response in responses if response.status_code == 429]
        assert {refusal["code"] for refusal in refusals} == {"too_many_kernels"}
        kernels = await rest.kernels()
        assert len(kernels) == 10
        # A place that is given back can be taken again.
        await rest.delete(kernels[0]["id"])
        await rest.start_kernel("fake")
        assert len(await rest.kernels()) == 10


async def test_starts_beyond_the_bound_wait_visibly_and_can_be_given_up(
    make_server: MakeServer,
) -> None:
    script = "while [ ! -e go ]; do sleep 0.02; done; exec $FAKE"
    specs = {**FAKE_SPECS, "gated": shell_spec(script)}
    server = make_server("--max-concurrent-starts", "1", "--start-queue-limit", "2", specs=specs)
    async with RestClient(server.url, server.token) as rest:
        first = (await rest.start_kernel("gated"))["id"]
        waiting = [
            asyncio.create_task(rest.http.post("/api/kernels", json={"name": "fake"}))
            for _ in range(2)
        ]

        async def listed() -> list[str]:
            kernels = await rest.kernels()
            assert len(kernels) == 3
            assert {kernel["execution_state"] for kernel in kernels} == {"starting"}
            return [kernel["id"] for kernel in kernels]

        _, given_up, _ = await eventually(listed)
        metrics = await scrape(rest)
        assert metrics("kernelkeep_starts", state="waiting") == 2
        refused = await rest.http.post("/api/kernels", json={"name": "fake"})
        assert refused.status_code == 429
        assert refused.json()["code"] == "too_many_starts"
        assert int(refused.headers["Retry-After"]) > 0
        # There is nothing yet that could be restarted.
        assert (await rest.restart(given_up))["execution_state"] == "starting"
        await rest.delete(given_up)
        (server.home.root_dir / "go").touch()
        responses = await asyncio.gather(*waiting)
        assert sorted(response.status_code for response in responses) == [201, 409]
        ids = {kernel["id"] for kernel in await rest.kernels()}
        assert first in ids
        assert given_up not in ids
        assert len(ids) == 2


async def test_a_restart_waits_for_its_turn_and_one_too_many_leaves_the_kernel_as_it_is(
    make_server: MakeServer,
) -> None:
    server = make_server("--max-concurrent-starts", "1", "--start-queue-limit", "1")
    async with kernels_of(server) as start:
        kernel, other = await start(), await start()
        pid, other_pid = await kernel.pid(), await other.pid()
        slow = await start("fake-silent", ready=False)
        restart = asyncio.create_task(kernel.rest.restart(kernel.id))
        await eventually(partial(_waiting, kernel.rest, 1))
        with pytest.raises(RestError) as raised:
            await other.rest.restart(other.id)
        assert raised.value.status == 429
        assert raised.value.error["code"] == "too_many_starts"
        assert (await kernel.channels.execute("print still")).text == "still\n"
        assert await kernel.pid() == pid
        assert await other.pid() == other_pid
        await slow.rest.restart(slow.id)  # in the place of its own start: it need not wait
        assert not restart.done()
        await slow.rest.delete(slow.id)
        await restart
        await kernel.becomes("idle")
        assert await kernel.pid() != pid


async def test_a_kernel_that_has_died_waits_for_its_turn_and_can_be_deleted_meanwhile(
    make_server: MakeServer,
) -> None:
    server = make_server("--max-concurrent-starts", "1", "--start-queue-limit", "0")
    async with kernels_of(server) as start:
        kernel, given_up = await start(), await start()
        slow = await start("fake-silent", ready=False)
        os.kill(await kernel.pid(), signal.SIGKILL)
        os.kill(await given_up.pid(), signal.SIGKILL)
        await eventually(partial(_waiting, kernel.rest, 2))
        assert {(await one.model())["execution_state"] for one in (kernel, given_up)} == {
            "restarting"
        }
        await given_up.rest.delete(given_up.id)
        assert await _waiting(kernel.rest, 1)
        await slow.rest.delete(slow.id)
        await kernel.becomes("idle")
        assert (await kernel.channels.execute("print again")).text == "again\n"


async def _waiting(rest: RestClient, number: int) -> bool:
    """Whether just so many starts wait for their turn."""
    return (await scrape(rest))("kernelkeep_starts", state="waiting") == number


async def test_a_keeper_without_free_descriptors_refuses_starts_by_that_name(
    own_server: ServerProcess,
) -> None:
    async with RestClient(own_server.url, own_server.token) as rest:
        kernel = await rest.start_kernel("fake")
        (found,) = keepers(own_server.home.processes())
        limits = found.rlimit(resource.RLIMIT_NOFILE)
        refused = 0
        # Whichever step is the first to want one more: the process, the log or the sockets.
        for spare in range(8):
            found.rlimit(resource.RLIMIT_NOFILE, (found.num_fds() + spare, limits[1]))
            response = await rest.http.post("/api/kernels", json={"name": "fake"})
            if response.status_code == 201:
                continue
            refused += 1
            message = error_of(response, 503, "too_many_open_files")
            assert "RLIMIT_NOFILE" in message
        assert refused
        found.rlimit(resource.RLIMIT_NOFILE, limits)
        await rest.start_kernel("fake")
        assert kernel["id"] in {one["id"] for one in await rest.kernels()}
