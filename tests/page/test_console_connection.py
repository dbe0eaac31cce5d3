"""The console of the page when its server goes away, and for those who may not use it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator

import pytest
from playwright.async_api import Page, expect

from tests.page.conftest import OpenPage, open_instead
from tests.page.consoles import WAIT_MS, open_console
from tests.support.browser import PageWatch
from tests.support.clients import free_port
from tests.support.drill import KEEP, Servers
from tests.support.home import Home
from tests.support.identities import token
from tests.support.kernelspecs import FAKE_SPECS, write_kernelspecs
from tests.support.owners import MANY, USER, share
from tests.support.rest import RestClient
from tests.support.server import ServerProcess

LOST = ("net::ERR", "WebSocket connection to", "Failed to load resource")
"""What Chromium says of a server that is away."""


@pytest.fixture
def lasting(home: Home) -> Iterator[Servers]:
    """Servers at one address that keep their kernels and know many owners."""
    write_kernelspecs(home.jupyter_path, FAKE_SPECS)
    port = str(free_port())

    class AtOnePort(ServerProcess):
        @property
        def command(self) -> list[str]:
            command = super().command
            command[command.index("--port") + 1] = port
            return command

    servers = Servers(home, *KEEP, *MANY, kind=AtOnePort)
    yield servers
    if servers.present is not None:
        servers.present.crash()


async def idle_kernel(server: ServerProcess, shown: str) -> str:
    async with RestClient(server.url, shown) as rest:
        kernel_id: str = (await rest.start_kernel("fake"))["id"]
        await rest.wait_for_state(kernel_id, "idle")
    return kernel_id


async def test_a_server_that_is_killed_while_code_prints(
    lasting: Servers, open_page: OpenPage
) -> None:
    server = await asyncio.to_thread(lasting.start)
    kernel_id = await idle_kernel(server, server.token)
    console = await open_console(open_page, kernel_id, url=server.url, token=server.token)
    console.watch.allow(*LOST)
    await console.run_through("print at first")
    cell = await console.run("flood 100 10 10")
    await expect(cell).to_contain_text("6 x")
    lasting.crash()
    await expect(console.link).to_contain_text("The connection is lost", timeout=WAIT_MS)
    # What is entered meanwhile waits, and is run when the server is back.
    waits = await console.run("print entered mean'while'")
    await expect(waits).to_contain_text("waits to be sent")
    await asyncio.to_thread(lasting.start)
    await console.ends(cell)
    text = await cell.locator(".console-output").inner_text()
    assert re.findall(r"(\d+) x", text) == [str(number) for number in range(1, 101)]
    await console.ends(waits)
    await expect(waits).to_contain_text("entered meanwhile")
    await expect(console.cells).to_have_count(3)
    await expect(console.link).to_contain_text("The kernel is idle")


async def test_what_is_typed_outlives_the_server_and_the_page(
    lasting: Servers, open_page: OpenPage
) -> None:
    server = await asyncio.to_thread(lasting.start)
    kernel_id = await idle_kernel(server, server.token)
    console = await open_console(open_page, kernel_id, url=server.url, token=server.token)
    console.watch.allow(*LOST)
    lasting.crash()
    await expect(console.link).to_contain_text("The connection is lost", timeout=WAIT_MS)
    await console.run("print one r'un'")
    never = await console.run("print never")
    await never.get_by_role("button", name="Do not run it").click()
    await expect(console.cells).to_have_count(1)
    await console.has_code("print never")
    await expect(console.editor).to_be_focused()
    await console.type("not yet")
    await asyncio.to_thread(lasting.start)
    await console.page.reload()
    await console.ends(console.last)
    await expect(console.cells).to_have_count(1)
    await expect(console.last).to_contain_text("one run")
    await console.has_code("not yet")


async def test_who_may_only_look_gets_no_prompt(lasting: Servers, open_page: OpenPage) -> None:
    server = await asyncio.to_thread(lasting.start)
    anna, ben = token("anna", USER), token("ben", ["kernels:read", "api:read"])
    kernel_id = await idle_kernel(server, anna)
    async with RestClient(server.url, anna) as rest:
        await share(rest, kernel_id, name="ben", access="read")
    fragment = f"#/kernels/{kernel_id}/console"
    page, watch = await open_page(fragment, url=server.url, token=ben)
    await _only_looks(page, watch)  # by the scopes
    address = f"{server.url}/?token={{}}{fragment}"
    await open_instead(page, watch, address.format(token("ben", USER)))
    await _only_looks(page, watch)  # by the share
    await open_instead(page, watch, address.format(anna))
    watch.allow("/api/kernelspecs")  # she may not see them, and no part of the console asks
    await expect(page.get_by_role("textbox", name="Code to run")).to_be_visible(timeout=WAIT_MS)


async def _only_looks(page: Page, watch: PageWatch) -> None:
    watch.allow("403", "WebSocket connection to")
    link = page.locator(".console-link")
    await expect(link).to_contain_text("You may look at this kernel", timeout=WAIT_MS)
    await expect(page.get_by_role("textbox")).to_have_count(0)
    await expect(page.get_by_role("button", name="Run", exact=True)).to_have_count(0)


async def test_a_token_that_ends_under_the_page(lasting: Servers, open_page: OpenPage) -> None:
    server = await asyncio.to_thread(lasting.start)
    kernel_id = await idle_kernel(server, server.token)
    async with RestClient(server.url, server.token) as rest:
        body = {"name": "page", "scopes": ["user"]}
        made = (await rest.request("POST", "/api/tokens", 201, json=body)).json()
        console = await open_console(open_page, kernel_id, url=server.url, token=made["token"])
        console.watch.allow("403", *LOST)
        await console.run_through("print before")
        await console.type("half a line")
        await rest.request("DELETE", f"/api/tokens/{made['id']}", 204)
    dialog = console.page.get_by_role("dialog")
    await expect(dialog).to_be_visible(timeout=WAIT_MS)
    await dialog.get_by_role("textbox").fill(server.token)
    await console.press("Enter")
    await console.ready()
    await console.has_code("half a line")
    await expect(console.cells).to_have_count(1)
