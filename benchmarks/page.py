"""``python -m benchmarks.page``: what the page takes while the kernel that is looked at floods it.

A kernel says so many messages a second, and the system's Chromium shows its output, as it comes.
Told are the processors and the memory of the page's process, how long a click takes until the page
is drawn again, and how far the page is behind the kernel. ``--seconds`` and ``--rate`` make the
flood.

``--kernels 1000`` has so many kernels (a crowd, `benchmarks.crowd`) in the page's table instead:
told are how long the table takes to have them all, to filter and to order them, how many rows are
in the page, and what the page's process takes while one kernel after the other is busy.

Chromium is a program that must be there; it runs without a window.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import psutil
from websockets.sync.client import connect

from benchmarks.figures import percentile
from benchmarks.servers import Server, kernelkeep
from benchmarks.thousands import crowds, until_idle

AT_MOST_CPU: Final = 0.6
AT_MOST_MEMORY: Final = 300 * 10**6
AT_MOST_CLICK: Final = 0.1

CLICKS: Final = """
window.clicks = [];
window.held = 0;
new PerformanceObserver(list => {
    for (const task of list.getEntries()) window.held = Math.max(window.held, task.duration / 1000);
}).observe({ entryTypes: ["longtask"] });
document.addEventListener("click", event => {
    requestAnimationFrame(() => setTimeout(() => {
        window.clicks.push((performance.now() - event.timeStamp) / 1000);
    }));
}, true);
"""

FILTER: Final = """value => {
    const field = document.querySelector("input[type=search]");
    field.value = value;
    field.dispatchEvent(new Event("input", { bubbles: true }));
}"""
ORDER: Final = """() => {
    const buttons = [...document.querySelectorAll("button")];
    buttons.find(each => each.innerText.includes("Memory")).click();
}"""

START_SECONDS: Final = 240
ANSWER_SECONDS: Final = 60


class Refused(Exception):
    """The browser has refused a command: a page that is just being loaded cannot be asked."""


@dataclass
class Taken:
    """What the page's process has taken, a sample a second."""

    cpu: float = 0.0
    seconds: float = 0.0
    memory: list[int] = field(default_factory=list)
    clicks: list[float] = field(default_factory=list)
    longest: float = 0.0  # that the page did one thing and nothing else
    behind: list[int] = field(default_factory=list)


