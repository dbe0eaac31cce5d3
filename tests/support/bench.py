"""A server whose collaborators fail on demand, and what must be as before when they have."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sqlite3
import time
from collections import Counter
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import httpx

from tests.support.drill import Servers
from tests.support.executions import NDJSON, Executions, stream
from tests.support.failing_keeper import FailingKeeper
from tests.support.failing_provisioner import CENSUS, FAILING, FailingProvisioners
from tests.support.faults import Collaborator
from tests.support.home import Home
from tests.support.kernelspecs import Spec, write_kernelspec
from tests.support.metrics import scrape
from tests.support.processes import eventually, kill_all, read_process, usage
from tests.support.rest import KernelModel, RestClient
from tests.support.server import ServerProcess

__all__ = ["BOUND", "Bench", "Who", "processes_of", "processes_with"]

Who = Literal["keeper", "provisioner"]
Json = dict[str, Any]

BOUND = 60
"""Seconds within which every request has its answer, and every state is the true one."""

LOOK_SECONDS = 0.25  # that who asks what is parked waits for others who do

SETTLED = ("idle", "busy", "dead", "unknown")
"""What a kernel is when nobody is about to do something with it. One whose process is of no use,
and could not be ended, is `unknown` until somebody asks for its end, or for another process."""

NEVER_SAID = (
    "Task exception was never retrieved",
    "Future exception was never retrieved",
    "was never awaited",
    "Exception in ASGI",
)
"""What no server writes into its log, whatever its collaborators do."""

OPTIONS = (
    *("--on-shutdown", "keep", "--no-limit-rate", "--restart-limit", "1000"),
    *("--max-concurrent-starts", "64", "--start-queue-limit", "1000"),
    *("--shutdown-wait-time", "2", "--execution-interrupt-grace", "1"),
    *("--kernel-info-timeout", "10"),
)


class Bench:
    """An asynchronous context manager: a home, the collaborators, and servers one after another.

    `start` comes once, and `check` at the end. A kernel that nobody touches counts from the start
    to the check.
    """

    def __init__(self, who: Who, *arguments: str) -> None:
        self.home = Home()
        self._provisioners = FailingProvisioners(self.home)
        self._keeper = FailingKeeper(self.home) if who == "keeper" else None
        self.faulty: Collaborator = self._keeper or self._provisioners
        self.servers = Servers(self.home, *OPTIONS, *arguments)
        self.servers.env = self._provisioners.env
        self._logs: list[ServerProcess] = []
        self._rest: RestClient | None = None
        self._documented: Json = {}
        self._counter: _Counting | None = None
        self._look: asyncio.Task[dict[str, float]] | None = None
        write_kernelspec(self.home.jupyter_path, "fake", Spec())
        write_kernelspec(self.home.jupyter_path, "census", CENSUS)
        self.add_spec(self.faulty.spec)
        self.add_spec(f"{self.faulty.spec}-deaf", flags=("--ignore-sigint",))

    async def __aenter__(self) -> Self:
        if self._keeper is not None:
            await self._keeper.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._counter is not None:
            await self._counter.stop()
        if self._rest is not None:
            await self._rest.http.aclose()
        if self.servers.present is not None:
            await asyncio.to_thread(self.servers.crash)
        if self._keeper is not None:
            await self._keeper.kill()
            await self._keeper.close()
        await asyncio.to_thread(kill_all, self.home.processes())
        self.home.remove()

    def add_spec(self, name: str, **more: Any) -> None:
        """A kernelspec whose kernels have to do with the collaborator that fails."""
        metadata = FAILING.metadata if self._keeper is None else {}
        write_kernelspec(self.home.jupyter_path, name, Spec(metadata=metadata, **more))

    @property
    def rest(self) -> RestClient:
        assert self._rest is not None, "there is no server"
        return self._rest

    @property
    def output(self) -> str:
        """What all servers have written."""
        return "".join(server.output() for server in self._logs)

    async def start(self) -> None:
        """Start the first server, and the kernel that counts."""
        await self.start_server()
        document = await self.rest.request("GET", "/openapi.json")
        self._documented = document.json()["paths"]
        self._counter = _Counting(self)
        await self._counter.start()

    async def start_server(self) -> None:
        server = await asyncio.to_thread(self.servers.start)
        self._logs.append(server)
        self._rest = await RestClient(server.url, server.token).__aenter__()

    async def crash(self) -> None:
        """``kill -9`` for the server."""
        await self.rest.http.aclose()
        await asyncio.to_thread(self.servers.crash)

    # Requests

    async def ask(self, method: str, path: str, **more: Any) -> httpx.Response:
        """A response within `BOUND`: a success, or an error that the OpenAPI document tells of."""
        try:
            async with asyncio.timeout(BOUND):
                response = await self.rest.http.request(method, path, timeout=BOUND, **more)
        except TimeoutError:
            raise AssertionError(f"{method} {path}: no answer within {BOUND} s") from None
        if response.is_error:
            self._check_documented(method, path, response)
        return response

    def _check_documented(self, method: str, path: str, response: httpx.Response) -> None:
        template = re.sub("/[0-9a-f-]{32,36}", "/{}", path)
        (operation,) = (
            operations[method.lower()]
            for documented, operations in self._documented.items()
            if re.sub(r"\{\w+\}", "{}", documented) == template and method.lower() in operations
        )
        found = operation["responses"].get(str(response.status_code), {})
        codes = re.findall(r"`(\w+)`", found.get("description", ""))
        code = response.json().get("code")
        assert code in codes, f"{method} {path}: {response.status_code} {response.text}"
        assert code != "internal_error", f"{method} {path}: {response.text}"

    async def model(self, kernel_id: str) -> KernelModel | None:
        """The kernel, or None if it is on no list."""
        response = await self.rest.http.get(f"/api/kernels/{kernel_id}")
        if response.status_code == 404:
            return None
        assert response.status_code == 200, response.text
        found: KernelModel = response.json()
        return found

    async def started(self, kernel_id: str, name: str) -> None:
        """A kernel with this id, which is idle."""
        response = await self.ask(
            "POST", "/api/kernels", json={"name": name, "kernel_id": kernel_id}
        )
        assert response.status_code == 201, response.text
        await self.rest.wait_for_state(kernel_id, "idle", timeout=BOUND)

    async def parked(self) -> dict[str, float]:
        """How many kernels are parked, by the names of their kernelspecs.

        All who ask within `LOOK_SECONDS` share a look, which comes after they have asked.
        """
        if self._look is None:
            self._look = asyncio.create_task(self._look_at_parked())
        return await asyncio.shield(self._look)

    async def _look_at_parked(self) -> dict[str, float]:
        await asyncio.sleep(LOOK_SECONDS)
        self._look = None
        metrics, name = await scrape(self.rest), "kernelkeep_warm_kernels"
        return {
            kind: metrics(name, **labels)
            for labels in metrics.labels(name)
            for kind in labels.values()
        }

    # What must be true

    async def is_honest(self, kernel_id: str) -> bool:
        """A kernel that is shown dead, or not at all, has no process."""
        model = await self.model(kernel_id)
        running = processes_of(kernel_id)
        assert not running or (model is not None and model["execution_state"] != "dead"), (
            f"shown as {model}, but {running} run"
        )
        return True

    async def is_settled(self, kernel_id: str) -> bool:
        """Nobody is about to do something with a kernel."""
        model = await self.model(kernel_id)
        assert model is None or model["execution_state"] in SETTLED, f"it is {model}"
        return True

    async def is_true(self, kernel_id: str) -> bool:
        """A kernel is shown dead, or not at all, if and only if it has no process; it has one."""
        await self.is_settled(kernel_id)
        model = await self.model(kernel_id)
        running = processes_of(kernel_id)
        wanted = 0 if model is None or model["execution_state"] == "dead" else 1
        assert len(running) == wanted, f"shown as {model}, but {running} run"
        return True

    async def is_gone(self, kernel_id: str) -> bool:
        """There is nothing left of a kernel: no process, no row, no file."""
        assert await self.model(kernel_id) is None, "it is listed"
        assert not (running := processes_of(kernel_id)), f"{running} run"
        assert not (rows := self._rows(kernel_id)), f"the registry has {rows} rows of it"
        files = [path for path in self.files() if kernel_id in path.name]
        assert not files, f"there are still {files}"
        return True

    def files(self) -> set[Path]:
        """Every file of the state directory."""
        return {
            Path(directory, name)
            for directory, _, names in os.walk(self.home.state_dir)
            for name in names
        }

    def _rows(self, kernel_id: str) -> int:
        path = self.home.state_dir / "registry.sqlite"
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as registry:
            return sum(
                registry.execute(
                    f"SELECT COUNT(*) FROM {table} WHERE {column} = ?",
                    (kernel_id,),
                ).fetchone()[0]
                for table, column in (("kernel", "id"), ("execution", "kernel_id"))
            )

    async def census(self) -> Counter[str]:
        """Tasks and objects of the server, by their names."""
        response = await self.rest.http.post("/api/kernels", json={"name": "census"})
        assert "this was a census" in response.text, response.text
        return self._provisioners.census()

    async def holdings(self) -> tuple[Counter[str], int, set[Path]]:
        """Tasks and objects, descriptors, and files."""
        found = await self.census()
        assert self.servers.present is not None
        descriptors = usage(self.servers.present.pid).descriptors
        # A kernel that counts begins another segment of its log now and then.
        files = {path for path in self.files() if "logs" not in path.parts}
        return found, descriptors, files

    async def holds_no_more(self, before: tuple[Counter[str], int, set[Path]]) -> bool:
        """The server has nothing that it did not have before."""
        census, descriptors, files = await self.holdings()
        # Whether a kernel has lost a request with its keeper shows when it is free again, which the
        # one that counts never is.
        census.pop("task settle_loss", None)
        assert not (more := census - before[0]), f"the server has more: {more}"
        assert descriptors <= before[1], f"{descriptors} descriptors, {before[1]} before"
        assert not (new := files - before[2]), f"there are more files: {new}"
        return True

    async def check(self, *, lossy: bool = False) -> None:
        """The kernel that counts has missed nothing, and the server ends and leaves nothing.

        Where it is ``lossy``, since nobody was there to listen, what is missing was announced, and
        what nobody had noted may come again.
        """
        assert self._counter is not None
        await self._counter.check(lossy=lossy)
        self._counter = None
        said = [text for text in NEVER_SAID if text in self.output]
        assert not said, f"the server's log has {said}"
        await self.rest.http.aclose()
        server = self.servers.present
        assert server is not None
        server.send_signal(signal.SIGTERM)
        await asyncio.to_thread(server.wait)
        if self._keeper is not None:
            await self._keeper.close()
        await asyncio.to_thread(server.stop)
        self.servers.present = None


class _Counting:
    """A kernel that prints numbers, and who reads them, from one server to the next."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._kernel_id = ""
        self._numbers: list[int] = []
        self._gaps: list[Json] = []
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        rest = self._bench.rest
        self._kernel_id = (await rest.start_kernel("fake"))["id"]
        await rest.wait_for_state(self._kernel_id, "idle", timeout=BOUND)
        await Executions(rest, self._kernel_id).run("background 1000000 0.05")
        self._task = asyncio.get_running_loop().create_task(self._read())
        await eventually(lambda: self._numbers, BOUND)

    async def _read(self) -> None:
        path = f"/api/kernels/{self._kernel_id}/messages"
        query: dict[str, Any] = {"after": 0}
        while True:
            try:
                server = await self._bench.servers.somewhere()
                async with RestClient(server.url, server.token) as rest:
                    if "epoch" not in query:
                        page = await rest.http.get(f"{path}?limit=1")
                        query["epoch"] = page.json()["epoch"]
                    async for event in stream(rest, path, NDJSON, params=query):
                        self._take(event)
                        query["after"] = event.get("seq", query["after"])
            except (httpx.HTTPError, OSError):
                pass
            await asyncio.sleep(0.05)

    def _take(self, event: Json) -> None:
        if event["type"] == "gap":
            self._gaps.append(event)
        elif event["type"] == "message" and event["header"]["msg_type"] == "stream":
            for line in event["content"]["text"].splitlines():
                self._numbers.append(int(line.removeprefix("background ")))

    async def check(self, *, lossy: bool) -> None:
        """It goes on counting; no number is missing, and none was there twice."""
        assert self._task is not None
        task, there = self._task, len(self._numbers)
        await eventually(lambda: task.done() or len(self._numbers) > there + 10, BOUND)
        await self.stop()
        # With a keeper that was killed goes what its kernels say until another hears them.
        deaths = getattr(self._bench.faulty, "deaths", 0)
        assert lossy or len(self._gaps) <= deaths, (deaths, self._gaps)
        numbers = list(dict.fromkeys(self._numbers)) if lossy else self._numbers
        behind = [pair for pair in pairwise(numbers) if pair[0] >= pair[1]]
        assert not behind, f"numbers are not in order, or there twice: {behind[:5]}, {self._gaps}"
        # A gap tells of the numbers that are lost; what nobody has heard never had any.
        missing = numbers[-1] - len(numbers)
        assert not missing or self._gaps, f"{missing} are missing"
        await self._bench.rest.delete(self._kernel_id)
        await eventually(lambda: self._bench.is_gone(self._kernel_id), BOUND)

    async def stop(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait({task})
            if not task.cancelled():
                task.result()


def processes_of(kernel_id: str) -> list[int]:
    """The processes whose command line names a kernel's connection file."""
    return _processes("cmdline", f"kernel-{kernel_id}.json")


def processes_with(variable: str) -> list[int]:
    """The processes that have a variable, written ``NAME=VALUE``, in their environment."""
    return _processes("environ", f"{variable}\0")


SEEN_SECONDS = 0.1  # for which what was seen of all processes is good enough


class _Seen:
    """Command lines and environments of all processes, looked at not too often.

    Those that were there before the first look are no bench's, and most of all that run.
    """

    when = float("-inf")
    others: ClassVar[set[int]] = {int(entry) for entry in os.listdir("/proc") if entry.isdigit()}
    processes: ClassVar[dict[int, dict[str, bytes]]] = {}

    @classmethod
    def look(cls) -> None:
        if time.monotonic() < cls.when + SEEN_SECONDS:
            return
        there = {int(entry) for entry in os.listdir("/proc") if entry.isdigit()}
        cls.others &= there  # the number of one that has ended may be that of another now
        cls.processes = {}
        for pid in there - cls.others:
            with contextlib.suppress(OSError):  # it has ended, or is another user's
                cls.processes[pid] = {
                    file: read_process(pid, file) for file in ("cmdline", "environ")
                }
        cls.when = time.monotonic()


def _processes(file: str, text: str) -> list[int]:
    _Seen.look()
    return [pid for pid, said in _Seen.processes.items() if text.encode() in said[file]]
