"""The output of a kernel as it comes: all kinds of it, all of it, and on after breaks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from playwright.async_api import Page, expect

from tests.conftest import MakeServer
from tests.page.conftest import OpenPage
from tests.page.kernels import printed, published, ran, shown
from tests.support.browser import WAIT_MS
from tests.support.executions import Executions
from tests.support.home import Home
from tests.support.kernelspecs import Spec, write_kernelspec
from tests.support.processes import eventually
from tests.support.rest import RestClient
from tests.support.running import KernelStarter, kernels_of
from tests.support.server import ServerProcess

PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4nGNgAAAAAAUAAXpeqz8AAAAASUVORK5CYII="
)
MOST_NODES = 6000
"""So many elements the page may have, however much was said."""


LIST = "document.querySelector('.transcript')"
HEIGHT = f"{LIST}.scrollHeight"


def transcript(page: Page) -> Any:
    return page.get_by_role("region", name="Output of the kernel")


async def test_text_has_its_colours_and_what_was_overwritten_is_gone(
    open_page: OpenPage, start: KernelStarter
) -> None:
    lines = [
        printed("\x1b[31mred\x1b[0m \x1b[38;2;1;2;3mown\x1b[0m \x1b]0;title\x07plain\n"),
        *(printed(f"\rstep {step:3} %") for step in range(101)),
        printed("\n"),
        printed("wronh\bg\n", "stderr"),
    ]
    kernel = await ran(start, "\n".join(lines))
    page, _ = await open_page(f"#/kernels/{kernel}/output?from=beginning")
    await expect(transcript(page).locator(".ansi-red")).to_have_text("red")
    await expect(transcript(page).get_by_text("own", exact=True)).to_have_css(
        "color", "rgb(1, 2, 3)"
    )
    lines = await transcript(page).locator("pre.stdout").all_inner_texts()
    assert "".join(lines).splitlines() == ["red own plain", "step 100 %"]
    await expect(transcript(page).locator("pre.stderr")).to_contain_text("wrong")


async def test_each_kind_of_output_is_shown(open_page: OpenPage, start: KernelStarter) -> None:
    kernel = await shown(
        start,
        {"text/html": "<p>from HTML</p>"},
        {"image/png": PIXEL},
        {"text/markdown": "**bold** $x^2$"},
        {"text/latex": "$\\frac{1}{2}$"},
        {"application/json": '{"a": 1}'},
        {"application/vnd.jupyter.widget-view+json": "{}", "text/plain": "IntSlider()"},
        {"application/x-unheard-of": "?", "text/plain": "as text"},
    )
    page, _ = await open_page(f"#/kernels/{kernel}/output?from=beginning")
    await expect(page.frame_locator("iframe").locator("p")).to_have_text("from HTML")
    await expect(page.get_by_alt_text("Image (PNG)")).to_be_attached()
    await transcript(page).press("End")
    await expect(page.locator(".marked strong")).to_have_text("bold")
    await expect(page.locator(".marked math").first).to_be_attached()
    await expect(page.get_by_text("A widget is here, which JupyterLab can show")).to_be_visible()
    await expect(page.get_by_text("application/x-unheard-of is here")).to_be_visible()


async def test_an_error_is_shown_with_its_traceback_and_code_with_its_count(
    open_page: OpenPage, start: KernelStarter
) -> None:
    kernel = await ran(start, "def half(x):\n    return x / 0\nhalf(1)", "python3")
    page, _ = await open_page(f"#/kernels/{kernel}/output?from=beginning")
    await expect(page.get_by_text("ZeroDivisionError: division by zero").first).to_be_visible()
    await expect(transcript(page).locator(".failed pre")).to_contain_text("return x / 0")
    await expect(page.locator(".row-code .count")).to_have_text("In[1]")


async def test_output_that_is_cleared_or_updated_changes_in_its_place(
    open_page: OpenPage, start: KernelStarter
) -> None:
    kernel = await start("fake")
    page, _ = await open_page(f"#/kernels/{kernel.id}/output")
    await expect(page.get_by_text("Live")).to_be_visible()
    lines = []
    for turn in range(30):
        lines += [published("clear_output", wait=True), printed(f"turn {turn}\n")]
    shown: dict[str, Any] = {"metadata": {}, "transient": {"display_id": "d"}}
    lines.append(published("display_data", data={"text/plain": "before"}, **shown))
    await Executions(kernel.rest, kernel.id).run("\n".join(lines))
    await expect(transcript(page).get_by_text("before", exact=True)).to_be_visible()
    await expect(transcript(page).locator(".row-stream")).to_have_text(re.compile("turn 29"))
    update = published("update_display_data", data={"text/plain": "after"}, **shown)
    await Executions(kernel.rest, kernel.id).run(update)
    await expect(transcript(page).get_by_text("after", exact=True)).to_be_visible()
    await expect(transcript(page).get_by_text("before", exact=True)).to_have_count(0)


ALL_LINES = """
async stride => {
    const list = document.querySelector(".transcript");
    const seen = new Set();
    let nodes = 0;
    const frame = () => new Promise(requestAnimationFrame);
    for (let top = 0; ; top = Math.min(top + stride, list.scrollHeight)) {
        list.scrollTop = top;
        for (let turn = 0; turn < 200; turn += 1) {
            await frame();
            await frame();
            if (list.querySelector(".row p.muted") === null) break;
        }
        const numbers = list.innerText.matchAll(/^(\\d+) x/gm);
        for (const [, number] of numbers) seen.add(Number(number));
        nodes = Math.max(nodes, document.querySelectorAll("*").length);
        if (list.scrollTop + list.clientHeight >= list.scrollHeight - 2) break;
    }
    return [seen.size, Math.max(...seen), nodes];
}
"""
"""Scrolls to the end; how many numbered lines were seen, the last one, and the most elements.

