"""The drill: servers that end while kernels print, and readers that must miss nothing.

Or, with ``--waiting``, while cells wait for kernels: each must run exactly once.

``python -m tests.support.drill [TIMES] [--end HOW]`` repeats it; `scripts/drill` is that.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Self

import httpx
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from tests.support.channels import JupyterChannels
from tests.support.executions import Executions, stream
from tests.support.home import Home
from tests.support.kernelspecs import FAKE_SPECS, Spec, write_kernelspec, write_kernelspecs
from tests.support.processes import eventually, eventually_sync, is_alive, keepers, kill_all
from tests.support.rest import RestClient
from tests.support.server import GRACEFUL, START_TIMEOUT, ServerProcess, UvicornServer

KEEP = ("--on-shutdown", "keep", "--no-limit-rate")
FINISH_SECONDS = 120

Json = dict[str, Any]


class Servers:
    """One server after the other, with one home; readers ask where the present one is."""

    def __init__(
        self, home: Home, *arguments: str, kind: type[ServerProcess] = ServerProcess
    ) -> None:
        self.home = home
        self.kind = kind
        self.arguments = arguments or KEEP
        self.env: dict[str, str] = {}
        self.present: ServerProcess | None = None
        self.token = os.urandom(16).hex()

    def start(self) -> ServerProcess:
        """The next one."""
        server = self.kind(*self.arguments, home=self.home, token=self.token, env=self.env)
        self.present = server.start()
        return server

    def crash(self) -> None:
        """``kill -9``."""
        assert self.present is not None
        self.present.crash()
        self.present = None

    def terminate(self) -> None:
        """SIGTERM; returns when it has ended."""
        assert self.present is not None
        self.present.send_signal(signal.SIGTERM)
        assert self.present.wait() in GRACEFUL
        self.present = None

    def kill_keeper(self) -> None:
        """``kill -9`` for the keeper."""
        (keeper,) = keepers(self.home.processes())
        keeper.kill()
        keeper.wait(10)

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
    there: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when it would miss nothing of what comes next."""

    def missing(self, count: int) -> list[int]:
        """The first that did not come."""
        return sorted({*range(1, count + 1)}.difference(self.numbers))[:5]

    def take(self, text: str) -> None:
        """The text of a stream message."""
        self.numbers += [int(line.split()[0]) for line in text.splitlines() if line[:1].isdigit()]

    def complete(self, count: int) -> bool:
        """Whether every counter came, in order; one that came again is no fault."""
        seen = dict.fromkeys(self.numbers)
        return list(seen) == list(range(1, count + 1)) and not self.gaps

    def honest(self, count: int) -> bool:
        """Whether all came in order, and what did not come was announced."""
        seen = list(dict.fromkeys(self.numbers))
        return seen == sorted(seen) and (len(seen) == count or bool(self.gaps))


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
                reading.there.set()
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


async def _next(servers: Servers, doomed: Doomed) -> None:
    """Start a server when the doomed are dead."""
    await doomed.die()
    await asyncio.to_thread(servers.start)


async def by_kill(servers: Servers, doomed: Doomed) -> None:
    """``kill -9`` for the server."""
    await doomed.begin()
    servers.crash()
    await _next(servers, doomed)


async def by_sigterm(servers: Servers, doomed: Doomed) -> None:
    """SIGTERM for the server."""
    await doomed.begin()
    await asyncio.to_thread(servers.terminate)
    await _next(servers, doomed)


async def by_both(servers: Servers, doomed: Doomed) -> None:
    """``kill -9`` for the server and then for the keeper."""
    await doomed.begin()
    servers.crash()
    await asyncio.to_thread(servers.kill_keeper)
    await _next(servers, doomed)


async def by_keeper(servers: Servers, _doomed: Doomed) -> None:
    """``kill -9`` for the keeper alone."""
    await asyncio.to_thread(servers.kill_keeper)
    await eventually(lambda: len(keepers(servers.home.processes())) == 1, FINISH_SECONDS)


async def by_reload(servers: Servers, _doomed: Doomed) -> None:
    """A file changes that ``uvicorn --reload`` looks at."""
    server = servers.present
    assert isinstance(server, ReloadingServer)
    mark = server.mark()
    (servers.home.root_dir / "changed.py").write_text(f"# {time.time()}")
    await asyncio.to_thread(server.until_started, mark)


