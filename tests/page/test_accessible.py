"""Every view of what this page is made of: axe finds nothing, nothing sticks out, keys suffice."""

from __future__ import annotations

from playwright.async_api import expect

from tests.page.axe import assert_looks
from tests.page.conftest import OpenPage
from tests.support.executions import Executions
from tests.support.rest import RestClient
from tests.support.running import KernelStarter


async def test_views(open_page: OpenPage, rest: RestClient) -> None:
    busy, died, dead = [
        (await rest.start_kernel(name))["id"] for name in ("fake", "fake", "fake-exit")
    ]
    await Executions(rest, busy).begin("sleep 600")
    await Executions(rest, died).begin("die 3")
    page, watch = await open_page()
    watch.allow("404 (Not Found)")
    await expect(page.locator(f"[data-kernel='{dead}']")).to_contain_text("dead")
    await expect(page.locator(f"[data-kernel='{busy}'] svg").first).to_be_visible()
    await page.get_by_role("checkbox", name="Select Fake (fake)").first.check()
    await page.get_by_role("button", name="Stop").last.click()
    await expect(page.get_by_role("button", name="Undo").first).to_be_visible()
    await assert_looks(page)

    await page.get_by_role("button", name="Start a kernel").click()
    await expect(page.get_by_label("Kernelspec")).not_to_be_empty()
    await assert_looks(page)
    await page.keyboard.press("Escape")
    await expect(page.get_by_role("dialog")).to_have_count(0)

    await page.get_by_role("link", name="Service").click()
    await expect(page.get_by_role("heading", name="Deaths by reason")).to_be_visible()
    await assert_looks(page)


async def test_the_prompt(open_page: OpenPage) -> None:
    page, watch = await open_page(token="")
    watch.allow("403 (Forbidden)", "404 (Not Found)")
    await expect(page.get_by_role("dialog", name="Who are you?")).to_be_visible()
    await assert_looks(page)


async def test_keys_suffice(open_page: OpenPage, start: KernelStarter) -> None:
    kernel = await start("fake")
    await Executions(kernel.rest, kernel.id).begin("sleep 600")
    page, _ = await open_page()
    await page.reload()  # so that nothing has the focus
    row = page.locator(f"[data-kernel='{kernel.id}']")
    await expect(row).to_contain_text("busy")
    await page.keyboard.press("Tab")
    await expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    await page.keyboard.press("Enter")
    await expect(page.locator("main")).to_be_focused()
    interrupt = row.get_by_role("button", name="Interrupt")
    for _ in range(40):
        await page.keyboard.press("Tab")
        if await interrupt.evaluate("button => button === document.activeElement"):
            break
    await page.keyboard.press("Enter")
    await expect(row).to_contain_text("idle")
