"""How kernels start, and what is said of those that do not."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import MakeServer
from tests.support.kernelspecs import Spec, shell_spec, write_kernelspec
from tests.support.processes import children, eventually
from tests.support.rest import RestClient, RestError
from tests.support.running import KernelStarter, kernels_of
from tests.support.server import ServerProcess

TIMEOUT = 30.0


def not_executable(directory: Path) -> Path:
    file = directory / "not-executable"
    file.write_text("#!/bin/sh\n")
    file.chmod(0o600)
    return file


def no_interpreter(directory: Path) -> Path:
    file = directory / "no-interpreter"
    file.write_text("#!/nonexistent/interpreter\n")
    file.chmod(0o700)
    return file


def a_directory(directory: Path) -> Path:
    return directory


def not_there(directory: Path) -> Path:
    return directory / "not-there"


@pytest.mark.parametrize("make", [not_there, not_executable, no_interpreter, a_directory])
async def test_what_cannot_be_executed_is_an_error_that_names_it(
    server: ServerProcess, rest: RestClient, make: Callable[[Path], Path], tmp_path: Path
) -> None:
    executable = str(make(tmp_path))
    spec = Spec(argv=(executable, "{connection_file}"))
    write_kernelspec(server.home.jupyter_path, "unstartable", spec)
    with pytest.raises(RestError) as raised:
        await rest.start_kernel("unstartable")
    assert raised.value.status == 500
    assert raised.value.error["code"] == "kernel_start_failed"
    assert executable in raised.value.error["message"]
    assert await rest.kernels() == []
    assert server.home.leftovers() == []
    assert list((server.home.run_dir / "output").iterdir()) == []


async def test_a_process_that_exits_at_once_is_dead_and_says_why(
    server: ServerProcess, start: KernelStarter
) -> None:
    kernel = await start("fake-exit", ready=False)
    model = await kernel.becomes("dead")
    assert "exited with code 7" in model["reason"]
    assert "the fake kernel cannot start" in model["reason"]
    assert model in await start.rest.kernels()
    logged = f"kernel {kernel.id} is dead: {model['reason']}".replace("\n", "\n    ")
    await eventually(lambda: logged in server.output())
    await start.rest.delete(kernel.id)
    assert await start.rest.kernels() == []


async def test_clients_know_of_a_start_that_fails_at_once(
    server: ServerProcess, start: KernelStarter
) -> None:
    script = "while [ ! -e go ]; do sleep 0.02; done; date +exit:%s.%N; exit 3"
    write_kernelspec(server.home.jupyter_path, "gated", shell_spec(script))
    folder = server.home.root_dir / "gated"
    folder.mkdir()
    kernel = await start("gated", ready=False, path="gated")
    greeting = await kernel.channels.recv()
    assert greeting.state == "starting"
    pending = await kernel.channels.send_execute("print never")
    (folder / "go").touch()
    await kernel.told("dead")
    told = time.time()
    reason = (await kernel.model())["reason"]
    assert "exited with code 3" in reason
    exited = re.search(r"exit:([\d.]+)", reason)
    assert exited is not None, reason
    assert told - float(exited[1]) < 5  # it has a minute to come up
    exchange = await kernel.channels.exchange(pending)
    assert exchange.reply["status"] == "aborted"
    assert exchange.states == ["idle"]


async def test_a_process_killed_while_it_starts_is_dead_and_names_the_signal(
    server: ServerProcess, start: KernelStarter
) -> None:
    write_kernelspec(server.home.jupyter_path, "shot", shell_spec("kill -KILL $$"))
    kernel = await start("shot", ready=False)
    model = await kernel.becomes("dead")
    assert "SIGKILL" in model["reason"]


async def test_the_reason_holds_the_last_lines_and_is_bounded(
    server: ServerProcess, start: KernelStarter
) -> None:
    script = r"""
        head -c 300000 /dev/zero | tr '\0' x; echo
        i=1; while [ $i -le 100 ]; do echo "line $i"; i=$((i+1)); done
        printf 'not UTF-8: \377\n' >&2; exit 1"""
    write_kernelspec(server.home.jupyter_path, "talker", shell_spec(script))
    kernel = await start("talker", ready=False)
    reason = (await kernel.becomes("dead"))["reason"]
    assert reason.endswith("line 100\nnot UTF-8: \N{REPLACEMENT CHARACTER}")
    assert "line 1\n" not in reason
    assert len(reason) < 16_384
    files = list((server.home.run_dir / "output").glob(f"*{kernel.id}*"))
    assert files
    assert sum(file.stat().st_size for file in files) <= 2**20
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}


async def test_a_kernel_that_starts_slowly_gets_what_was_sent_meanwhile_in_order(
    start: KernelStarter,
) -> None:
    kernel = await start("fake-slow", ready=False)
    channels = kernel.channels
    assert (await channels.recv()).state == "starting"
    other = await kernel.connect()
    requests = [await channels.send_execute(f"print {number}") for number in range(10)]
    info = await other.request("kernel_info_request")
    assert info.reply["status"] == "ok"
    exchanges = [await channels.exchange(request) for request in requests]
    assert [exchange.text for exchange in exchanges] == [f"{number}\n" for number in range(10)]
    counts = [exchange.reply["execution_count"] for exchange in exchanges]
    assert counts == list(range(1, 11))
    assert all(exchange.states == ["busy", "idle"] for exchange in exchanges)


@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("--no-welcome",),
        ("--no-control-kernel-info",),
        ("--no-welcome", "--no-control-kernel-info"),
    ],
    ids=" ".join,
)
async def test_old_kernels_become_ready_and_their_first_output_arrives(
    server: ServerProcess, start: KernelStarter, flags: tuple[str, ...]
) -> None:
    write_kernelspec(server.home.jupyter_path, "old", Spec(flags=flags))
    kernel = await start("old", ready=False)
    exchange = await kernel.channels.execute("flood 100 100")
    assert len(exchange.text) == 100 * 100
    assert exchange.states == ["busy", "idle"]
    assert exchange.reply["status"] == "ok"
    assert (await kernel.model())["execution_state"] == "idle"


async def test_a_kernel_that_never_answers_is_given_up(make_server: MakeServer) -> None:
    flags = ("--never-bind", "--never-answer", "--wrong-key")
    specs = {flag.strip("-"): Spec(flags=(flag,)) for flag in flags}
    server = make_server("--kernel-info-timeout", "1", specs=specs)
    async with kernels_of(server) as start:

        async def given_up(name: str) -> None:
            started = time.monotonic()
            kernel = await start(name, ready=False)
            pending = await kernel.channels.send_execute("print never")
            await kernel.told("dead")
            # Once over ipc and once over tcp.
            assert 2 <= time.monotonic() - started < 30
            assert "said nothing within 1 s" in (await kernel.model())["reason"]
            assert (await kernel.channels.exchange(pending)).reply["status"] == "aborted"

        await asyncio.gather(*map(given_up, specs))
        await eventually(lambda: not children(server.pid))


async def test_a_kernel_that_answers_after_the_time_it_has_is_not_waited_for(
    make_server: MakeServer,
) -> None:
    spec = Spec(flags=("--slow-start", "60"))
    server = make_server("--kernel-info-timeout", "0.5", "--transport", "tcp", specs={"late": spec})
    async with kernels_of(server) as start:
        kernel = await start("late", ready=False)
        model = await kernel.becomes("dead")
        assert "said nothing within 0.5 s" in model["reason"]


async def test_files_of_a_kernel_are_its_owners_alone_and_go_with_it(
    server: ServerProcess, start: KernelStarter
) -> None:
    kernel = await start()
    state = server.home.run_dir
    (connection_file,) = state.glob(f"runtime/*{kernel.id}*")
    sockets = list((state / "ipc").iterdir())
    assert len(sockets) >= 5
    assert connection_file.stat().st_mode & 0o777 == 0o600
    for directory in (state, state / "runtime", state / "ipc", state / "output"):
        assert directory.stat().st_mode & 0o777 == 0o700
    await start.rest.delete(kernel.id)
    assert server.home.leftovers() == []
    log = state / "logs" / kernel.id
    assert [found for found in state.rglob(f"*{kernel.id}*") if found != log] == []
    # The keeper has the log, and removes it in its own time: the answer does not wait for that.
    await eventually(lambda: not log.exists())


async def test_kernels_that_start_at_once_do_not_wait_for_each_other(start: KernelStarter) -> None:
    kernels = await asyncio.gather(*(start() for _ in range(8)))
    assert len({kernel.id for kernel in kernels}) == 8
    exchanges = await asyncio.gather(*(kernel.channels.execute("pid") for kernel in kernels))
    assert len({exchange.text for exchange in exchanges}) == 8
