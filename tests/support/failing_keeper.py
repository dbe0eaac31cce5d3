"""A keeper that fails on demand: a proxy before a real one.

It listens where the server looks for the keeper. The real keeper has a directory of its own behind
it, and is started again when it has ended and somebody connects. The proxy knows of the protocol
what every version has: the frames, the greeting, and the verb, id and kernel of a request.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import json
import os
import socket
import struct
import sys
from pathlib import Path
from typing import Any, Self

from tests.support.faults import LATE_SECONDS, Call, Orders, Way
from tests.support.home import Home

REPOSITORY = Path(__file__).parents[2]
LENGTHS = struct.Struct("!II")
KEY = "FAULTS_KEY"
"""A variable that a kernelspec may set: a key for its kernels, in place of their ids."""

READY_SECONDS = 60  # for a keeper to start
END_SECONDS = 20  # for one that has nothing to keep to end

Fields = dict[str, Any]


class FailingKeeper:
    """An asynchronous context manager, in the event loop of the test."""

    shared = True
    spec = "fake"

    def __init__(self, home: Home) -> None:
        self._home = home
        self._directory = home.state_dir / "keeper"
        self._behind = home.path / "behind"
        self._orders = Orders()
        self._names: dict[str, str] = {}
        self._common: set[str] = set()
        self._connections: set[_Connection] = set()
        self._serving: set[asyncio.Task[Any]] = set()
        self._process: asyncio.subprocess.Process | None = None
        self._starting = asyncio.Lock()
        self._healed: dict[str, asyncio.Event] = {}
        self._server: asyncio.Server | None = None
        self._lock = -1
        self.deaths = 0

    async def __aenter__(self) -> Self:
        self._behind.mkdir(mode=0o700)
        self._directory.mkdir(mode=0o700, exist_ok=True)
        # Who starts a keeper here is told that there is one.
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        self._lock = os.open(self._directory / "lock", flags, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        umask = os.umask(0o177)
        listener.bind(str(self._directory / "socket"))
        os.umask(umask)
        self._server = await asyncio.start_unix_server(self._serve, sock=listener)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End, with everything that it has started; returns when the real keeper has ended."""
        if self._server is None:
            return
        self._server.close()
        self._server = None
        for task in self._serving:
            task.cancel()
        if self._serving:
            await asyncio.wait(self._serving)
        (self._directory / "socket").unlink(missing_ok=True)
        os.close(self._lock)
        try:
            if self._process is not None:  # it has nothing to keep and ends by itself
                await asyncio.wait_for(self._process.wait(), END_SECONDS)
        except TimeoutError:
            raise AssertionError(f"the keeper has not ended; it has {await self._kept()}") from None
        finally:
            await self.kill()

    # What the test says

    @property
    def common(self) -> set[str]:
        """The calls that are for no kernel in particular."""
        return self._common

    def order(self, key: str, call: Call, way: Way) -> None:
        """Have one call for a kernel fail; one for no kernel in particular counts for every key."""
        self._healed.setdefault(key, asyncio.Event()).clear()
        self._orders.order(key, call, way)

    def met(self, key: str) -> bool:
        return self._orders.met(key)

    async def heal(self, key: str) -> None:
        self._orders.withdraw(key)
        event = self._healed.pop(key, None)
        if event is not None:
            event.set()

    def record(self, key: str) -> None:
        self._orders.record(key)

    def recorded(self, key: str) -> list[str]:
        return self._orders.record(key)

    # The real one

    async def kill(self) -> None:
        """SIGKILL for the real keeper, whose connections end."""
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            process.kill()
            await process.wait()
            self.deaths += 1
        for connection in [*self._connections]:
            connection.close()

    async def stream(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to the real keeper, which is started if need be."""
        async with self._starting:
            if self._process is None or self._process.returncode is not None:
                await self._start()
        return await asyncio.open_unix_connection(self._behind / "keeper" / "socket")

    async def _kept(self) -> Any:
        """What the real keeper says that it has."""
        reader, writer = await self.stream()
        try:
            await _receive(reader)
            writer.write(_pack({"ask": "kept", "id": 1}))
            _, fields = await _receive(reader)
            return fields
        finally:
            writer.close()

    async def _start(self) -> None:
        environment = {**self._home.environment(), "PYTHONPATH": str(REPOSITORY)}
        log = os.open(self._behind / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "app.keeper", str(self._behind)),
                cwd="/",
                env=environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        finally:
            os.close(log)
        assert self._process.stdout is not None
        async with asyncio.timeout(READY_SECONDS):
            said = await self._process.stdout.readline()
        if said.strip() != b"ready":
            raise ConnectionError(f"the real keeper does not start: {said!r}")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = _Connection(self, writer)
        self._connections.add(connection)
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        try:
            await connection.serve(reader)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            connection.close()
            self._connections.discard(connection)
            self._serving.discard(task)

    # What the connections ask

    def meet(self, fields: Fields) -> tuple[Way | None, asyncio.Event]:
        """How a request is to fail, and what tells that it need not any more."""
        kernel_id = fields.get("kernel_id")
        if (name := fields.get("env", {}).get(KEY)) is not None and kernel_id is not None:
            self._names[kernel_id] = name
        key = None if kernel_id is None else self._names.get(kernel_id, kernel_id)
        if key is None:
            self._common.add(str(fields["ask"]))
        way, ordered = self._orders.meet(str(fields["ask"]), key)
        return way, self._healed.get(ordered) or asyncio.Event()


class _Connection:
    """One of the server's, and one to the real keeper for it."""

    def __init__(self, keeper: FailingKeeper, writer: asyncio.StreamWriter) -> None:
        self._keeper = keeper
        self._writer = writer
        self._upstream: asyncio.StreamWriter | None = None
        self._faults: dict[Any, Way] = {}  # by the ids of requests
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader) -> None:
        upstream, self._upstream = await self._keeper.stream()
        self._spawn(self._answers(upstream))
        while True:
            frame, fields = await _receive(reader)
            if "ask" not in fields:
                self._upstream.write(frame)
                continue
            way, healed = self._keeper.meet(fields)
            if way is Way.RAISE:
                number = {"id": fields["id"]} if "id" in fields else {}
                self._writer.write(_pack({**number, **ERROR}))
            elif way is Way.HANG:
                self._spawn(self._later(frame, healed))
            else:
                if way is not None:
                    self._faults[fields.get("id")] = way
                self._upstream.write(frame)

    async def _answers(self, reader: asyncio.StreamReader) -> None:
        try:
            while True:
                frame, fields = await _receive(reader)
                way = None
                if "event" not in fields and "keeper" not in fields:
                    way = self._faults.pop(fields.get("id"), None)
                if way is Way.LATE:
                    self._spawn(self._after(frame))
                elif way in (None, Way.ANSWER_AND_DIE):
                    self._writer.write(frame)
                    await self._writer.drain()
                if way is not None and way.deadly:
                    await self._keeper.kill()
        except (OSError, asyncio.IncompleteReadError):
            self._writer.close()

    async def _later(self, frame: bytes, healed: asyncio.Event) -> None:
        """The keeper goes on: it reads what was sent to it meanwhile."""
        await healed.wait()
        assert self._upstream is not None
        self._upstream.write(frame)

    async def _after(self, frame: bytes) -> None:
        await asyncio.sleep(LATE_SECONDS)
        self._writer.write(frame)

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def close(self) -> None:
        for task in self._tasks:
            if task is not asyncio.current_task():
                task.cancel()
        for writer in (self._writer, self._upstream):
            if writer is not None:
                writer.close()


ERROR: Fields = {
    "error": "[Errno 24] Too many open files",
    "errno": errno.EMFILE,
    "strerror": "Too many open files",
    "filename": None,
}


def _pack(fields: Fields) -> bytes:
    head = json.dumps(fields).encode()
    return LENGTHS.pack(4 + len(head), len(head)) + head


async def _receive(reader: asyncio.StreamReader) -> tuple[bytes, Fields]:
    """The next frame as it is, and its object."""
    lengths = await reader.readexactly(LENGTHS.size)
    whole, head = LENGTHS.unpack(lengths)
    body = await reader.readexactly(whole - 4)
    return lengths + body, json.loads(body[:head])