End = Callable[[Servers, "Doomed"], Awaitable[None]]
ENDS: dict[str, End] = {
    "kill": by_kill,
    "sigterm": by_sigterm,
    "reload": by_reload,
    "keeper": by_keeper,
    "both": by_both,
}


def servers_for(home: Home, end: str) -> Servers:
    """The servers that end as this word says."""
    if end != "reload":
        return Servers(home)
    home.root_dir.joinpath("changed.py").touch()
    return Servers(home, "--reload", "--reload-dir", str(home.root_dir), kind=ReloadingServer)


class ReloadingServer(UvicornServer):
    """``uvicorn --reload``, with the options of `KEEP`."""

    @property
    def environment(self) -> dict[str, str]:
        options = {
            "KERNELKEEP_ON_SHUTDOWN": "keep",
            "KERNELKEEP_LIMIT_RATE": "false",
            "KERNELKEEP_KEEPER_RING_BYTES": KEEP[-1],
        }
        return {**super().environment, **options}

    def start(self, timeout: float = START_TIMEOUT) -> Self:
        """Also returns only when the process that serves has started."""
        super().start(timeout)
        self.until_started(0)
        return self

    def until_started(self, mark: int) -> None:
        """Returns when a process that serves has started since a mark."""
        eventually_sync(lambda: "startup complete" in self.output(mark), START_TIMEOUT)


class Doomed:
    """Two kernels that end while there is no server: one by itself, one by a signal."""

    def __init__(self, rest: RestClient) -> None:
        self._rest = rest
        self.ids: list[str] = []
        self.begun = False

    async def start(self) -> None:
        models = [await self._rest.start_kernel("fake") for _ in range(2)]
        self.ids = [model["id"] for model in models]
        runs = [await Executions(self._rest, kernel_id).run("pid") for kernel_id in self.ids]
        self._pids = [int(run["outputs"][0]["text"]) for run in runs]

    async def begin(self) -> None:
        """The first will exit; call it while there is a server."""
        self.begun = True
        kernel = Executions(self._rest, self.ids[0])
        await kernel.until(await kernel.begin("sleep 2\ndie 7"), "started")

    async def die(self) -> None:
        """Returns when both have ended."""
        os.kill(self._pids[1], signal.SIGSEGV)
        await eventually(lambda: not any(map(is_alive, self._pids)), FINISH_SECONDS)

    async def check(self, rest: RestClient, *, known: bool) -> None:
        """They are dead, and the reason is told, if somebody can have ``known`` it."""
        for kernel_id, word in zip(self.ids, ("code 7", "SIGSEGV"), strict=True):
            model = await rest.kernel(kernel_id)
            if self.begun:
                word = word if known else "ended while no server was there"
                assert model["execution_state"] == "dead", model
                assert word in model["reason"], model
            await rest.delete(kernel_id)


async def drill(
    servers: Servers, *, kernels: int, count: int, rate: int, after: float, end: str = "kill"
) -> Json:
    """One round: kernels count, the server ends and comes back, everybody reads on.

    Raises `AssertionError` for whatever is not as it should be; returns what took how long.
    """
    server = await asyncio.to_thread(servers.start)
    readings: dict[str, Reading] = {}
    tasks: list[asyncio.Task[None]] = []
    loop = asyncio.get_running_loop()
    async with RestClient(server.url, server.token) as rest:
        doomed = Doomed(rest)
        await doomed.start()
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
        # One that has no place yet begins with what comes after it.
        await asyncio.gather(*(readings[f"reader {number}"].there.wait() for number in range(3)))
        executions = [
            await Executions(rest, kernel_id).begin(f"flood {count} 40 {rate}") for kernel_id in ids
        ]
        await asyncio.sleep(after)
        began = time.monotonic()
        await ENDS[end](servers, doomed)
        back = time.monotonic() - began
    server = await servers.somewhere()
    async with RestClient(server.url, server.token) as rest:
        found = {model["id"]: model["execution_state"] for model in await rest.kernels()}
        assert found.keys() == {*ids, *doomed.ids}, f"not all kernels are back: {found}"
        await doomed.check(rest, known=end != "both")
        unheard = end in ("keeper", "both")  # for a moment, what is announced
        if unheard:  # what nobody has any more may be the end
            await asyncio.gather(*(Executions(rest, each).begin(f"print {count}") for each in ids))
        async with asyncio.timeout(FINISH_SECONDS):
            await asyncio.gather(*tasks)
        for name, reading in readings.items():
            fine = reading.honest(count) if unheard else reading.complete(count)
            assert fine, f"{name}: lacks {reading.missing(count)}..., gaps {reading.gaps}"
            assert not reading.begun_anew, f"{name}: its numbers were void"
        for kernel_id, execution_id in zip(ids, executions, strict=True):
            ended = await Executions(rest, kernel_id).ended(execution_id)
            assert ended["state"] in (("ok", "lost") if unheard else ("ok",)), ended
            reading = Reading()
            for output in ended["outputs"]:
                reading.take(output.get("text", ""))
            fine = unheard or ended.get("cut") or reading.complete(count)
            assert fine, f"{kernel_id}: {len(reading.numbers)} outputs"
        await _still_work(rest, ids)
        await asyncio.gather(*(rest.delete(kernel_id) for kernel_id in ids))
    repeated = sum(len(r.numbers) - len(set(r.numbers)) for r in readings.values())
    await asyncio.to_thread(server.stop)
    return {"back": round(back, 2), "repeated": repeated}


