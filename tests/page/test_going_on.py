"""An open page goes on by itself: the server is restarted, the network is lost, the token ends."""

from __future__ import annotations

import asyncio
import secrets
import socket
from typing import Any

from playwright.async_api import Page, expect

from tests.conftest import MakeServer
from tests.page.conftest import OpenPage, open_instead
from tests.support.home import Home
from tests.support.rest import RestClient
from tests.support.server import ServerProcess

LOST = "The server is not reached just now."
NETWORK = ("ERR_", "502 (Bad Gateway)", "Failed to load resource")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def lasting_server() -> type[ServerProcess]:
    """Servers that all have one address and one token."""
    port, token = free_port(), secrets.token_hex(16)

    class Lasting(ServerProcess):
        def __init__(self, *arguments: str, **options: Any) -> None:
            super().__init__(*arguments, **options, token=token)

        @property
        def command(self) -> list[str]:
            command = super().command
            command[command.index("--port") + 1] = str(port)
            return command

    return Lasting


async def test_the_server_is_restarted_under_it(
    open_page: OpenPage, make_server: MakeServer, home: Home
) -> None:
    kind = lasting_server()
    first = make_server("--on-shutdown", "keep", home=home, kind=kind)
    async with RestClient(first.url, first.token) as rest:
        kernel = (await rest.start_kernel("fake"))["id"]
        await rest.wait_for_state(kernel, "idle")
    page, watch = await open_page("#/kernels?q=fake", url=first.url, token=first.token)
    watch.allow(*NETWORK)
    row = page.locator(f"[data-kernel='{kernel}']")
    await expect(row).to_contain_text("idle")
    await asyncio.to_thread(first.crash)
    await expect(page.get_by_text(LOST)).to_be_visible()
    await expect(row).to_contain_text("idle")  # what was known stays in sight

    second = make_server("--on-shutdown", "keep", home=home, kind=kind)
    assert second.url == first.url
    await expect(page.get_by_text(LOST)).to_be_hidden()
    async with RestClient(second.url, second.token) as rest:
        other = (await rest.start_kernel("fake"))["id"]
        await expect(page.locator(f"[data-kernel='{other}']")).to_contain_text("idle")
        await expect(row).to_contain_text("idle")
        await rest.delete(kernel)
        await rest.delete(other)


async def test_the_network_is_lost_and_comes_back(open_page: OpenPage, rest: RestClient) -> None:
    page, watch = await open_page()
    watch.allow(*NETWORK)
    await expect(page.get_by_text("No kernel runs.")).to_be_visible()
    await page.context.set_offline(True)
    await expect(page.get_by_text(LOST)).to_be_visible()
    kernel = (await rest.start_kernel("fake"))["id"]
    await page.context.set_offline(False)
    await expect(page.locator(f"[data-kernel='{kernel}']")).to_be_visible()
    await expect(page.get_by_text(LOST)).to_be_hidden()


async def make_token(rest: RestClient, *scopes: str) -> tuple[str, str]:
    """A new token of the server's own, and its id."""
    body = {"name": secrets.token_hex(4), "scopes": [*scopes], "owner": "anna"}
    made = (await rest.request("POST", "/api/tokens", 201, json=body)).json()
    return made["token"], made["id"]


async def test_a_token_that_ends_is_asked_for_anew(
    open_page: OpenPage, make_server: MakeServer
) -> None:
    server = make_server()
    async with RestClient(server.url, server.token) as rest:
        token, number = await make_token(rest, "user")
        async with RestClient(server.url, token) as hers:
            kernel = (await hers.start_kernel("fake"))["id"]
        page, watch = await open_page("#/kernels?q=fake", url=server.url, token=token)
        watch.allow("403 (Forbidden)", "404 (Not Found)", "ERR_INCOMPLETE_CHUNKED_ENCODING")
        row = page.locator(f"[data-kernel='{kernel}']")
        await expect(row).to_contain_text("idle")
        await page.get_by_role("checkbox", name="Select Fake (fake)").check()

        await rest.request("DELETE", f"/api/tokens/{number}", 204)
        dialog = page.get_by_role("dialog", name="Who are you?")
        await expect(dialog).to_contain_text("The token has ended")
        anew, _ = await make_token(rest, "user")
        await dialog.get_by_label("Token").fill(anew)
        await dialog.get_by_role("button", name="Go on").click()
        await expect(dialog).to_be_hidden()
        # Place is kept: the filter, and what was selected.
        await expect(page.get_by_text("1 selected")).to_be_visible()
        await expect(page.get_by_label("Filter (key: /)")).to_have_value("fake")
        async with RestClient(server.url, anew) as hers:
            other = (await hers.start_kernel("fake"))["id"]
        await expect(page.locator(f"[data-kernel='{other}']")).to_be_visible()


async def test_who_may_only_look_sees_no_buttons(
    open_page: OpenPage, make_server: MakeServer
) -> None:
    server = make_server()
    async with RestClient(server.url, server.token) as rest:
        works, _ = await make_token(rest, "user")
        reads, _ = await make_token(rest, "kernels:read", "api:read")
        nothing, _ = await make_token(rest, "contents:read")
    async with RestClient(server.url, works) as hers:
        kernel = (await hers.start_kernel("fake"))["id"]
    page, watch = await open_page(url=server.url, token=reads)
    watch.allow("403 (Forbidden)")
    await _sees_rows_only(page, kernel)
    await open_instead(page, watch, f"{server.url}/?token={nothing}")
    watch.allow("403 (Forbidden)")
    await expect(page.get_by_text("This identity may not look at kernels.")).to_be_visible()
    await expect(page.get_by_role("dialog")).to_have_count(0)


async def _sees_rows_only(page: Page, kernel: str) -> None:
    row = page.locator(f"[data-kernel='{kernel}']")
    await expect(row).to_contain_text("idle")
    await expect(row.get_by_role("button")).to_have_count(0)
    await expect(page.get_by_role("button", name="Start a kernel")).to_have_count(0)
    await page.get_by_role("link", name="Service").click()
    await expect(page.get_by_text("scope metrics:read")).to_be_visible()
