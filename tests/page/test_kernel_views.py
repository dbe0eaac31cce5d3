"""The views of one kernel beside its output: executions, usage, events and connections."""

from __future__ import annotations

import re

from playwright.async_api import expect

from tests.page.axe import assert_looks
from tests.page.conftest import OpenPage
from tests.page.kernels import ran, shown
from tests.page.test_output import PIXEL
from tests.support.executions import Executions
from tests.support.rest import RestClient
from tests.support.running import KernelStarter
from tests.support.server import ServerProcess


async def test_executions_are_a_time_line_with_how_they_ended(
    open_page: OpenPage, start: KernelStarter
) -> None:
    kernel = await start("fake")
    executions = Executions(kernel.rest, kernel.id)
    await executions.run("print well")
    await executions.run("error Wrong why")
    running = await executions.begin("sleep 600")
    await executions.until(running, "started")
    await executions.begin("print last")
    page, _ = await open_page(f"#/kernels/{kernel.id}/executions")
    rows = page.get_by_role("region", name="Timeline of executions").locator("tbody tr")
    await expect(rows).to_have_count(4)
    states = [text.strip() for text in await page.locator(".ex-state").all_inner_texts()]
    assert states == ["queued", "running", "error", "ok"]
    await rows.nth(1).get_by_role("button", name="Cancel").click()
    await expect(rows.nth(1)).to_contain_text("cancelled")
    await expect(rows.nth(0)).to_contain_text("ok")
    await expect(rows.get_by_role("button")).to_have_count(0)


async def test_an_execution_has_its_code_its_output_and_an_address_of_its_own(
    open_page: OpenPage, start: KernelStarter
) -> None:
    kernel = await ran(start, "print('said')\n1 / 0", "python3")
    page, _ = await open_page(f"#/kernels/{kernel}/executions")
    await page.locator("tbody a").first.click()
    await expect(page).to_have_url(re.compile(rf"#/kernels/{kernel}/executions/.+"))
    details = page.get_by_role("region", name="Execution")
    await expect(details.locator(".code-whole")).to_have_text("print('said')\n1 / 0")
    await expect(details.locator("pre.stdout")).to_have_text("said")
    await expect(details.locator(".failed strong")).to_have_text(re.compile("ZeroDivisionError"))
    await page.reload()
    await expect(details.locator("pre.stdout")).to_have_text("said")
    await page.get_by_role("link", name="In the kernel's output").click()
    await expect(page.get_by_role("region", name="Output of the kernel")).to_contain_text("said")


async def test_an_execution_that_runs_is_followed_and_cancelled(
    open_page: OpenPage, start: KernelStarter
) -> None:
    kernel = await start("fake")
    running = await Executions(kernel.rest, kernel.id).begin("print first\nsleep 600")
    page, _ = await open_page(f"#/kernels/{kernel.id}/executions/{running}")
    await expect(page.locator("pre.stdout")).to_have_text("first")
    await page.get_by_role("button", name="Cancel").click()
    await expect(page.locator(".ex-state")).to_have_text("cancelled")
    await expect(page.get_by_role("button", name="Cancel")).to_have_count(0)


async def test_usage_is_drawn_told_in_words_and_listed(
    open_page: OpenPage, start: KernelStarter
) -> None:
    kernel = await ran(start, "flood 500 20")
    page, _ = await open_page(f"#/kernels/{kernel}/usage")
    await expect(page.get_by_text(re.compile(r"Memory: now \d+.*MB, between"))).to_be_visible()
    await expect(page.locator(".chart canvas")).to_have_count(3)
    await page.get_by_text("The last figures as a table").click()
    await expect(page.get_by_role("row")).to_have_count(3)  # the second sample is there by then
    await expect(page.locator("dt", has_text="Process id")).to_be_visible()


