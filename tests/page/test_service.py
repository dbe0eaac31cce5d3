"""The view of the service: what there is, what became of kernels, and who uses what."""

from __future__ import annotations

from playwright.async_api import Locator, Page, Route, expect

from tests.conftest import MakeServer
from tests.page.conftest import OpenPage
from tests.support.executions import Executions
from tests.support.identities import token
from tests.support.owners import MANY, USER
from tests.support.rest import RestClient


def part(page: Page, title: str) -> Locator:
    return page.locator("section.part").filter(has=page.get_by_role("heading", name=title))


async def test_it_tells_of_states_starts_and_deaths(
    open_page: OpenPage, make_server: MakeServer
) -> None:
    server = make_server()
    async with RestClient(server.url, server.token) as rest:
        first, second = [(await rest.start_kernel("fake"))["id"] for _ in range(2)]
        for kernel in (first, second):
            await rest.wait_for_state(kernel, "idle")
        page, _ = await open_page("#/service", url=server.url, token=server.token)
        await expect(part(page, "Kernels by state")).to_contain_text("idle2")
        await Executions(rest, first).begin("sleep 600")
        await expect(part(page, "Kernels by state")).to_contain_text("busy1")
        await Executions(rest, second).begin("die 3")
        await expect(part(page, "Deaths by reason")).to_contain_text("exited1")
        await expect(part(page, "Starts by reason")).to_contain_text("automatic restart1")
        for tile in ("Connections", "Logs on disk", "Loop lag", "Forked kernels", "Version"):
            await expect(page.locator(".tile").filter(has_text=tile)).not_to_contain_text("–")
        await page.get_by_role("link", name="busy").click()
        await expect(page.locator("[data-kernel]")).to_have_count(1)


async def test_owners_and_their_limits(open_page: OpenPage, make_server: MakeServer) -> None:
    server = make_server(*MANY, "--owner-limits", "kernels=3,log_bytes=50000000")
    async with RestClient(server.url, token("ada", USER)) as hers:
        await hers.start_kernel("fake")
    page, _ = await open_page("#/service", url=server.url, token=server.token)
    row = page.get_by_role("row", name="ada")
    await expect(row).to_contain_text("1 of 3")
    await expect(row).to_contain_text("of 50.0 MB")


async def test_a_server_without_metrics(open_page: OpenPage, make_server: MakeServer) -> None:
    server = make_server("--no-serve-metrics")
    page, watch = await open_page("#/service", url=server.url, token=server.token)
    watch.allow("404 (Not Found)")
    await expect(page.get_by_text("This server has no /metrics")).to_be_visible()
    await expect(page.locator(".tile").filter(has_text="Kernels")).to_contain_text("0")


async def test_replicas_are_listed_with_the_one_that_answers(open_page: OpenPage) -> None:
    page, _ = await open_page()
    replicas = [
        {"id": "aaaaaaaaaaaaaaaa", "asked": False, "state": "joined", "kernels": 3},
        {"id": "bbbbbbbbbbbbbbbb", "asked": True, "state": "declared_dead", "kernels": 0},
    ]

    async def status(route: Route) -> None:
        answer = await route.fetch()
        await route.fulfill(json={**await answer.json(), "replicas": replicas})

    await page.route("**/api/status", status)
    await page.get_by_role("link", name="Service").click()
    rows = part(page, "Replicas").get_by_role("listitem")
    await expect(rows).to_have_text(
        ["aaaaaaaa joined3", "bbbbbbbb answers here declared dead by the others0"]
    )
