"""What somebody does who sees the page for the first time, and in how many clicks: docs/page.md."""

from __future__ import annotations

import pytest_asyncio
from playwright.async_api import Locator, Page, expect

from tests.page.conftest import OpenPage
from tests.support.executions import Executions
from tests.support.rest import RestClient
from tests.support.running import KernelStarter


class Hand:
    """Clicks, and counts the clicks."""

    def __init__(self) -> None:
        self.clicks = 0

    async def click(self, page: Page | Locator, role: str, name: str) -> None:
        await page.get_by_role(role, name=name).first.click()  # type: ignore[arg-type]
        self.clicks += 1


@pytest_asyncio.fixture(loop_scope="session")
async def kernels(rest: RestClient) -> dict[str, str]:
    """The ids of some kernels by their names: one large, one that died, one that prints, one that
    runs away."""
    ids = {}
    for name in ("large", "died", "prints", "runs-away"):
        spec = {"died": "fake-exit", "large": "python3"}.get(name, "fake")
        session = {"path": name, "name": name, "type": "notebook", "kernel": {"name": spec}}
        made = (await rest.request("POST", "/api/sessions", 201, json=session)).json()
        ids[name] = made["kernel"]["id"]
    await Executions(rest, ids["large"]).run("kept = bytearray(150_000_000)")
    await Executions(rest, ids["prints"]).run("print the answer is 42")
    await Executions(rest, ids["runs-away"]).begin("sleep 3600")
    return ids


async def test_with_nothing_but_the_page(
    open_page: OpenPage, rest: RestClient, kernels: dict[str, str]
) -> None:
    page, _ = await open_page()
    row = {name: page.locator(f"[data-kernel='{id_}']") for name, id_ in kernels.items()}

    hand = Hand()  # why did one die?
    await expect(row["died"]).to_contain_text("dead")
    await expect(row["died"]).to_contain_text("7")  # its exit code
    assert hand.clicks == 0

    hand = Hand()  # which kernel takes the memory?
    await expect(row["large"]).to_contain_text("MB")
    await hand.click(page, "button", "Memory")
    await expect(page.locator("[data-kernel]").first).to_contain_text("large")
    assert hand.clicks == 1

    hand = Hand()  # stop what runs away
    await expect(row["runs-away"]).to_contain_text("sleep 3600")
    await hand.click(page, "button", "Interrupt runs-away")
    await expect(row["runs-away"]).to_contain_text("idle")
    assert hand.clicks == 1

    hand = Hand()  # what has it printed?
    await hand.click(page, "link", "prints")
    await expect(page.get_by_text("the answer is 42").first).to_be_visible()
    assert hand.clicks == 1


async def test_what_was_printed_long_ago(open_page: OpenPage, start: KernelStarter) -> None:
    """Two clicks: the kernel, and the beginning of its output."""
    kernel = await start("python3")
    executions = Executions(kernel.rest, kernel.id)
    await executions.run("print('what', 'it', 'was')")
    await executions.run("for i in range(3000): print('much', 'later', i)")
    page, _ = await open_page()
    hand = Hand()
    row = page.locator(f"[data-kernel='{kernel.id}']")
    await hand.click(row, "link", "Python 3")
    await expect(page.get_by_text("much later 2999")).to_be_visible()
    await hand.click(page, "button", "beginning")
    await expect(page.get_by_text("what it was", exact=True)).to_be_visible()
    assert hand.clicks == 2


async def test_a_line_is_run_in_a_kernel(open_page: OpenPage, start: KernelStarter) -> None:
    """Two clicks: the kernel, and its console; then the line is typed."""
    kernel = await start("python3")
    page, _ = await open_page()
    hand = Hand()
    row = page.locator(f"[data-kernel='{kernel.id}']")
    await hand.click(row, "link", "Python 3")
    await hand.click(page, "link", "Console")
    await expect(page.get_by_role("textbox", name="Code to run")).to_be_focused()
    await page.keyboard.type("6 * 7")
    await page.keyboard.press("Enter")
    await expect(page.locator(".console-output")).to_contain_text("42")
    assert hand.clicks == 2
