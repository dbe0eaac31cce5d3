"""What a drill of replicas plays on, and what happens there: one replica is lost, or the registry.

Three replicas of a host, nginx in front, and PostgreSQL at the far end of cables: one of each
replica's, and one that is never pulled, by which the drill looks at the registry.
"""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import psycopg

from tests.support.balancer import Balancer, free_port
from tests.support.networks import Network
from tests.support.postgresql import PostgreSQL
from tests.support.processes import eventually
from tests.support.replica_history import note_history
from tests.support.replica_readers import again
from tests.support.replicas import LEASE_SECONDS, Replicas
from tests.support.rest import RestClient

__all__ = [
    "ACTIONS",
    "FINISH_SECONDS",
    "NAMES",
    "Action",
    "Ground",
    "Lost",
    "OwnSeconds",
    "make_ground",
]

NAMES: Final = ("one", "two", "three")

FINISH_SECONDS: Final = 240.0
"""How long anything may take, on a machine that has much to do."""

STOPPED_SECONDS: Final = 30.0
CUT_SECONDS: Final = 20.0
AWAY_SECONDS: Final = 2 * LEASE_SECONDS

LOOK_SECONDS: Final = 0.05

OPTIONS: Final = ("--stream-keepalive", "2", "--websocket-ping-interval", "2", "--no-limit-rate")

DRILLS_CABLE: Final = len(NAMES)


class Lost(NamedTuple):
    """What was lost, and how many seconds it took until others had all of its kernels.

    ``takeover`` is by the registry, ``answers`` when the others have answered for each. ``own`` is
    the latter, without what this machine was late (`OwnSeconds`).
    """

    what: str
    takeover: float | None = None
    answers: float | None = None
    own: float | None = None


