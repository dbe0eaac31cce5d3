"""The drill of replicas: one of three is lost, or all lose the registry, while kernels count.

nginx stands in front. Readers come back through it and must miss nothing; each execution must run
once, those that clients ask for again meanwhile, too; the registry's history must have one owner at
a time for each kernel; and kernels of a replica that is lost are another's within seconds.

``python -m tests.support.replica_drill [TIMES]`` repeats it; `scripts/replica-drill` is that.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, Self

import psycopg

from tests.support.processes import eventually
from tests.support.replica_ground import (
    ACTIONS,
    FINISH_SECONDS,
    NAMES,
    Ground,
    Lost,
    make_ground,
)
from tests.support.replica_history import check_history, read_history
from tests.support.replica_readers import READERS, Reader, again
from tests.support.rest import RestClient

__all__ = ["TAKEOVER_SECONDS", "Drill", "Sizes"]

TAKEOVER_SECONDS: Final = 5.0
"""Within so many seconds the kernels of a replica that is lost are to be another's."""

PAUSE: Final = 0.2
"""Seconds between two numbers that a kernel prints."""

ROUND_SECONDS: Final = 8.0
"""How much longer kernels count than something is away."""

ASK_SECONDS: Final = 0.3
"""Seconds between two executions that are asked for meanwhile."""

START_SECONDS: Final = 4.0
"""Within so many seconds since something was lost a kernel is started."""

PLACES_SECONDS: Final = 1.0
"""How long the place of a new client may take to be stored."""

COUNT: Final = """
import time
for number in range({count}):
    with open({file!r}, "a") as file:
        file.write(f"{{number}}\\n")
    print(number, flush=True)
    time.sleep({pause})
"""
_CLAIMS: Final = """
SELECT attempt, made, replica FROM kernelkeep.idempotency
WHERE attempt = ANY(%s) OR made = ANY(%s)
"""

MARK: Final = "with open({file!r}, 'a') as file: file.write('{mark}\\n')"

PYTHON: Final = {"name": "python3"}

Json = dict[str, Any]


@dataclass(frozen=True)
class Sizes:
    """How much there is of everything."""

    kernels: int = 30
    websockets: int = 6
    streams: int = 4
    queued: int = 3
    """Executions that wait behind the counting of each kernel."""

    @property
    def readers(self) -> int:
        """How many clients read."""
        return self.websockets + self.streams


DEFAULT: Final = Sizes()


@dataclass
class Counting:
    """One kernel in one round: what it was asked for, and the file where it says what it did."""

    kernel_id: str
    file: Path
    count: int
    executions: list[str] = field(default_factory=list)
    marks: list[str] = field(default_factory=list)

    def code(self) -> str:
        """The code that counts."""
        return COUNT.format(count=self.count, file=str(self.file), pause=PAUSE)

    def new_mark(self) -> str:
        """The code of one more execution, which leaves a mark."""
        self.marks.append(f"mark {len(self.marks)}")
        return MARK.format(file=str(self.file), mark=self.marks[-1])

    def check(self) -> None:
        """Everything was done once, in order."""
        expected = [*map(str, range(self.count)), *self.marks]
        found = self.file.read_text().splitlines()
        assert found == expected, (self, found)


