"""``python -m benchmarks.neighbours``: a kernel's round trip while another owner's runs wild.

Both kernels have an owner of their own, whose limits are enforced by control groups. Where this
machine has none to give, ``python -m tests.support.uml python -m benchmarks.neighbours`` has a
machine of its own. Each of the wild kernels is ended by its limits or after `SECONDS`.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from app.keeper.limits import ProcessLimits, owner_key
from app.managers.kernels.construction import multi_kernel_manager
from app.managers.kernels.kernel import Kernel
from app.managers.kernels.multikernel import MultiKernelManager
from app.managers.owners.ownership import Ownership
from app.managers.telemetry.counters import Counters
from app.managers.telemetry.events import Events
from app.settings import Settings

SECONDS: Final = 8.0
START_SECONDS: Final = 300.0
TRIPS: Final = 150
AT_MOST: Final = 2.0

LIMITS: Final = {"memory": 160 * 2**20, "cpu": 0.3, "processes": 60, "open_files": 512}

# Each is bounded by itself, too, should a limit not hold.
WILD: Final = {
    "a busy loop": "while True: pass",
    "a fork bomb": """
import os, time
for _ in range(2000):
    try:
        if os.fork() == 0:
            while True: pass
    except OSError:
        time.sleep(0.001)
""",
    "10 GB of memory": """
hold = []
for _ in range(1000):
    hold.append(bytearray(10 * 2**20))
""",
    "100,000 files": """
hold = []
for _ in range(100_000):
    try:
        hold.append(open("/dev/null"))
    except OSError:
        pass
while True: pass
""",
    "1 GB of output": """
for _ in range(1000):
    print("x" * 2**20)
""",
}


async def _trips(kernel: Kernel, *, count: int, seconds: float) -> list[float]:
    """So many round trips on the shell channel, in milliseconds; fewer if there is no time."""
    taken: list[float] = []
    end = time.monotonic() + seconds
    while len(taken) < count and time.monotonic() < end:
        began = time.monotonic()
        if await kernel.traffic.own.ask("kernel_info_request", {}, 30.0) is None:
            raise RuntimeError("the neighbour's kernel does not answer")
        taken.append(1000 * (time.monotonic() - began))
        await asyncio.sleep(0.005)
    return taken


async def _start(manager: MultiKernelManager, owner: str) -> Kernel:
    kernel = await manager.start_kernel("python3", ownership=Ownership(owner))
    async with asyncio.timeout(START_SECONDS):
        if not await asyncio.shield(kernel.came_up):
            raise RuntimeError(kernel.state.reason)
    return kernel


async def _wild(manager: MultiKernelManager, neighbour: Kernel, code: str) -> list[float]:
    kernel = await _start(manager, "wild")
    by = (await manager.usage.usage(kernel)).limits
    if by["memory"].enforced != "cgroup":
        raise RuntimeError(f"there are no control groups here: {by}")
    content = {"code": code, "silent": False, "store_history": False, "allow_stdin": False}
    running = asyncio.ensure_future(
        kernel.traffic.own.ask("execute_request", content, 10 * SECONDS)
    )
    await asyncio.sleep(0.5)
    taken = await _trips(neighbour, count=10 * TRIPS, seconds=SECONDS)
    running.cancel()
    said = kernel.traffic.log.end.offset
    used = await manager.usage.usage(kernel)
    reason = kernel.state.reason.partition("\n")[0]
    await manager.shutdown_kernel(kernel.id)
    took = (
        f"{(used.memory or 0) / 2**20:.0f} MiB, {used.processes} processes, {used.open_files} files"
    )
    print(f"  the wild kernel took {took}, said {said / 2**20:.0f} MiB. {reason}", flush=True)
    return taken


def _row(what: str, trips: Iterable[float], before: float) -> float:
    ordered = sorted(trips)
    median, late = statistics.median(ordered), ordered[int(0.95 * (len(ordered) - 1))]
    ratio = median / before if before else 1.0
    print(f"{what:18} {median:8.2f} {late:8.2f} {ratio:8.2f} {len(ordered):6}", flush=True)
    return ratio


async def _run(directory: Path) -> int:
    settings = Settings(
        _cli_parse_args=False,
        state_dir=directory / "state",
        root_dir=directory,
        on_shutdown="stop",
        fork_kernels=["none"],
        kernel_info_timeout=START_SECONDS,
        restart_limit=0,
    )
    manager = multi_kernel_manager(settings, Events(), Counters())
    manager._services.process_limits = lambda owned: ProcessLimits(
        owner_key(owned.owner),
        **LIMITS,  # type: ignore[arg-type]
    )
    worst = 1.0
    try:
        neighbour = await _start(manager, "neighbour")
        await _trips(neighbour, count=20, seconds=SECONDS)
        print(f"{'ms':18} {'median':>8} {'95 %':>8} {'ratio':>8} {'trips':>6}")
        alone = await _trips(neighbour, count=TRIPS, seconds=3 * SECONDS)
        before = statistics.median(alone)
        _row("alone", alone, before)
        for what, code in WILD.items():
            worst = max(worst, _row(what, await _wild(manager, neighbour, code), before))
        _row("alone again", await _trips(neighbour, count=TRIPS, seconds=3 * SECONDS), before)
    finally:
        await manager.close()
    print(f"at worst {worst:.2f} times, at most {AT_MOST:g} are meant")
    return int(worst > AT_MOST)


def main() -> int:
    """Print the table; 1 if a neighbour suffers more than it is meant to."""
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "state").mkdir(mode=0o700)
        return asyncio.run(_run(Path(directory)))


if __name__ == "__main__":
    sys.exit(main())
