"""``python -m benchmarks.owners [OWNERS]``: what a request costs beside a thousand other owners.

Two services run in this process. One has ten tokens for each of 1,000 owners, the other has one
token and one owner. The same requests are made of both by turns: `GET /api/kernels`, a start until
the kernel answers, an execution by REST. Both services share a thread: what they do by themselves
meanwhile is in the figures of both. Two services differ by some 30 µs an execution and 200 a start
although both have one owner, in each run otherwise. So both are compared three times, and what
counts is by how much the difference has grown:

- each has the two kernels of one owner;
- then the 999 other owners have two kernels each;
- then the service with one owner has as many kernels as the other: what still differs is what
  owners and their tokens cost, and not what kernels do.

The kernels are a crowd (`benchmarks.crowd`), and those of the two owners that are compared are in
one process of it: how long a kernel takes to answer is part of a start.
"""

from __future__ import annotations

import asyncio
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final, TypeAlias

from app.managers.kernels.multikernel import MultiKernelManager
from benchmarks.in_process import (
    TOKENS_OF_AN_OWNER,
    Application,
    application,
    fill,
    show,
    take_turns,
)
from benchmarks.servers import write_kernelspecs
from benchmarks.thousands import crowds

KERNELS: Final = 2
"""How many kernels each owner has."""

MOST_US: Final = 50.0
"""How many microseconds the other owners may cost a request."""

STARTING: Final = 8
"""Kernels that are started side by side."""

LISTS: Final = "GET /api/kernels"
EXECUTIONS: Final = "an execution"
STARTS: Final = "a start"
REPEATS: Final = {LISTS: (10, 300), EXECUTIONS: (1, 500), STARTS: (1, 500)}
"""How often each request is made in a round, and how many rounds there are."""

Compared: TypeAlias = dict[str, tuple[float, float]]
"""For each request by how many microseconds it takes longer, and half the interval."""


class Owner:
    """An owner of kernels of one service; ``spec`` is their kernelspec."""

    def __init__(self, app: Application, token: str, spec: str) -> None:
        self._app = app
        self._token = token
        self.spec = spec
        self._manager: MultiKernelManager = app.state["kernels"]
        self.kernels: list[str] = []
        self._kept = 0

    async def start(self) -> None:
        """Start a kernel; returns when it answers."""
        await self._start(self.spec)

    async def _start(self, spec: str) -> None:
        body = {"name": spec}
        model = await self._app.request(self._token, "POST", "/api/kernels", body)
        kernel = self._manager.get(model["id"])
        while kernel.state.coming_up:  # each change of state wakes the readers of the log
            await kernel.traffic.log.wait()
        assert kernel.state.running, kernel.state.reason
        self.kernels.append(kernel.id)

    async def settle(self, specs: Sequence[str]) -> None:
        """Start a kernel of each kernelspec, which are kept."""
        for spec in specs:
            await self._start(spec)
        self._kept = len(self.kernels)

    async def end_extra(self) -> None:
        """Shut down the kernels that are not kept."""
        for kernel_id in self.kernels[self._kept :]:
            await self._app.request(self._token, "DELETE", f"/api/kernels/{kernel_id}")
        del self.kernels[self._kept :]

    async def list(self) -> None:
        """List the kernels."""
        assert len(await self._app.request(self._token, "GET", "/api/kernels")) == self._kept

    async def execute(self) -> None:
        """Run an empty cell; returns when it has ended."""
        path = f"/api/kernels/{self.kernels[0]}/executions"
        ended = await self._app.request(self._token, "POST", path, {"code": ""}, query="wait=30")
        assert ended["state"] == "ok", ended


