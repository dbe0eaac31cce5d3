"""A real JupyterHub with its proxy: users with their kernels, and the end of their tokens."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.async_api import expect

from app.ws.sending import CREDENTIAL_ENDED
from tests.support.browser import browser
from tests.support.channels import JupyterChannels
from tests.support.hub import Hub
from tests.support.node_packages import install
from tests.support.processes import eventually
from tests.support.rest import RestClient

CACHE_SECONDS = 1.0
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    options = {"KERNELKEEP_JUPYTERHUB_CACHE_SECONDS": str(CACHE_SECONDS)}
    with Hub(install(HERE / "node"), options) as hub:
        yield hub


async def status_of(rest: RestClient, path: str = "/api/kernels") -> int:
    return (await rest.http.get(path)).status_code


async def test_users_of_a_hub(hub: Hub) -> None:
    anna, anna_id = hub.new_token("anna")
    ben, _ = hub.new_token("ben")
    olga, _ = hub.new_token("olga")
    gus, _ = hub.new_token("gus")
    narrow, _ = hub.new_token("anna", scopes=["read:users:name!user=anna"])
    url = hub.server_url
    async with (
        RestClient(url, anna) as annas,
        RestClient(url, ben) as bens,
        RestClient(url, olga) as olgas,
        RestClient(url, gus) as guests,
        RestClient(url, narrow) as narrows,
        RestClient(url, "0123456789abcdef") as nobodys,
    ):
        # Each has kernels, over REST and WebSocket, through the proxy.
        kernel = await annas.start_kernel("fake")
        await bens.start_kernel("fake")
        assert [one["id"] for one in await annas.kernels()] == [kernel["id"]]
        assert len(await bens.kernels()) == 1
        assert await status_of(bens, f"/api/kernels/{kernel['id']}") == 404
        channels = await JupyterChannels.connect(_ws(url), kernel["id"], token=anna)
        assert (await channels.execute("print hello")).text == "hello\n"
        assert (await annas.request("GET", "/api/me")).json()["identity"]["username"] == "anna"
        # What the Hub's roles say.
        assert len(await olgas.kernels()) == 2
        assert await guests.kernels() == []
        refused = await guests.http.post("/api/kernels", json={"name": "fake"})
        assert (refused.status_code, refused.json()["code"]) == (403, "not_authorized")
        assert await status_of(narrows) == 403
        assert await status_of(nobodys) == 403
        # A revoked token stops within the stated time, and what is open with it, too. Nobody shows
        # it meanwhile: the server asks the Hub by itself.
        await asyncio.sleep(CACHE_SECONDS)
        assert (await channels.execute("print still")).text == "still\n"
        hub.request("DELETE", f"/users/anna/tokens/{anna_id}", 204)
        revoked = time.monotonic()
        async with channels:
            assert (await channels.closed()).code == CREDENTIAL_ENDED
        assert time.monotonic() - revoked < CACHE_SECONDS + 3
        for _ in range(25):  # this is no guessing, however often it is shown
            assert await status_of(annas) == 403
        assert await status_of(bens) == 200
        fresh, _ = hub.new_token("anna")
    async with RestClient(url, fresh) as annas:
        assert [one["id"] for one in await annas.kernels()] == [kernel["id"]]
        await annas.delete(kernel["id"])
    for secret in (anna, ben, olga, gus, narrow, fresh, "0123456789abcdef"):
        assert secret not in hub.output()


async def test_a_logout(hub: Hub) -> None:
    with httpx.Client(trust_env=False) as browser:
        token = await asyncio.to_thread(hub.log_in, browser, "carla")
        async with RestClient(hub.server_url, token) as carlas:
            assert await status_of(carlas) == 200
            await asyncio.to_thread(hub.log_out, browser)
            await eventually(lambda: _is(carlas, 403), CACHE_SECONDS + 5)


async def test_a_logout_closes_what_is_open_and_ends_what_is_not(hub: Hub) -> None:
    """Two browsers of one user: one has a WebSocket, the other has nothing open."""
    with httpx.Client(trust_env=False) as one, httpx.Client(trust_env=False) as other:
        opened = await asyncio.to_thread(hub.log_in, one, "erik")
        idle = await asyncio.to_thread(hub.log_in, other, "erik")
        async with RestClient(hub.server_url, opened) as eriks:
            kernel = await eriks.start_kernel("fake")
            async with RestClient(hub.server_url, idle) as elsewhere:
                assert await status_of(elsewhere) == 200
            channels = await JupyterChannels.connect(
                _ws(hub.server_url), kernel["id"], token=opened
            )
            async with channels:
                assert (await channels.execute("print open")).text == "open\n"
                for browser_ in (other, one):
                    await asyncio.to_thread(hub.log_out, browser_)
                logged_out = time.monotonic()
                # Nobody shows either token meanwhile.
                assert (await channels.closed()).code == CREDENTIAL_ENDED
                assert time.monotonic() - logged_out < CACHE_SECONDS + 3
        for ended in (idle, opened):
            # What the Hub has said of the other token was asked a little later, and lasts longer.
            async with RestClient(hub.server_url, ended) as eriks:
                await eventually(lambda: _is(eriks, 403), CACHE_SECONDS + 5)
        again = await asyncio.to_thread(hub.log_in, one, "erik")
        async with RestClient(hub.server_url, again) as eriks:
            assert [found["id"] for found in await eriks.kernels()] == [kernel["id"]]
            await eriks.delete(kernel["id"])


async def test_somebody_logs_in_on_the_page(hub: Hub) -> None:
    async with browser() as chromium:
        page = await chromium.new_page()
        await page.goto(f"{hub.server_url}/#/service")
        await page.get_by_role("link", name="Log in with JupyterHub").click()
        await page.locator("[name=username]").fill("dora")
        await page.locator("[name=password]").fill(hub.password)
        await page.locator("[name=password]").press("Enter")
        # The page goes on where it was, as the one who has logged in, with a token of its own.
        await expect(page.get_by_role("heading", name="Service", exact=True)).to_be_visible()
        assert page.url == f"{hub.server_url}/#/service"
        token = await page.evaluate("sessionStorage.getItem('kernelkeep.token')")
        async with RestClient(hub.server_url, token) as doras:
            me = (await doras.request("GET", "/api/me")).json()
            assert me["identity"]["username"] == "dora"
        # A login that has not begun here comes to nothing, and the prompt says so.
        await page.evaluate("sessionStorage.clear()")
        await page.goto(f"{hub.server_url}/oauth_callback?state=x&code=y")
        await expect(page.get_by_role("alert")).to_contain_text("Begin again")


async def _is(rest: RestClient, status: int) -> bool:
    return await status_of(rest) == status


def _ws(url: str) -> str:
    return url.replace("http", "ws", 1)