class Drill:
    """Rounds on a ground, with the same kernels; a context manager."""

    def __init__(self, ground: Ground, sizes: Sizes = DEFAULT) -> None:
        self._ground = ground
        self._sizes = sizes
        self._rest = RestClient(ground.balancer.url, ground.replicas.token)
        self._ids: list[str] = []
        self._rounds = 0

    async def __aenter__(self) -> Self:
        await self._rest.__aenter__()
        replicas = self._ground.replicas
        for number in range(self._sizes.kernels):  # as many on each replica
            url = replicas.servers[NAMES[number % len(NAMES)]].url
            async with RestClient(url, replicas.token) as rest:
                self._ids.append(await self._start(rest))
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            for kernel_id in self._ids:
                await again(lambda: self._rest.http.delete(f"/api/kernels/{kernel_id}"))  # noqa: B023
        await self._rest.__aexit__()

    async def round(self, action: str) -> Json:
        """One round. Raises `AssertionError` or `Missing`: something is missing, or came twice."""
        began = time.monotonic()
        self._rounds += 1
        count = int((ACTIONS[action].seconds / self._ground.shorter + ROUND_SECONDS) / PAUSE)
        taken = self._taken()
        async with asyncio.timeout(FINISH_SECONDS):
            readers = [await self._reader(number, count) for number in range(self._sizes.readers)]
            countings = [Counting(one, self._file(one), count) for one in self._ids]
            await asyncio.gather(*map(self._begin, countings))
        async with asyncio.timeout(FINISH_SECONDS), asyncio.TaskGroup() as tasks:
            for reader in readers:
                read = READERS[reader.kind]
                tasks.create_task(read(self._ground.balancer, self._ground.replicas.token, reader))
            started = tasks.create_task(self._start_meanwhile(readers))
            lost = await self._lose(action, readers, countings)
        for counting in countings:
            for path in counting.executions:
                await self._check_end(path)
            await self._check(counting)
        await self._ground.complete()
        await self._check_started(started.result())
        return {
            **{"action": action, **lost._asdict()},
            **{"taken": self._taken() - taken, "returns": sum(one.returns for one in readers)},
            **{"executions": sum(len(one.executions) for one in countings)},
            **{"seconds": round(time.monotonic() - began, 1), "load": round(os.getloadavg()[0], 1)},
        }

    def _file(self, kernel_id: str) -> Path:
        return self._ground.replicas.home.path / f"round-{self._rounds}-{kernel_id}"

    async def _reader(self, number: int, count: int) -> Reader:
        """A reader of what one of the kernels says from now on."""
        kind = "websocket" if number < self._sizes.websockets else "events"
        kernel_id = self._ids[number % len(self._ids)]
        answer = await self._rest.request("GET", f"/api/kernels/{kernel_id}/messages?limit=1")
        page = answer.json()
        return Reader(kind, kernel_id, count, page["last"], page["epoch"])

    async def _begin(self, counting: Counting) -> None:
        await self._ask(counting, counting.code())
        for _ in range(self._sizes.queued):
            await self._ask(counting, counting.new_mark())

    async def _ask(self, counting: Counting, code: str) -> None:
        """Ask for an execution, again and again, until there is an answer; it is to run once."""
        path = f"/api/kernels/{counting.kernel_id}/executions"
        headers = {"Idempotency-Key": os.urandom(8).hex()}
        ask = partial(self._rest.http.post, path, json={"code": code}, headers=headers)
        answer = await again(ask)
        assert answer.is_success, (counting.kernel_id, answer.status_code, answer.text)
        counting.executions.append(f"{path}/{answer.json()['id']}")

    async def _lose(
        self, action: str, readers: Sequence[Reader], countings: Sequence[Counting]
    ) -> Lost:
        """Lose something while everybody reads, and meanwhile ask for more executions."""
        await self._begun(readers)
        chance = self._ground.chance

        async def ask_for_more() -> None:
            while True:
                counting = chance.choice(countings)
                await asyncio.shield(tasks.create_task(self._ask(counting, counting.new_mark())))
                await asyncio.sleep(ASK_SECONDS)

        async with asyncio.TaskGroup() as tasks:
            asks = tasks.create_task(ask_for_more())
            lost = await ACTIONS[action].lose(self._ground)
            asks.cancel()
        return lost

    async def _begun(self, readers: Sequence[Reader]) -> None:
        """Return when everybody reads, and a moment later."""
        await eventually(lambda: all(reader.next for reader in readers), FINISH_SECONDS)
        await asyncio.sleep(PLACES_SECONDS + self._ground.chance.uniform(0, 1))

    async def _start_meanwhile(self, readers: Sequence[Reader]) -> str:
        """Start a kernel, again and again until there is an answer; it is to be started once."""
        await self._begun(readers)
        await asyncio.sleep(self._ground.chance.uniform(0, START_SECONDS))
        return await self._start(self._rest)

    async def _start(self, rest: RestClient) -> str:
        headers = {"Idempotency-Key": os.urandom(8).hex()}
        ask = partial(rest.http.post, "/api/kernels", json=PYTHON, headers=headers)
        answer = await again(ask)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    async def _check(self, counting: Counting) -> None:
        """As `Counting.check`; what fails is told with what is known of the kernel's executions."""
        try:
            counting.check()
        except AssertionError as error:
            path = f"/api/kernels/{counting.kernel_id}/executions"
            listed = (await again(partial(self._rest.http.get, path))).json()
            ids = [one["id"] for one in listed]
            with psycopg.connect(self._ground.replicas.url, autocommit=True) as registry:
                claims = registry.execute(_CLAIMS, (ids, ids)).fetchall()
            error.add_note(f"its executions: {listed}\nclaims by which they were made: {claims}")
            raise

    async def _check_started(self, kernel_id: str) -> None:
        """The kernel that was started runs code, and there is no other one."""
        counting = Counting(kernel_id, self._file(kernel_id), 0)
        await self._ask(counting, counting.new_mark())
        await self._check_end(counting.executions[0])
        await self._check(counting)
        rows = self._ground.replicas.query("SELECT id FROM kernelkeep.kernel")
        assert {one for (one,) in rows} == {*self._ids, kernel_id}
        await again(partial(self._rest.http.delete, f"/api/kernels/{kernel_id}"))

    async def _check_end(self, path: str) -> None:
        async with asyncio.timeout(FINISH_SECONDS):
            while True:
                found = (await again(partial(self._rest.http.get, path, params={"wait": 5}))).json()
                assert "state" in found, (path, found)
                if found["ended"]:
                    break
        assert found["state"] == "ok", found

    def _taken(self) -> int:
        """How often a kernel was taken so far; the whole history is right."""
        with psycopg.connect(self._ground.replicas.url, autocommit=True) as connection:
            return check_history(read_history(connection))


