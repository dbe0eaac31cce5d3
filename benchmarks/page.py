"""``python -m benchmarks.page``: what the page takes while the kernel that is looked at floods it.

A kernel says so many messages a second, and the system's Chromium shows its output, as it comes.
Told are the processors and the memory of the page's process, how long a click takes until the page
is drawn again, and how far the page is behind the kernel. ``--seconds`` and ``--rate`` make the
flood. When that is over, the page has to show the end of the output.

It fails for what holds on a machine that others use, too (`Figure`). CI runs 20 seconds of it.

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
from benchmarks.flood_kernel import RING_MESSAGES
from benchmarks.servers import Server, kernelkeep
from benchmarks.thousands import crowds, until_idle

AT_MOST_CPU: Final = 0.6
AT_MOST_MEMORY: Final = 300 * 10**6
AT_MOST_CLICK: Final = 0.1
AT_LAST_CLICK: Final = 2.0
"""After so many seconds a click is not answered any more."""

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

LIVE: Final = "document.querySelector('.live-live') !== null"

SHOWN: Final = """(() => {
    const last = [...document.querySelectorAll(".row")].at(-1);
    if (last === undefined) return [0, ""];
    const list = last.closest(".transcript").getBoundingClientRect();
    const below = last.getBoundingClientRect().bottom - list.bottom;
    return [Number(last.dataset.seq), below < 2 ? last.innerText.slice(-10_000) : ""];
})()"""
"""The number of the first message in the last row of the output, and its text if it can be seen."""

START_SECONDS: Final = 240
ANSWER_SECONDS: Final = 60
FLOOD_SECONDS: Final = 900


class Refused(Exception):
    """The browser has refused a command: a page that is just being loaded cannot be asked."""


@dataclass
class Taken:
    """What the page's process has taken, a sample a second."""

    cpu: float = 0.0
    seconds: float = 0.0
    memory: list[int] = field(default_factory=list)
    clicks: list[float] = field(default_factory=list)
    clicked: int = 0
    longest: float = 0.0  # that the page did one thing and nothing else
    behind: list[int] = field(default_factory=list)
    has_ended: bool = True  # that the page has shown the end of the output


@dataclass(frozen=True)
class Figure:
    """What was measured, beside what is meant.

    A benchmark fails by a figure that is ``held``. The processors that the page takes are seconds
    of its process by those of the clock: others on the machine only make them less. A single click,
    and the longest task, they make longer.
    """

    name: str
    value: float
    most: float
    held: bool

    @property
    def fails(self) -> bool:
        """Whether the benchmark fails by it."""
        return self.held and not self.value <= self.most


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
        # Its children outlive it for a moment, and write into its directory.
        children = psutil.Process(self._process.pid).children(recursive=True)
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(ANSWER_SECONDS)
        _, left = psutil.wait_procs(children, ANSWER_SECONDS)
        for one in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        self._process.kill()
        self._process.wait()
        psutil.wait_procs(left, ANSWER_SECONDS)
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
        until(browser, LIVE)
        browser.evaluate(CLICKS)
        count = int(options.rate * options.seconds)
        socket.execute(json.dumps({"count": count, "size": options.size, "rate": options.rate}))
        socket.close()
        look = partial(behind, server, kernel, browser)
        taken = sampled(browser, options.seconds, look)
        last = (count - 1) % min(count, RING_MESSAGES)
        taken.has_ended = shows_the_end(server, kernel, browser, f"{last} x")
        return taken
    finally:
        browser.close()


def shows_the_end(server: Server, kernel: str, browser: Chromium, text: str) -> bool:
    """Whether the page comes to show the last that the kernel has said, when that is over.

    It ends in ``text``, which the kernel says once in `RING_MESSAGES` messages. A kernel that
    shares the machine takes its time to say everything.
    """
    end = time.monotonic() + FLOOD_SECONDS
    is_over = False
    while time.monotonic() < end:
        model: dict[str, Any] = server.rest.request("GET", f"/api/kernels/{kernel}")
        if not is_over and model["execution_state"] == "idle":
            is_over, end = True, time.monotonic() + ANSWER_SECONDS
        if is_over:
            _, shown = browser.evaluate(SHOWN)
            if text in shown and behind(server, kernel, browser) < RING_MESSAGES:
                return True
        time.sleep(0.2)
    return False


def behind(server: Server, kernel: str, browser: Chromium) -> int:
    """How many messages of the kernel the page has not shown."""
    said: dict[str, Any] = server.rest.request("GET", f"/api/kernels/{kernel}/usage")
    shown, _ = browser.evaluate(SHOWN)
    return max(0, int(said["messages"]) - int(shown))


def sampled(browser: Chromium, seconds: float, look: Callable[[], int]) -> Taken:
    """Click and ``look`` once a second, and take the samples."""
    taken, processes = Taken(), browser.renderers()
    memory: dict[psutil.Process, list[int]] = {one: [] for one in processes}
    began, cpu = time.monotonic(), {one: cpu_of(one) for one in processes}
    while (passed := time.monotonic() - began) < seconds:
        browser.click()
        taken.clicked += 1
        for one in processes:
            memory[one].append(one.memory_full_info().pss)
        taken.behind.append(look())
        time.sleep(max(0.0, 1 - (time.monotonic() - began - passed)))
    taken.seconds = time.monotonic() - began
    # The browser has processes in stock: the page's own is the one that has done something.
    own = max(processes, key=lambda one: cpu_of(one) - cpu[one])
    taken.cpu, taken.memory = cpu_of(own) - cpu[own], memory[own]
    answered = f"window.clicks.length >= {taken.clicked}"
    with contextlib.suppress(TimeoutError):
        until(browser, answered)
    taken.clicks, taken.longest = browser.evaluate("[window.clicks, window.held]")
    return taken


def cpu_of(process: psutil.Process) -> float:
    """Seconds of processors that it has taken."""
    times = process.cpu_times()
    return float(times.user + times.system)


def figures_of(taken: Taken) -> list[Figure]:
    """What was taken, beside what is meant. There is at least one sample."""
    clicks = taken.clicks or [float("inf")]
    return [
        Figure("processors", taken.cpu / taken.seconds, AT_MOST_CPU, True),
        Figure("memory at most, MB", max(taken.memory) / 1e6, AT_MOST_MEMORY / 1e6, True),
        Figure("clicks not answered", taken.clicked - len(taken.clicks), 0, True),
        Figure("a click, median, s", percentile(clicks, 50), AT_MOST_CLICK, True),
        Figure("a click, p95, s", percentile(clicks, 95), AT_MOST_CLICK, False),
        Figure("a click, longest, s", max(clicks), AT_LAST_CLICK, True),
        Figure("longest task, s", taken.longest, AT_MOST_CLICK, False),
        Figure("end not shown", int(not taken.has_ended), 0, True),
    ]


def told(taken: Taken) -> int:
    """Print the figures beside what is meant; 1 if one fails."""
    figures = figures_of(taken)
    for one in figures:
        verdict = " MISSED" if one.fails else ""
        line = f"{one.name:22} {one.value:8.3f}   at most {one.most:g}{verdict}\n"
        sys.stdout.write(line)
    if any(taken.behind):
        sys.stdout.write(f"{'messages behind':22} {max(taken.behind):8d}\n")
    return int(any(one.fails for one in figures))


if __name__ == "__main__":
    sys.exit(main())
