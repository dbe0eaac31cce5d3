"""The drill of replicas: one of three is lost, or all lose the registry, while kernels count.

nginx stands in front. Readers come back through it and must miss nothing; each execution must run
once; and the registry's history must have one owner for each kernel and term.

``python -m tests.support.replica_drill [TIMES]`` repeats it; `scripts/replica-drill` is that.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from tests.support.channels import JupyterChannels
from tests.support.executions import stream
from tests.support.postgresql import PostgreSQL
from tests.support.programs import Program
from tests.support.proxies import DEPLOY, Certificate, nginx_arguments, program
from tests.support.replicas import LEASE_SECONDS, Replicas
from tests.support.rest import RestClient

__all__ = ["ACTIONS", "Balancer", "drill"]

NAMES: Final = ("one", "two", "three")
FINISH_SECONDS: Final = 240.0
"""How long a round may take, on a machine that has much to do."""

STOPPED_SECONDS: Final = 3 * LEASE_SECONDS
AWAY_SECONDS: Final = 2 * LEASE_SECONDS

PROXY_SECONDS: Final = 6
"""After so many seconds of silence nginx gives a replica up, and asks another."""

OPTIONS: Final = ("--stream-keepalive", "2", "--websocket-ping-interval", "2", "--no-limit-rate")

LEFT: Final = (ConnectionClosed, InvalidHandshake, OSError, TimeoutError)

COUNT: Final = """
import time
for number in range({count}):
    with open({file!r}, "a") as file:
        file.write(f"{{number}}\\n")
    print(number, flush=True)
    time.sleep({pause})
"""
MARK: Final = "open({file!r}, 'a').write('{mark}\\n')"

Json = dict[str, Any]


class Balancer(Program):
    """nginx around deploy/replicas/nginx.conf.template, without TLS.

    It gives up a replica that says nothing for ``silence`` seconds.
    """

    def __init__(
        self, directory: Path, ports: Sequence[int], *, silence: int = PROXY_SECONDS
    ) -> None:
        super().__init__(directory, directory / "output")
        self._ports = ports
        self._silence = silence
        self.port = free_port()
        self._certificate = Certificate(directory)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def ws_url(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    def command(self) -> Sequence[str]:
        template = (DEPLOY / "replicas/nginx.conf.template").read_text()
        one, two, three = (f"127.0.0.1:{port}" for port in self._ports)
        values = {
            **{"LISTEN": f"127.0.0.1:{self.port}", "TIMEOUT": f"{self._silence}s"},
            **{
                "ONE": one,
                "TWO": two,
                "THREE": three,
                "ACCESS_LOG": str(self._directory / "access"),
            },
            "CERTIFICATE": str(self._certificate.certificate),
            "CERTIFICATE_KEY": str(self._certificate.key),
        }
        return [
            program("nginx", "nginx-light"),
            *nginx_arguments(self._directory, template, values),
        ]

    def environment(self) -> Mapping[str, str]:
        return {"PATH": os.environ["PATH"], "HOME": str(self._directory)}

    def urls(self) -> Sequence[str]:
        return [f"{self.url}/api"]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@dataclass
class Ground:
    """Everything that a round plays on."""

    replicas: Replicas
    postgresql: PostgreSQL
    balancer: Balancer
    ports: dict[str, int]

    def start(self, name: str) -> None:
        self.replicas.start(name, port=self.ports[name])


@dataclass
class Reader:
    """What one reader has got of a kernel's counting."""

    kind: str
    numbers: list[int] = field(default_factory=list)
    returns: int = 0

    def take(self, text: str) -> None:
        self.numbers += map(int, text.split())

    def check(self, count: int) -> None:
        """Everything has come, in order; over a WebSocket the last piece may come again."""
        assert sorted({*self.numbers}) == [*range(count)], (self.kind, self.returns, self.numbers)
        if self.kind == "events":
            assert self.numbers == [*range(count)], (self.kind, self.numbers)


# What happens


