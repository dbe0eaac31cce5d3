"""The system's Chromium, driven by Playwright, and pages in it that have to keep to themselves."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final
from urllib.parse import urlsplit

from playwright.async_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Page,
    Request,
    async_playwright,
)

from tests.support import deaf_chromium
from tests.support.processes import eventually

__all__ = [
    "DESKTOP",
    "PHONE",
    "WAIT_MS",
    "PageWatch",
    "browser",
    "new_page",
    "watched_page",
]

DESKTOP: Final = {"width": 1440, "height": 900}
PHONE: Final = {"width": 390, "height": 844}

OVERVIEW: Final = "/api/overview"

WAIT_MS: Final = 30_000  # an element that is not there by then is not coming


@asynccontextmanager
async def browser() -> AsyncIterator[Browser]:
    """A browser without a window. Its sandbox needs a user other than root.

    Only root lays cables, so only root's browser has to be deaf to them: the sandbox cannot start
    behind the filter.
    """
    is_root = os.geteuid() == 0
    async with async_playwright() as playwright:
        launched = await playwright.chromium.launch(
            executable_path=deaf_chromium.__file__ if is_root else deaf_chromium.chromium(),
            chromium_sandbox=not is_root,
            args=["--disable-dev-shm-usage", "--disable-gpu"],
        )
        try:
            yield launched
        finally:
            await launched.close()


class PageWatch:
    """Notes what a page must not do: errors, offences against its policy, requests to elsewhere.

    ``allowed`` has parts of lines that a test provokes, such as a refusal by the server.
    """

    def __init__(self, page: Page, origin: str) -> None:
        self.faults: list[str] = []
        self.allowed: list[str] = []
        self._open: set[Request] = set()
        self._origin = urlsplit(origin).netloc
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.faults.append(f"error: {error}"))
        page.on("request", self._begun)
        page.on("requestfinished", lambda request: self._open.discard(request))
        page.on("requestfailed", lambda request: self._open.discard(request))
        page.on("websocket", lambda websocket: self._request(websocket.url))

    def _console(self, message: ConsoleMessage) -> None:
        # Chromium tells offences against the policy, and failed requests, as errors, too.
        if message.type in ("error", "warning"):
            self.faults.append(f"console: {message.text} ({message.location.get('url', '')})")

    def _begun(self, request: Request) -> None:
        self._open.add(request)
        self._request(request.url)

    def _request(self, address: str) -> None:
        found = urlsplit(address)
        if found.scheme in ("data", "blob", "about"):
            return
        if found.netloc != self._origin:
            self.faults.append(f"request to elsewhere: {address}")

    def allow(self, *parts: str) -> None:
        self.allowed.extend(parts)

    async def settled(self) -> None:
        """Return when nothing is under way but the stream of all kernels, which has no end."""

        async def is_settled() -> bool:
            return all(urlsplit(each.url).path.endswith(OVERVIEW) for each in self._open)

        await eventually(is_settled, WAIT_MS / 1000)

    def begin(self, origin: str) -> None:
        """Begin anew, for another test with the page, which may be of another server."""
        self._origin = urlsplit(origin).netloc
        self.faults.clear()
        self.allowed.clear()

    def check(self) -> None:
        left = [fault for fault in self.faults if not any(part in fault for part in self.allowed)]
        assert not left, "the page has faults:\n" + "\n".join(left)


async def new_page(
    browser: Browser, address: str, *, viewport: dict[str, int] = DESKTOP, scheme: str = "light"
) -> tuple[Page, PageWatch]:
    """A page in a context of its own, which is the caller's to close; not yet loaded."""
    context: BrowserContext = await browser.new_context(
        viewport=viewport,  # type: ignore[arg-type]
        color_scheme=scheme,  # type: ignore[arg-type]
        ignore_https_errors=True,
        locale="en-GB",
        timezone_id="UTC",
    )
    context.set_default_timeout(WAIT_MS)
    page = await context.new_page()
    return page, PageWatch(page, address)


@asynccontextmanager
async def watched_page(
    browser: Browser, address: str, **options: Any
) -> AsyncIterator[tuple[Page, PageWatch]]:
    """A page of `new_page`, closed at the end; raises then if it has had faults."""
    page, watch = await new_page(browser, address, **options)
    try:
        yield page, watch
        watch.check()
    finally:
        await page.context.close()
