"""A browser of the tests hears nothing of network interfaces, which other tests make meanwhile."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import psutil

from tests.support.browser import browser


def sockets_of(processes: list[psutil.Process]) -> set[str]:
    """What their links in /proc/PID/fd say."""
    links = set()
    for process in processes:
        for entry in Path(f"/proc/{process.pid}/fd").iterdir():
            with suppress(FileNotFoundError):  # it has been closed just now
                links.add(os.readlink(entry))
    return links


def netlink_sockets() -> set[str]:
    """The machine's, as such links say them."""
    rows = Path("/proc/net/netlink").read_text().splitlines()[1:]
    return {f"socket:[{row.split()[-1]}]" for row in rows}


async def test_no_process_of_a_browser_has_a_netlink_socket() -> None:
    assert os.geteuid() == 0, "only root's browser is deaf"
    async with browser() as chromium:
        page = await chromium.new_page()
        await page.goto("data:text/plain,here")
        assert await page.evaluate("document.body.innerText") == "here"
        processes = psutil.Process().children(recursive=True)
        assert any("--type=utility" in process.cmdline() for process in processes)
        assert not sockets_of(processes) & netlink_sockets()