class Chromium:
    """A browser with one page, which is asked over its debugging protocol.

    Playwright would have the page's process keep what the network brings, and so take more memory.
    """

    def __init__(self, address: str) -> None:
        program = shutil.which("chromium")
        if program is None:
            sys.exit("Chromium is missing: apt install chromium")
        self._home = tempfile.TemporaryDirectory(prefix="bench-chromium-")
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
        options = ["--headless=new", "--remote-debugging-port=0", "--window-size=1440,900"]
        quiet = ["--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-sync"]
        where = f"--user-data-dir={self._home.name}"
        self._process = subprocess.Popen(
            [program, *options, *quiet, *sandbox, where, address],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._stack = contextlib.ExitStack()
        self._socket = self._stack.enter_context(connect(self._page_socket(), max_size=None))
        self._last = 0

    def _page_socket(self) -> str:
        file = Path(self._home.name, "DevToolsActivePort")
        while True:
            with contextlib.suppress(OSError, IndexError, StopIteration):
                port = file.read_text().splitlines()[0]
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list") as answer:
                    pages = json.load(answer)
                found = next(one for one in pages if one["type"] == "page")
                return str(found["webSocketDebuggerUrl"])
            time.sleep(0.1)

    def ask(self, method: str, **parameters: Any) -> Any:
        """The result of a command of the protocol. Raises `Refused`."""
        self._last += 1
        self._socket.send(json.dumps({"id": self._last, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self._socket.recv(timeout=ANSWER_SECONDS))
            if answer.get("id") == self._last:
                if "error" in answer:
                    raise Refused(answer["error"]["message"])
                return answer["result"]

    def evaluate(self, script: str) -> Any:
        """The value of a script in the page."""
        result = self.ask("Runtime.evaluate", expression=script, returnByValue=True)
        return result["result"].get("value")

    def click(self) -> None:
        """Click at the page's heading."""
        where = {"x": 60, "y": 100, "button": "left", "clickCount": 1}
        for kind in ("mousePressed", "mouseReleased"):
            self.ask("Input.dispatchMouseEvent", type=kind, **where)

    def renderers(self) -> list[psutil.Process]:
        """The processes of its page."""
        children = psutil.Process(self._process.pid).children(recursive=True)
        return [child for child in children if "--type=renderer" in child.cmdline()]

    def close(self) -> None:
        self._stack.close()
        self._process.terminate()
        self._process.wait(ANSWER_SECONDS)
        self._home.cleanup()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.page", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--rate", type=int, default=20_000, help="messages a second")
    parser.add_argument("--size", type=int, default=100, help="bytes of text in each")
    parser.add_argument("--kernels", type=int, default=0, help="a table of so many instead")
    options = parser.parse_args()
    if options.kernels:
        with crowds(options.kernels) as specs, kernelkeep().fresh(specs) as server:
            return listed(server, [*specs], options.kernels, options.seconds)
    server = kernelkeep().start()
    try:
        taken = flooded(server, options)
    finally:
        server.stop()
    return told(taken)


def listed(server: Server, specs: list[str], count: int, seconds: float) -> int:
    """Have the page list kernels of a crowd, and print what that takes; 1 if that is too much."""
    ids = [server.start_kernel(specs[number % len(specs)]) for number in range(count)]
    until_idle(server, ids, time.perf_counter() + START_SECONDS)
    began = time.monotonic()
    browser = Chromium(f"http://127.0.0.1:{server.port}/?token={server.token}")
    try:
        whole = f"document.body?.innerText.includes('{count:,} kernels')"
        until(browser, whole)
        shown = time.monotonic() - began
        browser.evaluate(CLICKS)
        filtered = timed(
            browser, FILTER, "document.querySelectorAll('[data-kernel]').length === 1", ids[-1]
        )
        until(browser, "document.querySelectorAll('[data-kernel]').length > 1", FILTER, "")
        ordered = timed(browser, ORDER, "location.hash.includes('sort=')")
        rows = browser.evaluate("document.querySelectorAll('[data-kernel]').length")
        taken = busied(server, browser, ids, seconds)
    finally:
        browser.close()
    sys.stdout.write(f"{count:,} kernels, {rows} of them as rows in the page\n")
    for name, value in (("all are there", shown), ("a filter", filtered), ("an order", ordered)):
        sys.stdout.write(f"{f'{name}, s':22} {value:8.3f}\n")
    return told(taken)


def busied(server: Server, browser: Chromium, ids: list[str], seconds: float) -> Taken:
    """What the page takes while a kernel a second runs something."""
    run = itertools.cycle(ids)

    def one() -> int:
        with contextlib.closing(server.connect(next(run))) as socket:
            socket.execute(json.dumps({"count": 10, "size": 10, "rate": 10}))
        return 0

    return sampled(browser, seconds, one)


def timed(browser: Chromium, script: str, condition: str, value: str = "") -> float:
    """Seconds from a script until a condition holds."""
    began = time.monotonic()
    until(browser, condition, script, value)
    return time.monotonic() - began


def until(browser: Chromium, condition: str, script: str = "", value: str = "") -> None:
    """Run a script, and return when a condition holds. Raises `TimeoutError`."""
    if script:
        browser.evaluate(f"({script})({json.dumps(value)})")
    end = time.monotonic() + ANSWER_SECONDS
    while time.monotonic() < end:
        with contextlib.suppress(Refused):
            if browser.evaluate(condition) is True:
                return
        time.sleep(0.01)
    raise TimeoutError(condition)


def flooded(server: Server, options: argparse.Namespace) -> Taken:
    """Open the page on a kernel, flood it, and sample for as long as that lasts."""
    kernel, socket = server.ready("flood")
    view = f"#/kernels/{kernel}/output"
    browser = Chromium(f"http://127.0.0.1:{server.port}/?token={server.token}{view}")
    try:
        while not is_live(browser):
            time.sleep(0.1)
        browser.evaluate(CLICKS)
        count = int(options.rate * options.seconds)
        socket.execute(json.dumps({"count": count, "size": options.size, "rate": options.rate}))
        socket.close()
        look = partial(behind, server, kernel, browser)
        return sampled(browser, options.seconds, look)
    finally:
        browser.close()


def is_live(browser: Chromium) -> bool:
    """Whether the page shows output as it comes."""
    with contextlib.suppress(Refused):
        return browser.evaluate("document.querySelector('.live-live') !== null") is True
    return False


def behind(server: Server, kernel: str, browser: Chromium) -> int:
    """How many messages of the kernel the page has not shown."""
    said: dict[str, Any] = server.rest.request("GET", f"/api/kernels/{kernel}/usage")
    shown = browser.evaluate("[...document.querySelectorAll('.row')].at(-1)?.dataset.seq")
    return max(0, int(said["messages"]) - int(shown or 0))


def sampled(browser: Chromium, seconds: float, look: Callable[[], int]) -> Taken:
    """Click and ``look`` once a second, and take the samples."""
    taken, processes = Taken(), browser.renderers()
    memory: dict[psutil.Process, list[int]] = {one: [] for one in processes}
    began, cpu = time.monotonic(), {one: cpu_of(one) for one in processes}
    while (passed := time.monotonic() - began) < seconds:
        browser.click()
        for one in processes:
            memory[one].append(one.memory_full_info().pss)
        taken.behind.append(look())
        time.sleep(max(0.0, 1 - (time.monotonic() - began - passed)))
    taken.seconds = time.monotonic() - began
    # The browser has processes in stock: the page's own is the one that has done something.
    own = max(processes, key=lambda one: cpu_of(one) - cpu[one])
    taken.cpu, taken.memory = cpu_of(own) - cpu[own], memory[own]
    taken.clicks, taken.longest = browser.evaluate("[window.clicks, window.held]")
    return taken


def cpu_of(process: psutil.Process) -> float:
    """Seconds of processors that it has taken."""
    times = process.cpu_times()
    return float(times.user + times.system)


def told(taken: Taken) -> int:
    """Print the figures beside what is meant; 1 if one is missed."""
    rows = [
        ("processors", taken.cpu / taken.seconds, AT_MOST_CPU),
        ("memory at most, MB", max(taken.memory) / 1e6, AT_MOST_MEMORY / 1e6),
        ("a click, median, s", percentile(taken.clicks, 50), AT_MOST_CLICK),
        ("longest task, s", taken.longest, AT_MOST_CLICK),
        ("a click, p95, s", percentile(taken.clicks, 95), AT_MOST_CLICK),
    ]
    for name, value, most in rows:
        sys.stdout.write(f"{name:22} {value:8.3f}   at most {most:g}\n")
    if any(taken.behind):
        sys.stdout.write(f"{'messages behind':22} {max(taken.behind):8d}\n")
    return int(any(value > most for _, value, most in rows))


if __name__ == "__main__":
    sys.exit(main())
