"""Whatever was started, opened and killed is gone from the server: descriptors, threads, child
processes, tasks and objects are back where they were."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    contextmanager,
)
from struct import pack

import pytest
import uvicorn
import zmq
from jupyter_client.manager import KernelManager
from pydantic import SecretStr

from app.keeper.channels import Channels
from app.main import create_app
from app.managers.kernels.kernel import Kernel
from app.managers.log.message_log import Reader
from app.managers.processes.process import KernelProcess
from app.settings import Settings
from app.ws.uvicorn_protocol import KernelkeepWebSocketProtocol
from tests.conftest import servers
from tests.support.channels import Connector, JupyterChannels
from tests.support.framing import FRAMINGS
from tests.support.home import Home
from tests.support.kernelspecs import write_kernelspecs
from tests.support.processes import Usage, eventually, usage
from tests.support.rest import RestClient, RestError
from tests.support.running import KernelStarter, kernels_of
from tests.support.server import ServerProcess

pytestmark = pytest.mark.leaks

AT_ONCE = 10  # kernels or connections
POOL_THREADS = 8
"""By how much the pools of threads may have grown; less than one for each kernel."""

TIMES = POOL_THREADS + 2
"""Enough for one thing each to be noticed; ``--full`` looks for what is left now and then."""

FIRST = 2
"""So many go before those that are counted: the server makes for them what it keeps for all.

A server's very first are as many as go at once, so that its pools have their threads.
"""

Action = Callable[[KernelStarter], Awaitable[None]]


async def start_and_stop(start: KernelStarter) -> None:
    kernel_id = (await start.rest.start_kernel("fake"))["id"]
    await start.rest.wait_for_state(kernel_id, "idle", timeout=60)
    await start.rest.delete(kernel_id)


async def kill_and_stop(start: KernelStarter) -> None:
    kernel = await start("fake")
    pid = await kernel.pid()
    os.kill(pid, signal.SIGKILL)
    await kernel.told("idle", timeout=60)
    assert await kernel.pid() != pid
    await kernel.rest.delete(kernel.id)
    await kernel.channels.close()


async def restart_and_stop(start: KernelStarter) -> None:
    kernel = await start("fake")
    await kernel.rest.restart(kernel.id)
    await kernel.told("idle", timeout=60)
    await kernel.rest.delete(kernel.id)
    await kernel.channels.close()


async def start_what_cannot_start(start: KernelStarter) -> None:
    with pytest.raises(RestError):
        await start.rest.start_kernel("fake-missing")
    kernel = await start("fake-exit", ready=False)
    await kernel.becomes("dead", timeout=60)
    await kernel.rest.delete(kernel.id)
    await kernel.channels.close()


async def delete_while_starting(start: KernelStarter) -> None:
    kernel = await start("fake-slow", ready=False)
    await kernel.channels.send_execute("print never")
    await kernel.rest.delete(kernel.id)
    await kernel.channels.close()


async def repeat(action: Action, start: KernelStarter, times: int) -> None:
    """So many times, some of them side by side."""
    left = iter(range(times))

    async def work() -> None:
        for _ in left:
            await action(start)

    await asyncio.gather(*(work() for _ in range(AT_ONCE)))


async def settled(server: ServerProcess) -> Usage:
    """What the server holds once it has done with what was closed just now."""
    readings = [usage(server.pid)]

    def is_settled() -> bool:
        readings.append(usage(server.pid))
        return len(readings) > 5 and len({*readings[-5:]}) == 1

    await eventually(is_settled, 20)
    return readings[-1]


@asynccontextmanager
async def nothing_is_left(server: ServerProcess) -> AsyncIterator[None]:
    """What the server holds is no more of anything than before.

    The pools of threads for blocking calls grow, at chance, to their limits and stay there.
    """
    before = await settled(server)
    threads = before.threads + POOL_THREADS
    yield

    def is_back() -> bool:
        after = usage(server.pid)
        assert after.descriptors <= before.descriptors, (before, after)
        assert after.children <= before.children, (before, after)
        assert after.threads <= threads, (before, after)
        return True

    await eventually(is_back, 20)


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest) -> Iterator[ServerProcess]:
    with servers(request.config) as make_server:
        yield make_server("--log-level", "warning", "--restart-limit", "1000000")


@pytest.fixture(scope="module")
def begun() -> set[Action]:
    """What the server was asked for so far."""
    return set()


@pytest.mark.parametrize(
    "action",
    [
        start_and_stop,
        kill_and_stop,
        restart_and_stop,
        start_what_cannot_start,
        delete_while_starting,
    ],
)
async def test_kernels_leave_nothing(
    server: ServerProcess, begun: set[Action], action: Action, full: bool
) -> None:
    times = TIMES * (10 if full else 1)
    async with kernels_of(server) as start:
        await repeat(action, start, FIRST if begun else AT_ONCE)
    begun.add(action)
    async with nothing_is_left(server), kernels_of(server) as start:
        await repeat(action, start, times)
    assert server.home.leftovers() == []


async def close(channels: JupyterChannels) -> None:
    await channels.close()


async def vanish(channels: JupyterChannels) -> None:
    """The connection is reset, with no close frame."""
    transport = channels.websocket.transport
    connection: socket.socket = transport.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, pack("ii", 1, 0))
    transport.abort()


async def test_connections_leave_nothing(server: ServerProcess, full: bool) -> None:
    """Many that come and go, one way or the other, while the kernel is talking."""

    async def come_and_go(kernel_id: str, numbers: Iterator[int]) -> None:
        for number in numbers:
            channels = await JupyterChannels.connect(
                server.ws_url, kernel_id, server.token, framing=FRAMINGS[number % 2]
            )
            await channels.recv()
            await (close, vanish)[number // 2 % 2](channels)

    async def connections(kernel_id: str, times: int) -> None:
        numbers = iter(range(times))
        await asyncio.gather(*(come_and_go(kernel_id, numbers) for _ in range(AT_ONCE)))
        async with RestClient(server.url, server.token) as rest:

            async def is_alone() -> bool:
                return (await rest.kernel(kernel_id))["connections"] == 0

            await eventually(is_alone)

    async with RestClient(server.url, server.token) as rest:
        kernel_id = (await rest.start_kernel("fake"))["id"]
        # What the server holds for the kernel is there before it is counted: its sockets connect
        # when the kernel has bound its own, and then each has one descriptor more.
        await rest.wait_for_state(kernel_id, "idle", timeout=60)
    async with await JupyterChannels.connect(server.ws_url, kernel_id, server.token) as channels:
        await channels.send_execute("background 100000 0.01")
        await channels.seen(lambda m: m.msg_type == "stream")
    await connections(kernel_id, 20)
    async with nothing_is_left(server):
        await connections(kernel_id, 200 if full else 80)


# -- what can be seen only from inside

KEPT = (Kernel, KernelProcess, Channels, Reader, KernelManager, zmq.Socket)


class ServerHere(uvicorn.Server):
    """In the test's own event loop, so without signal handlers."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@asynccontextmanager
