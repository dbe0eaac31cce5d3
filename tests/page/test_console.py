"""The console of a kernel: code is typed and run in a real kernel, in a real browser."""

from __future__ import annotations

from playwright.async_api import expect

from tests.page.conftest import OpenPage
from tests.page.consoles import open_console
from tests.support.running import KernelStarter


async def test_code_is_run_and_its_output_is_shown(
    open_page: OpenPage, start: KernelStarter
) -> None:
    kernel = await start("python3", connect=False)
    console = await open_console(open_page, kernel.id)
    cell = await console.run_through("print('a' * 3)\n6 * 7")
    await expect(cell).to_contain_text("aaa")
    await expect(cell).to_contain_text("Out[1]")
    await expect(cell).to_contain_text("42")
    assert await console.code() == ""
