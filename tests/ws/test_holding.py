"""A client that brings no session is held in its handshake until its kernel answers."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import psutil
import pytest
from websockets.exceptions import InvalidStatus

from app.managers.kernels.departures import BY_REQUEST
from tests.conftest import MakeServer
from tests.support.channels import REPLY_TIMEOUT, JupyterChannels
from tests.support.framing import FramingName
from tests.support.kernelspecs import shell_spec, write_kernelspec
from tests.support.processes import eventually
from tests.support.running import KernelStarter, RunningKernel, kernels_of
from tests.support.server import ServerProcess, UvicornServer
from tests.support.streams import Stream, aborted
from tests.ws.test_floods import UPGRADE, frame

A_WHILE = 0.5  # seconds, to see that nothing comes

GATED = shell_spec(
    "while [ ! -e go ]; do sleep 0.05; done; if [ -e die ]; then echo oh no >&2; exit 3; fi\n"
    "exec $FAKE"
)


class Gated:
    """A kernel that starts when it is let to; ``kernel``'s client brings a session."""

    def __init__(self, kernel: RunningKernel, folder: Path) -> None:
        self.kernel = kernel
        self._folder = folder

    def let_go(self) -> None:
        (self._folder / "go").touch()

    def let_die(self) -> None:
        (self._folder / "die").touch()
        self.let_go()

    @asynccontextmanager
    async def held(
        self, framing: FramingName = "legacy"
    ) -> AsyncIterator[asyncio.Task[JupyterChannels]]:
        """A client without a session, whose handshake is not answered yet."""
        client = asyncio.create_task(self.kernel.connect(framing=framing, omit=["session_id"]))
        assert await asyncio.wait({client}, timeout=A_WHILE) == (set(), {client})
        try:
            yield client
        finally:
            client.cancel()
            await asyncio.wait({client})


async def gated(server: ServerProcess, start: KernelStarter, name: str) -> Gated:
    write_kernelspec(server.home.jupyter_path, "gated", GATED)
    folder = server.home.root_dir / name
    folder.mkdir()
    return Gated(await start("gated", ready=False, path=name), folder)


async def refusal(client: asyncio.Task[JupyterChannels]) -> tuple[int, str, str]:
    """Status, code and message with which a handshake is refused."""
    with pytest.raises(InvalidStatus) as refused:
        await client
    answer = refused.value.response
    body = json.loads(bytes(answer.body))
    return answer.status_code, body["code"], body["message"]


async def test_it_is_accepted_when_the_kernel_answers(
    server: ServerProcess, start: KernelStarter, framing: FramingName
) -> None:
    gate = await gated(server, start, f"answers-{framing}")
    # Whoever brings a session is accepted at once.
    assert (await gate.kernel.channels.recv()).state == "starting"
    async with gate.held(framing) as client:
        assert (await gate.kernel.model())["connections"] == 1
        gate.let_go()
        channels = await client
        assert (await channels.recv()).state == "idle"
        info = await channels.request("kernel_info_request")
        assert info.reply["implementation"] == "fake"
        assert (await channels.execute("print a")).text == "a\n"


async def test_of_a_kernel_that_runs_or_is_dead_it_is_accepted_at_once(
    start: KernelStarter,
) -> None:
    running, dead = await start("fake"), await start("fake-exit", ready=False)
    await dead.becomes("dead")
    for kernel, state in ((running, "idle"), (dead, "dead")):
        channels = await kernel.connect(omit=["session_id"])
        assert (await channels.recv()).state == state


async def test_it_waits_for_a_restart_as_well(server: ServerProcess, start: KernelStarter) -> None:
    gate = await gated(server, start, "restarts")
    gate.let_go()
    await gate.kernel.becomes("idle")
    (server.home.root_dir / "restarts" / "go").unlink()
    await gate.kernel.rest.restart(gate.kernel.id)
    async with gate.held() as client:
        gate.let_go()
        assert (await (await client).recv()).state == "idle"


async def test_it_is_refused_with_the_reason_when_the_kernel_dies(
    server: ServerProcess, start: KernelStarter
) -> None:
    gate = await gated(server, start, "dies")
    async with gate.held() as client:
        gate.let_die()
        status, code, message = await refusal(client)
        assert (status, code) == (409, "kernel_not_running")
        assert "exited with code 3" in message
        assert "oh no" in message


