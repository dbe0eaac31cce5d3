"""The table of kernels: live, filtered, sorted, and what is done from it."""

from __future__ import annotations

import json
from typing import Any

from playwright.async_api import Locator, Page, expect

from app.managers.kernels.departures import BY_REQUEST
from tests.conftest import MakeServer
from tests.page.conftest import OpenPage
from tests.support.browser import PHONE
from tests.support.executions import Executions
from tests.support.processes import eventually
from tests.support.rest import RestClient, RestError
from tests.support.running import KernelStarter

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>"


def row(page: Page, kernel_id: str) -> Locator:
    return page.locator(f"[data-kernel='{kernel_id}']")


async def test_it_follows_the_kernels(open_page: OpenPage, rest: RestClient) -> None:
    page, _ = await open_page()
    await expect(page.get_by_text("No kernel runs.")).to_be_visible()
    kernel = (await rest.start_kernel("fake"))["id"]
    one = row(page, kernel)
    await expect(one).to_contain_text("idle")
    await Executions(rest, kernel).begin("sleep 600\nprint never")
    await expect(one).to_contain_text("busy")
    await expect(one.get_by_role("link", name="sleep 600")).to_be_visible()
    await expect(one).to_contain_text("MB")  # of memory

    await one.get_by_role("button", name="Interrupt").click()
    await expect(one).to_contain_text("idle")
    await Executions(rest, kernel).begin("die 3")
    await expect(one).to_contain_text("Restarted once")
    await rest.request("DELETE", f"/api/kernels/{kernel}", 204)
    await expect(one).to_contain_text("gone")
    await expect(one).to_contain_text(BY_REQUEST)


async def test_the_dead_stay_with_their_reason(open_page: OpenPage, rest: RestClient) -> None:
    kernel = (await rest.start_kernel("fake-exit"))["id"]
    page, _ = await open_page()
    await expect(row(page, kernel)).to_contain_text("dead")
    await expect(row(page, kernel).locator(".c-running")).not_to_be_empty()


async def test_those_that_are_gone_stay_with_why_until_they_are_forgotten(
    open_page: OpenPage, make_server: MakeServer
) -> None:
    """Those that ended before the page was opened, too."""
    server = make_server("--cull-idle-timeout", "1", "--cull-interval", "0.1")
    async with RestClient(server.url, server.token) as rest:
        culled = (await rest.start_kernel("fake"))["id"]
        body = {
            "path": "a.ipynb",
            "name": "a.ipynb",
            "type": "notebook",
            "kernel": {"name": "fake"},
        }
        named = (await rest.request("POST", "/api/sessions", 201, json=body)).json()["kernel"]["id"]
        await Executions(rest, named).begin("sleep 600")  # and so it is not culled
        page, watch = await open_page(url=server.url, token=server.token)
        await expect(row(page, culled)).to_contain_text("Culled after")
        await expect(row(page, named)).to_contain_text("a.ipynb")
        await rest.request("DELETE", f"/api/kernels/{named}", 204)
        await expect(row(page, named)).to_contain_text("gone")
        await expect(row(page, named)).to_contain_text("a.ipynb")  # the session went, too
        await page.goto("about:blank")
        asked = (await rest.start_kernel("fake"))["id"]
        await rest.request("DELETE", f"/api/kernels/{asked}", 204)
        await page.goto(f"{server.url}/?token={server.token}")
        for kernel, why in ((asked, BY_REQUEST), (named, BY_REQUEST), (culled, "Culled after")):
            await expect(row(page, kernel)).to_contain_text(why)
        await expect(page.get_by_text("0 kernels, 3 gone")).to_be_visible()

        # Its address tells why, and nothing else is left of it.
        watch.allow("404 (Not Found)")
        await page.evaluate("id => { location.hash = `#/kernels/${id}` }", culled)
        await expect(page.get_by_text("Culled after")).to_be_visible()
        await expect(page.get_by_role("link", name="Console")).to_have_count(0)
        await page.get_by_role("link", name="Kernels").first.click()

        await page.get_by_role("button", name="Forget those that are gone").click()
        await expect(page.locator("[data-kernel]")).to_have_count(0)
        kernel = (await rest.start_kernel("fake"))["id"]
        await Executions(rest, kernel).begin("sleep 600")
        await page.reload()
        await expect(row(page, kernel)).to_be_visible()
        await expect(page.locator("[data-kernel]")).to_have_count(1)