class OwnSeconds:
    """Counts seconds from when it is made, in a running event loop, until it is told to `end`.

    What this process waits for its turn, beyond a pause that it has asked for, does not count: a
    machine that has more to do than it can is late with everything.
    """

    def __init__(self) -> None:
        self._seconds = 0.0
        self._task = asyncio.get_running_loop().create_task(self._count())

    async def _count(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            self._seconds += LOOK_SECONDS

    def end(self) -> float:
        """Count no further; returns the seconds, and those of the pause that is under way."""
        self._task.cancel()
        return round(self._seconds + LOOK_SECONDS, 2)


@dataclass
class Ground:
    """Everything that a round plays on. ``shorter`` divides how long something is away."""

    replicas: Replicas
    postgresql: PostgreSQL
    network: Network
    balancer: Balancer
    ports: dict[str, int]
    urls: dict[str, str]
    chance: random.Random
    shorter: float = 1.0

    def start(self, name: str) -> None:
        """Start a replica."""
        self.replicas.start(name, port=self.ports[name], url=self.urls[name])

    async def away(self, seconds: float) -> None:
        """Something is away for so long."""
        await asyncio.sleep(seconds / self.shorter)

    def members(self) -> list[str]:
        """The names of the replicas whose leases are good."""
        rows = self.replicas.query(
            "SELECT name FROM kernelkeep.replica WHERE expires > clock_timestamp()"
        )
        return [name for (name,) in rows]

    async def complete(self) -> None:
        """Return when all replicas are members."""

        async def are_there() -> bool:
            return sorted(await asyncio.to_thread(self.members)) == sorted(NAMES)

        await eventually(are_there, FINISH_SECONDS)


@contextmanager
def make_ground(place: Path, chance: random.Random, shorter: float = 1.0) -> Iterator[Ground]:
    """A ground with three replicas, whose balancer has its files in ``place``."""
    network = Network("kkr", cables=len(NAMES) + 1)
    ports = {name: free_port() for name in NAMES}
    try:
        network.make()
        with PostgreSQL(network) as postgresql:
            database = postgresql.new_database(DRILLS_CABLE)
            urls = {
                name: postgresql.url(database.rpartition("/")[2], cable=cable)
                for cable, name in enumerate(NAMES)
            }
            with Replicas(database, *OPTIONS) as replicas:
                balancer = Balancer(place, [*ports.values()])
                ground = Ground(
                    *(replicas, postgresql, network, balancer, ports, urls, chance, shorter)
                )
                for name in NAMES:
                    ground.start(name)
                with psycopg.connect(database, autocommit=True) as connection:
                    note_history(connection)
                with balancer:
                    yield ground
    finally:
        network.remove()


# What happens


def _pick(ground: Ground) -> tuple[str, Callable[[], Awaitable[tuple[float, float, float]]]]:
    """A replica that has kernels, and what waits until others have them and answer for them.

    That tells how many seconds both took since this call, as `Lost` has them.
    """
    rows = ground.replicas.query(
        "SELECT replica.name, replica.id, array_agg(kernel.id) FROM kernelkeep.kernel "
        "JOIN kernelkeep.replica AS replica ON replica.id = kernel.replica GROUP BY 1, 2 ORDER BY 1"
    )
    name, replica_id, kernels = ground.chance.choice(rows)
    began, own = time.monotonic(), OwnSeconds()

    async def takeover() -> tuple[float, float, float]:
        with psycopg.connect(ground.replicas.url, autocommit=True) as registry:

            def are_left() -> bool:
                return registry.execute(_LEFT, (kernels, replica_id)).fetchone() is not None

            async with asyncio.timeout(FINISH_SECONDS):
                # In a thread: a registry that does not answer is no lateness of this machine's.
                while await asyncio.to_thread(are_left):  # noqa: ASYNC110
                    await asyncio.sleep(LOOK_SECONDS)
        taken = time.monotonic()
        other = ground.chance.choice([one for one in NAMES if one != name])
        async with RestClient(ground.replicas.servers[other].url, ground.replicas.token) as rest:
            asked = (lambda one=one: rest.http.get(f"/api/kernels/{one}") for one in kernels)
            async with asyncio.timeout(FINISH_SECONDS):
                await asyncio.gather(*map(again, asked))
        return round(taken - began, 2), round(time.monotonic() - began, 2), own.end()

    return name, takeover


_LEFT: Final = (
    "SELECT 1 FROM kernelkeep.kernel "
    "WHERE id = ANY(%s) AND (replica IS NULL OR replica = %s) LIMIT 1"
)


async def _kill(ground: Ground) -> Lost:
    name, takeover = _pick(ground)
    await asyncio.to_thread(ground.replicas.end, name, signal.SIGKILL)

    async def come_back() -> None:
        await asyncio.sleep(ground.chance.uniform(0, 2 * LEASE_SECONDS))
        await asyncio.to_thread(ground.start, name)

    seconds, _ = await asyncio.gather(takeover(), come_back())
    return Lost(name, *seconds)


async def _terminate(ground: Ground) -> Lost:
    name, takeover = _pick(ground)
    ends = asyncio.to_thread(ground.replicas.end, name, signal.SIGTERM)
    seconds, _ = await asyncio.gather(takeover(), ends)
    await asyncio.to_thread(ground.start, name)
    return Lost(name, *seconds)


async def _pause(ground: Ground) -> Lost:
    name, takeover = _pick(ground)
    ground.replicas.send(name, signal.SIGSTOP)
    seconds, _ = await asyncio.gather(takeover(), ground.away(STOPPED_SECONDS))
    ground.replicas.send(name, signal.SIGCONT)
    return Lost(name, *seconds)


async def _cut_one(ground: Ground) -> Lost:
    name, takeover = _pick(ground)
    cable = NAMES.index(name)
    await asyncio.to_thread(ground.network.pull_cable, cable)
    seconds, _ = await asyncio.gather(takeover(), ground.away(CUT_SECONDS))
    await asyncio.to_thread(ground.network.plug_cable, cable)
    return Lost(f"{name}'s cable", *seconds)


async def _cut_all(ground: Ground) -> Lost:
    cables = range(len(NAMES))
    await asyncio.to_thread(ground.network.pull_cable, *cables)
    await ground.away(CUT_SECONDS)
    await asyncio.to_thread(ground.network.plug_cable, *cables)
    return Lost("all cables")


async def _store_restarts(ground: Ground) -> Lost:
    await asyncio.to_thread(ground.postgresql.stop, "fast")
    await asyncio.to_thread(ground.postgresql.start)
    return Lost("the registry")


async def _store_dies(ground: Ground) -> Lost:
    await asyncio.to_thread(ground.postgresql.kill)
    await asyncio.sleep(ground.chance.uniform(0, AWAY_SECONDS))
    await asyncio.to_thread(ground.postgresql.start)
    return Lost("the registry")


async def _store_hangs(ground: Ground) -> Lost:
    ground.postgresql.pause()
    await asyncio.sleep(AWAY_SECONDS)
    ground.postgresql.resume()
    return Lost("the registry")


class Action(NamedTuple):
    """A way to lose something, and about how many seconds it takes."""

    lose: Callable[[Ground], Awaitable[Lost]]
    seconds: float


ACTIONS: Final = {
    "kill": Action(_kill, 10),
    "sigterm": Action(_terminate, 6),
    "sigstop": Action(_pause, STOPPED_SECONDS),
    "link": Action(_cut_all, CUT_SECONDS),
    "link-one": Action(_cut_one, CUT_SECONDS),
    "store-restart": Action(_store_restarts, 4),
    "store-kill": Action(_store_dies, AWAY_SECONDS),
    "store-hang": Action(_store_hangs, AWAY_SECONDS),
}
