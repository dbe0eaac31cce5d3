"""Ask, terminate, kill: each step of a stop has its bound.

These are the tests of `app.managers.kernels.shutdown`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Iterator

import pytest

from tests.conftest import MakeServer, servers
from tests.support.kernelspecs import FAKE_SPECS, Spec, write_kernelspec
from tests.support.processes import children, eventually, is_alive
from tests.support.running import KernelStarter, kernels_of, not_ready
from tests.support.server import ServerProcess

WAIT = 2.0  # seconds that a kernel has to end by itself, as an option of the server
TERMINATED = 2.0  # and from SIGTERM to SIGKILL
SLACK = 5.0  # seconds that a loaded machine may need besides; what was said tells the step

FORCED = WAIT + TERMINATED

STOPPED = "SIGSTOP"
IGNORES_SHUTDOWN = "ignores its shutdown request"
HAS_AGREED = "has agreed to shut down"
WAITS = "waits for children that have ended"
IGNORES_SIGTERM = "ignores SIGTERM"


def escalating(make_server: MakeServer) -> ServerProcess:
    specs = {**FAKE_SPECS, "no-sigterm": Spec(flags=("--ignore-shutdown", "--ignore-sigterm"))}
    return make_server("--shutdown-wait-time", str(WAIT), specs=specs)


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest) -> Iterator[ServerProcess]:
    with servers(request.config) as make_server:
        yield escalating(make_server)


@pytest.mark.parametrize(
    ("name", "code", "least", "most", "said"),
    [
        ("fake", "", 0, 0.9, []),
        ("fake", "sleep 600", 0, 0.9, []),
        ("fake-no-shutdown", "", WAIT, WAIT, [IGNORES_SHUTDOWN]),
        ("fake", "hang", WAIT, WAIT, [IGNORES_SHUTDOWN]),
        ("no-sigterm", "", FORCED, FORCED, [IGNORES_SHUTDOWN, IGNORES_SIGTERM]),
        ("fake-stubborn", "hang", FORCED, FORCED, [IGNORES_SHUTDOWN, IGNORES_SIGTERM]),
        ("fake", STOPPED, FORCED, FORCED, [IGNORES_SHUTDOWN, IGNORES_SIGTERM]),
    ],
)
@pytest.mark.parametrize("action", ["delete", "restart"])
async def test_a_kernel_that_does_not_end_is_terminated_then_killed(
    server: ServerProcess,
    start: KernelStarter,
    action: str,
    name: str,
    code: str,
    least: float,
    most: float,
    said: list[str],
) -> None:
    kernel = await start(name)
    before = children(server.pid)
    if code == STOPPED:
        os.kill(await kernel.pid(), signal.SIGSTOP)
    elif code:
        await kernel.busy(code)
    mark, started = server.mark(), time.monotonic()
    await getattr(kernel.rest, action)(kernel.id)
    took = time.monotonic() - started
    assert least <= took < most + SLACK
    assert not any(process.is_running() for process in before)
    # What was said is there when what is said later is.
    await kernel.rest.version()
    await eventually(lambda: "GET /api " in server.output(mark))
    output = server.output(mark)
    assert [text for text in (IGNORES_SHUTDOWN, IGNORES_SIGTERM) if text in output] == said


async def test_stubborn_kernels_stop_side_by_side(start: KernelStarter) -> None:
    kernels = await asyncio.gather(*(start("no-sigterm") for _ in range(5)))
    started = time.monotonic()
    await asyncio.gather(*(kernel.rest.delete(kernel.id) for kernel in kernels))
    assert time.monotonic() - started < FORCED + SLACK


PYTHON = (sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}")

AT_EXIT = """
import atexit, pathlib, time
def bye():
    time.sleep(2)
    pathlib.Path({name!r}).write_text("done")
