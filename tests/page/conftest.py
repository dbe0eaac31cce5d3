"""A browser for each worker, and pages in it; all tests here share one loop, as browsers do."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Protocol

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, expect

from tests.conftest import MakeServer
from tests.support.browser import DESKTOP, WAIT_MS, PageWatch, new_page, watched_page
from tests.support.browser import browser as new_browser
from tests.support.rest import RestClient
from tests.support.running import KernelStarter, kernels_of
from tests.support.server import ServerProcess
from tests.support.shared import SharedServer, lasting_kernel

HERE = Path(__file__).parent

expect.set_options(timeout=WAIT_MS)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)


class OpenPage(Protocol):
    """Opens the page of a server, by default of the worker's, with its token in the address."""

    def __call__(
        self,
        fragment: str = "",
        *,
        url: str = "",
        token: str | None = None,
        fresh: bool = False,
        viewport: dict[str, int] = DESKTOP,
        scheme: str = "light",
    ) -> Awaitable[tuple[Page, PageWatch]]: ...


class KeptPage:
    """A page that one test after the other has.

    To make a page in a context of its own, and to load it there, takes the browser ten times as
    long as to go from one view to another. A view begins with nothing of what was before it but
    the kernels that are gone, which a new page is told of, too. For other servers than the worker's
    (``lasts``), and when a notice is left or colours were chosen, the page is loaded anew, without
    what it has stored.
    """

    def __init__(self, browser: Browser) -> None:
        self.is_taken = False
        self._browser = browser
        self._pair: tuple[Page, PageWatch] | None = None
        self._shown = ""  # the address of the worker's server, with the token

    @contextmanager
    def taken(self) -> Iterator[None]:
        """It is the caller's, and nobody else's, within the block."""
        self.is_taken = True
        try:
            yield
        finally:
            self.is_taken = False

    async def shows(
        self,
        url: str,
        token: str,
        fragment: str,
        viewport: dict[str, int],
        scheme: str,
        *,
        lasts: bool,
    ) -> tuple[Page, PageWatch]:
        """The page, with a view of a server, which ``lasts`` if it is the worker's."""
        if self._pair is None:
            self._pair = await new_page(self._browser, url)
        page, watch = self._pair
        await page.set_viewport_size(viewport)  # type: ignore[arg-type]
        await page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        address = f"{url}/{f'?token={token}' if token else ''}"
        clean = lasts and self._shown == address
        watch.begin(url)
        if clean and await page.evaluate(GOES, fragment or "#/kernels"):
            return page, watch
        if page.url != "about:blank":
            await _empty(page)
        self._shown = address if lasts else ""
        watch.begin(url)
        await page.goto(address + fragment)
        return page, watch

    async def leave(self) -> None:
        """Leave the view that a test has had; raises `AssertionError` for the page's faults."""
        if self._pair is None:
            return
        page, watch = self._pair
        try:
            await page.unroute_all()
            await page.context.set_offline(False)
            await page.evaluate("location.hash = '#/left'")
            await expect(page.get_by_text("There is no such view.")).to_be_attached()
            await watch.settled()
            watch.check()
            if not self._shown:
                await _empty(page)
        except BaseException:
            self._pair = None
            await page.context.close()
            raise


async def _empty(page: Page) -> None:
    """Leave what a page shows, and what it has stored."""
    await page.evaluate("localStorage.clear(); sessionStorage.clear()")
    await page.goto("about:blank")


async def open_instead(page: Page, watch: PageWatch, address: str) -> None:
    """Load an address in a page, which has had no faults so far and has nothing stored.

    For who comes with another token: a page in a context of its own is more work for the browser.
    """
    watch.check()
    await _empty(page)
    watch.begin(address)
    watch.allow(OF_GONE_KERNELS)
    await page.goto(address)


OF_GONE_KERNELS = "/usage?history=true"
"""A kernel that is gone before its row is asked about is no fault of the page."""

GOES = """fragment => {
    const other = "dialog[open], [role=dialog], .toast, .banner";
    if (location.hash !== "#/left" || document.querySelector(other) !== null) return false;
    if (document.querySelector("[aria-label=Colours]").value !== "system") return false;
    const token = sessionStorage["kernelkeep.token"];
    localStorage.clear();
    sessionStorage.clear();
    sessionStorage["kernelkeep.token"] = token;
    location.hash = fragment;
    return true;
}"""


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def chromium() -> AsyncIterator[Browser]:
    """The worker's browser."""
    async with new_browser() as launched:
        yield launched


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def kept_page(chromium: Browser) -> KeptPage:
    """The page that the worker's tests share."""
    return KeptPage(chromium)


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


@pytest.fixture(scope="module")
def shared_python(server: ServerProcess) -> Iterator[str]:
    """The id of a Python kernel that the tests of a module share."""
    with lasting_kernel(server, "python3") as kernel_id:
        yield kernel_id


@pytest_asyncio.fixture(loop_scope="session")
async def python(shared_python: str, rest: RestClient) -> AsyncIterator[str]:
    """The id of an idle Python kernel in which others have run code; its code is ended behind it.

    Ask for it before ``open_page``, so that the page is left by then.
    """
    yield shared_python
    if (await rest.kernel(shared_python))["execution_state"] != "idle":
        await rest.request("POST", f"/api/kernels/{shared_python}/interrupt", 204)
        await rest.wait_for_state(shared_python, "idle")


@pytest_asyncio.fixture(loop_scope="session")
async def open_page(
    kept_page: KeptPage,
    chromium: Browser,
    server: ServerProcess,
    make_server: MakeServer,
    start: KernelStarter,
) -> AsyncIterator[OpenPage]:
    """``page, watch = await open_page("#/service", viewport=PHONE, scheme="dark")``.

    An error of the page, an offence against its policy, or a request to elsewhere fails the test at
    its end; ``watch.allow("part of the line")`` lets one pass. An empty ``token`` is left out.
    Pages are left before the servers of ``make_server`` are stopped, and before the kernels of
    ``start`` are gone: a page that asks about one then would have a fault. The page is `KeptPage`,
    but for a second page, and with ``fresh=True``.
    """
    async with AsyncExitStack() as stack:

        async def open_one(
            fragment: str = "",
            *,
            url: str = "",
            token: str | None = None,
            fresh: bool = False,
            viewport: dict[str, int] = DESKTOP,
            scheme: str = "light",
        ) -> tuple[Page, PageWatch]:
            url = url or server.url
            shown = server.token if token is None else token
            if not fresh and not kept_page.is_taken:
                stack.enter_context(kept_page.taken())
                stack.push_async_callback(kept_page.leave)
                lasts = url == server.url and isinstance(server, SharedServer)
                page, watch = await kept_page.shows(
                    url, shown, fragment, viewport, scheme, lasts=lasts and token is None
                )
            else:
                opened = watched_page(chromium, url, viewport=viewport, scheme=scheme)
                page, watch = await stack.enter_async_context(opened)
                await page.goto(f"{url}/{f'?token={shown}' if shown else ''}{fragment}")
            watch.allow(OF_GONE_KERNELS)
            return page, watch

        yield open_one
