"""``python -m benchmarks.page``: what the page takes while the kernel that is looked at floods it.

A kernel says so many messages a second, and the system's Chromium shows its output, as it comes.
Told are the processors and the memory of the page's process, how long a click takes until the page
is drawn again, and how far the page is behind the kernel. ``--seconds`` and ``--rate`` make the
flood.
Chromium is a program that must be there; it runs without a window.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psutil
from websockets.sync.client import connect

from benchmarks.figures import percentile
from benchmarks.servers import Server, kernelkeep

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
    options = parser.parse_args()
    server = kernelkeep().start()
    try:
        taken = flooded(server, options)
    finally:
        server.stop()
    return told(taken)


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
        return sampled(server, kernel, browser, options.seconds)
    finally:
        browser.close()


def is_live(browser: Chromium) -> bool:
    """Whether the page shows output as it comes."""
    with contextlib.suppress(Refused):
        return browser.evaluate("document.querySelector('.live-live') !== null") is True
    return False


def sampled(server: Server, kernel: str, browser: Chromium, seconds: float) -> Taken:
    taken, processes = Taken(), browser.renderers()
    memory: dict[psutil.Process, list[int]] = {one: [] for one in processes}
    began, cpu = time.monotonic(), {one: cpu_of(one) for one in processes}
    while (passed := time.monotonic() - began) < seconds:
        browser.click()
        for one in processes:
            memory[one].append(one.memory_full_info().pss)
        said: dict[str, Any] = server.rest.request("GET", f"/api/kernels/{kernel}/usage")
        shown = browser.evaluate("[...document.querySelectorAll('.row')].at(-1)?.dataset.seq")
        taken.behind.append(max(0, said["messages"] - int(shown or 0)))
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
    sys.stdout.write(f"{'messages behind':22} {max(taken.behind):8d}\n")
    return int(any(value > most for _, value, most in rows))


if __name__ == "__main__":
    sys.exit(main())
