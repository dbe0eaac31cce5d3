"""The ends of kernels by their owners' limits on time, with real kernels."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack

import pytest

from tests.conftest import servers
from tests.support.channels import JupyterChannels
from tests.support.events import EventListener, listening
from tests.support.executions import Executions
from tests.support.framing import Message
from tests.support.identities import token
from tests.support.metrics import scrape
from tests.support.processes import eventually
from tests.support.rest import RestClient
from tests.support.server import ServerProcess

IDLE, LIFETIME = 3.0, 5.0  # in which a kernel is started, and asked to run something


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest) -> Iterator[ServerProcess]:
    limits = {"idle": {"idle_timeout": IDLE}, "mortal": {"lifetime": LIFETIME}}
    limits |= {name: {"lifetime": LIFETIME} for name in ("anna", "ben")}
    with servers(request.config) as make_server:
        yield make_server(
            *("--identity-provider-class", "tests.support.identities:Telling"),
            *("--limits-by-name", json.dumps(limits), "--metrics-by-owner"),
        )


@pytest.fixture
async def events(server: ServerProcess) -> AsyncIterator[EventListener]:
    async with listening(server) as listener:
        yield listener


async def test_idle_time_is_over_when_nothing_was_run_for_so_long(
    server: ServerProcess, events: EventListener
) -> None:
    async with RestClient(server.url, token("idle")) as rest:
        kernel = (await rest.start_kernel("fake"))["id"]
        # One that works is not idle, however long that takes.
        await Executions(rest, kernel).run(f"sleep {IDLE + 1}")
        began = time.monotonic()
        told = await events.turn("ends_soon", kernel_id=kernel)
        assert told["limit"] == "idle_timeout"
        assert 0 < told["seconds"] <= IDLE / 10
        assert told["owner"] == "idle"
        culled = await events.turn("culled", kernel_id=kernel)
        assert culled["limit"] == "idle_timeout"
        assert culled["idle_seconds"] >= IDLE
        assert time.monotonic() - began > IDLE * 0.8
        await eventually(lambda: _gone(rest, kernel))


def is_warning(message: Message) -> bool:
    return message.msg_type == "stream" and "is stopped in" in message.content["text"]


async def test_each_owner_is_told_of_the_owners_own_kernels_alone(server: ServerProcess) -> None:
    owner = {name: token(name, ["user"]) for name in ("anna", "ben")}
    async with AsyncExitStack() as stack:
        rests, listeners, channels, kernels = {}, {}, {}, {}
        for name, shown in owner.items():
            rest = rests[name] = await stack.enter_async_context(RestClient(server.url, shown))
            listeners[name] = await stack.enter_async_context(listening(server, shown))
            kernel = kernels[name] = (await rest.start_kernel("fake"))["id"]
            connecting = JupyterChannels.connect(server.ws_url, kernel, shown)
            channels[name] = await stack.enter_async_context(await connecting)
        admin = await stack.enter_async_context(RestClient(server.url, server.token))
        found = (await scrape(admin)).labels("kernelkeep_owner_kernels")
        assert {"anna", "ben"} <= {labels["owner"] for labels in found}
        for name, other in (("anna", "ben"), ("ben", "anna")):
            # Who is connected is told as well, and by no request's output.
            warning = (await channels[name].collect_until(is_warning))[-1]
            assert "by its owner's limit lifetime" in warning.content["text"]
            assert warning.parent_header == {}
            await listeners[name].turn("culled", kernel_id=kernels[name])
            assert listeners[name].told(kernels[name])[-2:] == ["ends_soon", "culled"]
            assert (await channels[name].closed()).code == 4404
            answer = await rests[name].http.get(f"/api/kernels/{kernels[other]}/events")
            assert answer.status_code == 404
            assert (await rests[name].http.get("/metrics")).status_code == 403
        # Both have ended by now, and what one was told before that was of its own.
        for name, other in (("anna", "ben"), ("ben", "anna")):
            assert len([*filter(is_warning, channels[name].log)]) == 1
            assert other not in json.dumps(listeners[name].log)
            assert kernels[other] not in json.dumps(listeners[name].log)
            one = (await rests[name].request("GET", f"/api/owners/{name}")).json()
            assert one["usage"]["kernels"] == 0
            assert (await rests[name].http.get(f"/api/owners/{other}")).status_code == 404


async def test_a_lifetime_ends_with_what_runs_and_says_so(
    server: ServerProcess, events: EventListener
) -> None:
    async with (
        RestClient(server.url, token("mortal")) as rest,
        RestClient(server.url, token("other")) as other,
    ):
        spared = (await other.start_kernel("fake"))["id"]
        kernel = (await rest.start_kernel("fake"))["id"]
        executions = Executions(rest, kernel)
        running = asyncio.create_task(executions.run("sleep 30", stop_on_error=False))
        waiting = asyncio.create_task(executions.run("print x"))
        told = await events.turn("ends_soon", kernel_id=kernel)
        assert told["limit"] == "lifetime"
        assert 0 < told["seconds"] <= LIFETIME / 10
        culled = await events.turn("culled", kernel_id=kernel)
        assert culled["limit"] == "lifetime"
        assert (await running)["state"] != "ok"  # it is interrupted, so that the kernel can end
        ended = await waiting
        assert ended["state"] == "aborted"
        assert "its owner's limit lifetime" in ended["reason"]
        await eventually(lambda: _gone(rest, kernel))
        assert (await other.kernel(spared))["execution_state"] == "idle"
        await other.delete(spared)


async def _gone(rest: RestClient, kernel_id: str) -> bool:
    return kernel_id not in [model["id"] for model in await rest.kernels()]