A stride of 4,000 pixels leaves nothing out.
"""


async def test_a_great_many_messages_are_all_reached_by_scrolling(
    open_page: OpenPage, start: KernelStarter, full: bool
) -> None:
    """With ``--full`` they are a hundred thousand."""
    count = 100_000 if full else 20_000
    kernel = await ran(start, f"flood {count} 30")
    page, _ = await open_page(f"#/kernels/{kernel}/output?from=beginning")
    await all_is_listed(page, count)
    seen, most, nodes = await page.evaluate(ALL_LINES, 4000)
    assert (seen, most) == (count, count)
    assert nodes < MOST_NODES


async def all_is_listed(page: Page, count: int) -> None:
    """Returns when the end of what was said is in the list."""
    await page.get_by_label("Follow").check()
    await expect(transcript(page)).to_contain_text(f"{count} x", timeout=60_000)
    await page.get_by_label("Follow").uncheck()


async def test_what_was_dropped_from_memory_is_read_again_from_the_log(
    open_page: OpenPage, start: KernelStarter
) -> None:
    kernel = await ran(start, "flood 1350 10000")  # 13.5 MB, where 12 MB are held
    page, _ = await open_page(f"#/kernels/{kernel}/output?from=beginning")
    await all_is_listed(page, 1350)
    async with page.expect_request(re.compile("messages.after=.*limit=")):
        await transcript(page).press("Home")
    await expect(transcript(page)).to_contain_text("1 xxx")
    await expect(transcript(page).locator(".row p.muted")).to_have_count(0)


async def test_what_nobody_could_read_in_time_is_passed_over_and_can_be_shown(
    open_page: OpenPage, start: KernelStarter
) -> None:
    kernel = await start("fake")
    page, watch = await open_page(f"#/kernels/{kernel.id}/output")
    watch.allow("ERR_INTERNET_DISCONNECTED")
    await expect(page.get_by_text("Live")).to_be_visible()
    await page.context.set_offline(True)
    await expect(page.get_by_text("The connection broke")).to_be_visible()
    await Executions(kernel.rest, kernel.id).run("flood 4000 30")
    await page.context.set_offline(False)
    await expect(transcript(page)).to_contain_text("4000 x")
    await expect(page.get_by_label("Follow")).to_be_checked()
    # The first of them were read, and the last: the list tells how many are between.
    await transcript(page).press("Home")
    await expect(page.get_by_label("Follow")).not_to_be_checked()
    passed = page.get_by_text(re.compile(r"3,\d\d\d messages were passed over here"))
    for _ in range(40):
        if await passed.count():
            break
        await transcript(page).press("PageDown")
    await expect(passed).to_be_visible()
    await page.get_by_role("button", name="Show them").click()
    await expect(passed).to_have_count(0)
    await all_is_listed(page, 4000)
    seen, most, _ = await page.evaluate(ALL_LINES, 4000)
    assert most == 4000
    assert seen >= 3000  # from the first of those that were passed over


async def test_from_the_end_there_is_a_way_to_what_was_said_before(
    open_page: OpenPage, start: KernelStarter
) -> None:
    kernel = await ran(start, "flood 5000 30")
    page, _ = await open_page(f"#/kernels/{kernel}/output")
    await expect(transcript(page)).to_contain_text("5000 x")
    await expect(page.get_by_text("earlier messages are not in this list")).to_be_visible()
    await page.get_by_role("button", name="Show 1,000 more").click()
    await expect(transcript(page)).to_contain_text("3020 x")
    await page.get_by_role("button", name="From the beginning").click()
    await expect(transcript(page)).to_contain_text("\n1 x")
    await expect(page.get_by_text("earlier messages")).to_have_count(0)


async def test_following_ends_by_scrolling_up_and_begins_at_the_end(
    open_page: OpenPage, start: KernelStarter
) -> None:
    kernel = await start("fake")
    executions = Executions(kernel.rest, kernel.id)
    await executions.run("flood 3000 30")
    await executions.begin("flood 100000 30 100")  # it goes on to speak
    page, _ = await open_page(f"#/kernels/{kernel.id}/output")
    await expect(transcript(page)).to_contain_text(" x")
    await is_higher_than(page, 10_000)
    await transcript(page).press("PageUp")
    await expect(page.get_by_label("Follow")).not_to_be_checked()
    # More of it does not bring the end back.
    await is_higher_than(page, await page.evaluate(HEIGHT))
    await expect(page.get_by_label("Follow")).not_to_be_checked()
    assert await page.evaluate(f"{HEIGHT} - {LIST}.scrollTop - {LIST}.clientHeight") > 30
    await transcript(page).press("End")
    await expect(page.get_by_label("Follow")).to_be_checked()
    await is_higher_than(page, await page.evaluate(HEIGHT))
    await expect(page.get_by_label("Follow")).to_be_checked()


PRESSED_BEFORE_THE_EVENT = """
async () => {
    const list = document.querySelector(".transcript");
    for (let top = list.scrollTop; list.scrollTop <= top + 2; ) {
        top = list.scrollTop;
        await new Promise(requestAnimationFrame);
        await new Promise(setTimeout);
    }
    list.dispatchEvent(new KeyboardEvent("keydown", {key: "PageUp", bubbles: true}));
}
"""
"""Presses PageUp when the page has followed what was said, and was not told yet that it scrolled.

