"""The console of the page for everybody's eyes and hands, and what it bears."""

from __future__ import annotations

import time

import pytest
from playwright.async_api import expect

from tests.page.axe import assert_accessible
from tests.page.conftest import OpenPage
from tests.page.consoles import WAIT_MS, open_console
from tests.support.browser import DESKTOP, PHONE
from tests.support.running import KernelStarter


@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_axe_finds_nothing(
    open_page: OpenPage, start: KernelStarter, viewport: dict[str, int], scheme: str
) -> None:
    kernel = await start("python3")
    console = await open_console(open_page, kernel.id, viewport=viewport, scheme=scheme)
    page = console.page
    await console.run_through(
        "# what colours there are\nclass Thing(str): number = 1.5\n\n\nprint('said'); Thing('a')"
    )
    await console.run_through("1 / 0", "error")
    await console.type("thing = len('a string', 1)  # is typed")
    await console.press("Control+Home", "ArrowRight", "ArrowRight")
    await assert_accessible(page)
    await console.type("len")
    await console.press("Shift+Tab")
    await expect(page.get_by_role("region", name="What the kernel knows of it")).to_be_visible()
    await console.type("str.is")
    await console.press("Tab")
    await expect(page.get_by_role("option", name="isalpha")).to_be_visible()
    await assert_accessible(page)
    await console.press("Escape", "Escape")
    await console.run("input('Which? ')")
    await expect(page.locator(".console-question")).to_be_visible()
    await assert_accessible(page)
    await page.keyboard.type("this")
    await page.keyboard.press("Enter")
    await console.ends(console.last)
    wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert await page.evaluate(wide) <= 0
    await expect(console.editor).to_be_in_viewport()


async def test_everything_is_reached_by_the_keyboard(
    open_page: OpenPage, start: KernelStarter
) -> None:
    kernel = await start("python3")
    console = await open_console(open_page, kernel.id)
    page = console.page
    await console.run_through("print('a')")
    await console.press("Escape", "Shift+Tab")
    seen = []
    for _ in range(4):
        seen.append(
            await page.evaluate(
                "document.activeElement.getAttribute('aria-label')"
                " || document.activeElement.textContent.trim()"
            )
        )
        await console.press("Shift+Tab")
    assert seen == ["Code and output", "Clear", "Restart …", "Connect"]


async def test_a_large_message_and_a_flood_leave_the_page_responsive(
    open_page: OpenPage, start: KernelStarter
) -> None:
    kernel = await start("python3")
    console = await open_console(open_page, kernel.id)
    cell = await console.run_through("print('x' * 50_000_000)\nprint('behind it')")
    await expect(cell).to_contain_text("behind it")
    text = await cell.inner_text()
    assert len(text) < 2_000_000
    cell = await console.run_through("for i in range(100_000): print('line', i, flush=i % 50 == 0)")
    await expect(cell).to_contain_text("line 99999")
    await expect(cell).to_contain_text("Output before this is not shown here")
    assert await cell.locator(".row").count() <= 200
    await console.page.keyboard.type("'still' + ' here'")
    await console.press("Enter")
    await expect(console.last).to_contain_text("still here", timeout=WAIT_MS)


async def test_ten_thousand_cells(open_page: OpenPage, start: KernelStarter) -> None:
    """They are another client's, which need not wait for this page."""
    kernel = await start("fake")
    console = await open_console(open_page, kernel.id)
    for _ in range(10):
        for _ in range(1010):
            await kernel.channels.send_execute("print a")
        last = await kernel.channels.execute("print b")
        assert last.text == "b\n"
    await expect(console.last).to_contain_text("b", timeout=WAIT_MS)
    await expect(console.cells).to_have_count(200)
    more = console.page.get_by_role("button", name="earlier ones")
    began = time.monotonic()
    await more.click()
    await expect(console.cells).to_have_count(400)
    print(f"200 cells more in {time.monotonic() - began:.2f} s")
    await expect(more).to_contain_text("Show 200 of 9,600 earlier ones")