atexit.register(bye)
"""

CHILD = """
import signal, subprocess
p = subprocess.Popen(["sleep", "600"], preexec_fn=lambda: signal.signal({signal}, signal.SIG_IGN))
p.pid
"""


@pytest.mark.parametrize("action", ["delete", "restart"])
async def test_the_exit_hooks_of_a_kernel_have_all_of_the_time(
    server: ServerProcess, start: KernelStarter, action: str
) -> None:
    # Longer than the server's option gives it.
    spec = Spec(argv=PYTHON, metadata={"shutdown_wait_time": 60})
    write_kernelspec(server.home.jupyter_path, "patient", spec)
    kernel = await start("patient")
    name = f"hook-{action}"
    await kernel.channels.execute(AT_EXIT.format(name=name))
    mark = server.mark()
    await getattr(kernel.rest, action)(kernel.id)
    assert (server.home.root_dir / name).read_text() == "done"
    assert IGNORES_SHUTDOWN not in server.output(mark)


@pytest.mark.parametrize(
    ("ignored", "seconds", "said"), [("SIGINT", 25, WAITS), ("SIGTERM", 8, HAS_AGREED)]
)
async def test_a_kernel_whose_children_live_or_lie_unreaped_has_not_ignored_its_shutdown(
    server: ServerProcess, start: KernelStarter, ignored: str, seconds: int, said: str
) -> None:
    spec = Spec(argv=PYTHON, metadata={"shutdown_wait_time": seconds})
    write_kernelspec(server.home.jupyter_path, "parent", spec)
    kernel = await start("parent")
    ran = await kernel.channels.execute(CHILD.format(signal=f"signal.{ignored}"))
    mark = server.mark()
    await kernel.rest.restart(kernel.id)
    await eventually(lambda: not is_alive(int(ran.result)))
    await eventually(lambda: said in server.output(mark))
    assert IGNORES_SHUTDOWN not in server.output(mark)


@pytest.mark.parametrize("action", ["delete", "restart"])
async def test_a_child_in_a_session_of_its_own_survives(start: KernelStarter, action: str) -> None:
    kernel = await start("python3")
    code = "import subprocess; subprocess.Popen(['sleep', '600'], start_new_session=True).pid"
    pid = int((await kernel.channels.execute(code)).result)
    await getattr(kernel.rest, action)(kernel.id)
    assert is_alive(pid)
    os.kill(pid, signal.SIGKILL)


async def test_others_are_served_while_a_stubborn_one_stops(start: KernelStarter) -> None:
    kernel = await start()
    stubborn = await start("no-sigterm")
    deletion = asyncio.create_task(stubborn.rest.delete(stubborn.id))
    await stubborn.becomes("terminating")
    assert (await kernel.channels.execute("print here")).text == "here\n"
    assert not deletion.done()
    await deletion


async def stop_with(server: ServerProcess, number: signal.Signals) -> float:
    """Seconds until a server has ended, with code 0 and nothing left."""
    started = time.monotonic()
    server.send_signal(number)
    code = await asyncio.to_thread(server.wait)
    took = time.monotonic() - started
    assert code == 0
    server.stop()  # looks for what is left
    return took


async def test_a_server_ends_with_all_its_kernels_within_its_bound_however_often_it_is_interrupted(
    make_server: MakeServer,
) -> None:
    server = escalating(make_server)
    async with kernels_of(server) as start:
        names = ["fake", "fake-children", "fake-no-shutdown", "no-sigterm", "python3"]
        kernels = await asyncio.gather(*(start(name) for name in names))
        busy = await start()
        await busy.busy("sleep 600")
        hanging = await start()
        await hanging.busy("hang")
        dead = await start("fake-exit", ready=False)
        await dead.becomes("dead")
        await start("fake-slow", ready=False)
        await start("fake-unbound", ready=False)
        start.started.clear()  # nothing to delete afterwards
        stopping = asyncio.create_task(stop_with(server, signal.SIGINT))
        for _ in range(2):
            await not_ready(server)
            server.send_signal(signal.SIGINT)
        assert await stopping < FORCED + SLACK
        for kernel in (*kernels, busy, hanging, dead):
            close = await kernel.channels.closed()
            assert close.code == 1012


async def test_a_server_that_is_stopped_while_kernels_start_and_stop_leaves_none(
    make_server: MakeServer,
) -> None:
    server = escalating(make_server)
    async with kernels_of(server) as start:
        starts = [asyncio.create_task(start.rest.start_kernel("fake")) for _ in range(10)]
        await asyncio.wait(starts, return_when=asyncio.FIRST_COMPLETED)
        first = next(task for task in starts if task.done()).result()
        restart = asyncio.create_task(start.rest.restart(first["id"]))
        deletion = asyncio.create_task(start.rest.delete(first["id"]))
        assert await stop_with(server, signal.SIGTERM) < FORCED + SLACK
        # Each was answered or its connection has ended; none of them hangs.
        await asyncio.wait_for(
            asyncio.gather(*starts, restart, deletion, return_exceptions=True), 10
        )
