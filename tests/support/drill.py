"""The drill: servers that end while kernels print, and readers that must miss nothing.

Or, with ``--waiting``, while cells wait for kernels: each must run exactly once.

What readers get is held against what the kernels have written down themselves: nobody makes up a
message or a reply, nothing is missing, nothing is aborted, and again comes only what was on its way
when the server ended, to those who do not say where they are.

``python -m tests.support.drill [TIMES] [--end HOW]`` repeats it; `scripts/drill` is that.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import httpx
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from app.keeper.protocol import PROTOCOL
from app.managers.executions.queue import MAX_WAITING
from tests.support.channels import JupyterChannels
from tests.support.executions import Executions, stream
from tests.support.home import Home
from tests.support.kernelspecs import FAKE_SPECS, write_kernelspec, write_kernelspecs
from tests.support.processes import eventually, eventually_sync, is_alive, keepers, kill_all
from tests.support.record import Got, Record, earliest_repeat, recording
from tests.support.rest import RestClient
from tests.support.server import GRACEFUL, START_TIMEOUT, ServerProcess, UvicornServer
from tests.support.versions import server_of

KEEP = ("--on-shutdown", "keep", "--no-limit-rate")
FINISH_SECONDS = 120

REPEAT_SECONDS = 1.0
"""What a client had so long before the server ended does not come again. Its place is known by a
pong (0.1 s), and noted every 0.25 s; the rest is for a machine that has much to do."""

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
        self.ending = 0.0
        """When the last one began to end, by the monotonic clock."""
        self.token = os.urandom(16).hex()

    def start(self) -> ServerProcess:
        """The next one."""
        server = self.kind(*self.arguments, home=self.home, token=self.token, env=self.env)
        self.present = server.start()
        return server

    def crash(self) -> None:
        """``kill -9``."""
        assert self.present is not None
        self.ending = time.monotonic()
        self.present.crash()
        self.present = None

    def terminate(self) -> None:
        """SIGTERM; returns when it has ended."""
        assert self.present is not None
        self.ending = time.monotonic()
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

    asks: str = ""
    """The code that it is to execute, if any, when it may `go`."""
    numbered: bool = False
    """Whether it says from where it goes on."""
    numbers: list[int] = field(default_factory=list)
    gaps: list[Any] = field(default_factory=list)
    got: list[Got] = field(default_factory=list)
    begun_anew: int = 0
    asked: str = ""
    """The id of the execution that is read."""
    is_whole: bool = True
    """Whether all of it will come, to its end."""
    there: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when it would miss nothing of what comes next."""
    go: asyncio.Event = field(default_factory=asyncio.Event)
    sent: asyncio.Event = field(default_factory=asyncio.Event)

    def missing(self, count: int) -> list[int]:
        """The first that did not come."""
        return sorted({*range(1, count + 1)}.difference(self.numbers))[:5]

    def take(self, text: str) -> None:
        """The text of a stream message."""
        self.numbers += [int(line.split()[0]) for line in text.splitlines() if line[:1].isdigit()]

    def on_message(self, got: Got, content: Json) -> None:
        """A message has come."""
        self.got.append(got)
        if got.msg_type != "stream":
            return
        if content["name"] == "stderr":
            self.gaps.append(content["text"])
        else:
            self.take(content["text"])

    def has_all(self, count: int) -> bool:
        """Whether nothing more is to come; a reply only for one who asked."""
        if not self.numbers or self.numbers[-1] < count:
            return False
        if not self.is_whole:
            return True
        ends = {(o.channel, o.status) for o in self.got[-20:] if o.parent_id == self.asked}
        return ("iopub", "idle") in ends and (not self.asks or any(on == "shell" for on, _ in ends))

    def complete(self, count: int) -> bool:
        """Whether every counter came, in order; one that came again is no fault."""
        seen = dict.fromkeys(self.numbers)
        return list(seen) == list(range(1, count + 1)) and not self.gaps

    def honest(self, count: int) -> bool:
        """Whether all came in order, and what did not come was announced."""
        seen = list(dict.fromkeys(self.numbers))
        return seen == sorted(seen) and (len(seen) == count or bool(self.gaps))

    def check(self, record: Record, count: int, excused: Collection[str], ended: float) -> float:
        """It is as it should be; how long before the server ``ended`` it had what came again."""
        fine = self.complete(count) if self.is_whole else self.honest(count)
        assert fine, f"lacks {self.missing(count)}..., gaps {self.gaps}"
        assert not self.begun_anew, "its numbers were void"
        record.check_genuine(self.got, excused)
        if self.is_whole:
            record.check_whole(self.got, self.asked, replies=bool(self.asks))
        repeated = earliest_repeat(one for one in self.got if one.parent_id)
        if repeated is None:
            return 0.0
        assert ended, "something came again, and no server had ended"
        assert not self.numbered, "it has said where it was, and something came again"
        assert ended - repeated < REPEAT_SECONDS, f"it had {ended - repeated:.2f} s before"
        return max(0.0, ended - repeated)