@asynccontextmanager
async def _service(tokens: int, specs: Sequence[str]) -> AsyncIterator[list[Owner]]:
    """A service with an owner for each kernelspec, and as many tokens; one of them has kernels."""
    with tempfile.TemporaryDirectory() as directory:
        state_dir = Path(directory)
        shown = fill(state_dir, tokens)
        async with application(state_dir, fork_kernels=["none"]) as app:
            owners = [Owner(app, token, spec) for token, spec in zip(shown, specs, strict=False)]
            one = owners[len(owners) // 2]
            await one.settle([one.spec] * KERNELS)
            yield owners


async def _settle(settling: Iterable[tuple[Owner, Sequence[str]]]) -> None:
    """Start the kernels of others, some side by side."""
    turn = asyncio.Semaphore(STARTING)
    began = time.perf_counter()

    async def settle(owner: Owner, specs: Sequence[str]) -> int:
        async with turn:
            await owner.settle(specs)
        return len(specs)

    started = await asyncio.gather(*(settle(owner, specs) for owner, specs in settling))
    print(f"{sum(started):,} kernels more: there in {time.perf_counter() - began:.0f} s")


async def main(owners: int = 1000) -> bool:
    """Measure; False if a request is known to cost more than `MOST_US` microseconds more."""
    with (
        crowds(2 * KERNELS * (owners + 1) + 2 * REPEATS[STARTS][0]) as crowd,
        tempfile.TemporaryDirectory() as jupyter,
    ):
        write_kernelspecs(Path(jupyter), crowd)
        os.environ["JUPYTER_PATH"] = jupyter
        names = [*crowd]
        specs = [names[number * len(names) // owners] for number in range(owners)]
        async with (
            _service(1, [specs[owners // 2]]) as (alone,),
            _service(owners * TOKENS_OF_AN_OWNER, specs) as all_owners,
        ):
            among = all_owners.pop(owners // 2)
            compared = {"one owner": alone, f"one of {owners:,}": among}
            before = await _measure(compared, REPEATS)
            await _settle((owner, [owner.spec] * KERNELS) for owner in all_owners)
            beside = await _measure(compared, REPEATS)
            _judge("beside others' kernels", before, beside)
            await _settle((alone, [owner.spec] * KERNELS) for owner in all_owners)
            level = await _measure(compared, (EXECUTIONS, STARTS))
            outcomes = _judge("beside other owners", before, {LISTS: beside[LISTS], **level})
    return "NOT MET" not in outcomes


def _judge(beside: str, before: Compared, after: Compared) -> list[str]:
    """Print by how much each difference has grown; returns whether that is at most `MOST_US`."""
    outcomes = []
    for what, (more, error) in after.items():
        grown, error = more - before[what][0], math.hypot(error, before[what][1])
        outcomes.append(_outcome(grown, error))
        known = f"{grown:+.1f} µs, give or take {error:.1f}"
        print(f"{what}, {beside}: {known}; at most {MOST_US:.0f}: {outcomes[-1]}", flush=True)
    return outcomes


def _outcome(more: float, error: float) -> str:
    if more + error <= MOST_US:
        return "met"
    return "NOT MET" if more - error > MOST_US else "not known so well"


async def _measure(owners: dict[str, Owner], requests: Iterable[str]) -> Compared:
    """Compare the second owner's requests with the first one's."""

    async def tidy() -> None:
        for owner in owners.values():
            await owner.end_extra()

    longer = {}
    asked: dict[str, Callable[[Owner], Awaitable[None]]] = {
        LISTS: Owner.list,
        EXECUTIONS: Owner.execute,
        STARTS: Owner.start,
    }
    for what in requests:
        kinds = {name: partial(asked[what], owner) for name, owner in owners.items()}
        found = await take_turns(kinds, *REPEATS[what], tidy)
        for name, figures in found.items():
            show(f"{what}, {name}", figures)
        low, more, high = _more(*found.values())
        longer[what] = more, (high - low) / 2
        print(f"{what}: {more:+.1f} µs (95 %: {low:+.1f} to {high:+.1f})")
    return longer


def _more(alone: Sequence[float], among: Sequence[float]) -> tuple[float, float, float]:
    """The median of the rounds' differences, in its interval of 95 % (of the binomial's ranks)."""
    differences = sorted(high - low for low, high in zip(alone, among, strict=True))
    middle, reach = len(differences) // 2, math.ceil(0.98 * math.sqrt(len(differences)))
    low, high = max(0, middle - reach), min(len(differences) - 1, middle + reach)
    return differences[low], statistics.median(differences), differences[high]


if __name__ == "__main__":
    sys.exit(not asyncio.run(main(*map(int, sys.argv[1:2]))))