async def test_events_and_what_the_process_wrote_are_told_as_they_come(
    open_page: OpenPage, start: KernelStarter
) -> None:
    kernel = await start("fake")
    page, _ = await open_page(f"#/kernels/{kernel.id}/events")
    events = page.get_by_role("region", name="Events")
    await expect(events).to_contain_text("Ready")  # before the view was opened
    await Executions(kernel.rest, kernel.id).run("raw <b>written</b> by C code")
    await expect(page.get_by_role("region", name="Output of the process")).to_contain_text(
        "<b>written</b> by C code", timeout=20_000
    )
    await kernel.rest.interrupt(kernel.id)
    await expect(events.get_by_text("Interrupted")).to_be_visible()


async def test_why_a_kernel_died_is_at_its_head(open_page: OpenPage, rest: RestClient) -> None:
    kernel = (await rest.start_kernel("fake-exit"))["id"]
    await rest.wait_for_state(kernel, "dead")
    page, watch = await open_page(f"#/kernels/{kernel}")
    watch.allow("404")  # for what the page asks for while the kernel is removed
    await expect(page.locator(".kernel-state .reason")).not_to_be_empty()
    await expect(page.locator(".kernel-state")).to_contain_text("dead")
    await rest.delete(kernel)
    await expect(page.locator(".kernel-head .error")).to_be_visible()


async def test_facts_for_other_tools_have_neither_a_token_nor_a_key(
    open_page: OpenPage, start: KernelStarter, server: ServerProcess
) -> None:
    kernel = await start("fake")
    page, _ = await open_page(f"#/kernels/{kernel.id}/connect")
    facts = page.get_by_role("region", name="Connect")
    await expect(facts).to_contain_text(f"ws{server.url[4:]}/api/kernels/{kernel.id}/channels")
    await expect(facts).to_contain_text("$TOKEN")
    assert server.token not in await page.content()


async def test_a_runaway_cell_is_interrupted_from_the_head(
    open_page: OpenPage, start: KernelStarter
) -> None:
    kernel = await start("fake")
    await Executions(kernel.rest, kernel.id).begin("sleep 600")
    page, _ = await open_page(f"#/kernels/{kernel.id}")
    await expect(page.locator(".kernel-state")).to_contain_text("busy")
    await page.get_by_role("button", name="Interrupt").click()
    await expect(page.locator(".kernel-state")).to_contain_text("idle")


async def test_axe_finds_nothing_in_any_of_them(open_page: OpenPage, start: KernelStarter) -> None:
    kernel = await shown(
        start,
        {"text/plain": "".join(f"\x1b[{code}m{code}\x1b[0m " for code in [*range(30, 50)])},
        {"text/plain": "\x1b[38;5;226myellow\x1b[0m \x1b[48;2;9;9;9mdark\x1b[0m"},
        {"text/html": "<table><tr><td>cell</td></tr></table>"},
        {"text/markdown": "# Head\n\n[link](https://example.org/) `code` $x^2$\n\n|a|\n|-|\n|1|"},
        {"image/png": PIXEL},
        {"application/vnd.jupyter.widget-view+json": "{}", "text/plain": "IntSlider()"},
    )
    failed = await ran(start, f"stderr {'x' * 2000}\nerror ZeroDivisionError why")
    page, watch = await open_page(f"#/kernels/{kernel}/output?from=beginning")
    await expect(page.frame_locator("iframe").locator("td")).to_be_visible()
    await assert_looks(page)
    address = page.url.replace(kernel, failed)
    await page.goto(address)
    await expect(page.locator(".failed")).to_be_visible()
    await assert_looks(page)
    for tab, there in (
        ("Executions", "Timeline of executions"),
        ("Usage", "Usage"),
        ("Events", "Process output"),
        ("Connect", "Connect"),
    ):
        await page.get_by_role("link", name=tab, exact=True).click()
        await expect(page.get_by_role("region", name=there)).to_be_visible()
        await assert_looks(page)
        if tab == "Executions":
            await page.locator("tbody a").first.click()
            await expect(page.locator(".code-whole")).to_be_visible()
            await assert_looks(page)
    watch.allow("404 (Not Found)")