LEFT = (ConnectionClosed, InvalidHandshake, OSError, TimeoutError)
"""What a client of a WebSocket meets whose server ends; it comes back then."""


async def read_websocket(servers: Servers, kernel_id: str, reading: Reading, count: int) -> None:
    """A client that comes back under its session; one that is ``numbered`` says from where."""
    session = os.urandom(8).hex()
    after, epoch = 0, ""
    while not reading.has_all(count):
        server = await servers.somewhere()
        query = {"after": str(after), "epoch": epoch} if reading.numbered and epoch else {}
        if reading.numbered and not epoch:
            query = {"after": "0"}
        try:
            async with await JupyterChannels.connect(
                server.ws_url,
                kernel_id,
                server.token,
                session_id=session,
                query=query,
                log_length=10,
            ) as channels:
                reading.there.set()
                if reading.asks and not reading.asked:
                    await reading.go.wait()
                    reading.asked = await channels.send_execute(reading.asks)
                    reading.sent.set()
                while not reading.has_all(count):
                    message = await channels.recv(FINISH_SECONDS)
                    own = message.metadata.get("kernelkeep")
                    if own and "epoch" in own:
                        reading.begun_anew += epoch not in ("", own["epoch"])
                        epoch = own["epoch"]
                    after = message.metadata.get("kernelkeep_seq", message.seq or after)
                    reading.on_message(Got.from_message(message), message.content)
        except LEFT:
            await asyncio.sleep(0.05)


async def read_events(servers: Servers, kernel_id: str, reading: Reading, count: int) -> None:
    """A reader of the log as server-sent events, from where it was."""
    after = 0
    epoch = ""
    while not reading.has_all(count):
        server = await servers.somewhere()
        try:
            async with RestClient(server.url, server.token) as rest:
                path = f"/api/kernels/{kernel_id}/messages"
                if not epoch:
                    page = await rest.http.get(f"{path}?limit=1")
                    epoch = page.raise_for_status().json()["epoch"]
                query = {"after": after, "epoch": epoch}
                async for event in stream(rest, path, "text/event-stream", params=query):
                    if event["type"] == "gap":
                        reading.gaps.append(event)
                    elif event["type"] == "message":
                        after = event["seq"]
                        parts = event["header"], event["parent_header"], event["content"]
                        reading.on_message(Got.of(event["channel"], *parts), event["content"])
                    if reading.has_all(count):
                        break
        except (httpx.HTTPError, OSError, AssertionError):
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


async def by_upgrade(servers: Servers, doomed: Doomed) -> None:
    """``kill -9`` for a server of the version before, and one of this version comes."""
    servers.kind = ServerProcess
    await by_kill(servers, doomed)


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


async def by_reload(servers: Servers, doomed: Doomed) -> None:
    """A file changes that ``uvicorn --reload`` looks at."""
    server = servers.present
    assert isinstance(server, ReloadingServer)
    mark = server.mark()
    await doomed.begin()
    servers.ending = time.monotonic()
    (servers.home.root_dir / "changed.py").write_text(f"# {time.time()}")
    await asyncio.to_thread(server.until_ended, mark)
    await doomed.die()
    await asyncio.to_thread(server.until_started, mark)


End = Callable[[Servers, "Doomed"], Awaitable[None]]
ENDS: dict[str, End] = {
    "kill": by_kill,
    "sigterm": by_sigterm,
    "reload": by_reload,
    "keeper": by_keeper,
    "both": by_both,
    "upgrade": by_upgrade,
}


def servers_for(home: Home, end: str) -> Servers:
    """The servers that end as this word says."""
    if end == "upgrade":
        return Servers(home, kind=server_of(PROTOCOL - 1))
    if end != "reload":
        return Servers(home)
    home.root_dir.joinpath("changed.py").touch()
    return Servers(home, "--reload", "--reload-dir", str(home.root_dir), kind=ReloadingServer)


class ReloadingServer(UvicornServer):
    """``uvicorn --reload``, with the options of `KEEP`. It starts itself again: no fork can."""

    commands = None

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

    def until_ended(self, mark: int) -> None:
        """Returns when a process that served has ended since a mark."""
        eventually_sync(lambda: "Finished server process" in self.output(mark), START_TIMEOUT, 0.01)

    def until_started(self, mark: int) -> None:
        """Returns when a process that serves has started since a mark."""
        eventually_sync(lambda: "startup complete" in self.output(mark), START_TIMEOUT)
        eventually_sync(self._listens, START_TIMEOUT)  # which it does a moment later

    def _listens(self) -> bool:
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", self.port)) == 0