async def _main(actions: Sequence[str], sizes: Sizes, seed: int, bound: float) -> int:
    chance = random.Random(seed)
    schedule = [*actions]
    chance.shuffle(schedule)
    late = []
    _tell(f"seed {seed}: {len(schedule)} rounds, {sizes}")
    with tempfile.TemporaryDirectory() as place, make_ground(Path(place), chance) as ground:
        async with Drill(ground, sizes) as drill:
            for number, action in enumerate(schedule, 1):
                try:
                    told = await drill.round(action)
                except BaseException:
                    _tell(f"seed {seed}, round {number}: {action} has failed")
                    raise
                _tell(f"{number}: {told}")
                if (told["answers"] or 0.0) > bound:
                    late.append(number)
    if late:
        _tell(f"seed {seed}: kernels were another's only after more than {bound} s in {late}")
    return len(late)


def _tell(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("times", type=int, nargs="?", default=1, help="rounds of each way")
    parser.add_argument("--action", choices=[*ACTIONS], action="append", help="by default all")
    parser.add_argument("--kernels", type=int, default=DEFAULT.kernels)
    parser.add_argument("--seed", type=int, default=None, help="of what is left to chance")
    parser.add_argument("--takeover", type=float, default=TAKEOVER_SECONDS, help="bound in seconds")
    options = parser.parse_args()
    actions = options.times * (options.action or [*ACTIONS])
    seed = random.randrange(10**6) if options.seed is None else options.seed
    sizes = Sizes(kernels=options.kernels)
    sys.exit(min(asyncio.run(_main(actions, sizes, seed, options.takeover)), 1))


if __name__ == "__main__":
    main()
