"""Warm kernels: who gets one, what it is then, and what becomes of those that nobody gets."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from app.managers.kernels.moving import plan
from app.managers.kernels.warm import retry_seconds
from tests.conftest import MakeServer, servers
from tests.support.commands import Commands
from tests.support.home import Home
from tests.support.kernelspecs import FAKE_SPECS, Spec, write_kernelspec
from tests.support.metrics import scrape
from tests.support.processes import eventually
from tests.support.rest import RestClient, RestError
from tests.support.running import KernelStarter, RunningKernel, kernels_of
from tests.support.server import ServerProcess

FROM = Path("/home")


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest) -> Iterator[ServerProcess]:
    with servers(request.config) as make_server:
        yield make_server(
            "--warm-kernels",
            "python3=1,fake=1,nothing=1,fake-exit=1",
            "--fork-kernels",
            "python3",
            specs={**FAKE_SPECS, "changing": Spec()},
        )


@pytest.fixture
async def start(server: ServerProcess) -> AsyncIterator[KernelStarter]:
    async with kernels_of(server) as starter:
        yield starter


async def parked(rest: RestClient, name: str) -> None:
    """Return when there is a kernel to be had."""

    async def there() -> bool:
        return (await scrape(rest))("kernelkeep_warm_kernels", type=name) >= 1

    await eventually(there, 60)


async def claims(rest: RestClient, name: str, result: str) -> float:
    return (await scrape(rest))("kernelkeep_warm_claims_total", type=name, result=result)


async def claimed(start: KernelStarter, name: str, **body: Any) -> RunningKernel:
    """A kernel that was warm."""
    await parked(start.rest, name)
    before = await claims(start.rest, name, "hit")
    model = await start.rest.start_kernel(name, **body)
    start.started.append(model["id"])
    assert model["execution_state"] == "idle"
    assert await claims(start.rest, name, "hit") == before + 1
    channels = await start.connector(model["id"])
    return RunningKernel(model["id"], start.rest, start.connector, channels)


async def run(kernel: RunningKernel, code: str) -> Any:
    exchange = await kernel.channels.execute(f"import json\n{code}\nprint(json.dumps(result))")
    return json.loads(exchange.text)


async def test_nobody_sees_a_kernel_before_it_is_claimed(
    server: ServerProcess, start: KernelStarter
) -> None:
    await parked(start.rest, "fake")
    assert await start.rest.kernels() == []
    assert (await start.rest.status())["kernels"] == 0
    kernel = await claimed(start, "fake")
    assert [model["id"] for model in await start.rest.kernels()] == [kernel.id]
    assert (await kernel.channels.execute("print hello")).text == "hello\n"


async def test_a_claim_needs_no_place_in_the_queue_of_starts(make_server: MakeServer) -> None:
    bounds = ("--max-concurrent-starts", "1", "--start-queue-limit", "0")
    server = make_server(*bounds, "--warm-kernels", "fake=1")
    async with kernels_of(server) as start:
        await parked(start.rest, "fake")
        await start("fake-silent", ready=False)
        with pytest.raises(RestError, match="429"):
            await start("fake-slow")
        kernel = await claimed(start, "fake")
        assert (await kernel.channels.execute("print hello")).text == "hello\n"


async def test_a_python_kernel_is_moved_to_where_it_is_asked_for_and_nothing_tells(
    server: ServerProcess, start: KernelStarter
) -> None:
    (server.home.root_dir / "there").mkdir()
    names = {
        "MINE": 'it\'s "mine" \\ ${HOME}\nä',
        "JPY_SESSION_NAME": "there/a.ipynb",
        "TZ": "Asia/Tokyo",
    }
    kernel = await claimed(start, "python3", path="there", env=names)
    first = await kernel.channels.execute("sorted(globals())")
    assert first.reply["execution_count"] == 1
    fresh = await start("python3", kernel_id="12345678-1234-5678-1234-567812345678", env=names)
    expected = await fresh.channels.execute("sorted(globals())")
    assert first.result == expected.result
    code = """
