"""The tables: what a kernel goes through, and the rows in which one call fails in one way."""

from __future__ import annotations

import asyncio
import contextlib
import os
import traceback
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx

from app.managers.executions.stopping import EARLY_SECONDS
from tests.support.bench import BOUND, Bench
from tests.support.executions import Executions
from tests.support.faults import Call, Way
from tests.support.processes import eventually

AT_ONCE = 12  # kernels that are prepared side by side

SETTLE_SECONDS = 15  # more than the keeper, or a provisioner that finds a kernel again, may take

USELESS = ("dead", "unknown")  # of a kernel that needs another process

ASKS = (
    *("hello", "kept", "launch", "adopt", "hear", "open", "stdin", "settle", "disconnect"),
    *("signal", "tail", "end", "drop"),
)
"""The verbs of the keeper that fail here; an operation need not come to all of them."""

# These are called again and again while something is waited for.
POLLED = ("poll", "kept", "stdin", "settle")


@dataclass(frozen=True)
class Row:
    """One call that fails in one way; ``key`` is the kernel's id, or its kernelspec's name."""

    key: str
    call: Call
    way: Way

    def __str__(self) -> str:
        return f"{self.call}: {self.way}"


class Operation:
    """What a kernel goes through. One that `prepare`s it, does `act`, and can do so `again`."""

    kernelspec = "{}"
    """Its name; the braces stand for that of the collaborator's kernels."""

    def __init__(self, bench: Bench, kernel_id: str) -> None:
        self.bench = bench
        self.kernel_id = kernel_id
        self.path = f"/api/kernels/{kernel_id}"

    @property
    def executions(self) -> Executions:
        return Executions(self.bench.rest, self.kernel_id)

    @property
    def name(self) -> str:
        return self.kernelspec.format(self.bench.faulty.spec)

    async def prepare(self) -> None:
        """Until here nothing fails."""
        await self.bench.started(self.kernel_id, self.name)

    async def act(self) -> None:
        """Here something does."""
        raise NotImplementedError

    async def again(self) -> None:
        """Nothing fails any more, so this works."""
        raise NotImplementedError

    async def ask(self, method: str, path: str = "", **more: Any) -> httpx.Response:
        return await self.bench.ask(method, f"{self.path}{path}", **more)

    async def works(self) -> None:
        """The kernel runs code."""
        await self.bench.rest.wait_for_state(self.kernel_id, "idle", timeout=BOUND)
        done = await self.executions.run("print again")
        assert done["state"] == "ok", done

    async def remove(self) -> None:
        """Nothing of the kernel is left."""
        response = await self.ask("DELETE")
        assert response.status_code in (204, 404), response.text
        await eventually(lambda: self.bench.is_gone(self.kernel_id), BOUND, 0.2)


class Start(Operation):
    async def prepare(self) -> None:
        pass

    async def act(self) -> None:
        body = {"name": self.name, "kernel_id": self.kernel_id}
        response = await self.bench.ask("POST", "/api/kernels", json=body)
        if response.status_code != 201:
            return
        await self.bench.rest.wait_for_state(self.kernel_id, "idle", *USELESS, timeout=BOUND)

    async def again(self) -> None:
        model = await self.bench.model(self.kernel_id)
        if model is not None and model["execution_state"] in USELESS:
            await self.remove()
        await self.bench.started(self.kernel_id, self.name)
        await self.works()


class Restart(Operation):
    async def act(self) -> None:
        response = await self.ask("POST", "/restart")
        if response.is_success:
            await self.bench.rest.wait_for_state(self.kernel_id, "idle", *USELESS, timeout=BOUND)

    async def again(self) -> None:
        response = await self.ask("POST", "/restart")
        assert response.status_code == 200, response.text
        await self.works()


class Interrupt(Operation):
    async def prepare(self) -> None:
        await super().prepare()
        self.execution = await self.executions.begin("sleep 600")
        await self.executions.until(self.execution, "started")

    async def act(self) -> None:
        await self.ask("POST", "/interrupt")

    async def again(self) -> None:
        response = await self.ask("POST", "/interrupt")
        assert response.status_code == 204, response.text
        ended = await self.executions.ended(self.execution)
        # Of a keeper that is killed just then nobody may have heard how it ended.
        assert ended["state"] in ("error", "lost"), ended
        await self.works()


class Stop(Operation):
    async def act(self) -> None:
        await self.ask("DELETE")

    async def again(self) -> None:
        response = await self.ask("DELETE")
        assert response.status_code in (204, 404), response.text


class Timeout(Operation):
    """An execution runs longer than it may, and the interrupt ends it."""

    async def act(self) -> None:
        self.execution = await self.executions.begin("sleep 600", timeout=0.5)
        await self.executions.get(self.execution, wait=10)

    async def again(self) -> None:
        await self.end_it()
        await self.works()

    async def end_it(self) -> None:
        """Whatever has become of the attempt, the next one ends it."""
        model = await self.bench.model(self.kernel_id)
        if model is not None and model["execution_state"] in USELESS:
            assert (await self.ask("POST", "/restart")).status_code == 200
        found = await self.executions.get(self.execution)
        if not found["ended"]:
            await self.executions.cancel(self.execution, kill_after=1)
        await self.executions.ended(self.execution)


