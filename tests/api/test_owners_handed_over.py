"""Owners and shares under the next server: of kernels, of warm ones and of external ones.

What `app.managers.kernels.registration` stores of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.api.errors import error_of
from tests.support.drill import KEEP, Servers
from tests.support.executions import Executions
from tests.support.external import external_kernel
from tests.support.home import Home
from tests.support.kernelspecs import FAKE_SPECS, write_kernelspecs
from tests.support.metrics import scrape
from tests.support.owners import MANY, Owners, end_share, kernel_of, share
from tests.support.processes import eventually
from tests.support.rest import RestClient


@pytest.fixture
def lasting(home: Home) -> Iterator[Servers]:
    """Servers that know many owners and keep their kernels, one after the other."""
    write_kernelspecs(home.jupyter_path, FAKE_SPECS)
    servers = Servers(home, *KEEP, *MANY)
    yield servers
    if servers.present is not None:
        servers.present.crash()


async def test_a_warm_kernel_is_its_claimer_s_under_the_next_server_too(lasting: Servers) -> None:
    lasting.arguments += ("--warm-kernels", "fake=1")
    server = await asyncio.to_thread(lasting.start)
    async with AsyncExitStack() as stack:
        owners = Owners(server, stack)
        anna, ben = await owners.client("anna", "staff"), await owners.client("ben")
        admin = await stack.enter_async_context(RestClient(server.url, server.token))

        async def parked() -> bool:
            return (await scrape(admin))("kernelkeep_warm_kernels", type="fake") >= 1

        await eventually(parked, 60)
        for one in (anna, ben, admin):
            assert await one.kernels() == []
        model = await anna.start_kernel("fake")
        kernel_id = model["id"]
        hits = (await scrape(admin))("kernelkeep_warm_claims_total", type="fake", result="hit")
        assert hits == 1
        assert model["owner"] == "anna"
        error_of(await ben.http.get(f"/api/kernels/{kernel_id}"), 404, "kernel_not_found")
        await share(anna, kernel_id, name="carl", access="read")
    lasting.crash()
    server = await asyncio.to_thread(lasting.start)
    async with AsyncExitStack() as stack:
        owners = Owners(server, stack)
        anna, ben = await owners.client("anna"), await owners.client("ben")
        carl = await owners.client("carl")
        dora = await owners.client("dora", scopes=["kernels:read!group=staff"])
        for one in (anna, carl, dora):
            assert [found["id"] for found in await one.kernels()] == [kernel_id]
        assert await ben.kernels() == []
        assert (await Executions(anna, kernel_id).run("print a"))["state"] == "ok"
        await anna.delete(kernel_id)
    await asyncio.to_thread(server.stop)


async def test_an_external_kernel_is_nobody_s_until_it_is_shared_and_so_it_stays(
    lasting: Servers, home: Home, tmp_path: Path
) -> None:
    """It has no owner among the callers: only the server's own token finds it."""
    directory = ("--external-connection-dir", str(tmp_path))
    lasting.arguments += ("--allow-external-kernels", *directory)
    async with external_kernel(home, tmp_path / "kernel.json"):
        server = await asyncio.to_thread(lasting.start)
        async with AsyncExitStack() as stack:
            owners = Owners(server, stack)
            admin = await stack.enter_async_context(RestClient(server.url, server.token))
            model = (await eventually(admin.kernels, 30))[0]
            kernel_id = model["id"]
            await admin.wait_for_state(kernel_id, "idle")
            assert "owner" not in model
            for name in ("anna", "ben"):
                client = await owners.client(name)
                assert await client.kernels() == []
                error_of(
                    await client.http.get(f"/api/kernels/{kernel_id}"), 404, "kernel_not_found"
                )
            await share(admin, kernel_id, name="ben", access="execute")
        lasting.crash()
        server = await asyncio.to_thread(lasting.start)
        async with AsyncExitStack() as stack:
            owners = Owners(server, stack)
            admin = await stack.enter_async_context(RestClient(server.url, server.token))
            anna, ben = await owners.client("anna"), await owners.client("ben")
            assert "owner" not in await admin.kernel(kernel_id)
            assert [found["id"] for found in await ben.kernels()] == [kernel_id]
            assert await anna.kernels() == []
            assert (await Executions(ben, kernel_id).run("6 * 7"))["state"] == "ok"
            refused = await ben.http.delete(f"/api/kernels/{kernel_id}")
            error_of(refused, 403, "not_authorized")
            await admin.delete(kernel_id)
    await asyncio.to_thread(server.stop)


async def test_owners_and_shares_are_the_next_server_s_too(lasting: Servers) -> None:
    server = await asyncio.to_thread(lasting.start)
    async with AsyncExitStack() as stack:
        owners = Owners(server, stack)
        anna = await owners.client("anna", "staff")
        kept, unshared = await kernel_of(anna), await kernel_of(anna)
        for kernel_id in (kept, unshared):
            await share(anna, kernel_id, name="ben", access="execute")
        await share(anna, kept, group="art", access="read")
        body = {"path": "a.ipynb", "type": "notebook", "kernel": {"id": kept}}
        session = (await anna.request("POST", "/api/sessions", 201, json=body)).json()
        await end_share(anna, unshared, name="ben")
    lasting.crash()
    server = await asyncio.to_thread(lasting.start)
    async with AsyncExitStack() as stack:
        owners = Owners(server, stack)
        anna, ben = await owners.client("anna"), await owners.client("ben")
        dora = await owners.client("dora", scopes=["kernels:read!group=staff"])
        assert {one["id"] for one in await anna.kernels()} == {kept, unshared}
        assert {one["id"] for one in await dora.kernels()} == {kept, unshared}
        assert [one["id"] for one in await ben.kernels()] == [kept]
        shares = (await anna.request("GET", f"/api/kernels/{kept}/shares")).json()
        assert shares == [
            {"name": "ben", "access": "execute"},
            {"group": "art", "access": "read"},
        ]
        assert (await ben.request("GET", "/api/sessions")).json() == []
        assert [one["id"] for one in (await anna.request("GET", "/api/sessions")).json()] == [
            session["id"]
        ]
        await asyncio.gather(anna.delete(kept), anna.delete(unshared))
    await asyncio.to_thread(server.stop)
