"""Broken kernelspecs beside sound ones: who starts one is told, and nobody else is touched."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.conftest import servers
from tests.support.kernelspecs import FAKE_SPECS, Spec, write_broken_kernelspec, write_kernelspec
from tests.support.processes import children, eventually
from tests.support.rest import RestError
from tests.support.running import KernelStarter, kernels_of
from tests.support.server import ServerProcess

NO_ARGV = '{"display_name": "x", "language": "x"}'
BROKEN = {
    "no-argv": NO_ARGV,
    "empty-argv": '{"argv": []}',
    "text-argv": '{"argv": "kernel -f {connection_file}"}',
    "nul-argv": json.dumps({"argv": ["kernel", "a\0b"]}),
    "half-argv": json.dumps({"argv": ["kernel", "\ud800"]}),
    "number-env": '{"argv": ["kernel"], "env": {"A": 1}}',
    "text-provisioner": '{"argv": ["kernel"], "metadata": {"kernel_provisioner": "local"}}',
    "unreadable-json": "{",
}


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest) -> Iterator[ServerProcess]:
    with servers(request.config) as make_server:
        specs = {**FAKE_SPECS, "breaking": Spec(), "option": Spec(argv=())}
        server = make_server(
            *("--on-shutdown", "keep", "--warm-kernels", "option=1", "--fork-kernels", "option"),
            specs=specs,
        )
        for name, text in BROKEN.items():
            write_broken_kernelspec(server.home.jupyter_path, name, text)
        yield server


@pytest.fixture
async def start(server: ServerProcess) -> AsyncIterator[KernelStarter]:
    async with kernels_of(server) as starter:
        yield starter


async def test_starts_of_broken_ones_harm_nobody_and_leave_nothing(
    server: ServerProcess, start: KernelStarter
) -> None:
    rest = start.rest
    sound = await start()
    at_work = await sound.channels.send_execute("print begun\nsleep 1\nprint done")
    before = len(children(server.pid))
    names = iter([*BROKEN, "fake"] * 3)
    started: list[str] = []

    async def work() -> None:
        for name in names:
            if name == "fake":
                started.append((await rest.start_kernel(name))["id"])
                continue
            with pytest.raises(RestError) as raised:
                await rest.start_kernel(name)
            assert raised.value.error["code"] == "kernelspec_invalid"
            assert f"/{name}/kernel.json: " in raised.value.error["message"]

    await asyncio.gather(*(work() for _ in range(8)))
    assert (await sound.channels.exchange(at_work)).text == "begun\ndone\n"
    assert {kernel["id"] for kernel in await rest.kernels()} == {sound.id, *started}
    for kernel_id in started:
        await rest.wait_for_state(kernel_id, "idle", timeout=60)
        await rest.delete(kernel_id)
    await eventually(lambda: len(children(server.pid)) == before)
    assert "Traceback" not in server.output()


async def test_a_kernel_whose_kernelspec_breaks_goes_on_until_it_needs_a_new_one(
    server: ServerProcess, start: KernelStarter
) -> None:
    kernel = await start("breaking")
    write_broken_kernelspec(server.home.jupyter_path, "breaking", NO_ARGV)
    await kernel.rest.restart(kernel.id)
    await kernel.becomes("idle")
    assert (await kernel.channels.execute("print here")).text == "here\n"
    write_kernelspec(server.home.jupyter_path, "breaking", Spec())


async def test_a_dead_kernel_whose_kernelspec_is_broken_is_restarted_when_that_is_mended(
    server: ServerProcess, start: KernelStarter
) -> None:
    write_kernelspec(server.home.jupyter_path, "dying", Spec(flags=("--exit", "3")))
    kernel = await start("dying", ready=False)
    await kernel.becomes("dead")
    write_broken_kernelspec(server.home.jupyter_path, "dying", NO_ARGV)

    with pytest.raises(RestError) as raised:
        await kernel.rest.restart(kernel.id)
    assert raised.value.error["code"] == "kernelspec_invalid"
    assert "argv is missing or empty" in (await kernel.becomes("dead"))["reason"]

    (server.home.jupyter_path / "kernels" / "dying" / "kernel.json").unlink()
    with pytest.raises(RestError) as raised:
        await kernel.rest.restart(kernel.id)
    assert raised.value.error["code"] == "kernel_start_failed"
    assert "Kernel spec dying is not there any more" in (await kernel.becomes("dead"))["reason"]

    write_kernelspec(server.home.jupyter_path, "dying", Spec())
    await kernel.rest.restart(kernel.id)
    await kernel.becomes("idle")
    assert (await kernel.channels.execute("print here")).text == "here\n"


async def test_those_that_options_name_are_told_to_the_log_once(server: ServerProcess) -> None:
    file = server.home.jupyter_path / "kernels" / "option" / "kernel.json"
    said = f"Kernel spec option is broken: {file}: argv is missing or empty"

    def lines(start: str) -> list[str]:
        return [line for line in server.output().splitlines() if start + said in line]

    assert len(lines("fork_kernels: kernelspec option cannot be used: ")) == 1
    await eventually(lambda: lines("warm_kernels: option cannot be kept warm: "))
    assert len(lines("")) == 3  # and where it was looked at
