"""Which kernels of a real server are culled, and what their clients see of it.

That a kernel is *not* culled is seen with a second one, the witness, which is left to itself after
the first has been idle for as long as it takes: when the witness is gone, the culler has passed the
other by.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.conftest import MakeServer, servers
from tests.support.framing import FramingName
from tests.support.kernelspecs import FAKE_SPECS, Spec
from tests.support.processes import eventually, is_alive
from tests.support.rest import RestClient
from tests.support.running import KernelStarter, RunningKernel, kernels_of
from tests.support.server import ServerProcess

TIMEOUT = 1.0  # seconds that a kernel of the module's server may be idle
SLOW_START = 2.0  # seconds, of the kernelspec fake-slow
CULLING = ("--cull-idle-timeout", str(TIMEOUT), "--cull-interval", "0.1")

SPECS = {
    **FAKE_SPECS,
    "never": Spec(metadata={"cull_idle_timeout": 0}),
    "in-an-hour": Spec(metadata={"cull_idle_timeout": 3600}),
    "at-once": Spec(metadata={"cull_idle_timeout": 0.2}),
    "odd": Spec(metadata={"cull_idle_timeout": "soon"}),
}


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest) -> Iterator[ServerProcess]:
    with servers(request.config) as make_server:
        yield make_server(*CULLING, specs=SPECS)


async def is_gone(rest: RestClient, kernel_id: str) -> bool:
    return kernel_id not in [model["id"] for model in await rest.kernels()]


async def gone(rest: RestClient, kernel_id: str) -> float:
    """Waits until the kernel is culled; the monotonic time at which that was seen."""
    await eventually(lambda: is_gone(rest, kernel_id), 30)
    return time.monotonic()


async def logged(server: ServerProcess, mark: int, words: str) -> str:
    """The one line that the server has written since a mark with these words in it."""

    def lines() -> list[str]:
        return [line for line in server.output(mark).splitlines() if words in line]

    await eventually(lambda: bool(lines()))
    (line,) = lines()
    return line


async def left_alone(rest: RestClient, name: str = "fake") -> str:
    """A kernel that is idle and has never had a connection."""
    kernel_id = (await rest.start_kernel(name))["id"]
    await rest.wait_for_state(kernel_id, "idle")
    return kernel_id


async def culled(rest: RestClient, name: str = "fake") -> float:
    """When a new kernel has gone, whose being idle may be too short to be seen."""
    return await gone(rest, (await rest.start_kernel(name))["id"])


async def a_witness_is_culled(rest: RestClient) -> None:
    await culled(rest)


async def test_one_that_nobody_uses_is_gone_with_its_process_and_the_log_says_why(
    server: ServerProcess, start: KernelStarter
) -> None:
    kernel = await start()
    pid = await kernel.pid()
    mark = server.mark()
    await kernel.channels.close()
    await gone(start.rest, kernel.id)
    assert not is_alive(pid)
    assert kernel.id not in [model["id"] for model in await start.rest.kernels()]
    line = await logged(server, mark, "Culling")
    assert kernel.id in line
    assert "'idle' kernel 'fake'" in line


async def test_one_with_a_connection_is_kept_until_that_is_closed(start: KernelStarter) -> None:
    kernel = await start()
    await a_witness_is_culled(start.rest)
    assert (await kernel.model())["connections"] == 1
    assert (await kernel.channels.execute("print here")).text == "here\n"
    await kernel.channels.close()
    await gone(start.rest, kernel.id)


async def test_one_that_runs_something_is_kept_and_its_time_runs_from_the_end_of_that(
    start: KernelStarter,
) -> None:
    kernel = await start()
    await kernel.busy("sleep 600")
    await kernel.channels.close()
    await a_witness_is_culled(start.rest)
    assert (await kernel.model())["execution_state"] == "busy"
    ended = time.monotonic()
    await start.rest.interrupt(kernel.id)
    assert await gone(start.rest, kernel.id) - ended >= TIMEOUT


async def test_one_that_runs_something_on_a_subshell_is_kept_too(start: KernelStarter) -> None:
    kernel = await start()
    content = {"code": "sleep 600", "silent": False, "allow_stdin": False}
    await kernel.channels.send("execute_request", content, subshell_id="second")
    await kernel.channels.seen(lambda m: m.msg_type == "execute_input")
    await kernel.channels.close()
    await a_witness_is_culled(start.rest)
    ended = time.monotonic()
    await start.rest.interrupt(kernel.id)
    assert await gone(start.rest, kernel.id) - ended >= TIMEOUT


THREAD = """if True:
    import threading, time
    def talk():
        while True:
            print("background", flush=True)
            time.sleep(0.05)
    threading.Thread(target=talk, daemon=True).start()"""


@pytest.mark.parametrize(("name", "code"), [("fake", "background 10000 0.05"), ("python3", THREAD)])
async def test_what_a_background_thread_prints_keeps_no_kernel_alive(
    start: KernelStarter, name: str, code: str
) -> None:
    kernel = await start(name)
    request = await kernel.channels.send_execute(code)
    await kernel.channels.exchange(request)
    # It does print after the execution has ended.
    await kernel.channels.collect_until(lambda m: m.msg_type == "stream")
    await kernel.channels.close()
    await gone(start.rest, kernel.id)


async def test_looking_and_connecting_is_no_use(start: KernelStarter) -> None:
    kernel = await start()
    await kernel.channels.close()
    idle_since = time.monotonic()
    looks = 0
    while not await is_gone(start.rest, kernel.id):
        looks += 1
        try:
            async with await kernel.connect() as channels:
                await channels.request("kernel_info_request")
                pong = await channels.websocket.ping()
                await asyncio.wait_for(pong, 10)
            await start.rest.kernels()
            await start.rest.status()
        except (InvalidStatus, ConnectionClosed):  # it was culled meanwhile
            await gone(start.rest, kernel.id)
        assert time.monotonic() < idle_since + 30
    assert looks > 1


@pytest.mark.parametrize("name", ["never", "in-an-hour"])
async def test_a_kernelspec_may_keep_its_kernels(start: KernelStarter, name: str) -> None:
    kernel_id = await left_alone(start.rest, name)
    start.started.append(kernel_id)
    await a_witness_is_culled(start.rest)
    assert (await start.rest.kernel(kernel_id))["execution_state"] == "idle"


async def test_a_timeout_in_a_kernelspec_that_makes_no_sense_counts_as_none(
    server: ServerProcess, rest: RestClient
) -> None:
    mark = server.mark()
    await culled(rest, "odd")
    assert await logged(server, mark, "kernelspec odd: its cull_idle_timeout")


async def test_one_that_takes_its_time_to_start_is_not_culled_for_it(rest: RestClient) -> None:
    """Its start takes two seconds, twice as long as it may be idle."""
    started = time.monotonic()
    assert await culled(rest, "fake-slow") - started >= SLOW_START + TIMEOUT


async def test_one_that_is_restarted_has_its_time_anew(rest: RestClient) -> None:
    kernel_id = (await rest.start_kernel("fake-slow"))["id"]
    await rest.wait_for_state(kernel_id, "idle")
    restarted = time.monotonic()
    await rest.restart(kernel_id)
    assert await gone(rest, kernel_id) - restarted >= SLOW_START + TIMEOUT


async def test_a_dead_one_is_forgotten_at_the_next_look(
    server: ServerProcess, start: KernelStarter
) -> None:
    kernel = await start("fake-exit", ready=False)
    messages = []
    async with asyncio.timeout(30):
        close = await kernel.channels.closed()
    messages = list(kernel.channels.log)
    assert messages[-1].state == "dead"
    assert close.code == 4404
    await gone(start.rest, kernel.id)


async def test_when_it_is_culled_the_clients_of_a_connected_one_are_told(
    make_server: MakeServer, framing: FramingName
) -> None:
    server = make_server(*CULLING, "--cull-connected")
    async with kernels_of(server) as start:
        kernel = await start()
        busy = await start()
        await busy.busy("sleep 600")
        channels = await kernel.connect(framing=framing)
        for client in (kernel.channels, channels):
            close = await client.closed()
            assert client.log[-1].state == "dead"
            assert close.code == 4404
            assert close.reason
        await gone(start.rest, kernel.id)
        # What runs something is another matter, connected or not.
        assert (await busy.model())["execution_state"] == "busy"


async def test_when_asked_for_one_that_runs_something_is_culled_but_not_if_it_is_connected(
    make_server: MakeServer,
) -> None:
    server = make_server(*CULLING, "--cull-busy")
    async with kernels_of(server) as start:
        kept, culled = await start(), await start()
        await kept.busy("sleep 600")
        await culled.busy("sleep 600")
        pid = int((await (await start()).channels.execute("pid")).text)
        await culled.channels.close()
        await gone(start.rest, culled.id)
        assert (await kept.model())["execution_state"] == "busy"
        assert is_alive(pid)


async def test_when_both_are_asked_for_its_execution_ends_and_its_client_is_told(
    make_server: MakeServer,
) -> None:
    server = make_server(*CULLING, "--cull-busy", "--cull-connected")
    async with kernels_of(server) as start:
        kernel = await start()
        pid = await kernel.pid()
        request = await kernel.busy("sleep 600")
        exchange = await kernel.channels.exchange(request)
        assert exchange.reply["status"] in ("aborted", "error")
        close = await kernel.channels.closed()
        assert kernel.channels.log[-1].state == "dead"
        assert close.code == 4404
        await gone(start.rest, kernel.id)
        assert not is_alive(pid)


async def test_the_interval_is_the_time_between_two_looks(make_server: MakeServer) -> None:
    server = make_server("--cull-idle-timeout", "0.01", "--cull-interval", "1.5")
    async with RestClient(server.url, server.token) as rest:
        first, second = await culled(rest), await culled(rest)
        # The second has been idle for longer than it may almost from its start on.
        assert second - first > 1


async def test_a_kernelspec_cannot_switch_culling_on(make_server: MakeServer) -> None:
    server = make_server("--cull-interval", "0.1", specs=SPECS)
    async with RestClient(server.url, server.token) as rest:
        kernel_id = await left_alone(rest, "at-once")
        await asyncio.sleep(1)  # nothing happens, so there is nothing to wait for
        assert (await rest.kernel(kernel_id))["execution_state"] == "idle"
    assert "Culling" not in server.output()


async def test_one_that_is_stuck_delays_no_other(make_server: MakeServer) -> None:
    server = make_server(*CULLING, "--shutdown-wait-time", "10")
    async with RestClient(server.url, server.token) as rest:
        stuck = await left_alone(rest, "fake-stubborn")
        await rest.wait_for_state(stuck, "terminating")
        await a_witness_is_culled(rest)
        assert (await rest.kernel(stuck))["execution_state"] == "terminating"


async def test_the_end_of_the_server_in_the_middle_of_a_cull_leaves_nothing_behind(
    make_server: MakeServer,
) -> None:
    server = make_server(*CULLING, "--shutdown-wait-time", "3")
    async with RestClient(server.url, server.token) as rest:
        kernel_id = await left_alone(rest, "fake-stubborn")
        await rest.wait_for_state(kernel_id, "terminating")
    await asyncio.to_thread(server.stop)  # which fails if anything is left


async def test_it_is_the_process_that_was_culled_that_ends_and_no_other(
    start: KernelStarter,
) -> None:
    kernels: list[RunningKernel] = [await start() for _ in range(3)]
    pids = [await kernel.pid() for kernel in kernels]
    await kernels[1].channels.close()
    await gone(start.rest, kernels[1].id)
    assert [is_alive(pid) for pid in pids] == [True, False, True]
    assert all(os.getpgid(pid) == pid for pid in (pids[0], pids[2]))
