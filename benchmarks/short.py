"""``python -m benchmarks.short``: a minute, for CI: this commit beside the one before, and bare.

Both as they come, and this one also with kernels that end with the server.

What it prints is information: a machine that others use too says nothing in seconds. It fails only
when a message is lost.
"""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack
from typing import Final

from benchmarks.bare import Bare
from benchmarks.clients import flood, receive_all, round_trip
from benchmarks.columns import BEFORE, OURS, SETTINGS, STOP
from benchmarks.commits import checkout
from benchmarks.figures import Figures, Results, percentile
from benchmarks.measures import running
from benchmarks.servers import KERNELS, Server, ServerDied, kernelkeep
from benchmarks.table import number

ROUNDS: Final = 4
MESSAGES: Final = 20_000
PATIENCE: Final = 20.0
"""Seconds without a message after which the rest is lost."""

TITLES: Final = {
    "round_trip": "Round trip of a tiny execution, p50, ms",
    "rate": "iopub 100 B, messages/s",
    "cpu": "… CPU per 100,000 messages, s, server",
    "cpu_keeper": "… keeper",
    "cpu_both": "… both together",
    "lost": "… messages lost",
}


def main() -> int:
    """Measure and print; 1 if this commit has lost a message, else 0, whatever else goes wrong."""
    with ExitStack() as stack:
        stopping = kernelkeep(STOP, options=SETTINGS[STOP])
        targets: list[Server | Bare] = [kernelkeep(), stopping, Bare(KERNELS)]
        try:
            targets.insert(1, kernelkeep(BEFORE, stack.enter_context(checkout("HEAD~1"))))
        except (OSError, subprocess.SubprocessError):
            print("there is no commit before this one here: measured without it")
        results = Results([target.name for target in targets])
        for target in targets:
            stack.callback(target.stop)
        for target in tuple(targets):
            try:
                target.start()
            except ServerDied as error:
                print(f"{target.name} does not start: measured without it ({error})")
                targets.remove(target)
        for number in range(ROUNDS):
            # There and back, so that none is always the first.
            for target in targets[:: -1 if number % 2 else 1]:
                try:
                    results.add(target.name, _measure(target))
                except Exception as error:
                    print(f"{target.name} was not measured: {type(error).__name__}: {error}")
    print(_report(results))
    return 1 if any(results.median("lost", name) for name in (OURS, STOP)) else 0


def _measure(target: Server | Bare) -> Figures:
    figures: Figures = {}
    with running(target, "flood") as (_, connection):
        times = [round_trip(connection) * 1e3 for _ in range(200)]
        figures["round_trip"] = percentile(times, 50)
        before = target.costs()
        flood(connection, MESSAGES, 100)
        seconds = receive_all([connection], MESSAGES, quiet=PATIENCE)
        after = target.costs()
        figures["rate"] = connection.streams / seconds
        figures["lost"] = float(MESSAGES - connection.streams)
        if before is not None and after is not None:
            used = after - before
            figures |= used.cpu("cpu", 1e5 / MESSAGES)
    return figures


def _report(results: Results) -> str:
    lines = []
    for key, title in TITLES.items():
        ours = results.median(key, OURS)
        cells = []
        for server, value in results.row(key).items():
            if value is None:
                continue
            ratio = f" (× {ours / value:.2f})" if ours and value and server != OURS else ""
            cells.append(f"{server} {number(value)}{ratio}")
        lines.append(f"{title}: {'; '.join(cells)}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
