"""Options about which kernels there are and how they are run, as clients see them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from app.protocol.messages import UNTRACKED_MESSAGE_TYPES
from tests.conftest import MakeServer, servers
from tests.support.processes import eventually
from tests.support.rest import RestClient, RestError
from tests.support.running import kernels_of
from tests.support.server import ServerProcess


async def test_the_default_kernel_is_the_one_that_is_named(make_server: MakeServer) -> None:
    server = make_server("--default-kernel-name", "fake-old")
    async with kernels_of(server) as start:
        assert (await start.rest.kernelspecs())["default"] == "fake-old"
        for body in ({}, {"name": None}, {"path": ""}):
            response = await start.rest.request("POST", "/api/kernels", 201, json=body)
            start.started.append(response.json()["id"])
            assert response.json()["name"] == "fake-old"
        model = await start.rest.start_kernel()  # no body at all
        start.started.append(model["id"])
        await start.rest.wait_for_state(model["id"], "idle")
        assert (await start.rest.start_kernel("fake"))["name"] == "fake"


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest) -> Iterator[ServerProcess]:
    with servers(request.config) as make_server:
        yield make_server("--allowed-kernelspecs", "Fake,fake-old,not-there")


async def test_only_allowed_kernelspecs_are_shown(rest: RestClient) -> None:
    assert sorted((await rest.kernelspecs())["kernelspecs"]) == ["fake", "fake-old"]
    assert (await rest.kernelspec("fake"))["name"] == "fake"
    await rest.request("GET", "/kernelspecs/fake/logo-64x64.png")
    for name in ("python3", "fake-slow", "FAKE-SLOW", "python"):
        await rest.request("GET", f"/api/kernelspecs/{name}", 404)
        await rest.request("GET", f"/kernelspecs/{name}/kernel.json", 404)


async def test_only_allowed_kernelspecs_can_be_started(rest: RestClient) -> None:
    for name in ("fake", "FAKE", "fake-old"):
        await rest.start_kernel(name)
    for other in ("python3", "python", "fake-slow", "Fake-Slow", None):  # None: the default
        with pytest.raises(RestError) as raised:
            await rest.start_kernel(other)
        assert raised.value.status == 404
        assert raised.value.error["code"] == "kernelspec_not_found"
        assert "(available: fake, fake-old)" in raised.value.error["message"]
    body = {"path": "n.ipynb", "type": "notebook", "kernel": {"name": "python3"}}
    await rest.request("POST", "/api/sessions", 501, json=body)
    assert [kernel["name"] for kernel in await rest.kernels()] == ["fake", "FAKE", "fake-old"]


async def test_the_banner_tells_only_of_allowed_kernelspecs(server: ServerProcess) -> None:
    await eventually(lambda: "Kernels: fake, fake-old\n" in server.output())


async def test_arguments_are_added_to_the_command_of_every_process(make_server: MakeServer) -> None:
    server = make_server("--kernel-argv", '["--stderr", "a word, or two"]')
    async with kernels_of(server) as start:
        for name in ("fake", "fake-old"):
            kernel = await start(name)
            for _ in range(2):  # its first process, and the one that replaces it
                exchange = await kernel.channels.execute("die 3")
                assert exchange.error["evalue"].endswith("a word, or two")
                await kernel.told("idle")


async def test_arguments_reach_a_python_kernel_too(make_server: MakeServer) -> None:
    server = make_server("--kernel-argv=--InteractiveShell.ast_node_interactivity=all")
    async with kernels_of(server) as start:
        kernel = await start("python3")
        exchange = await kernel.channels.execute("41\n42")
        results = [m.content["data"]["text/plain"] for m in exchange.of_type("execute_result")]
        assert results == ["41", "42"]


async def test_what_is_untracked_changes_neither_state_nor_activity(
    make_server: MakeServer,
) -> None:
    untracked = ",".join([*UNTRACKED_MESSAGE_TYPES, "execute_request"])
    server = make_server("--untracked-message-types", untracked)
    async with kernels_of(server) as start:
        kernel = await start()
        before = await kernel.model()
        await kernel.busy("sleep 600")
        # It has begun, and REST does not tell so: nobody asked to be told.
        assert (await kernel.model())["execution_state"] == "idle"
        await kernel.rest.interrupt(kernel.id)
        await kernel.channels.seen(lambda m: m.msg_type == "execute_reply")
        assert (await kernel.model())["last_activity"] == before["last_activity"]
        await kernel.channels.request("complete_request", {"code": "p", "cursor_pos": 1})
        assert (await kernel.model())["last_activity"] > before["last_activity"]


@pytest.mark.parametrize("tracked", [False, True])
async def test_what_is_tracked_is_activity(make_server: MakeServer, tracked: bool) -> None:
    server = make_server(*(["--untracked-message-types", ""] if tracked else []))
    async with kernels_of(server) as start:
        kernel = await start()
        before = await kernel.model()
        await kernel.channels.request("kernel_info_request")
        after = await kernel.model()
        assert (after["last_activity"] > before["last_activity"]) is tracked
