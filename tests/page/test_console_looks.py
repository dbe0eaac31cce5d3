"""The console of the page for everybody's eyes and hands, and what it bears."""

from __future__ import annotations

import pytest
from playwright.async_api import expect

from tests.page.axe import assert_looks
from tests.page.conftest import OpenPage
from tests.page.consoles import WAIT_MS, open_console
from tests.support.browser import DESKTOP, PHONE
from tests.support.running import KernelStarter


@pytest.mark.timeout(300)
async def test_axe_finds_nothing(python: str, open_page: OpenPage) -> None:
    console = await open_console(open_page, python)
    page = console.page
    await console.run_through(
        "# what colours there are\nclass Thing(str): number = 1.5\n\n\nprint('said'); Thing('a')"
    )
    await console.run_through("1 / 0", "error")
    await console.type("thing = len('a string', 1)  # is typed")
    await console.press("Control+Home", "ArrowRight", "ArrowRight")
    await assert_looks(page)
    await console.type("len")
    await console.press("Shift+Tab")
    await expect(page.get_by_role("region", name="What the kernel knows of it")).to_be_visible()
    await console.type("str.is")
    await console.press("Tab")
    await expect(page.get_by_role("option", name="isalpha")).to_be_visible()
    await assert_looks(page)
    await console.press("Escape", "Escape")
    await console.run("input('Which? ')")
    await expect(page.locator(".console-question")).to_be_visible()
    await assert_looks(page)
    await page.keyboard.type("this")
    await page.keyboard.press("Enter")
    await console.ends(console.last)
    for viewport in (PHONE, DESKTOP):
        await page.set_viewport_size(viewport)  # type: ignore[arg-type]
        await expect(console.editor).to_be_in_viewport()


async def test_everything_is_reached_by_the_keyboard(python: str, open_page: OpenPage) -> None:
    console = await open_console(open_page, python)
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
    assert seen == ["Code and output", "Clear", "Connect", "Events"]


async def test_a_large_message_and_a_flood_leave_the_page_responsive(
    python: str, open_page: OpenPage
) -> None:
    console = await open_console(open_page, python)
    cell = await console.run_through("print('x' * 20_000_000)\nprint('behind it')")
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


async def test_thousands_of_cells(open_page: OpenPage, start: KernelStarter, full: bool) -> None:
    """They are another client's, which need not wait for this page; 10,000 are kept."""
    kernel = await start("fake")
    console = await open_console(open_page, kernel.id)
    for _ in range(11 if full else 1):
        for _ in range(999):
            await kernel.channels.send_execute("print a")
        await kernel.channels.execute("print b")
    earlier = 9800 if full else 800
    more = console.page.get_by_role("button", name="earlier ones")
    told = f"Show 200 of {earlier:,} earlier ones"
    await expect(more).to_have_text(told, timeout=3 * WAIT_MS)
    await expect(console.cells).to_have_count(200)
    await more.click()
    await expect(console.cells).to_have_count(400)
    await expect(more).to_have_text(f"Show 200 of {earlier - 200:,} earlier ones")
