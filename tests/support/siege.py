"""A siege: more slow heads, slow bodies and floods of pings than a server has descriptors for.

    python -m tests.support.siege

starts a server with 1,024 file descriptors, holds 2,000 slow heads, 200 slow bodies and 50 floods
of pings against it for half a minute, and tells how a client with a token fared meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import os
import re
import resource
import struct
import sys
import time
from collections.abc import Coroutine
from typing import Any, Final

from tests.support.kernelspecs import FAKE_SPECS, write_kernelspecs
from tests.support.processes import resident_memory, usage
from tests.support.server import ServerProcess

HEAD: Final = b"Host: 127.0.0.1\r\n"
PING: Final = b"\x89\x80\0\0\0\0"
UPGRADE: Final = (
    b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)


class CrampedServer(ServerProcess):
    """A server with few file descriptors."""

    descriptors = 1024

    @property
    def command(self) -> list[str]:
        limit = f'ulimit -n {self.descriptors}; exec "$@"'
        return ["sh", "-c", limit, "sh", *super().command]


@dataclasses.dataclass
class Found:
    """What a siege has shown; times in seconds, memory in bytes."""

    livez: list[float]
    executions: list[float]
    failures: list[str]
    memory_before: int
    memory_peak: int = 0
    memory_after: int = 0
    descriptors_before: int = 0
    descriptors_peak: int = 0
    recovered_after: float = -1.0

    def __str__(self) -> str:
        mib = 2**20
        grown = (self.memory_peak - self.memory_before) / mib
        return "\n".join(
            (
                f"/livez: {len(self.livez)} times, {max(self.livez):.3f} s at the most",
                f"executions: {len(self.executions)}, {max(self.executions):.3f} s at the most",
                f"failures: {self.failures or 'none'}",
                f"memory: {self.memory_before / mib:.0f} MiB before, +{grown:.0f} MiB at the most, "
                f"{self.memory_after / mib:.0f} MiB after",
                f"descriptors: {self.descriptors_before} before, {self.descriptors_peak} at most",
                f"back to normal {self.recovered_after:.1f} s after the end",
            )
        )


class Siege:
    """How a client with a token fares while a process of `Enemies` is at the server's door."""

    def __init__(self, server: ServerProcess, *, heads: int, bodies: int, floods: int) -> None:
        self._server = server
        self._numbers = (str(heads), str(bodies), str(floods))

    async def hold(self, seconds: float) -> Found:
        """Besiege for so long, then let go; returns how others fared."""
        server = self._server
        pid = server.pid
        found = Found([], [], [], resident_memory(pid), descriptors_before=usage(pid).descriptors)
        kernel = (await self._ask("POST", "/api/kernels", {"name": "fake"}))["id"]
        await self._measure(found, kernel)
        # A kernel takes descriptors too.
        found.descriptors_before = usage(pid).descriptors
        found.memory_before = resident_memory(pid)
        enemies = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.support.siege", "--enemies-of", str(server.port)),
            *self._numbers,
            env={**os.environ, "SIEGE_TOKEN": server.token},
        )
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            await self._measure(found, kernel)
            found.memory_peak = max(found.memory_peak, resident_memory(pid))
            found.descriptors_peak = max(found.descriptors_peak, usage(pid).descriptors)
            await asyncio.sleep(0.2)
        enemies.kill()
        await enemies.wait()
        await self._recover(found)
        await self._measure(found, kernel)
        await self._ask("DELETE", f"/api/kernels/{kernel}")
        return found

    async def _recover(self, found: Found) -> None:
        began = time.monotonic()
        while time.monotonic() < began + 30:
            if usage(self._server.pid).descriptors <= found.descriptors_before + 5:
                found.recovered_after = time.monotonic() - began
                break
            await asyncio.sleep(0.1)
        found.memory_after = resident_memory(self._server.pid)

    async def _measure(self, found: Found, kernel: str) -> None:
        path = f"/api/kernels/{kernel}/executions?wait=10"
        for times, request in (
            (found.livez, self._ask("GET", "/livez")),
            (found.executions, self._ask("POST", path, {"code": "print a"})),
        ):
            began = time.monotonic()
            try:
                answer = await asyncio.wait_for(request, 20)
                assert answer == "ok\n" or answer["state"] == "ok", answer
            except (OSError, EOFError, TimeoutError, AssertionError) as error:
                found.failures.append(repr(error)[:200])
            times.append(time.monotonic() - began)

    async def _ask(self, method: str, path: str, body: Any = None) -> Any:
        """A request on a connection of its own, with the token; its answer's body."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._server.port)
        text = b"" if body is None else json.dumps(body).encode()
        token = f"Authorization: token {self._server.token}\r\nContent-Length: {len(text)}\r\n"
        head = f"{method} {path} HTTP/1.1\r\nConnection: close\r\n{token}".encode()
        try:
            writer.write(head + HEAD + b"\r\n" + text)
            answer = await reader.read()
        finally:
            writer.close()
        head, _, content = answer.partition(b"\r\n\r\n")
        assert re.match(rb"HTTP/1.1 2", head), answer[:200]
        if b"application/json" in head:
            return json.loads(content)
        return content.decode()


class Enemies:
    """Hostile connections to a server, each of which is made anew when the server ends it."""

    def __init__(self, port: int, token: str) -> None:
        self._port = port
        self._token = token

    async def attack(self, heads: int, bodies: int, floods: int) -> None:
        """Go on until the process is killed."""
        kinds = ((heads, self._slow_head), (bodies, self._slow_body), (floods, self._flood))
        async with asyncio.TaskGroup() as group:
            for count, kind in kinds:
                for _ in range(count):
                    group.create_task(self._again_and_again(kind))

    async def _again_and_again(self, kind: Any) -> None:
        while True:
            with contextlib.suppress(OSError, EOFError):
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
                try:
                    await kind(reader, writer)
                finally:
                    writer.transport.abort()
            await asyncio.sleep(2)

    async def _slow_head(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"GET /api HTTP/1.1\r\nX: ")
        await self._trickle(reader, writer)

    async def _slow_body(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        token = f"Authorization: token {self._token}\r\n".encode()
        length = b"Content-Length: 100000\r\n\r\n"
        writer.write(b"POST /api/kernels HTTP/1.1\r\n" + HEAD + token + length)
        await self._trickle(reader, writer)

    async def _trickle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ended: Coroutine[Any, Any, bytes] = reader.read()
        waiting = asyncio.ensure_future(ended)
        try:
            while not waiting.done():
                writer.write(b"x")
                await asyncio.wait([waiting], timeout=2)
        finally:
            waiting.cancel()

    async def _flood(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pings by a client that reads nothing: its answers are left where they are."""
        token = f"Authorization: token {self._token}\r\n".encode()
        writer.write(b"GET /api/events/subscribe HTTP/1.1\r\n" + HEAD + token + UPGRADE + b"\r\n")
        await reader.readuntil(b"\r\n\r\n")
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        payload = b"p" * 120
        ping = struct.pack("!BB4x", 0x89, 0x80 | len(payload)) + payload
        while True:
            writer.write((PING + ping) * 500)
            await writer.drain()


def main() -> int:
    """The full form, or what the arguments say. Exits with 1 if the server did not hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--heads", type=int, default=2000)
    parser.add_argument("--bodies", type=int, default=200)
    parser.add_argument("--floods", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--enemies-of", type=int, nargs=4)
    options = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if options.enemies_of:
        port, *numbers = options.enemies_of
        asyncio.run(Enemies(port, os.environ["SIEGE_TOKEN"]).attack(*numbers))
    server = CrampedServer("--on-shutdown", "stop")
    write_kernelspecs(server.home.jupyter_path, FAKE_SPECS)
    server.start()
    try:
        siege = Siege(server, heads=options.heads, bodies=options.bodies, floods=options.floods)
        found = asyncio.run(siege.hold(options.seconds))
        lines = [line for line in server.output().splitlines() if "access" not in line]
    finally:
        server.stop()
    print(found, *lines[-8:], sep="\n")  # noqa: T201
    held = not found.failures and max(*found.livez, *found.executions) < 1
    small = found.memory_peak < found.memory_before + 100 * 2**20
    return 0 if held and small and 0 <= found.recovered_after < 30 else 1


if __name__ == "__main__":
    sys.exit(main())