async def test_a_stop_can_be_undone(open_page: OpenPage, start: KernelStarter) -> None:
    kernel = await start("fake")
    page, _ = await open_page()
    one = row(page, kernel.id)
    await one.get_by_role("button", name="Stop").click()
    await one.get_by_role("button", name="Undo").click()
    await expect(one.get_by_role("button", name="Stop")).to_be_visible()
    # Had the stop not been undone, it would be done before this restart, which is asked for later.
    await one.get_by_role("button", name="Restart").click()

    async def restarted() -> bool:
        return (await kernel.model())["generation"] == 2

    await eventually(restarted, 30)


async def test_many_are_stopped_at_once(open_page: OpenPage, rest: RestClient) -> None:
    ids = [(await rest.start_kernel("fake"))["id"] for _ in range(3)]
    page, _ = await open_page()
    await page.get_by_role("checkbox", name="Select all 3").check()
    await row(page, ids[0]).get_by_role("checkbox").uncheck()
    many = page.get_by_role("group", name="With the selected kernels")
    await expect(many).to_contain_text("2 selected")
    await many.get_by_role("button", name="Stop").click()
    for stopped in ids[1:]:
        await expect(row(page, stopped)).to_contain_text("gone")
        await expect(row(page, stopped)).to_contain_text(BY_REQUEST)
    await expect(row(page, ids[0])).to_contain_text("idle")
    assert [kernel["id"] for kernel in await rest.kernels()] == [ids[0]]


async def test_who_leaves_has_not_undone_what_waits(open_page: OpenPage, rest: RestClient) -> None:
    kernel = (await rest.start_kernel("fake"))["id"]
    page, _ = await open_page(fresh=True)
    await row(page, kernel).get_by_role("button", name="Stop").click()
    await page.goto("about:blank")

    async def gone() -> bool:
        try:
            await rest.kernel(kernel)
        except RestError:
            return True
        return False

    await eventually(gone, 30)


async def test_a_kernel_is_started(open_page: OpenPage, rest: RestClient) -> None:
    page, watch = await open_page()
    watch.allow("400 (Bad Request)")
    await page.get_by_role("button", name="Start a kernel").click()
    dialog = page.get_by_role("dialog", name="Start a kernel")
    await dialog.get_by_label("Kernelspec").select_option("fake")
    await dialog.get_by_label("Environment").fill("no variable")
    await dialog.get_by_role("button", name="Start").click()
    await expect(dialog.get_by_role("alert")).to_contain_text("is not NAME=value")
    await dialog.get_by_label("Environment").fill("ANSWER=forty two")
    await dialog.get_by_role("button", name="Start").click()
    await expect(dialog).to_be_hidden()
    await expect(page.get_by_role("link", name="Fake (fake)")).to_be_visible()
    (kernel,) = await rest.kernels()
    ran = await Executions(rest, kernel["id"]).post("env ANSWER", query={"wait": 30})
    assert "forty two" in ran.text  # in the process's environment


async def test_names_are_text(open_page: OpenPage, rest: RestClient) -> None:
    session = {"path": "a.ipynb", "name": HOSTILE, "type": "notebook", "kernel": {"name": "fake"}}
    await rest.request("POST", "/api/sessions", 201, json=session)
    page, _ = await open_page()
    await expect(page.get_by_role("link", name=HOSTILE)).to_be_visible()
    assert await page.locator("main script, main img").count() == 0
    # The kernel's views have the session's name at their head.
    await page.get_by_role("link", name=HOSTILE).click()
    await expect(page.get_by_role("heading", level=1)).to_contain_text(HOSTILE)
    await expect(page.locator(".kernel-state")).to_contain_text("Fake (fake)")
    assert await page.locator("main script, main img").count() == 0


def told(number: int, **more: Any) -> str:
    """A line of the overview, of a kernel that there is not."""
    kernel: dict[str, Any] = {
        "id": f"{number:08}-0000-4000-8000-000000000000",
        "name": f"spec-{number % 7}",
        "last_activity": "2026-11-22T14:49:48.797413Z",
        "execution_state": ("idle", "busy", "starting")[number % 3],
        "connections": number % 5,
        "generation": 1,
        **more.pop("kernel", {}),
    }
    fields: dict[str, Any] = {
        "running": None,
        "waiting": 0,
        "log_bytes": 1000 * number,
        "cpu": number / 1000,
        "memory": 10_000_000 + (number * 7919) % 1_000_003,
        "host": None,
        "sampled": "2026-11-22T14:49:48.797413Z",
        "state_since": "2026-11-22T14:49:48.797413Z",
    }
    return json.dumps({"type": "kernel", "kernel": kernel, **fields, **more})


