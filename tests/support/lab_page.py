"""JupyterLab in a browser: its page, opened on a notebook, and what a person does there."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

from playwright.async_api import Locator, Page, WebSocket, expect

from tests.support.browser import DESKTOP, browser
from tests.support.jupyterlab import JupyterLab

__all__ = ["lab_page", "output_of", "run_cell", "write_notebook"]

LOAD_MS = 180_000
"""How long JupyterLab may take to open a notebook."""


def write_notebook(path: Path, code: str, kernelspec: str) -> None:
    """A notebook of one cell."""
    cell = {"cell_type": "code", "id": "one", "metadata": {}, "source": code}
    content = {
        "cells": [cell | {"execution_count": None, "outputs": []}],
        "metadata": {"kernelspec": {"name": kernelspec, "display_name": kernelspec}},
        **{"nbformat": 4, "nbformat_minor": 5},
    }
    path.write_text(json.dumps(content))


@asynccontextmanager
async def lab_page(lab: JupyterLab, notebook: str, *, url: str = "") -> AsyncIterator[Page]:
    """The page with this notebook open; its kernel is ready. ``url`` is that of a proxy."""
    async with browser() as chromium:
        context = await chromium.new_context(viewport=DESKTOP)  # type: ignore[arg-type]
        context.set_default_timeout(LOAD_MS)
        page = await context.new_page()
        heard = asyncio.Event()
        page.on("websocket", lambda socket: _on_websocket(socket, heard))
        await page.goto(f"{url or lab.url}/lab/tree/{notebook}?token={lab.token}")
        async with asyncio.timeout(LOAD_MS / 1000):
            await heard.wait()
        idle = page.locator('.jp-Notebook-ExecutionIndicator[data-status="idle"]')
        await expect(idle).to_be_visible(timeout=LOAD_MS)
        yield page


def _on_websocket(socket: WebSocket, heard: asyncio.Event) -> None:
    """Through a gateway the first connection of a page to its kernel fails at once, as the Jupyter
    server does not choose a subprotocol: a cell that is run meanwhile is not run at all."""
    if urlsplit(socket.url).path.endswith("/channels"):
        socket.on("framereceived", lambda _: heard.set())


async def run_cell(page: Page) -> None:
    """Run the notebook's first cell."""
    await page.get_by_role("button", name="Run this cell and advance").click()


def output_of(page: Page) -> Locator:
    """What the first cell has printed."""
    return page.locator(".jp-Notebook .jp-OutputArea-output pre")