async def test_it_is_refused_when_the_kernel_is_deleted(
    server: ServerProcess, start: KernelStarter
) -> None:
    gate = await gated(server, start, "deleted")
    async with gate.held() as client:
        await gate.kernel.rest.delete(gate.kernel.id)
        assert await refusal(client) == (409, "kernel_not_running", BY_REQUEST)


@pytest.mark.parametrize("kind", [ServerProcess, UvicornServer])
async def test_it_is_refused_when_the_server_stops(
    make_server: MakeServer, kind: type[ServerProcess]
) -> None:
    server = make_server(kind=kind)
    async with kernels_of(server) as start:
        gate = await gated(server, start, "stops")
        start.started.clear()  # there will be nobody to delete it
        async with gate.held() as client:
            server.send_signal(signal.SIGTERM)
            if kind is ServerProcess:
                assert (await refusal(client))[:2] == (503, "server_stopping")
            else:  # uvicorn itself refuses what has not been answered yet
                with pytest.raises(InvalidStatus) as refused:
                    await client
                assert refused.value.response.status_code in (500, 503)
    assert server.wait() in (0, -signal.SIGTERM)
    assert "Traceback" not in server.output()


async def test_after_kernel_info_timeout_it_is_accepted_all_the_same(
    make_server: MakeServer,
) -> None:
    server = make_server("--kernel-info-timeout", "5", "--max-concurrent-starts", "1")
    async with kernels_of(server) as start:
        first = await gated(server, start, "first")  # it has its turn until it is given up
        kernel_id = str(uuid4())
        start.started.append(kernel_id)
        waiting = asyncio.create_task(start.rest.start_kernel("gated", kernel_id=kernel_id))

        async def waits() -> bool:
            return kernel_id in [kernel["id"] for kernel in await start.rest.kernels()]

        await eventually(waits)
        kernel = RunningKernel(kernel_id, start.rest, start.connector, first.kernel.channels)
        async with Gated(kernel, server.home.root_dir).held() as client:
            assert (await (await client).recv()).state == "starting"
        await waiting


async def test_one_that_goes_away_is_forgotten(server: ServerProcess, start: KernelStarter) -> None:
    gate = await gated(server, start, "leaves")
    async with asking(server, gate.kernel) as (_, writer):
        own = writer.get_extra_info("sockname")

        def is_known() -> bool:
            return own in [one.raddr for one in psutil.Process(server.pid).net_connections()]

        assert is_known()
        writer.transport.abort()
        await eventually(lambda: not is_known(), REPLY_TIMEOUT)
    gate.let_go()
    assert (await gate.kernel.channels.execute("print a")).text == "a\n"
    assert (await gate.kernel.model())["connections"] == 1
    assert "Traceback" not in server.output()


@pytest.mark.parametrize(
    "early", [frame(0x81, b"{}"), frame(0x82), frame(0x89), frame(0x88), b"\xff" * 100]
)
async def test_one_that_does_not_wait_harms_nobody(
    server: ServerProcess, start: KernelStarter, early: bytes
) -> None:
    gate = await gated(server, start, f"early-{early[:1].hex()}")
    async with asking(server, gate.kernel) as (reader, writer), asyncio.timeout(REPLY_TIMEOUT):
        writer.write(early * 100)
        await writer.drain()
        gate.let_go()
        assert (await gate.kernel.channels.execute("print a")).text == "a\n"
        writer.close()
        await reader.read()
    await gate.kernel.has_connections(1)
    assert "Traceback" not in server.output()


@asynccontextmanager
async def asking(server: ServerProcess, kernel: RunningKernel) -> AsyncIterator[Stream]:
    """A client without a session that has asked for its handshake, and has no answer."""
    with aborted(await asyncio.open_connection("127.0.0.1", server.port)) as (reader, writer):
        path = f"/api/kernels/{kernel.id}/channels?token={server.token}"
        writer.write(f"GET {path} HTTP/1.1\r\n".encode() + UPGRADE)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(A_WHILE):
                await reader.read(1)
        yield reader, writer