async def kill(ground: Ground) -> str:
    name = random.choice(NAMES)
    await asyncio.to_thread(ground.replicas.end, name, signal.SIGKILL)
    await asyncio.sleep(LEASE_SECONDS)
    await asyncio.to_thread(ground.start, name)
    return name


async def terminate(ground: Ground) -> str:
    name = random.choice(NAMES)
    await asyncio.to_thread(ground.replicas.end, name, signal.SIGTERM)
    await asyncio.to_thread(ground.start, name)
    return name


async def pause(ground: Ground) -> str:
    name = random.choice(NAMES)
    ground.replicas.send(name, signal.SIGSTOP)
    await asyncio.sleep(STOPPED_SECONDS)
    ground.replicas.send(name, signal.SIGCONT)
    return name


async def store_restarts(ground: Ground) -> str:
    await asyncio.to_thread(ground.postgresql.stop, "fast")
    await asyncio.to_thread(ground.postgresql.start)
    return "the registry"


async def store_dies(ground: Ground) -> str:
    await asyncio.to_thread(ground.postgresql.stop, "immediate")
    await asyncio.sleep(AWAY_SECONDS)
    await asyncio.to_thread(ground.postgresql.start)
    return "the registry"


async def store_hangs(ground: Ground) -> str:
    ground.postgresql.pause()
    await asyncio.sleep(AWAY_SECONDS)
    ground.postgresql.resume()
    return "the registry"


ACTIONS: Final[dict[str, Callable[[Ground], Awaitable[str]]]] = {
    "kill": kill,
    "sigterm": terminate,
    "sigstop": pause,
    "store-restart": store_restarts,
    "store-kill": store_dies,
    "store-hang": store_hangs,
}


# A round


async def again(ask: Callable[[], Awaitable[httpx.Response]]) -> httpx.Response:
    """The answer to a request that does no harm twice, once there is one."""
    while True:
        try:
            answer = await ask()
            if answer.status_code < 500:
                return answer
        except httpx.HTTPError:
            pass
        await asyncio.sleep(0.1)


async def read_websocket(ground: Ground, kernel_id: str, reader: Reader, count: int) -> None:
    session = os.urandom(8).hex()
    is_known = False  # a session that was never accepted has no place to come back to
    while len({*reader.numbers}) < count:
        try:
            async with await JupyterChannels.connect(
                ground.balancer.ws_url,
                kernel_id,
                ground.replicas.token,
                session_id=session,
                query={} if is_known else {"after": "0"},
                log_length=1,
            ) as channels:
                is_known = True
                while len({*reader.numbers}) < count:
                    message = await channels.recv(PROXY_SECONDS)
                    if message.msg_type == "stream":
                        reader.take(message.content["text"])
        except LEFT:
            reader.returns += 1
            await asyncio.sleep(0.1)


async def read_events(ground: Ground, kernel_id: str, reader: Reader, count: int) -> None:
    after, epoch = 0, ""
    path = f"/api/kernels/{kernel_id}/messages"
    async with RestClient(ground.balancer.url, ground.replicas.token) as rest:
        while len(reader.numbers) < count:
            try:
                if not epoch:
                    page = await rest.http.get(f"{path}?limit=1")
                    epoch = page.raise_for_status().json()["epoch"]
                query = {"after": after, "epoch": epoch}
                async for event in stream(rest, path, "text/event-stream", params=query):
                    assert event["type"] != "gap", event
                    if event["type"] == "message":
                        after = event["seq"]
                        if event["header"]["msg_type"] == "stream":
                            reader.take(event["content"]["text"])
                    if len(reader.numbers) >= count:
                        break
            except (httpx.HTTPError, OSError, AssertionError):
                pass
            reader.returns += 1
            await asyncio.sleep(0.1)


