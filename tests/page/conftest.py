"""A browser for each worker, and pages in it; all tests here share one loop, as browsers do."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Protocol

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Error, Page, expect

from tests.conftest import MakeServer
from tests.support.browser import WAIT_MS, PageWatch, watched_page
from tests.support.browser import browser as new_browser
from tests.support.rest import RestClient
from tests.support.running import KernelStarter, kernels_of
from tests.support.server import ServerProcess

HERE = Path(__file__).parent

LOADS = 10

expect.set_options(timeout=WAIT_MS)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)


class OpenPage(Protocol):
    """Opens the page of a server, by default of the worker's, with its token in the address."""

    def __call__(
        self, fragment: str = "", *, url: str = "", token: str | None = None, **options: Any
    ) -> Awaitable[tuple[Page, PageWatch]]: ...


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def chromium() -> AsyncIterator[Browser]:
    """The worker's browser."""
    async with new_browser() as launched:
        yield launched


@pytest_asyncio.fixture(loop_scope="session")
async def rest(server: ServerProcess) -> AsyncIterator[RestClient]:
    """A client of :func:`server`, in the loop of the tests here."""
    async with RestClient(server.url, server.token) as client:
        yield client


@pytest_asyncio.fixture(loop_scope="session")
async def start(server: ServerProcess) -> AsyncIterator[KernelStarter]:
    """``await start("fake")``: a kernel of :func:`server` and a client, gone after the test."""
    async with kernels_of(server) as starter:
        yield starter


@pytest_asyncio.fixture(loop_scope="session")
async def open_page(
    chromium: Browser, server: ServerProcess, make_server: MakeServer, start: KernelStarter
) -> AsyncIterator[OpenPage]:
    """``page, watch = await open_page("#/service", viewport=PHONE, scheme="dark")``.

    An error of the page, an offence against its policy, or a request to elsewhere fails the test at
    its end; ``watch.allow("part of the line")`` lets one pass. An empty ``token`` is left out.
    Pages are closed before the servers of ``make_server`` are stopped, and before the kernels of
    ``start`` are gone: a page that asks about one then would have a fault.
    """
    async with AsyncExitStack() as stack:

        async def open_one(
            fragment: str = "", *, url: str = "", token: str | None = None, **options: Any
        ) -> tuple[Page, PageWatch]:
            url = url or server.url
            page, watch = await stack.enter_async_context(watched_page(chromium, url, **options))
            # A kernel that is gone before its row is asked about is no fault of the page.
            watch.allow("/usage?history=true")
            shown = server.token if token is None else token
            await _load(page, watch, f"{url}/{f'?token={shown}' if shown else ''}{fragment}")
            return page, watch

        yield open_one


async def _load(page: Page, watch: PageWatch, address: str) -> None:
    """Open an address, and again if Chromium has broken it off (`PageWatch`)."""
    for _ in range(LOADS):
        before = watch.broken_off
        try:
            await page.goto(address)
            if watch.broken_off == before:
                return
        except Error as error:
            if "ERR_NETWORK_CHANGED" not in error.message:
                raise
        await page.goto("about:blank")
    raise AssertionError(f"the network has changed {LOADS} times while the page was loaded")
