"""The drill: servers that are killed while kernels print, and readers that must miss nothing.

``python -m tests.support.drill [TIMES] [--kernels N]`` repeats it; `scripts/drill` is that.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.support.channels import JupyterChannels
from tests.support.executions import Executions, stream
from tests.support.home import Home
from tests.support.kernelspecs import FAKE_SPECS, write_kernelspecs
from tests.support.processes import eventually, kill_all
from tests.support.rest import RestClient
from tests.support.server import ServerProcess

KEEP = ("--on-shutdown", "keep", "--no-limit-rate", "--keeper-ring-bytes", str(32 * 2**20))
FINISH_SECONDS = 120

Json = dict[str, Any]


class Servers:
    """One server after the other, with one home; readers ask where the present one is."""

    def __init__(self, home: Home, *arguments: str) -> None:
        self.home = home
        self.arguments = arguments or KEEP
        self.env: dict[str, str] = {}
        self.present: ServerProcess | None = None
        self.token = os.urandom(16).hex()

    def start(self) -> ServerProcess:
        """The next one."""
        server = ServerProcess(*self.arguments, home=self.home, token=self.token, env=self.env)
        self.present = server.start()
        return server

    def crash(self) -> None:
        """``kill -9``."""
        assert self.present is not None
        self.present.crash()
        self.present = None

    async def somewhere(self) -> ServerProcess:
        """The present one, when there is one."""
        await eventually(lambda: self.present is not None, FINISH_SECONDS)
        assert self.present is not None
        return self.present


@dataclass
class Reading:
    """What one reader has got: the counters in order, what it was told is gone, its end."""

    numbers: list[int] = field(default_factory=list)
    gaps: list[Any] = field(default_factory=list)
    begun_anew: int = 0

    def take(self, text: str) -> None:
        """The text of a stream message."""
        self.numbers += [int(line.split()[0]) for line in text.splitlines() if line[:1].isdigit()]

    def complete(self, count: int) -> bool:
        """Whether every counter came, in order; one that came again is no fault."""
        seen = dict.fromkeys(self.numbers)
        return list(seen) == list(range(1, count + 1)) and not self.gaps


async def read_websocket(
    servers: Servers, kernel_id: str, reading: Reading, count: int, *, numbered: bool
) -> None:
    """A client that comes back under its session; one that is ``numbered`` says from where."""
    session = os.urandom(8).hex()
    after, epoch = 0, ""
    while not reading.numbers or reading.numbers[-1] < count:
        server = await servers.somewhere()
        query = {"after": str(after), "epoch": epoch} if numbered and epoch else {}
        if numbered and not epoch:
            query = {"after": "0"}
        try:
            async with await JupyterChannels.connect(
                server.ws_url, kernel_id, server.token, session_id=session, query=query
            ) as channels:
                channels.log = channels.log.__class__(maxlen=10)
                while not reading.numbers or reading.numbers[-1] < count:
                    message = await channels.recv(FINISH_SECONDS)
                    own = message.metadata.get("kernelkeep")
                    if own and "epoch" in own:
                        reading.begun_anew += epoch not in ("", own["epoch"])
                        epoch = own["epoch"]
                    after = message.metadata.get("kernelkeep_seq", after)
                    if message.msg_type == "stream" and message.content["name"] == "stderr":
                        reading.gaps.append(message.content["text"])
                    elif message.msg_type == "stream":
                        reading.take(message.content["text"])
        except (ConnectionClosed, OSError, TimeoutError, InvalidStatus):
            await asyncio.sleep(0.05)


async def read_events(servers: Servers, kernel_id: str, reading: Reading, count: int) -> None:
    """A reader of the log as server-sent events, from where it was."""
    after = 0
    epoch = ""
    while not reading.numbers or reading.numbers[-1] < count:
        server = await servers.somewhere()
        try:
            async with RestClient(server.url, server.token) as rest:
                if not epoch:
                    page = await rest.http.get(f"/api/kernels/{kernel_id}/messages?limit=1")
                    epoch = page.json()["epoch"]
                path = f"/api/kernels/{kernel_id}/messages"
                query = {"after": after, "epoch": epoch}
                async for event in stream(rest, path, "text/event-stream", params=query):
                    if event["type"] == "gap":
                        reading.gaps.append(event)
                    elif event["type"] == "message":
                        after = event["seq"]
                        if event["header"]["msg_type"] == "stream":
                            reading.take(event["content"]["text"])
                    if reading.numbers and reading.numbers[-1] >= count:
                        break
        except (httpx.HTTPError, OSError, ConnectionError, AssertionError):
            await asyncio.sleep(0.05)


async def drill(
    servers: Servers,
    *,
    kernels: int,
    count: int,
    rate: int,
    crash_after: float,
    crash: Callable[[Servers], None] = Servers.crash,
) -> Json:
    """One round: kernels count, the server is killed and started again, everybody reads on.

    Raises `AssertionError` for whatever is not as it should be; returns what took how long.
    """
    server = await asyncio.to_thread(servers.start)
    readings: dict[str, Reading] = {}
    tasks: list[asyncio.Task[None]] = []
    loop = asyncio.get_running_loop()
    async with RestClient(server.url, server.token) as rest:
        models = await asyncio.gather(*(rest.start_kernel("fake") for _ in range(kernels)))
        ids = [model["id"] for model in models]
        await asyncio.gather(*(rest.wait_for_state(kernel_id, "idle") for kernel_id in ids))
        for number in range(5):
            kernel_id = ids[number % kernels]
            reading = readings[f"reader {number}"] = Reading()
            if number < 3:
                reader = read_websocket(servers, kernel_id, reading, count, numbered=number == 2)
            else:
                reader = read_events(servers, kernel_id, reading, count)
            tasks.append(loop.create_task(reader))
        executions = [
            await Executions(rest, kernel_id).begin(f"flood {count} 40 {rate}") for kernel_id in ids
        ]
    await asyncio.sleep(crash_after)
    crash(servers)
    began = time.monotonic()
    server = await asyncio.to_thread(servers.start)
    back = time.monotonic() - began
    async with RestClient(server.url, server.token) as rest:
        found = {model["id"]: model["execution_state"] for model in await rest.kernels()}
        assert found.keys() == set(ids), f"not all kernels are back: {found}"
        async with asyncio.timeout(FINISH_SECONDS):
            await asyncio.gather(*tasks)
        for name, reading in readings.items():
            distinct = len(set(reading.numbers))
            assert reading.complete(count), f"{name}: {distinct} of {count}, gaps {reading.gaps}"
            assert not reading.begun_anew, f"{name}: its numbers were void"
        for kernel_id, execution_id in zip(ids, executions, strict=True):
            ended = await Executions(rest, kernel_id).ended(execution_id)
            assert ended["state"] == "ok", ended
            reading = Reading()
            for output in ended["outputs"]:
                reading.take(output.get("text", ""))
            cut = ended.get("cut")
            assert cut or reading.complete(count), f"{kernel_id}: {len(reading.numbers)} outputs"
        await _still_work(rest, ids)
        await asyncio.gather(*(rest.delete(kernel_id) for kernel_id in ids))
    repeated = sum(len(r.numbers) - len(set(r.numbers)) for r in readings.values())
    await asyncio.to_thread(server.stop)
    return {"back": round(back, 2), "repeated": repeated}


async def _still_work(rest: RestClient, ids: list[str]) -> None:
    """Interrupt and restart, and code in between."""
    kernel = Executions(rest, ids[0])
    sleeping = await kernel.begin("sleep 60")
    await kernel.until(sleeping, "started")
    await rest.interrupt(ids[0])
    assert (await kernel.ended(sleeping))["state"] == "error"
    await rest.restart(ids[0])
    done = await kernel.begin("print again")
    assert (await kernel.ended(done))["state"] == "ok"


async def _repeat(times: int, kernels: int, count: int, rate: int) -> int:
    failed = 0
    for number in range(1, times + 1):
        home = Home()
        servers = Servers(home)
        write_kernelspecs(home.jupyter_path, FAKE_SPECS)
        moment = random.uniform(0.0, count / rate)
        try:
            told = await drill(servers, kernels=kernels, count=count, rate=rate, crash_after=moment)
            print(f"{number}: killed after {moment:.2f} s, {told}", flush=True)  # noqa: T201
        except (AssertionError, TimeoutError) as fault:
            failed += 1
            print(f"{number}: killed after {moment:.2f} s: {fault!r}", flush=True)  # noqa: T201
            if servers.present is not None:
                print(servers.present.output()[-4000:])  # noqa: T201
        finally:
            kill_all(home.processes())
            home.remove()
    print(f"{times - failed} of {times} complete")  # noqa: T201
    return failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("times", type=int, nargs="?", default=50)
    parser.add_argument("--kernels", type=int, default=10)
    parser.add_argument("--count", type=int, default=3000, help="that each kernel counts to")
    parser.add_argument("--rate", type=int, default=1000, help="a second")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    sys.exit(bool(asyncio.run(_repeat(**vars(options)))))


if __name__ == "__main__":
    main()
