"""``--allow-external-kernels``: kernels that others have started can be used, and stay theirs."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from jupyter_client.manager import AsyncKernelManager

from tests.conftest import MakeServer, servers
from tests.managers.kernels.test_external import GARBAGE, GOOD
from tests.support.channels import Connector
from tests.support.external import external_kernel
from tests.support.framing import FramingName
from tests.support.home import Home
from tests.support.processes import eventually
from tests.support.rest import KernelModel, RestClient, RestError
from tests.support.running import RunningKernel
from tests.support.server import ServerProcess


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("external")


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest, directory: Path) -> Iterator[ServerProcess]:
    with servers(request.config) as make_server:
        options = ("--allow-external-kernels", "--external-connection-dir", str(directory))
        yield make_server(*options)


@pytest.fixture
def file(directory: Path) -> Iterator[Path]:
    """Where the test's kernel leaves its connection file; nothing of other tests is there."""
    path = directory / "kernel.json"
    yield path
    for left in directory.iterdir():
        left.unlink()


def read(file: Path) -> dict[str, Any]:
    info: dict[str, Any] = json.loads(file.read_text())
    return info


def write(file: Path, info: object) -> None:
    file.write_text(json.dumps(info))


def remove(file: Path) -> None:
    file.unlink()


async def found(rest: RestClient) -> KernelModel:
    """The one kernel that is listed, once it answers."""

    async def is_idle() -> KernelModel:
        (model,) = await rest.kernels()
        assert model["execution_state"] == "idle"
        return model

    return await eventually(is_idle, 60)


async def use(rest: RestClient, connect: Connector, **options: Any) -> RunningKernel:
    model = await found(rest)
    return RunningKernel(model["id"], rest, connect, await connect(model["id"], **options))


async def test_it_is_listed_and_works_as_any_other(
    home: Home, file: Path, rest: RestClient, connect: Connector, framing: FramingName
) -> None:
    async with external_kernel(home, file):
        kernel = await use(rest, connect, framing=framing)
        model = await kernel.model()
        assert model["name"] == "python3"
        assert model["connections"] == 1
        assert "reason" not in model
        exchange = await kernel.channels.execute("print(input())\n6 * 7", answers=["here"])
        assert exchange.text == "here\n"
        assert exchange.result == "42"
        assert exchange.states == ["busy", "idle"]
        await kernel.channels.request("kernel_info_request", channel="control")
        # However often and by whomever it is looked for, it stays the same one.
        models = await asyncio.gather(*(rest.kernels() for _ in range(10)))
        assert {model["id"] for listed in models for model in listed} == {kernel.id}


async def test_its_owner_and_its_clients_see_the_same(
    home: Home, file: Path, rest: RestClient, connect: Connector
) -> None:
    async with external_kernel(home, file) as manager:
        kernel = await use(rest, connect)
        client = manager.client()
        client.start_channels()
        try:
            await client.wait_for_ready(timeout=60)
            msg_id = client.execute("print('from its owner')")
            exchange = await kernel.channels.exchange(msg_id, replies=False)
            assert exchange.text == "from its owner\n"
            assert exchange.replies == []
        finally:
            client.stop_channels()


async def test_it_is_interrupted_by_message(
    home: Home, file: Path, rest: RestClient, connect: Connector
) -> None:
    async with external_kernel(home, file):
        kernel = await use(rest, connect)
        code = "import time\nprint('begun', flush=True)\nwhile True: time.sleep(0.01)"
        request = await kernel.channels.send_execute(code)
        await kernel.channels.seen(lambda m: m.parent_id == request and m.msg_type == "stream")
        assert (await kernel.model())["execution_state"] == "busy"
        await rest.interrupt(kernel.id)
        assert (await kernel.channels.exchange(request)).error["ename"] == "KeyboardInterrupt"


async def test_a_restart_is_refused_and_changes_nothing(
    home: Home, file: Path, rest: RestClient, connect: Connector
) -> None:
    async with external_kernel(home, file):
        kernel = await use(rest, connect)
        await kernel.channels.execute("x = 41")
        with pytest.raises(RestError) as raised:
            await rest.restart(kernel.id)
        assert raised.value.status == 409
        assert raised.value.error["code"] == "kernel_not_running"
        assert (await kernel.channels.execute("x + 1")).result == "42"


async def alive(manager: AsyncKernelManager) -> bool:
    """Whether its process runs and answers its owner."""
    client = manager.client()
    client.start_channels()
    try:
        await client.wait_for_ready(timeout=60)
        return bool(await manager.is_alive())
    finally:
        client.stop_channels()


async def test_to_delete_it_is_to_forget_it(
    home: Home, file: Path, rest: RestClient, connect: Connector
) -> None:
    async with external_kernel(home, file) as manager:
        kernel = await use(rest, connect)
        await rest.delete(kernel.id)
        assert (await kernel.channels.closed()).code == 4404
        assert kernel.channels.log[-1].state == "dead"
        # Its file is still there, which does not bring it back.
        assert await rest.kernels() == []
        await rest.request("GET", f"/api/kernels/{kernel.id}", 404)
        assert read(file)
        assert await alive(manager)


async def test_it_is_gone_when_its_file_is(
    home: Home, file: Path, rest: RestClient, connect: Connector
) -> None:
    async with external_kernel(home, file) as manager:
        kernel = await use(rest, connect)
        content = read(file)
        remove(file)
        assert await rest.kernels() == []
        assert (await kernel.channels.closed()).code == 4404
        assert await alive(manager)
        # A file that comes back is another kernel to whoever looks.
        write(file, content)
        assert (await found(rest))["id"] != kernel.id