async def served_here(
    home: Home,
) -> AsyncIterator[Callable[[], AbstractAsyncContextManager[KernelStarter]]]:
    """The application, served by this process."""
    token = "secret"
    settings = Settings(
        token=SecretStr(token), root_dir=home.root_dir, state_dir=home.state_dir, restart_limit=1000
    )
    config = uvicorn.Config(
        create_app(settings),
        ws=KernelkeepWebSocketProtocol,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=5,
    )
    server = ServerHere(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        serving = asyncio.create_task(server.serve([listener]))
        await eventually(lambda: server.started)

        @asynccontextmanager
        async def kernels() -> AsyncIterator[KernelStarter]:
            async with (
                RestClient(f"http://127.0.0.1:{port}", token) as rest,
                AsyncExitStack() as stack,
            ):
                yield KernelStarter(rest, Connector(f"ws://127.0.0.1:{port}", token, stack))

        yield kernels
        server.should_exit = True
        await serving


def objects() -> Counter[str]:
    """How many there are of what belongs to kernels and connections."""
    gc.collect()
    return Counter(type(kept).__name__ for kept in gc.get_objects() if isinstance(kept, KEPT))


async def test_tasks_and_objects_go_with_what_they_were_for(
    home: Home, monkeypatch: pytest.MonkeyPatch, full: bool
) -> None:
    before = objects()  # a test that has failed in this process keeps what its traceback shows
    for name, value in home.environment().items():
        monkeypatch.setenv(name, value)
    write_kernelspecs(home.jupyter_path)
    actions = (
        start_and_stop,
        kill_and_stop,
        restart_and_stop,
        start_what_cannot_start,
        delete_while_starting,
    )
    async with served_here(home) as kernels:
        async with kernels() as start:
            await asyncio.gather(*(action(start) for action in actions))
        await eventually(lambda: len(asyncio.all_tasks()))
        tasks = asyncio.all_tasks()
        for _ in range(3 if full else 1):
            async with kernels() as start:
                await asyncio.gather(*(action(start) for action in actions))
        await eventually(lambda: not asyncio.all_tasks() - tasks)
        assert objects() - before == Counter()
    assert asyncio.all_tasks() == {asyncio.current_task()}
