"""A console in the page, as its user sees and types it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from playwright.async_api import Locator, Page, expect

from tests.page.conftest import OpenPage
from tests.support.browser import PageWatch
from tests.support.processes import eventually

__all__ = ["ConsolePage", "open_console"]

WAIT_MS = 60_000


@dataclass
class ConsolePage:
    """The console of one kernel, open in a page."""

    page: Page
    watch: PageWatch

    @property
    def cells(self) -> Locator:
        """What was run, the oldest first."""
        return self.page.locator(".console-cell")

    @property
    def last(self) -> Locator:
        return self.cells.last

    @property
    def editor(self) -> Locator:
        return self.page.get_by_role("textbox", name="Code to run")

    @property
    def link(self) -> Locator:
        """The words that say what the console is doing."""
        return self.page.locator(".console-link")

    async def ready(self) -> None:
        await expect(self.link).to_contain_text("The kernel is idle", timeout=WAIT_MS)
        await expect(self.editor).to_be_visible(timeout=WAIT_MS)

    async def type(self, code: str) -> None:
        """Put code into the editor, in the place of what it has; it is not run."""
        await self.editor.click()
        await self.page.keyboard.press("Control+a")
        await self.page.keyboard.press("Delete")
        await self.page.keyboard.insert_text(code)

    async def run(self, code: str) -> Locator:
        """Run code; returns its cell, which need not have ended."""
        count = await self.cells.count()
        await self.type(code)
        await self.page.keyboard.press("Shift+Enter")
        cell = self.cells.nth(count)
        await expect(cell).to_be_visible()
        return cell

    async def run_through(self, code: str, state: str = "ok") -> Locator:
        """Run code until it has ended so; returns its cell."""
        cell = await self.run(code)
        await self.ends(cell, state)
        return cell

    async def run_on(self, code: str) -> Locator:
        """Run code that does not end by itself; returns its cell when the code has begun.

        ipykernel ignores an interrupt, or sends no reply, between its busy status and that.
        """
        cell = await self.run(f"print('begun', flush=True)\n{code}")
        await expect(cell.locator(".console-output")).to_contain_text("begun", timeout=WAIT_MS)
        await self.ends(cell, "running")
        return cell

    async def ends(self, cell: Locator, state: str = "ok") -> None:
        await expect(cell).to_have_attribute("data-state", state, timeout=WAIT_MS)

    async def code(self) -> str:
        """What the editor has."""
        text: str = await self.editor.evaluate(
            """editor => [...editor.querySelectorAll(".cm-line")].map(line =>
                line.querySelector(".cm-placeholder") ? "" : line.textContent).join("\\n")"""
        )
        return text

    async def has_code(self, code: str) -> None:
        """Wait until the editor has this."""
        await eventually(lambda: self._is(code), WAIT_MS / 1000)

    async def _is(self, code: str) -> bool:
        return await self.code() == code

    async def press(self, *keys: str) -> None:
        for key in keys:
            await self.page.keyboard.press(key)


async def open_console(open_page: OpenPage, kernel_id: str, **options: Any) -> ConsolePage:
    page, watch = await open_page(f"#/kernels/{kernel_id}/console", **options)
    console = ConsolePage(page, watch)
    await console.ready()
    return console
