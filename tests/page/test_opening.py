"""The page is opened by the printed address, and keeps to itself."""

from __future__ import annotations

from playwright.async_api import expect

from tests.page.conftest import OpenPage
from tests.support.running import KernelStarter
from tests.support.server import ServerProcess


async def test_the_printed_address_shows_the_kernels(
    open_page: OpenPage, start: KernelStarter, server: ServerProcess
) -> None:
    await start("fake")
    page, _ = await open_page()
    await expect(page.get_by_role("link", name="fake")).to_be_visible()
    assert page.url == f"{server.url}/"
    assert await page.evaluate("sessionStorage['kernelkeep.token']") == server.token
