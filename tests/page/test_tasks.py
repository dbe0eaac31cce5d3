"""What somebody who has never seen the page wants of it, and how many clicks that takes.

Each task begins at the printed address. The page alone has to show the way: what is clicked is
found by the words that are on it.
"""

from __future__ import annotations

from playwright.async_api import Locator, Page, expect

from tests.page.conftest import OpenPage
from tests.page.consoles import WAIT_MS
from tests.support.executions import Executions
from tests.support.rest import RestClient
from tests.support.running import KernelStarter

MEGABYTE = 2**20


class Visitor:
    """Somebody at the page, whose clicks are counted."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.clicks = 0

    async def click(self, what: Locator) -> None:
        await what.click()
        self.clicks += 1

    def row(self, kernel_id: str) -> Locator:
        return self.page.locator(f"[data-kernel='{kernel_id}']")


async def visit(open_page: OpenPage) -> Visitor:
    page, _ = await open_page()
    return Visitor(page)


async def test_which_kernel_eats_the_memory(open_page: OpenPage, start: KernelStarter) -> None:
    """Two clicks, on the head of a column: the largest come first."""
    kernels = [await start("python3") for _ in range(3)]
    eats = kernels[1].id
    await Executions(kernels[1].rest, eats).run(f"eaten = b'x' * {300 * MEGABYTE}")
    visitor = await visit(open_page)
    await expect(visitor.row(eats)).to_contain_text("MB", timeout=WAIT_MS)
    head = visitor.page.get_by_role("columnheader", name="Memory")
    await visitor.click(head.get_by_role("button"))
    if await head.get_attribute("aria-sort") == "ascending":
        await visitor.click(head.get_by_role("button"))
    first = visitor.page.locator("[data-kernel]").first
    await expect(first).to_have_attribute("data-kernel", eats, timeout=WAIT_MS)
    assert visitor.clicks <= 2


async def test_why_a_kernel_died(open_page: OpenPage, rest: RestClient) -> None:
    """No click: the reason is in the table."""
    kernel_id = (await rest.start_kernel("fake-exit"))["id"]
    await rest.wait_for_state(kernel_id, "dead")
    reason = (await rest.kernel(kernel_id))["reason"]
    visitor = await visit(open_page)
    await expect(visitor.row(kernel_id)).to_contain_text("dead")
    await expect(visitor.row(kernel_id)).to_contain_text(reason.splitlines()[0])
    assert visitor.clicks == 0


async def test_what_a_kernel_printed_an_hour_ago(open_page: OpenPage, start: KernelStarter) -> None:
    """Two clicks: the kernel, and the beginning of what it has said."""
    kernel = await start("python3")
    executions = Executions(kernel.rest, kernel.id)
    await executions.run("print('what', 'it', 'was')")
    await executions.run("for i in range(3000): print('much', 'later', i)")
    visitor = await visit(open_page)
    await visitor.click(visitor.row(kernel.id).get_by_role("link").first)
    page = visitor.page
    await expect(page.get_by_text("much later 2999")).to_be_visible(timeout=WAIT_MS)
    await visitor.click(page.get_by_role("button", name="beginning"))
    await expect(page.get_by_text("what it was", exact=True)).to_be_visible(timeout=WAIT_MS)
    assert visitor.clicks == 2


async def test_a_runaway_cell_is_stopped(open_page: OpenPage, start: KernelStarter) -> None:
    """One click, in the row that says what runs."""
    kernel = await start("python3")
    running = await Executions(kernel.rest, kernel.id).begin("while True: pass  # runs away")
    visitor = await visit(open_page)
    row = visitor.row(kernel.id)
    await expect(row).to_contain_text("while True: pass  # runs away")
    await visitor.click(row.get_by_role("button", name="Interrupt"))
    await expect(row).to_contain_text("idle", timeout=WAIT_MS)
    assert visitor.clicks == 1
    assert (await Executions(kernel.rest, kernel.id).ended(running))["state"] == "error"


async def test_a_line_is_run_in_a_kernel(open_page: OpenPage, start: KernelStarter) -> None:
    """Two clicks: the kernel, and its console; then it is typed."""
    kernel = await start("python3")
    visitor = await visit(open_page)
    await visitor.click(visitor.row(kernel.id).get_by_role("link").first)
    await visitor.click(visitor.page.get_by_role("link", name="Console"))
    editor = visitor.page.get_by_role("textbox", name="Code to run")
    await expect(editor).to_be_focused(timeout=WAIT_MS)
    await visitor.page.keyboard.type("6 * 7")
    await visitor.page.keyboard.press("Enter")
    await expect(visitor.page.locator(".console-output")).to_contain_text("42", timeout=WAIT_MS)
    assert visitor.clicks == 2