class KillAfter(Timeout):
    """An execution that is cancelled heeds no interrupt, and its kernel is killed."""

    kernelspec = "{}-deaf"

    async def prepare(self) -> None:
        await super().prepare()
        self.execution = await self.executions.begin("sleep 600")
        await self.executions.until(self.execution, "started")
        await asyncio.sleep(EARLY_SECONDS + 0.1)  # after which one interrupt is all

    async def act(self) -> None:
        path = f"/executions/{self.execution}/cancel"
        await self.ask("POST", path, json={"kill_after": 0.5})
        await self.executions.get(self.execution, wait=10)
        await asyncio.sleep(0.2)  # the kernel's next process is launched by nobody's request


OPERATIONS: dict[str, type[Operation]] = {
    "start": Start,
    "restart": Restart,
    "interrupt": Interrupt,
    "stop": Stop,
    "timeout": Timeout,
    "kill-after": KillAfter,
}


class Table:
    """The rows of one operation, on one bench; what failed is gathered, with the row's name."""

    meet_seconds: float = 20
    """For a call that comes behind the answer."""

    def __init__(self, bench: Bench, kind: type[Operation]) -> None:
        self.bench = bench
        self.kind = kind
        self.failures: list[str] = []
        self.unmet: list[Row] = []
        self._room = asyncio.Semaphore(AT_ONCE)

    async def record(self) -> list[Call]:
        """What is called when nothing fails."""
        key = str(uuid4())
        operation = self.kind(self.bench, key)
        await operation.prepare()
        self.bench.faulty.record(key)
        await operation.act()
        calls = calls_of(self.bench.faulty.recorded(key))
        await self.bench.faulty.heal(key)
        await operation.again()
        await operation.remove()
        return calls

    async def walk(self, rows: Iterable[Row]) -> None:
        """Side by side those that do no harm to each other, then the others."""
        rows = list(rows)
        harmless = [row for row in rows if not self.is_deadly(row)]
        await asyncio.gather(*(self.try_one(row) for row in harmless))
        for row in rows:
            if self.is_deadly(row):
                await self.try_one(row)

    def is_deadly(self, row: Row) -> bool:
        """Whether other kernels have to do with what dies."""
        return row.way.deadly and self.bench.faulty.shared

    @contextlib.asynccontextmanager
    async def gathered(self, row: Row) -> AsyncIterator[None]:
        """A row that fails within does not keep the others from their turn."""
        try:
            yield
        except Exception:
            self.failures.append(f"{row}\n{traceback.format_exc(limit=-3)}")
            await self.bench.faulty.heal(row.key)

    async def try_one(self, row: Row) -> None:
        async with self.gathered(row):
            await self.one(row)

    async def meet(self, row: Row) -> None:
        """Wait for the call, which may come behind the answer."""
        try:
            await eventually(lambda: self.bench.faulty.met(row.key), self.meet_seconds)
        except AssertionError:
            self.unmet.append(row)

    async def one(self, row: Row) -> None:
        bench, faulty = self.bench, self.bench.faulty
        operation = self.kind(bench, row.key)
        async with self._room:
            await self.prepare(operation)
        faulty.order(row.key, row.call, row.way)
        await operation.act()
        await self.meet(row)
        with contextlib.suppress(
            AssertionError
        ):  # while what it needs hangs or is dead it may wait
            await eventually(lambda: bench.is_settled(row.key), SETTLE_SECONDS, 0.5)
        await eventually(lambda: bench.is_honest(row.key), BOUND, 0.2)
        await faulty.heal(row.key)
        await eventually(lambda: bench.is_true(row.key), BOUND, 0.2)
        async with self._room:
            await self.again(operation)
        await self.remove(operation)

    async def prepare(self, operation: Operation) -> None:
        """Until here nothing fails."""
        await operation.prepare()

    async def again(self, operation: Operation) -> None:
        """Nothing fails any more, so the next attempt works."""
        await operation.again()

    async def remove(self, operation: Operation) -> None:
        """Nothing of the kernel is left."""
        await operation.remove()


def calls_of(recorded: list[str]) -> list[Call]:
    """Each call, and the second of its name; of what is polled, the first."""
    calls = []
    for name in dict.fromkeys(recorded):
        calls.append(Call(name))
        if recorded.count(name) > 1 and name not in POLLED:
            calls.append(Call(name, 2))
    return calls


def rows_of(
    calls: Iterable[Call],
    full: bool,
    turn: int = 0,
    key: Callable[[], str] = lambda: str(uuid4()),
) -> list[Row]:
    """Each call in each way with ``full``, else in every other way.

    The next call, and the same one in a table whose ``turn`` is one more, fails in the ways that
    are left out. Only rows whose names hold ``FAULTS_ONLY`` are taken, if that is set.
    """
    only, ways = os.environ.get("FAULTS_ONLY", ""), [*Way]
    found = []
    for place, call in enumerate(calls, turn):
        for way in ways if full or only else ways[place % 2 :: 2]:
            row = Row(key(), call, way)
            if only in str(row):
                found.append(row)
    return found


Record = Callable[[str, object], None]


def tell(record_property: Record, what: str, calls: list[Call], rows: list[Row]) -> None:
    """For the last lines of the test run."""
    names = ", ".join(map(str, calls))
    record_property("figures", f"{what}: {len(calls)} awaits, {len(rows)} failures ({names})")


def verdict(*tables: Table) -> None:
    """Raise `AssertionError` for the rows that failed, and for those that did not come about."""
    if os.environ.get("FAULTS_OUTPUT"):
        Path(os.environ["FAULTS_OUTPUT"]).write_text(tables[0].bench.output)
    failures = [failure for table in tables for failure in table.failures]
    unmet = [str(row) for table in tables for row in table.unmet]
    text = "\n".join(failures)
    assert not failures, f"{len(failures)} rows failed:\n{text}"
    assert not unmet, f"never called: {', '.join(unmet)}"
