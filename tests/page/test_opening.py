"""The page is opened by the printed address (`app.api.page`), and keeps to itself."""

from __future__ import annotations

import re

import httpx
import pytest
from playwright.async_api import Page, Route, expect

from tests.conftest import MakeServer
from tests.page.conftest import OpenPage
from tests.support.rest import RestClient
from tests.support.running import KernelStarter
from tests.support.server import ServerProcess

REFUSED = "403 (Forbidden)"


async def test_the_printed_address_shows_the_kernels(
    open_page: OpenPage, start: KernelStarter, server: ServerProcess
) -> None:
    await start("fake")
    page, _ = await open_page(fresh=True)
    await expect(page.get_by_role("link", name="Fake (fake)")).to_be_visible()
    # The token is in no bookmark, no history and no screenshot.
    assert page.url == f"{server.url}/"
    assert await page.evaluate("sessionStorage['kernelkeep.token']") == server.token
    await page.reload()
    await expect(page.get_by_role("link", name="Fake (fake)")).to_be_visible()


async def give(page: Page, token: str) -> None:
    await page.get_by_label("Token").fill(token)
    await page.get_by_role("button", name="Go on").click()


async def test_who_has_no_token_is_asked_for_one(
    open_page: OpenPage, start: KernelStarter, server: ServerProcess
) -> None:
    await start("fake")
    page, watch = await open_page("#/kernels?q=fake", token="")
    watch.allow(REFUSED, "404 (Not Found)")
    dialog = page.get_by_role("dialog", name="Who are you?")
    await expect(dialog).to_contain_text("prints a token")
    await give(page, "not-the-token")
    await expect(dialog).to_contain_text("does not know this token")
    # Nothing is asked with a wrong token again and again: that would count as guessing.
    await page.keyboard.press("Escape")
    await expect(dialog).to_be_hidden()
    await page.get_by_role("button", name="Give one").click()
    await give(page, server.token)
    await expect(page.get_by_role("link", name="Fake (fake)")).to_be_visible()
    assert page.url.endswith("#/kernels?q=fake")


async def test_ways_to_log_in_are_offered(open_page: OpenPage, server: ServerProcess) -> None:
    page, watch = await open_page("#/none-such", token="")
    watch.allow(REFUSED, "404 (Not Found)")
    providers = [
        {"name": "Hub", "url": "hub/login"},
        {"name": "evil", "url": "javascript:alert(1)"},
    ]
    await page.route("**/api/login", lambda route: route.fulfill(json={"providers": providers}))
    await page.goto(f"{server.url}/#/kernels")
    await page.reload()
    await expect(page.get_by_role("link", name="Log in with Hub")).to_be_visible()
    assert await page.get_by_role("link", name=re.compile("evil")).count() == 0


async def test_who_comes_back_from_a_login_goes_on(
    open_page: OpenPage, start: KernelStarter, server: ServerProcess
) -> None:
    await start("fake")
    page, watch = await open_page("#/kernels?q=fake", token="")
    watch.allow(REFUSED, "404 (Not Found)")
    ways = {"providers": [{"name": "Hub", "url": "#/logged-in"}]}
    taken = [{"json": {"message": "No.", "code": "login_refused"}, "status": 403}]
    taken += [{"json": {"token": server.token}}]

    async def login(route: Route) -> None:
        await route.fulfill(**(taken.pop(0) if route.request.method == "POST" else {"json": ways}))

    await page.route("**/api/login", login)
    for says in ("No.", ""):
        await page.reload()
        link = page.get_by_role("link", name="Log in with Hub")
        await expect(link).to_be_visible()
        # The browser comes back at this address, which loads the page anew.
        await link.click()
        await page.reload()
        if says:
            await expect(page.get_by_role("alert")).to_have_text(says)
    await expect(page.get_by_role("link", name="Fake (fake)")).to_be_visible()
    assert page.url.endswith("#/kernels?q=fake")


async def test_the_files_are_kept_and_the_policy_is_strict(server: ServerProcess) -> None:
    async with httpx.AsyncClient(base_url=server.url) as anybody:
        page = await anybody.get("/")
        assert page.headers["Cache-Control"] == "no-cache"
        known = {"If-None-Match": page.headers["ETag"]}
        assert (await anybody.get("/", headers=known)).status_code == 304
        assert "//" not in page.text.replace("<!doctype html>", "")
        files = re.findall(r'(?:src|href)="\./(page/[^"]+)"', page.text)
        assert len(files) >= 3
        for file in files:
            answer = await anybody.get(f"/{file}")
            assert answer.status_code == 200
            assert answer.headers["Cache-Control"] == "public, max-age=31536000, immutable"
            assert answer.headers["Content-Encoding"] == "gzip"
            plain = await anybody.get(f"/{file}", headers={"Accept-Encoding": "identity"})
            assert plain.content == answer.content
            assert "Content-Encoding" not in plain.headers
        for answer in (page, plain):
            policy = dict(
                part.strip().split(" ", 1)
                for part in answer.headers["Content-Security-Policy"].split(";")
            )
            assert policy["default-src"] == "'none'"
            assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
            assert policy["frame-ancestors"] == "'none'"
            assert "unsafe" not in answer.headers["Content-Security-Policy"]
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert answer.headers["Referrer-Policy"] == "no-referrer"
        assert (await anybody.get("/page/none-such.js")).status_code == 403


async def test_it_can_be_left_out(make_server: MakeServer) -> None:
    server = make_server("--no-serve-page")
    async with RestClient(server.url, server.token) as rest:
        page = await rest.request("GET", "/", 302)
        assert page.headers["Location"] == "docs"


@pytest.mark.parametrize("choice", ["dark", "light"])
async def test_the_colours_can_be_chosen(open_page: OpenPage, choice: str) -> None:
    page, _ = await open_page(scheme="light" if choice == "dark" else "dark")
    await page.get_by_label("Colours").select_option(choice)
    await page.reload()
    assert await page.evaluate("document.documentElement.dataset.theme") == choice
    await page.get_by_label("Colours").select_option("system")
    assert await page.evaluate("document.documentElement.dataset.theme") != choice