async def shows(page: Page, lines: list[str]) -> None:
    """The page loads anew, and the overview has these lines."""
    body = "\n".join([*lines, json.dumps({"type": "whole", "kernels": len(lines)}), ""])
    await page.route(
        "**/api/overview",
        lambda route: route.fulfill(body=body, content_type="application/x-ndjson"),
    )
    await page.reload()


OVERLAPS = """() => {
    const found = [];
    for (const row of document.querySelectorAll(".kernel-row")) {
        const boxes = [...row.children].map(cell => [cell.className, cell.getBoundingClientRect()])
            .filter(([, box]) => box.width > 0);
        for (const [one, a] of boxes) {
            if (a.right > innerWidth || a.left < 0) found.push(`${one} sticks out`);
            for (const [other, b] of boxes) {
                const across = Math.min(a.right, b.right) - Math.max(a.left, b.left);
                const down = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
                if (one < other && across > 1 && down > 1) found.push(`${one} over ${other}`);
            }
        }
    }
    return found;
}"""


async def test_every_fact_is_shown_at_every_width(open_page: OpenPage) -> None:
    page, watch = await open_page("#/service")
    watch.allow("404 (Not Found)")
    running = {"execution_id": "e", "since": "2026-11-22T14:49:48.797413Z", "code": "train()"}
    whose = {"owner": "ada", "execution_state": "busy", "connections": 3}
    row_of = told(1, running=running, host="gpu-7", log_bytes=48_500, cpu=0.25, kernel=whose)
    gone = told(2, kernel={"owner": "bob", "reason": BY_REQUEST})
    model = json.loads(gone)["kernel"]
    at = "2026-11-22T15:00:00.000000Z"
    ended = {"type": "gone", "kernel_id": model["id"], "at": at, "kernel": model, "host": None}
    await shows(page, [row_of, json.dumps(ended)])
    await page.get_by_role("link", name="Kernels", exact=True).click()
    facts = ("spec-1", "00000001", "ada", "gpu-7", "busy", "train()", "3 clients", "10.0 MB")
    for width in (1440, 1200, 1024, 390):
        await page.set_viewport_size({"width": width, "height": 844})
        one = row(page, json.loads(row_of)["kernel"]["id"])
        for fact in (*facts, "25 %", "48.5 kB"):
            await expect(one.get_by_text(fact).first).to_be_in_viewport()
        for cell in ("state", "activity"):
            await expect(one.locator(f".c-{cell} time")).to_be_in_viewport()
        for action in ("Interrupt", "Restart", "Stop"):
            await expect(one.get_by_role("button", name=action)).to_be_in_viewport()
        await expect(row(page, model["id"]).get_by_text(BY_REQUEST)).to_be_in_viewport()
        await expect(row(page, model["id"]).get_by_text("bob")).to_be_in_viewport()
        assert await page.evaluate(OVERLAPS) == []


async def test_a_thousand_kernels_are_a_few_rows(open_page: OpenPage) -> None:
    page, watch = await open_page("#/service")
    watch.allow("404 (Not Found)")
    await shows(page, [told(number) for number in range(1000)])
    await page.get_by_role("link", name="Kernels", exact=True).click()
    await expect(page.get_by_text("1,000 kernels")).to_be_visible()
    rows = page.locator("[data-kernel]")
    assert await rows.count() < 60

    await page.get_by_role("button", name="Memory").click()
    most = max(range(1000), key=lambda number: (number * 7919) % 1_000_003)
    await expect(rows.first).to_have_attribute(
        "data-kernel", f"{most:08}-0000-4000-8000-000000000000"
    )
    await page.mouse.wheel(0, 20_000)
    await expect(rows.first).not_to_have_attribute(
        "data-kernel", f"{most:08}-0000-4000-8000-000000000000"
    )
    assert await rows.count() < 60

    await page.keyboard.press("/")
    await page.keyboard.type("spec-3 busy")
    some = sum(1 for number in range(1000) if number % 7 == 3 and number % 3 == 1)
    await expect(page.get_by_text(f"{some} of 1,000 kernels")).to_be_visible()
    # Place is kept: the filter and the order are in the address.
    assert page.url.endswith("#/kernels?q=spec-3+busy&sort=-memory")


async def test_on_a_phone_the_order_is_chosen(open_page: OpenPage, rest: RestClient) -> None:
    ids = [(await rest.start_kernel("fake"))["id"] for _ in range(2)]
    page, _ = await open_page(viewport=PHONE)
    await page.get_by_label("Order").select_option("-log")
    await expect(page.locator("[data-kernel]:not(.is-gone)")).to_have_count(2)
    await Executions(rest, ids[1]).post("flood 50 1000", query={"wait": 30})
    await expect(page.locator("[data-kernel]").first).to_have_attribute("data-kernel", ids[1])