async def test_a_file_that_tells_of_another_kernel_is_another_kernel(
    home: Home, file: Path, directory: Path, rest: RestClient, connect: Connector
) -> None:
    async with external_kernel(home, file):
        first = await use(rest, connect)
        await first.channels.execute("x = 'first'")
        elsewhere = home.path / "second.json"
        async with external_kernel(home, elsewhere) as manager:
            assert await alive(manager)
            write(file, read(elsewhere))
            second = await use(rest, connect)
            assert second.id != first.id
            assert (await first.channels.closed()).code == 4404
            assert (await second.channels.execute("x")).error["ename"] == "NameError"


async def test_it_may_be_encrypted(
    home: Home, file: Path, rest: RestClient, connect: Connector
) -> None:
    async with external_kernel(home, file, transport_encryption="required"):
        assert "curve_secretkey" in read(file)
        kernel = await use(rest, connect)
        assert (await kernel.channels.execute("6 * 7")).result == "42"


async def test_its_name_is_no_label_of_the_metrics(
    home: Home, file: Path, rest: RestClient, connect: Connector
) -> None:
    async with external_kernel(home, file):
        write(file, {**read(file), "kernel_name": "a-name-of-ones-own"})
        kernel = await use(rest, connect)
        assert (await kernel.model())["name"] == "a-name-of-ones-own"
        metrics = (await rest.request("GET", "/metrics")).text
        assert "a-name-of-ones-own" not in metrics
        assert 'kernel_currently_running_total{type="external"} 1.0' in metrics


async def test_garbage_beside_it_does_no_harm(
    home: Home, file: Path, directory: Path, rest: RestClient
) -> None:
    async with external_kernel(home, file):
        for number, content in enumerate(GARBAGE.values()):
            write(directory / f"garbage-{number}.json", content)
        model = await found(rest)
        assert [model["id"]] == [kernel["id"] for kernel in await rest.kernels()]


PUBLIC, SECRET = (key.decode() for key in zmq.curve_keypair())


@pytest.mark.parametrize(
    "wrong",
    [
        {"ip": "not an address"},
        {"ip": "192.0.2.7"},
        {"transport": "ipc", "ip": "/" + "long/" * 50},
        {"signature_scheme": "rot13"},
        {"curve_publickey": "too short", "curve_secretkey": SECRET},
        {"curve_publickey": PUBLIC, "curve_secretkey": "too short"},
        {"key": "\ud800"},
    ],
    # Not by value: workers must agree on the names, and keys are made anew by each.
    ids=["address", "far", "path", "scheme", "public key", "secret key", "key"],
)
async def test_a_file_that_makes_no_connection_is_said_once_and_not_listed(
    server: ServerProcess, file: Path, rest: RestClient, wrong: dict[str, str]
) -> None:
    write(file, {**GOOD, **wrong})
    mark = server.mark()
    for _ in range(3):
        assert await rest.kernels() == []
    await eventually(lambda: str(file) in server.output(mark))
    assert len([line for line in server.output(mark).splitlines() if str(file) in line]) == 1
    assert "Traceback" not in server.output(mark)


async def test_one_that_does_not_answer_yet_is_listed_and_works_when_it_does(
    home: Home, file: Path, directory: Path, rest: RestClient, connect: Connector
) -> None:
    elsewhere = home.path / "early.json"
    async with external_kernel(home, elsewhere) as manager:
        assert await alive(manager)
        await manager.signal_kernel(signal.SIGSTOP)
        write(file, read(elsewhere))
        (model,) = await rest.kernels()
        assert model["execution_state"] == "starting"
        channels = await connect(model["id"])
        request = await channels.send_execute("6 * 7")
        await manager.signal_kernel(signal.SIGCONT)
        assert (await channels.exchange(request, timeout=60)).result == "42"
        assert (await found(rest))["id"] == model["id"]


async def test_unless_they_are_allowed_nobody_looks_for_them(
    make_server: MakeServer, home: Home, tmp_path: Path
) -> None:
    other = make_server("--external-connection-dir", str(tmp_path))
    async with (
        external_kernel(home, tmp_path / "kernel.json"),
        RestClient(other.url, other.token) as rest,
    ):
        assert await rest.kernels() == []


async def test_they_outlive_the_server_and_are_found_in_jupyters_directory_by_default(
    make_server: MakeServer, home: Home
) -> None:
    server = make_server("--allow-external-kernels", home=home)
    runtime = Path(home.environment()["JUPYTER_RUNTIME_DIR"])
    async with external_kernel(home, runtime / "external_kernels" / "kernel.json") as manager:
        async with RestClient(server.url, server.token) as rest:
            await found(rest)
        process = home.processes()
        server.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(server.wait) in (0, -signal.SIGTERM)
        assert len(home.processes()) == len(process) - 2  # it and its keeper
        assert await alive(manager)


async def test_one_is_adopted_by_the_name_of_its_file(
    home: Home, file: Path, rest: RestClient
) -> None:
    async with external_kernel(home, file) as manager:
        for wrong in (f"../{file.parent.name}/../kernel.json", "/etc/passwd", "none.json", "a\0"):
            with pytest.raises(RestError) as refused:
                await rest.start_kernel(connection_file=wrong)
            assert (refused.value.status, refused.value.error["code"]) == (400, "invalid_path")
        listed = await found(rest)  # it has written its file once more by then
        adopted = await rest.start_kernel(connection_file=file.name, owned=True)
        assert adopted["id"] == listed["id"]
        assert (await rest.start_kernel(connection_file=str(file)))["id"] == adopted["id"]
        await rest.delete(adopted["id"])

        async def has_ended() -> bool:
            return not await manager.is_alive()

        await eventually(has_ended, 30)