async def drill(
    ground: Ground, action: str, *, kernels: int = 3, count: int = 100, queued: int = 3
) -> Json:
    """One round. Raises `AssertionError` if anything is missing, or was done twice."""
    began = time.monotonic()
    async with RestClient(ground.balancer.url, ground.replicas.token) as rest:
        ids = [(await rest.start_kernel("python3"))["id"] for _ in range(kernels)]
        directory = ground.replicas.home.path
        files = [directory / f"counts-{kernel_id}" for kernel_id in ids]
        asked = []
        for kernel_id, file in zip(ids, files, strict=True):
            path = f"/api/kernels/{kernel_id}/executions"
            codes = [COUNT.format(count=count, file=str(file), pause=0.1)]
            codes += [MARK.format(file=str(file), mark=f"mark {n}") for n in range(queued)]
            for code in codes:
                answer = await rest.request("POST", path, 202, json={"code": code})
                asked.append(f"{path}/{answer.json()['id']}")
        reads: list[tuple[Callable[..., Coroutine[Any, Any, None]], Reader]] = []
        for number in range(2 * kernels):
            reads.append((read_websocket, Reader("websocket")))
            if number % 2:
                reads.append((read_events, Reader("events")))
        async with asyncio.timeout(FINISH_SECONDS), asyncio.TaskGroup() as tasks:
            for number, (read, reader) in enumerate(reads):
                tasks.create_task(read(ground, ids[number % kernels], reader, count))
            await asyncio.sleep(random.uniform(0.5, 2.0))
            whose = await ACTIONS[action](ground)
        for path in asked:
            await _check_end(rest, path)
        for _, reader in reads:
            reader.check(count)
        for file in files:
            expected = [*map(str, range(count)), *(f"mark {n}" for n in range(queued))]
            assert file.read_text().splitlines() == expected, file
        owners = _check_history(ground, ids)
        for kernel_id in ids:
            await again(lambda: rest.http.delete(f"/api/kernels/{kernel_id}"))  # noqa: B023
    took = round(time.monotonic() - began, 1)
    returns = sum(reader.returns for _, reader in reads)
    return {"action": action, "to": whose, "owners": owners, "returns": returns, "seconds": took}


async def _check_end(rest: RestClient, path: str) -> None:
    async with asyncio.timeout(FINISH_SECONDS):
        while True:
            found = (await again(lambda: rest.http.get(path, params={"wait": 5}))).json()
            assert "state" in found, found
            if found["ended"]:
                break
    assert found["state"] == "ok", found


def _check_history(ground: Ground, ids: Sequence[str]) -> int:
    """Each kernel has had one owner in each term, one term after the other; how many owners."""
    rows = ground.replicas.query(
        "SELECT kernel_id, term, replica, began FROM kernelkeep.tenure "
        "WHERE kernel_id = ANY(%s) ORDER BY kernel_id, term",
        [*ids],
    )
    for kernel_id in ids:
        own = [row for row in rows if row[0] == kernel_id]
        terms = [row[1] for row in own]
        assert terms == [*range(terms[0], terms[0] + len(terms))], own
        assert [row[3] for row in own] == sorted(row[3] for row in own), own
    return len(rows)


async def _main(times: int, actions: Sequence[str], kernels: int, count: int) -> None:
    with tempfile.TemporaryDirectory() as place, PostgreSQL() as postgresql:
        ports = {name: free_port() for name in NAMES}
        with Replicas(postgresql.new_database(), *OPTIONS) as replicas:
            for name in NAMES:
                replicas.start(name, port=ports[name])
            with Balancer(Path(place), [*ports.values()]) as balancer:
                ground = Ground(replicas, postgresql, balancer, ports)
                for number in range(times):
                    action = actions[number % len(actions)]
                    told = await drill(ground, action, kernels=kernels, count=count)
                    sys.stdout.write(f"{number + 1}: {told}\n")
                    sys.stdout.flush()


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("times", type=int, nargs="?", default=len(ACTIONS))
    parser.add_argument("--action", choices=[*ACTIONS], action="append")
    parser.add_argument("--kernels", type=int, default=3)
    parser.add_argument("--count", type=int, default=100)
    options = parser.parse_args()
    actions = options.action or [*ACTIONS]
    asyncio.run(_main(options.times, actions, options.kernels, options.count))


if __name__ == "__main__":
    main()