class Asking:
    """Who sends cells to one kernel until the server ends, over a WebSocket and over HTTP by turns.

    Each cell appends its number to a file of the kernel's.
    """

    def __init__(self, kernel_id: str, home: Home) -> None:
        self.kernel_id = kernel_id
        self._file = home.root_dir / f"cells-{kernel_id}"
        self._ids: dict[int, str] = {}
        self.sure: set[int] = set()
        """Those that the server has answered for."""

    async def ask(self, server: ServerProcess, count: int) -> None:
        """Returns when all are asked for, or the server is gone."""
        connection = JupyterChannels.connect(server.ws_url, self.kernel_id, server.token)
        try:
            async with RestClient(server.url, server.token) as rest:
                self._channels = await connection
                for number in range(0, count, 2):
                    await self._ask_for_two(rest, number)
        except (ConnectionClosed, OSError, TimeoutError, InvalidHandshake, httpx.HTTPError):
            pass

    async def _ask_for_two(self, rest: RestClient, number: int) -> None:
        runs = Executions(rest, self.kernel_id)
        msg_id = await self._channels.send_execute(self._cell(number))
        self._ids[number] = msg_id

        async def known() -> bool:
            return (await rest.http.get(f"{runs.path}/{msg_id}")).status_code == 200

        await eventually(known)
        # The second is answered for when it is written down, and with it what came before.
        self._ids[number + 1] = await runs.begin(f"{self._cell(number + 1)}\nsleep 0.05")
        self.sure |= {number, number + 1}

    def _cell(self, number: int) -> str:
        return f"append {self._file.name} {number}"

    async def check(self, server: ServerProcess, rest: RestClient) -> int:
        """All have run once, and their session has the replies; how many there are."""
        runs = Executions(rest, self.kernel_id)
        for number in sorted(self.sure):
            ended = await runs.ended(self._ids[number])
            assert ended["state"] == "ok", (number, ended)
        for each in await runs.listed(limit=1000):
            ended = await runs.ended(each["id"])
            assert ended["state"] == "ok", ended
        text = self._file.read_text() if self._file.exists() else ""
        numbers = [int(line) for line in text.split()]
        assert len(set(numbers)) == len(numbers), f"run twice: {numbers}"
        assert self.sure <= set(numbers), f"missing: {self.sure - set(numbers)}"
        for turn in (0, 1):  # of each of the two ways
            mine = [number for number in numbers if number % 2 == turn]
            assert mine == sorted(mine), f"out of order: {numbers}"
        if self.sure:
            await self._check_replies(server)
        return len(numbers)

    async def _check_replies(self, server: ServerProcess) -> None:
        await self._channels.closed()
        had = {m.parent_id for m in self._channels.log if m.msg_type == "execute_reply"}
        session = self._channels.session
        async with await JupyterChannels.connect(
            server.ws_url, self.kernel_id, server.token, session_id=session
        ) as channels:
            for number in sorted(self.sure):
                if number % 2 == 0 and self._ids[number] not in had:
                    exchange = await channels.exchange(self._ids[number])
                    assert exchange.reply["status"] == "ok", exchange.reply