class Doomed:
    """Two kernels that end while there is no server: one by itself, one by a signal."""

    def __init__(self, rest: RestClient, home: Home) -> None:
        self._rest = rest
        self._end = home.root_dir / f"end-{os.urandom(8).hex()}"
        self.ids: list[str] = []
        self.begun = False

    async def start(self) -> None:
        models = [await self._rest.start_kernel("fake") for _ in range(2)]
        self.ids = [model["id"] for model in models]
        runs = [await Executions(self._rest, kernel_id).run("pid") for kernel_id in self.ids]
        self._pids = [int(run["outputs"][0]["text"]) for run in runs]

    async def begin(self) -> None:
        """The first will exit when it is to; call it while there is a server."""
        self.begun = True
        kernel = Executions(self._rest, self.ids[0])
        await kernel.until(await kernel.begin(f"until {self._end.name}\ndie 7"), "started")

    async def die(self) -> None:
        """Returns when both have ended."""
        self._end.touch()
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

    Raises `AssertionError` for whatever is not as it should be; returns what took how long, and
    how long before the end a client had what came again.
    """
    record = servers.home.root_dir / "record"
    write_kernelspec(servers.home.jupyter_path, "fake", recording(record))
    unheard = end in ("keeper", "both")  # for a moment, what is announced
    server = await asyncio.to_thread(servers.start)
    async with RestClient(server.url, server.token) as rest:
        doomed = Doomed(rest, servers.home)
        await doomed.start()
        models = await asyncio.gather(*(rest.start_kernel("fake") for _ in range(kernels)))
        ids = [model["id"] for model in models]
        await asyncio.gather(*(rest.wait_for_state(kernel_id, "idle") for kernel_id in ids))
        flood = f"flood {count} 40 {rate}"
        readings, tasks = _read(servers, ids, count, flood, is_whole=not unheard)
        executions = await _begin(rest, ids, readings, flood)
        await asyncio.sleep(after)
        began = time.monotonic()
        await ENDS[end](servers, doomed)
        back = time.monotonic() - began
    server = await servers.somewhere()
    async with RestClient(server.url, server.token) as rest:
        found = {model["id"]: model["execution_state"] for model in await rest.kernels()}
        assert found.keys() == {*ids, *doomed.ids}, f"not all kernels are back: {found}"
        await doomed.check(rest, known=end != "both")
        if unheard:  # what nobody has any more may be the end
            await asyncio.gather(*(Executions(rest, each).begin(f"print {count}") for each in ids))
        _, late = await asyncio.wait(tasks, timeout=FINISH_SECONDS)
        for task in late:
            task.cancel()
        lost = await _check_ends(rest, executions, count, unheard=unheard)
        repeated = 0.0
        for number, reading in enumerate(readings):
            try:
                told = reading.check(Record(record), count, lost, servers.ending)
            except AssertionError as fault:
                raise AssertionError(f"reader {number}: {fault}") from fault
            repeated = max(repeated, told)
        await asyncio.gather(*tasks)
        await _still_work(rest, ids)
        await asyncio.gather(*(rest.delete(kernel_id) for kernel_id in ids))
    await asyncio.to_thread(server.stop)
    return {"back": round(back, 2), "repeated": round(repeated, 2)}


def _read(
    servers: Servers, ids: list[str], count: int, code: str, *, is_whole: bool
) -> tuple[list[Reading], list[asyncio.Task[None]]]:
    """Five readers, three of them of WebSockets, of which the first of a kernel asks it."""
    readings = [
        Reading(
            asks=code if number < min(3, len(ids)) else "",
            numbered=number >= 2,
            is_whole=is_whole,
        )
        for number in range(5)
    ]
    loop = asyncio.get_running_loop()
    tasks = []
    for number, reading in enumerate(readings):
        read = read_websocket if number < 3 else read_events
        kernel_id = ids[number % len(ids)]
        tasks.append(loop.create_task(read(servers, kernel_id, reading, count)))
    return readings, tasks


async def _begin(
    rest: RestClient, ids: list[str], readings: list[Reading], code: str
) -> dict[str, str]:
    """Have every kernel execute code, those over HTTP of which no reader asks it; their ids."""
    # One that has no place yet begins with what comes after it.
    await asyncio.gather(*(reading.there.wait() for reading in readings[:3]))
    executions = {}
    for number, kernel_id in enumerate(ids):
        runs = Executions(rest, kernel_id)
        reading = readings[number] if number < len(readings) else None
        if reading is not None and reading.asks:
            reading.go.set()
            await reading.sent.wait()
            executions[kernel_id] = reading.asked
            await runs.known(reading.asked)
        else:
            executions[kernel_id] = await runs.begin(code)
    for number, reading in enumerate(readings):
        reading.asked = executions[ids[number % len(ids)]]
    return executions


async def _check_ends(
    rest: RestClient, executions: dict[str, str], count: int, *, unheard: bool
) -> set[str]:
    """Every execution has ended as it should, with all it printed; the ids of those lost."""
    lost = set()
    for kernel_id, execution_id in executions.items():
        ended = await Executions(rest, kernel_id).ended(execution_id)
        assert ended["state"] in (("ok", "lost") if unheard else ("ok",)), ended
        if ended["state"] == "lost":
            lost.add(execution_id)
        reading = Reading()
        for output in ended["outputs"]:
            reading.take(output.get("text", ""))
        fine = unheard or ended.get("cut") or reading.complete(count)
        assert fine, f"{kernel_id}: {len(reading.numbers)} outputs"
    return lost


class Asking:
    """Who sends cells to one kernel until the server ends, over a WebSocket and over HTTP by turns.

    Each cell appends its number to a file of the kernel's.
    """

    def __init__(self, kernel_id: str, home: Home) -> None:
        self.kernel_id = kernel_id
        self._file = home.root_dir / f"cells-{kernel_id}"
        self._ids: dict[int, str] = {}
        self._channels: JupyterChannels | None = None
        self.sure: set[int] = set()
        """Those that the server has answered for."""

    async def ask(self, server: ServerProcess, count: int) -> None:
        """Returns when all are asked for, as far as the server's queue has room, or it is gone."""
        try:
            self._channels = await JupyterChannels.connect(
                server.ws_url, self.kernel_id, server.token
            )
            async with RestClient(server.url, server.token) as rest:
                for number in range(0, min(count, 2 * MAX_WAITING), 2):
                    await self._ask_for_two(rest, self._channels, number)
        except (*LEFT, httpx.HTTPError):
            pass

    async def _ask_for_two(self, rest: RestClient, channels: JupyterChannels, number: int) -> None:
        runs = Executions(rest, self.kernel_id)
        self._ids[number] = await channels.send_execute(self._cell(number))
        await runs.known(self._ids[number])
        # The second is answered for when it is written down, and with it what came before.
        self._ids[number + 1] = await runs.begin(f"{self._cell(number + 1)}\nsleep 0.05")
        self.sure |= {number, number + 1}

    def _cell(self, number: int) -> str:
        return f"append {self._file.name} {number}"

    async def check(self, server: ServerProcess, rest: RestClient, record: Path) -> int:
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
        if self._channels is not None:
            await self._channels.closed()  # in any case: it would be found open in another test
        if self._channels is not None and self.sure:
            await self._check_replies(server, record, self._channels)
        return len(numbers)

    async def _check_replies(
        self, server: ServerProcess, record: Path, before: JupyterChannels
    ) -> None:
        mine = [self._ids[number] for number in sorted(self.sure) if number % 2 == 0]
        async with await JupyterChannels.connect(
            server.ws_url, self.kernel_id, server.token, session_id=before.session
        ) as channels:
            channels.log.extend(before.log)  # it goes on from there
            for msg_id in mine:
                await channels.exchange(msg_id)
            got = [Got.from_message(message) for message in channels.log]
        written = Record(record)
        written.check_genuine(got)
        for msg_id in mine:
            written.check_whole(got, msg_id, replies=True)


