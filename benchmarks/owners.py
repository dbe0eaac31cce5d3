"""``python -m benchmarks.owners [OWNERS]``: what a request costs beside a thousand other owners.

Two services run in this process. One has one owner, with two kernels and the only token. The other
has ten tokens for each of 1,000 owners, of whom one has two kernels at first, and the others later.
The same requests are made of both by turns: `GET /api/kernels`, a start until the kernel answers,
an execution by REST. Both services share a thread: what they do by themselves meanwhile is in the
figures of both. Two services differ by some 30 µs an execution and 200 a start although both have
one owner, in each run otherwise. So both are compared before the others come, and afterwards: what
others cost a request is by how much the difference has grown.

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
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final

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

REPEATS: Final = {"GET /api/kernels": (10, 300), "an execution": (1, 500), "a start": (1, 500)}
"""How often each request is made in a round, and how many rounds there are."""


class Owner:
    """An owner of kernels of one service; ``spec`` is their kernelspec."""

    def __init__(self, app: Application, token: str, spec: str) -> None:
        self._app = app
        self._token = token
        self._spec = spec
        self._manager: MultiKernelManager = app.state["kernels"]
        self.kernels: list[str] = []

    async def start(self) -> str:
        """Start a kernel; returns when it answers."""
        body = {"name": self._spec}
        model = await self._app.request(self._token, "POST", "/api/kernels", body)
        kernel = self._manager.get(model["id"])
        while kernel.state.coming_up:  # each change of state wakes the readers of the log
            await kernel.traffic.log.wait()
        assert kernel.state.running, kernel.state.reason
        self.kernels.append(kernel.id)
        return kernel.id

    async def end_extra(self) -> None:
        """Shut down the kernels beyond those that an owner has."""
        for kernel_id in self.kernels[KERNELS:]:
            await self._app.request(self._token, "DELETE", f"/api/kernels/{kernel_id}")
        del self.kernels[KERNELS:]

    async def list(self) -> None:
        """List the kernels."""
        assert len(await self._app.request(self._token, "GET", "/api/kernels")) == KERNELS

    async def execute(self) -> None:
        """Run an empty cell; returns when it has ended."""
        path = f"/api/kernels/{self.kernels[0]}/executions"
        ended = await self._app.request(self._token, "POST", path, {"code": ""}, query="wait=30")
        assert ended["state"] == "ok", ended


@asynccontextmanager
async def _service(
    tokens: int, owners: int, specs: Sequence[str]
) -> AsyncIterator[tuple[Owner, Callable[[], Awaitable[None]]]]:
    """A service with kernels of one owner, and what has the others have theirs."""
    with tempfile.TemporaryDirectory() as directory:
        state_dir = Path(directory)
        shown = fill(state_dir, tokens)
        async with application(state_dir, fork_kernels=["none"]) as app:
            found = [
                Owner(app, token, specs[number * len(specs) // owners])
                for number, token in enumerate(shown[:owners])
            ]
            turn = asyncio.Semaphore(STARTING)

            async def settle(owner: Owner) -> None:
                async with turn:
                    for _ in range(KERNELS):
                        await owner.start()

            async def settle_others() -> None:
                began = time.perf_counter()
                await asyncio.gather(*(settle(owner) for owner in found if owner is not one))
                seconds = time.perf_counter() - began
                print(f"kernels of {owners - 1:,} other owners: there in {seconds:.0f} s")

            one = found[owners // 2]
            await settle(one)
            yield one, settle_others


async def main(owners: int = 1000) -> bool:
    """Measure; False if a request is known to cost more than `MOST_US` microseconds more."""
    extra = REPEATS["a start"][0]
    with (
        crowds(KERNELS * (owners + 1) + 2 * extra) as specs,
        tempfile.TemporaryDirectory() as jupyter,
    ):
        write_kernelspecs(Path(jupyter), specs)
        os.environ["JUPYTER_PATH"] = jupyter
        names = [*specs]
        async with (
            _service(1, 1, [names[len(names) // 2]]) as (alone, _),
            _service(owners * TOKENS_OF_AN_OWNER, owners, names) as (among, settle_others),
        ):
            compared = {"one owner": alone, f"one of {owners:,}": among}
            before = await _measure(compared)
            await settle_others()
            after = await _measure(compared)
    outcomes = []
    for what, (more, error) in after.items():
        grown, error = more - before[what][0], math.hypot(error, before[what][1])
        outcomes.append(_outcome(grown, error))
        known = f"{grown:+.1f} µs, give or take {error:.1f}"
        print(f"{what}, beside others: {known}; at most {MOST_US:.0f}: {outcomes[-1]}")
    return "NOT MET" not in outcomes


def _outcome(more: float, error: float) -> str:
    if more + error <= MOST_US:
        return "met"
    return "NOT MET" if more - error > MOST_US else "not known so well"


async def _measure(owners: dict[str, Owner]) -> dict[str, tuple[float, float]]:
    """By how many microseconds the second owner's requests take longer, and half the interval."""

    async def tidy() -> None:
        for owner in owners.values():
            await owner.end_extra()

    longer = {}
    asked = {"GET /api/kernels": Owner.list, "an execution": Owner.execute, "a start": Owner.start}
    for what, request in asked.items():
        kinds = {name: partial(request, owner) for name, owner in owners.items()}
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