A key that is made so does not scroll.
"""


async def test_that_the_page_itself_has_scrolled_does_not_bring_the_end_back(
    open_page: OpenPage, start: KernelStarter
) -> None:
    kernel = await start("fake")
    await Executions(kernel.rest, kernel.id).begin("flood 100000 30 100")
    page, _ = await open_page(f"#/kernels/{kernel.id}/output")
    await expect(transcript(page)).to_contain_text(" x")
    await is_higher_than(page, 2000)
    await page.evaluate(PRESSED_BEFORE_THE_EVENT)
    await expect(page.get_by_label("Follow")).not_to_be_checked()
    await is_higher_than(page, await page.evaluate(HEIGHT))
    await expect(page.get_by_label("Follow")).not_to_be_checked()


async def is_higher_than(page: Page, height: int) -> None:
    """Returns when the list has more lines than go into so many pixels."""

    async def is_higher() -> bool:
        return bool(await page.evaluate(HEIGHT) > height)

    await eventually(is_higher, WAIT_MS / 1000)


async def test_a_message_of_fifty_megabytes_is_offered_as_a_file(
    open_page: OpenPage, start: KernelStarter
) -> None:
    kernel = await ran(start, "huge 50000000")
    page, _ = await open_page(f"#/kernels/{kernel}/output?from=beginning")
    await expect(page.get_by_text(re.compile(r"of a text message with 50\.\d MB"))).to_be_visible(
        timeout=60_000
    )
    async with page.expect_download() as download:
        await page.get_by_role("button", name="Save it as a file").click()
    file = await (await download.value).path()
    assert file.stat().st_size > 50_000_000


async def test_thousands_of_images_leave_the_page_small(
    open_page: OpenPage, start: KernelStarter, full: bool
) -> None:
    image = {"data": {"image/png": PIXEL}, "metadata": {}}
    count = 10_000 if full else 2000
    kernel = await ran(start, published("display_data", count, **image) + "\nprint 1 x")
    page, _ = await open_page(f"#/kernels/{kernel}/output?from=beginning")
    await expect(page.get_by_text("Live")).to_be_visible()
    await transcript(page).press("End")
    assert await page.locator(".row").count() < 200
    await transcript(page).press("Home")
    await expect(page.get_by_alt_text("Image (PNG)").first).to_be_attached()


async def test_what_is_large_is_shown_on_demand(open_page: OpenPage, start: KernelStarter) -> None:
    nested = "<div>" * 400 + "x" * 1_000_000 + "<p>the end</p>" + "</div>" * 400
    kernel = await shown(start, {"text/html": nested})
    page, _ = await open_page(f"#/kernels/{kernel}/output?from=beginning")
    await expect(page.get_by_text("HTML output of 1.00 MB")).to_be_visible()
    await expect(page.locator("iframe")).to_have_count(0)
    await page.get_by_role("button", name="Show it").click()
    await expect(page.frame_locator("iframe").locator("p")).to_have_text("the end")


async def test_ansi_bombs_and_broken_text_are_survived(
    open_page: OpenPage, start: KernelStarter
) -> None:
    code = r"""