LATE: dict[str, tuple[str, ...]] = {
    "fake": (),
    "late": ("--slow-start", "1"),
    "late-stubborn": (
        *("--slow-start", "0.5"),
        *("--ignore-shutdown", "--ignore-sigterm", "--ignore-sigint"),
    ),
}
"""Kernelspecs, and the flags of their kernels."""


async def drill_waiting(servers: Servers, *, kernels: int, count: int, after: float) -> Json:
    """One round: cells wait for kernels, the server is killed, the next one sends what it had.

    Of four kernels one starts, one restarts, one is stopped to be restarted, and one is idle.
    Raises `AssertionError` for whatever is not as it should be.
    """
    record = servers.home.root_dir / "record"
    for name, flags in LATE.items():
        write_kernelspec(servers.home.jupyter_path, name, recording(record, *flags))
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
        ran = [await asking.check(server, rest, record) for asking in askings]
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
        complete = False  # what is left of a round that fails can be looked at
        try:
            if waiting:
                done = await drill_waiting(servers, kernels=kernels, count=count, after=moment)
            else:
                done = await drill(
                    servers, kernels=kernels, count=count, rate=rate, after=moment, end=end
                )
            print(f"{number}: {end} after {moment:.2f} s, {done}", flush=True)  # noqa: T201
        except Exception as fault:
            failed += 1
            told = f"{fault!r:.1000}; see {home.path}"
            print(f"{number}: {end} after {moment:.2f} s: {told}", flush=True)  # noqa: T201
            if servers.present is not None:
                print(servers.present.output()[-4000:], flush=True)  # noqa: T201
        else:
            complete = True
        finally:
            kill_all(home.processes())
            if complete:
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