import os, time
result = [
    os.getcwd(), os.environ["MINE"], time.tzname[0], __session__, [str(path) for path in _dh],
    [line for *_, line in get_ipython().history_manager.get_range()][:1],
]
"""
    seen = await run(kernel, code)
    there = str(server.home.root_dir / "there")
    assert seen[:5] == [there, names["MINE"], "JST", "there/a.ipynb", [there]]
    assert seen[5] == ["sorted(globals())"]
    # And it stays there.
    await start.rest.restart(kernel.id)
    assert await run(kernel, "import os; result = [os.getcwd(), os.environ['MINE']]") == seen[:2]


async def test_one_is_moved_to_its_owners_directory(make_server: MakeServer) -> None:
    server = make_server("--files-by-owner", "--warm-kernels", "python3=1")
    async with kernels_of(server) as start:
        kernel = await claimed(start, "python3")
        home = server.home.root_dir / "anonymous"
        assert await run(kernel, "import os; result = os.getcwd()") == str(home)


async def test_sessions_get_warm_kernels_too(start: KernelStarter) -> None:
    await parked(start.rest, "python3")
    before = await claims(start.rest, "python3", "hit")
    body = {"path": "b.ipynb", "type": "notebook", "name": "", "kernel": {"name": "python3"}}
    session = (await start.rest.request("POST", "/api/sessions", 201, json=body)).json()
    assert await claims(start.rest, "python3", "hit") == before + 1
    await start.rest.request("DELETE", f"/api/sessions/{session['id']}", 204)


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("fake", {"env": {"MINE": "1"}}),  # which is no Python
        ("python3", {"env": {"PYTHONPATH": "/"}}),  # which Python reads when it starts
        ("python3", {"kernel_id": "12345678-1234-5678-1234-567812345679"}),
    ],
)
async def test_what_cannot_be_met_exactly_is_a_start_like_any_other(
    start: KernelStarter, name: str, body: dict[str, Any]
) -> None:
    await parked(start.rest, name)
    before = await claims(start.rest, name, "hit")
    await start(name, **body)
    assert await claims(start.rest, name, "hit") == before
    await parked(start.rest, name)


async def test_one_that_died_meanwhile_or_whose_spec_changed_is_given_to_nobody(
    server: ServerProcess, start: KernelStarter
) -> None:
    await parked(start.rest, "fake")
    (pid,) = fake_processes(server)
    os.kill(pid, signal.SIGKILL)
    await eventually(lambda: not psutil.pid_exists(pid))
    kernel = await start("fake")
    assert await kernel.pid() != pid
    await parked(start.rest, "fake")
    spec = Spec(env={"CHANGED": "yes"}, resources=FAKE_SPECS["fake"].resources)
    write_kernelspec(server.home.jupyter_path, "fake", spec)
    missed = await claims(start.rest, "fake", "miss")
    await start("fake")
    assert await claims(start.rest, "fake", "miss") == missed + 1
    await parked(start.rest, "fake")


def fake_processes(server: ServerProcess) -> list[int]:
    """The processes of "fake"; "fake-exit" may be trying to start."""
    commands = {process.pid: process.cmdline() for process in server.home.processes()}
    return [
        pid
        for pid, command in commands.items()
        if any(part.endswith("fake.py") for part in command) and "--exit" not in command
    ]


async def test_what_cannot_be_kept_warm_is_said_once_and_the_rest_goes_on(
    server: ServerProcess, start: KernelStarter
) -> None:
    await eventually(lambda: server.output().count("cannot be kept warm") == 2, 30)
    output = server.output()
    assert "warm_kernels: nothing cannot be kept warm: Kernel spec nothing not found" in output
    assert "warm_kernels: fake-exit cannot be kept warm: The kernel's process exited with" in output
    await claimed(start, "python3")


class AgeingServer(ServerProcess):
    """A server whose warm kernels are too old after 8 seconds."""

    @property
    def command(self) -> list[str]:
        python, _, _, *arguments = super().command
        program = (
            "from app.managers.kernels import warm\n"
            "warm.MAX_AGE_SECONDS, warm.CHECK_SECONDS = 8, 4\n"
            "import app.cli; app.cli.main()"
        )
        return [python, "-c", program, *arguments]


async def test_one_that_hangs_or_is_too_old_is_replaced(make_server: MakeServer) -> None:
    server = make_server("--warm-kernels", "fake=1", kind=AgeingServer)
    async with kernels_of(server) as start:
        await parked(start.rest, "fake")
        (pid,) = fake_processes(server)
        os.kill(pid, signal.SIGSTOP)
        await eventually(lambda: "is stopped: it does not answer" in server.output(), 60)
        await eventually(lambda: "is stopped: it is too old" in server.output(), 60)
        await parked(start.rest, "fake")
        assert not psutil.pid_exists(pid)
        assert (await (await claimed(start, "fake")).channels.execute("print a")).text == "a\n"


def test_more_than_max_kernels_or_the_memory_allow_is_refused_at_the_start(
    commands: Commands, home: Home
) -> None:
    ended = commands.run("--warm-kernels", "python3=3", "--max-kernels", "2", home=home)
    assert ended.returncode == 2
    assert "warm_kernels: 3 are more than could ever be used: max_kernels is 2" in ended.stderr
    ended = commands.run("--warm-kernels", '{"python3": 9999}', home=home)
    assert ended.returncode == 2
    assert "--warm-kernels: 9999 kernels" in ended.stderr
    assert "of memory" in ended.stderr


def test_a_plan_changes_what_differs_and_no_more() -> None:
    before = (FROM, {"A": "1", "B": "2"})
    assert plan({}, before, before) is not None
    same = plan({}, before, before)
    assert same is not None
    assert not same.needed
    move = plan({"C": "own"}, before, (FROM, {"A": "1", "D": "4", "C": "theirs"}))
    assert move == (None, {"D": "4"}, ["B"])
    assert plan({"P": "${A}/bin"}, before, (FROM, {"A": "2", "B": "2"})) is None
    assert plan({}, before, (FROM, {**before[1], "LC_ALL": "C"})) is None


def test_what_fails_again_and_again_is_tried_less_often() -> None:
    pauses = [retry_seconds(failures) for failures in (1, 2, 3, 4, 5, 6, 7, 10_000)]
    assert pauses == [60, 60, 120, 240, 480, 600, 600, 600]
