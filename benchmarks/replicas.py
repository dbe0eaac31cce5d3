"""What replicas cost: a request and a WebSocket by another replica, long lists, and many to take.

``python -m benchmarks.replicas`` prints a table. It starts PostgreSQL (Debian's) and three servers.
One of them is of another host: it has a state directory of its own, and is reached by TLS.
"""

from __future__ import annotations

import asyncio
import operator
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from http.client import HTTPConnection
from urllib.parse import urlsplit

from app.managers.handover.store import KernelRecord
from app.managers.replicas.database import Connection, Database, migrate
from app.managers.replicas.membership import Replica, join, leave, mine, take
from app.managers.replicas.store import SharedStore
from app.managers.replicas.terms import Terms
from tests.support.channels import JupyterChannels
from tests.support.executions import Executions
from tests.support.postgresql import PostgreSQL
from tests.support.replicas import Replicas
from tests.support.rest import RestClient

REQUESTS = 500
WARMING_UP = 50
LINES = 20_000
READINGS = 7
LISTED = 5000
TAKEN = 2000


def main() -> None:
    """The command."""
    options = ("--no-limit-rate", "--replica-listen", "127.0.0.1:0")
    with PostgreSQL() as postgresql, Replicas(postgresql.new_database(), *options) as all_:
        all_.start("one")
        all_.start("two")
        all_.start("three", host="far")
        asyncio.run(_forwarding(all_))
        asyncio.run(_long_list(all_))
    with PostgreSQL() as postgresql:
        _taking(postgresql.new_database())


async def _forwarding(replicas: Replicas) -> None:
    names = {"its own replica": "one", "another": "two", "one of another host": "three"}
    servers = {what: replicas.servers[name] for what, name in names.items()}
    one = replicas.servers["one"]
    async with RestClient(one.url, replicas.token) as rest:
        kernel_id = (await rest.start_kernel("python3"))["id"]
        await rest.wait_for_state(kernel_id, "idle")
    path = f"/api/kernels/{kernel_id}"
    urls = {what: server.url for what, server in servers.items()}
    own, *others = _latencies(urls, replicas.token, path).items()
    print(f"a request by {own[0]}: {statistics.median(own[1]):.3f} ms")
    for what, took in others:
        more = statistics.median(map(operator.sub, took, own[1]))
        print(f"a request by {what}: {statistics.median(took):.3f} ms, {more:+.3f} for the way")
    async with RestClient(one.url, replicas.token) as rest:
        code = f"import sys\nfor i in range({LINES}):\n    print(i); sys.stdout.flush()"
        await Executions(rest, kernel_id).run(code)
    rates: dict[str, list[float]] = {what: [] for what in servers}
    for _ in range(READINGS):
        for what, server in servers.items():
            rates[what].append(await _rate(server.ws_url, replicas.token, kernel_id))
    first = statistics.median(rates["its own replica"])
    for what, found in rates.items():
        rate = statistics.median(found)
        less = "" if rate == first else f", {100 * (1 - rate / first):.0f} % less"
        print(f"a WebSocket by {what}: {rate:,.0f} messages a second{less}")
    async with RestClient(one.url, replicas.token) as rest:
        await rest.delete(kernel_id)


def _latencies(urls: Mapping[str, str], token: str, path: str) -> dict[str, list[float]]:
    """What many requests to each server took, in milliseconds.

    The servers are asked by turns, as the machine differs from one second to the next. The client
    is a plain one: httpx would take longer than the servers, on the same processors.
    """
    took: dict[str, list[float]] = {what: [] for what in urls}
    headers = {"Authorization": f"token {token}"}
    with ExitStack() as opened:
        clients = {
            what: opened.enter_context(closing(HTTPConnection(urlsplit(url).netloc, timeout=60)))
            for what, url in urls.items()
        }
        for number in range(REQUESTS + WARMING_UP):
            for what, client in clients.items():
                began = time.perf_counter()
                client.request("GET", path, headers=headers)
                answer = client.getresponse()
                answer.read()
                if answer.status != 200:
                    raise RuntimeError(f"GET {path}: {answer.status}")
                if number >= WARMING_UP:
                    took[what].append((time.perf_counter() - began) * 1000)
    return took


async def _rate(ws_url: str, token: str, kernel_id: str) -> float:
    """Messages a second of a log that is there already, which is read from its beginning."""
    connect = JupyterChannels.connect
    query = {"after": "0"}
    async with await connect(ws_url, kernel_id, token, framing="v1", query=query) as channels:
        began, count = time.perf_counter(), 0
        while count < LINES:
            await channels.websocket.recv()
            count += 1
        return count / (time.perf_counter() - began)


async def _long_list(replicas: Replicas) -> None:
    database = Database(replicas.url)
    _fill(database, LISTED)
    async with RestClient(replicas.servers["two"].url, replicas.token) as rest:
        while len(await rest.kernels()) < LISTED:  # noqa: ASYNC110 - another process's
            await asyncio.sleep(0.5)
        took = []
        for _ in range(20):
            began = time.perf_counter()
            await rest.request("GET", "/api/kernels")
            took.append(time.perf_counter() - began)
    print(f"GET /api/kernels with {LISTED} kernels: {statistics.median(took) * 1000:.1f} ms")
    database.run(lambda one: one.execute("DELETE FROM kernelkeep.kernel"))
    database.close()


def _fill(database: Database, count: int) -> None:
    """Kernels of a replica that is not there, on a host that nobody reaches."""
    replica = Replica("dead", "dead", "unix:nowhere:dead", "0", "")
    database.run(
        lambda one: one.execute(
            "INSERT INTO kernelkeep.replica (id, name, address, version, secret, expires) "
            "VALUES ('dead', 'dead', '', '', '', clock_timestamp() + interval '1 hour')"
        )
    )
    terms = Terms()
    store = SharedStore(database, replica.id, terms, lambda _: "elsewhere", print)
    for number in range(count):
        record = KernelRecord(
            id=f"00000000-0000-4000-8000-{number:012}",
            name="python3",
            spec={"argv": ["python"]},
            connection={"key": "k" * 36},
            connection_file="/state/runtime/kernel.json",
            provisioner={"pid": 1},
            argv=["python"],
            cwd="/",
            env={f"VARIABLE_{one}": "x" * 40 for one in range(20)},
            pid=1,
            start_time="",
            created=float(number),
            last_activity=1.0,
            generation=1,
            execution_state="idle",
            reason="",
            exclusive=True,
            external=False,
        )
        terms.begin(record.id)
        store.save(record)


def _taking(url: str) -> None:
    database = Database(url)
    migrate(database)
    _fill(database, TAKEN)
    replica = Replica("living", "living", "unix:benchmark:/none", "0", "")
    run: Callable[[Callable[[Connection], object]], object] = database.run
    run(lambda one: leave(one, "dead"))
    run(lambda one: join(one, replica, 60.0, replaces=[]))
    known: list[str] = []
    began = time.perf_counter()
    while len(known) < TAKEN:
        run(lambda one: take(one, "living", ["elsewhere"], 64))
        found, _ = database.run(lambda one: mine(one, "living", known))  # noqa: B023 - run at once
        known += [taken.record.id for taken in found]
    print(f"{TAKEN} kernels taken in the registry in {time.perf_counter() - began:.1f} s")
    database.close()


if __name__ == "__main__":
    main()