print("\x1b[31mx\x1b[32my" * 50_000)
print("\r" * 200_000 + "\b" * 200_000 + "\x1b[" * 50_000)
print("\x1b]8;;javascript:alert(1)\x07" * 1000 + "linked")
print("the last line")
"""
    kernel = await ran(start, code, "python3")
    page, _ = await open_page(f"#/kernels/{kernel}/output?from=beginning")
    await page.get_by_label("Follow").check()
    await expect(transcript(page)).to_contain_text("the last line")
    assert await page.evaluate("document.querySelectorAll('*').length") < 3 * MOST_NODES
    assert await page.locator("a[href^='javascript']").count() == 0


async def test_text_that_is_not_utf8_is_shown_repaired(
    open_page: OpenPage, start: KernelStarter
) -> None:
    kernel = await ran(start, "bad-utf8\nprint behind")
    page, _ = await open_page(f"#/kernels/{kernel}/output?from=beginning")
    await expect(transcript(page)).to_contain_text("\N{REPLACEMENT CHARACTER}")
    await expect(transcript(page)).to_contain_text("behind")


async def test_what_the_log_has_lost_is_told_where_it_was(
    open_page: OpenPage, make_server: MakeServer
) -> None:
    server = make_server("--log-bytes", "1000000")
    async with kernels_of(server) as start:
        kernel = await ran(start, "flood 2000 2000")
        address = f"#/kernels/{kernel}/output?from=beginning"
        page, watch = await open_page(address, url=server.url, token=server.token)
        watch.allow("404 (Not Found)")  # the kernel is gone before the page is left
        await expect(page.get_by_text("messages are missing here")).to_be_visible()
        await all_is_listed(page, 2000)


async def test_the_page_goes_on_by_itself_after_the_server_was_killed(
    open_page: OpenPage, home: Home, make_server: MakeServer
) -> None:
    server = make_server("--on-shutdown", "keep", home=home)
    kernel = await begun(server)
    page, watch = await open_page(f"#/kernels/{kernel}/output", url=server.url, token=server.token)
    watch.allow("ERR_", "Failed to load resource", "ERR_CONNECTION_REFUSED")
    said = transcript(page).locator("pre.stdout")
    await expect(said.first).to_contain_text("background 1")
    server.crash()
    await expect(page.get_by_text("The connection broke")).to_be_visible()
    make_server("--on-shutdown", "keep", home=home, kind=successor_of(server))
    await expect(page.get_by_text("Live")).to_be_visible()
    await expect(said.last).to_contain_text("background 60", timeout=60_000)
    text = "".join(await said.all_inner_texts())
    assert [*map(int, re.findall(r"background (\d+)", text))] == [*range(1, 61)]
    async with RestClient(server.url, server.token) as rest:
        await rest.request("DELETE", f"/api/kernels/{kernel}", 204)


def successor_of(server: ServerProcess) -> type[ServerProcess]:
    """A server at the same address and with the same token."""

    class Successor(ServerProcess):
        @property
        def credentials(self) -> Sequence[str]:
            return server.credentials

        @property
        def command(self) -> list[str]:
            command = super().command
            command[command.index("--port") + 1] = str(server.port)
            return command

        @property
        def announcement(self) -> str:
            return server.announcement

    return Successor


async def begun(server: ServerProcess) -> str:
    """The id of a kernel that says sixty lines, five a second."""
    async with RestClient(server.url, server.token) as rest:
        kernel = (await rest.start_kernel("fake"))["id"]
        await Executions(rest, kernel).run("background 60 0.2")
    return kernel


async def test_names_of_kernels_are_text(open_page: OpenPage, make_server: MakeServer) -> None:
    name = "<img src=x onerror=alert(1)>"
    server = make_server()
    write_kernelspec(server.home.jupyter_path, name, Spec())
    async with kernels_of(server) as start:
        kernel = await start(name)
        page, watch = await open_page(
            f"#/kernels/{kernel.id}/output", url=server.url, token=server.token
        )
        watch.allow("404 (Not Found)")  # the kernel is gone before the page is left
        await expect(page.get_by_role("heading", level=1)).to_contain_text(name)
        assert await page.locator("main img").count() == 0
