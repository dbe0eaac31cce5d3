"""Takes the pictures of docs/page.md from a server with real kernels, light and dark."""

from __future__ import annotations

import asyncio
import sys
from typing import Final

from playwright.async_api import Browser, Page, expect

from tests.support.browser import browser, watched_page
from tests.support.executions import Executions
from tests.support.rest import RestClient
from tests.support.server import REPOSITORY, ServerProcess

IMAGES: Final = REPOSITORY / "docs" / "images"
MOST_BYTES: Final = 150_000
SIZE: Final = {"width": 1200, "height": 720}
SHOWN_MS: Final = 60_000

_PLOT: Final = """
import matplotlib, numpy
matplotlib.use("module://matplotlib_inline.backend_inline")
from matplotlib import pyplot
x = numpy.linspace(0, 12, 400)
figure = pyplot.figure(figsize=(5, 2))
pyplot.plot(x, numpy.sin(x) * numpy.exp(-x / 6))
pyplot.title("a damped oscillation")
pyplot.show()
"""
_TYPED: Final = (
    "squares = {n: n ** 2 for n in range(6)}",
    "squares",
    "for n, square in squares.items():\n    print(f'{n} * {n} = {square}')",
    "squares[7]",
)
_TRAIN: Final = """
import time
for epoch in range(1, 9):
    print(f"\\x1b[1mepoch {epoch}\\x1b[0m  loss \\x1b[32m{1 / epoch:.3f}\\x1b[0m")
"""


async def _work(rest: RestClient) -> dict[str, str]:
    """Kernels that have done this and that; their ids."""
    ids: dict[str, str] = {}
    for name in ("training.ipynb", "report.ipynb", "scratch.ipynb", "import.ipynb"):
        body = {"path": name, "name": name, "type": "notebook", "kernel": {"name": "python3"}}
        made = (await rest.request("POST", "/api/sessions", 201, json=body)).json()
        ids[name] = made["kernel"]["id"]
    runs = {name: Executions(rest, kernel) for name, kernel in ids.items()}
    await runs["training.ipynb"].run(_TRAIN)
    await runs["training.ipynb"].run(_PLOT)
    await runs["training.ipynb"].run("1 / 0")
    await runs["training.ipynb"].begin(
        "frames = [bytes(10**7) for _ in range(12)]; time.sleep(900)"
    )
    await runs["report.ipynb"].run("rows = list(range(10**6)); sum(rows)")
    await runs["import.ipynb"].begin("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    return ids


async def _take(page: Page, name: str, scheme: str) -> None:
    file = IMAGES / f"{name}-{scheme}.png"
    await page.wait_for_timeout(500)  # for what fades in
    await page.screenshot(path=file, animations="disabled", caret="hide")
    if file.stat().st_size > MOST_BYTES:
        sys.exit(f"scripts/screenshots: {file.name} has {file.stat().st_size} bytes")


async def _pictures(
    browser: Browser, server: ServerProcess, ids: dict[str, str], scheme: str
) -> None:
    kernel, scratch = ids["training.ipynb"], ids["scratch.ipynb"]
    address = f"{server.url}/?token={server.token}"
    async with watched_page(browser, server.url, viewport=SIZE, scheme=scheme) as (page, _):
        await page.goto(address)
        await expect(page.get_by_text("Restarted once")).to_be_visible(timeout=SHOWN_MS)
        await page.wait_for_timeout(12_000)  # for lines of memory and processors
        await _take(page, "kernels", scheme)
        await page.goto(f"{server.url}/#/kernels/{kernel}/output")
        await expect(page.get_by_text("ZeroDivisionError").first).to_be_visible(timeout=SHOWN_MS)
        await _take(page, "output", scheme)
        await page.goto(f"{server.url}/#/kernels/{kernel}/executions")
        await page.get_by_role("link", name="[3]").click()
        await expect(page.get_by_text("ZeroDivisionError").first).to_be_visible(timeout=SHOWN_MS)
        await _take(page, "executions", scheme)
        await page.goto(f"{server.url}/#/kernels/{kernel}/usage")
        await expect(page.locator("canvas").first).to_be_visible(timeout=SHOWN_MS)
        await _take(page, "usage", scheme)
        await page.goto(f"{server.url}/#/kernels/{scratch}/console")
        await expect(page.get_by_text("The kernel is idle")).to_be_visible(timeout=SHOWN_MS)
        for code in _TYPED:
            await page.locator(".cm-content").first.click()
            await page.keyboard.insert_text(code)
            await page.get_by_role("button", name="Run", exact=True).click()
        await expect(page.get_by_text("KeyError").first).to_be_visible(timeout=SHOWN_MS)
        await _take(page, "console", scheme)
        await page.goto(f"{server.url}/#/service")
        await expect(page.get_by_text("automatic restart")).to_be_visible(timeout=SHOWN_MS)
        await _take(page, "service", scheme)


async def _main() -> None:
    IMAGES.mkdir(exist_ok=True)
    server = ServerProcess().start()
    try:
        async with RestClient(server.url, server.token) as rest, browser() as launched:
            ids = await _work(rest)
            for scheme in ("light", "dark"):
                await _pictures(launched, server, ids, scheme)
    finally:
        server.stop()


def _tell() -> None:
    written = sorted(IMAGES.glob("*.png"))
    size = sum(one.stat().st_size for one in written)
    sys.stderr.write(f"scripts/screenshots: {len(written)} pictures, {size / 1000:.0f} kB\n")


if __name__ == "__main__":
    asyncio.run(_main())
    _tell()