LATE: dict[str, Spec] = {
    "late": Spec(flags=("--slow-start", "1")),
    "late-stubborn": Spec(
        flags=("--slow-start", "0.5", "--ignore-shutdown", "--ignore-sigterm", "--ignore-sigint")
    ),
}


async def drill_waiting(servers: Servers, *, kernels: int, count: int, after: float) -> Json:
    """One round: cells wait for kernels, the server is killed, the next one sends what it had.

    Of four kernels one starts, one restarts, one is stopped to be restarted, and one is idle.
    Raises `AssertionError` for whatever is not as it should be.
    """
    for name, spec in LATE.items():
        write_kernelspec(servers.home.jupyter_path, name, spec)
    server = await asyncio.to_thread(servers.start)
    async with RestClient(server.url, server.token) as rest:
        names = ["late", "late", "late-stubborn", "fake"]
        ids: list[str] = []
        for number in reversed(range(kernels)):  # those that are to be starting come last
            model = await rest.start_kernel(names[number % 4])
            ids.insert(0, model["id"])
            if number % 4:
                await rest.wait_for_state(model["id"], "idle")
        askings = [Asking(kernel_id, servers.home) for kernel_id in ids]
        restarts = [
            asyncio.create_task(rest.restart(kernel_id))
            for number, kernel_id in enumerate(ids)
            if number % 4 in (1, 2)
        ]
        for number, kernel_id in enumerate(ids):
            if number % 4 in (1, 2):
                await rest.wait_for_state(kernel_id, "restarting")
        tasks = [asyncio.create_task(asking.ask(server, count)) for asking in askings]
        await asyncio.sleep(after)
        servers.crash()
        await asyncio.gather(*restarts, return_exceptions=True)
    await asyncio.gather(*tasks)
    server = await asyncio.to_thread(servers.start)
    async with RestClient(server.url, server.token) as rest:
        ran = [await asking.check(server, rest) for asking in askings]
        await asyncio.gather(*(rest.delete(kernel_id) for kernel_id in ids))
    await asyncio.to_thread(server.stop)
    return {"sure": sum(len(asking.sure) for asking in askings), "ran": sum(ran)}


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


async def adopt(kernels: int, name: str) -> str:
    """Have a server adopt so many kernels; what it says about it."""
    home = Home()
    servers = Servers(home)
    write_kernelspecs(home.jupyter_path, FAKE_SPECS)
    try:
        server = await asyncio.to_thread(servers.start)
        async with RestClient(server.url, server.token) as rest:
            for _ in range(kernels):
                await rest.wait_for_state((await rest.start_kernel(name))["id"], "idle", timeout=60)
        servers.crash()
        server = await asyncio.to_thread(servers.start)
        (line,) = [line for line in server.output().splitlines() if "kernels adopted in" in line]
        return line
    finally:
        kill_all(home.processes())
        home.remove()


async def _repeat(
    times: int, kernels: int, count: int, rate: int, end: str, *, waiting: bool
) -> int:
    failed = 0
    for number in range(1, times + 1):
        home = Home()
        servers = servers_for(home, end)
        write_kernelspecs(home.jupyter_path, FAKE_SPECS)
        moment = random.uniform(0.0, count / rate)
        try:
            if waiting:
                told = await drill_waiting(servers, kernels=kernels, count=count, after=moment)
            else:
                told = await drill(
                    servers, kernels=kernels, count=count, rate=rate, after=moment, end=end
                )
            print(f"{number}: {end} after {moment:.2f} s, {told}", flush=True)  # noqa: T201
        except Exception as fault:
            failed += 1
            print(f"{number}: {end} after {moment:.2f} s: {fault!r}", flush=True)  # noqa: T201
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
    parser.add_argument("--end", choices=list(ENDS), default="kill", help="how the server ends")
    parser.add_argument(
        "--waiting",
        action="store_true",
        help="cells wait for the kernels, --count for each; the server is killed within "
        "--count / --rate seconds",
    )
    parser.add_argument("--adopt", metavar="KERNELSPEC", help="only time how long --kernels take")
    options = vars(parser.parse_args())
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    name = options.pop("adopt")
    if name:
        print(asyncio.run(adopt(options["kernels"], name)))  # noqa: T201
        return
    sys.exit(bool(asyncio.run(_repeat(**options))))


if __name__ == "__main__":
    main()
