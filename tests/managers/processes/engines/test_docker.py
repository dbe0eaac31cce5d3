"""Kernels in containers of a real podman, by Docker's API: they have what local ones have.

These are the tests of all modules of `app.managers.processes.engines` together: of
`app.managers.processes.engines.kinds`, `app.managers.processes.engines.place`,
`app.managers.processes.engines.provisioner` and `app.managers.processes.engines.work`, and of
each engine's own.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.docs.test_curl_commands import run as run_commands
from tests.kernels.driver import free_ports
from tests.support.channels import JupyterChannels
from tests.support.drill import KEEP, Servers
from tests.support.executions import Executions
from tests.support.home import Home
from tests.support.image_registry import Registry
from tests.support.kernelspecs import write_kernelspec
from tests.support.lively import (
    RATE,
    finished,
    goes_on_alone,
    has_printed_all,
    is_idle_anew,
    is_interrupted,
    numbers,
    pid_of,
    prints,
    started,
    takes_input,
)
from tests.support.metrics import scrape
from tests.support.podman import Podman, layer
from tests.support.processes import eventually, read_process
from tests.support.rest import RestClient, RestError
from tests.support.server import REPOSITORY, ServerProcess

pytestmark = pytest.mark.timeout(300)

CABLE_SECONDS = 30


@pytest.fixture(scope="module")
def podman() -> Iterator[Podman]:
    """The engine, which all tests of this module share."""
    podman = Podman()
    try:
        podman.make()
        yield podman
    finally:
        podman.remove()


@pytest.fixture
async def server(servers: Servers, podman: Podman, home: Home) -> AsyncIterator[ServerProcess]:
    """A server that its containers can dial; what it has left at the end is ended."""
    write_kernelspec(home.jupyter_path, "box", podman.spec())
    port = free_ports()["shell_port"]
    servers.arguments = (*KEEP, "--agent-listen", f"{podman.network.here}:{port}")
    async with started(servers) as server:
        yield server


async def test_a_kernel_there_does_what_one_here_does(
    server: ServerProcess, rest: RestClient, podman: Podman
) -> None:
    kernel_id = (await rest.start_kernel("box"))["id"]
    runs = Executions(rest, kernel_id)
    container = podman.container_of(kernel_id)
    pid = await pid_of(rest, kernel_id)
    assert pid != container["State"]["Pid"]  # that is its keeper's
    found = await runs.run("env KERNELKEEP_ON_SHUTDOWN")
    assert found["state"] == "error"
    assert (await runs.run("cwd"))["outputs"][0]["text"] == f"{podman.work}\n"

    await takes_input(server, kernel_id)
    await is_interrupted(rest, kernel_id)
    usage = (await rest.request("GET", f"/api/kernels/{kernel_id}/usage")).json()
    assert usage["memory"] > 0
    assert usage["cpu_seconds"] > 0
    overview = (await rest.request("GET", "/api/overview")).json()
    assert [row["host"] for row in overview] == ["docker"]

    await rest.restart(kernel_id)
    after = await pid_of(rest, kernel_id)
    assert after != pid
    await runs.begin("kill SIGKILL")
    await eventually(lambda: is_idle_anew(rest, kernel_id), 30)
    assert "was killed by signal 9" in (await rest.kernel(kernel_id))["restarts"]["reason"]
    await pid_of(rest, kernel_id)
    # All of this was in one container, which goes with the kernel.
    assert podman.container_of(kernel_id)["Id"] == container["Id"]
    await rest.delete(kernel_id)
    await eventually(lambda: podman.containers() == [], 30)


async def test_the_document_leads_to_a_first_cell(
    server: ServerProcess, rest: RestClient, podman: Podman, home: Home, tmp_path: Path
) -> None:
    document = (REPOSITORY / "docs" / "engines.md").read_text().partition("\n## Docker")[2]
    kernel = json.loads(re.findall(r"```json\n(.*?)```", document, re.DOTALL)[0])
    command = re.findall(r"```sh\n(.*?)```", document, re.DOTALL)[2]
    kernel["metadata"] = podman.spec({"memory": "2GiB", "cpus": 2}).metadata
    directory = home.jupyter_path / "kernels" / "box"
    (directory / "kernel.json").write_text(json.dumps(kernel))
    await run_commands(command, tmp_path, {"URL": server.url, "TOKEN": server.token})
    answer = json.loads((tmp_path / "answer.json").read_text())
    assert answer["outputs"][0]["data"]["text/plain"] == "2"
    kernel_id = json.loads((tmp_path / "kernel.json").read_text())["id"]
    code = "%matplotlib inline\nimport matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()"
    run = await Executions(rest, kernel_id).run(code)
    shown = [output["data"] for output in run["outputs"] if output["output_type"] == "display_data"]
    assert "image/png" in shown[0]


async def test_a_container_has_no_more_than_it_is_given(
    server: ServerProcess, rest: RestClient, podman: Podman, home: Home
) -> None:
    options = {"memory": "512MiB", "cpus": 0.5, "pids": 64, "user": "1234:1234"}
    write_kernelspec(home.jupyter_path, "box", podman.spec({**options, "directory": "/tmp"}))
    kernel_id = (await rest.start_kernel("box"))["id"]
    runs = Executions(rest, kernel_id)
    assert (await runs.run("append here x"))["state"] == "ok"
    said = json.dumps(podman.container_of(kernel_id))
    assert "secret" not in said
    container = podman.container_of(kernel_id)
    host = container["HostConfig"]
    memory = 2**29 if podman.bounds_memory else 0
    assert (host["Memory"], host["NanoCpus"], host["PidsLimit"]) == (memory, 5 * 10**8, 64)
    assert host["ReadonlyRootfs"]
    assert not container.get("EffectiveCaps")
    status = read_process(container["State"]["Pid"], "status").decode()
    assert "CapEff:\t0000000000000000\n" in status
    assert "NoNewPrivs:\t1\n" in status
    assert "Uid:\t1234\t1234\t1234\t1234\n" in status


async def test_output_goes_on_where_the_cable_was_pulled_for_half_a_minute(
    server: ServerProcess, rest: RestClient, podman: Podman
) -> None:
    lines = RATE * (CABLE_SECONDS + 10)
    kernel_id = (await rest.start_kernel("box"))["id"]
    pid = await pid_of(rest, kernel_id)
    channels = await JupyterChannels.connect(server.ws_url, kernel_id, server.token)
    asked = await channels.send_execute(f"flood {lines} 20 {RATE}")
    await channels.seen(lambda m: m.msg_type == "stream")
    podman.network.pull_cable()
    try:
        pulled = asyncio.create_task(asyncio.sleep(CABLE_SECONDS))
        stuck = await Executions(rest, kernel_id).begin("append once x")
        model = await rest.wait_for_state(kernel_id, "unknown", timeout=30)
        assert "cannot be reached" in model["reason"]
        with pytest.raises(RestError) as raised:
            await rest.interrupt(kernel_id)
        assert raised.value.error["code"] == "kernel_unreachable"
        await pulled
        assert (await rest.kernel(kernel_id))["execution_state"] == "unknown"
    finally:
        podman.network.plug_cable()
    behind = await Executions(rest, kernel_id).begin("print behind")
    await finished(channels, asked)
    assert numbers(channels) == [*range(1, lines + 1)]
    for each in (stuck, behind):
        assert (await Executions(rest, kernel_id).ended(each))["state"] == "ok"
    assert (podman.work / "once").read_text() == "x\n"
    assert await pid_of(rest, kernel_id) == pid
    assert "reason" not in await rest.kernel(kernel_id)
    await channels.close()


async def test_what_is_out_of_reach_is_ended_by_its_engine(
    server: ServerProcess, rest: RestClient, podman: Podman
) -> None:
    kernel_id, other = [(await rest.start_kernel("box"))["id"] for _ in range(2)]
    await pid_of(rest, kernel_id)
    channels = await JupyterChannels.connect(server.ws_url, other, server.token)
    await channels.send_execute("print before")
    await channels.seen(lambda m: m.msg_type == "stream")
    before = podman.container_of(other)["Id"]
    podman.network.pull_cable()
    try:
        for each in (kernel_id, other):
            await rest.wait_for_state(each, "unknown", timeout=30)
        await rest.delete(kernel_id)
        await eventually(lambda: len(podman.containers()) == 1, 30)
        restart = asyncio.create_task(rest.restart(other))
        await eventually(lambda: before not in str(podman.containers()), 30)
    finally:
        podman.network.plug_cable()
    await restart
    asked = await channels.send_execute("print after")
    await finished(channels, asked)
    texts = [m.content["text"] for m in channels.log if m.msg_type == "stream"]
    assert texts == ["before\n", "after\n"]
    await channels.close()


async def test_a_container_that_somebody_kills_is_followed_by_another(
    server: ServerProcess, rest: RestClient, podman: Podman
) -> None:
    kernel_id = (await rest.start_kernel("box"))["id"]
    runs = Executions(rest, kernel_id)
    channels = await JupyterChannels.connect(server.ws_url, kernel_id, server.token)
    asked = await channels.send_execute("print before\nsleep 60")
    await channels.seen(lambda m: m.msg_type == "stream")
    before = podman.container_of(kernel_id)["Id"]
    await asyncio.to_thread(podman.kill, kernel_id)
    await channels.seen(lambda m: m.channel == "shell" and m.parent_id == asked, timeout=30)
    await eventually(lambda: is_idle_anew(rest, kernel_id), 30)
    assert "killed by signal 9" in (await rest.kernel(kernel_id))["restarts"]["reason"]
    assert (await runs.run("print after"))["outputs"][0]["text"] == "after\n"
    assert podman.container_of(kernel_id)["Id"] != before
    # The log goes on where the other container's ended.
    again = await JupyterChannels.connect(
        server.ws_url, kernel_id, server.token, query={"after": "0"}
    )
    await again.seen(lambda m: m.content.get("text") == "after\n")
    texts = [m.content["text"] for m in again.log if m.msg_type == "stream"]
    assert texts == ["before\n", "after\n"]
    await again.close()
    await channels.close()


async def test_the_next_server_goes_on_with_it(
    server: ServerProcess, servers: Servers, podman: Podman
) -> None:
    async with RestClient(server.url, server.token) as rest:
        kernel_id, dies = [(await rest.start_kernel("box"))["id"] for _ in range(2)]
        pid = await pid_of(rest, kernel_id)
        await pid_of(rest, dies)
        printing = await prints(rest, kernel_id)
    servers.crash()
    await asyncio.to_thread(podman.kill, dies)
    # Where its process is does not change with the kernelspec.
    write_kernelspec(servers.home.jupyter_path, "box", podman.spec({"docker": "unix:///none"}))
    server = await asyncio.to_thread(servers.start)
    await has_printed_all(server, kernel_id, printing, pid)
    async with RestClient(server.url, server.token) as rest:
        model = await rest.wait_for_state(dies, "dead", timeout=30)
        assert "was killed by signal 9" in model["reason"]


async def test_an_engine_that_is_away_is_waited_for(
    server: ServerProcess, rest: RestClient, podman: Podman
) -> None:
    kernel_id = (await rest.start_kernel("box"))["id"]
    await pid_of(rest, kernel_id)
    await asyncio.to_thread(podman.stop)
    try:
        await goes_on_alone(rest, "box", kernel_id)
    finally:
        await asyncio.to_thread(podman.start)
    other = (await rest.start_kernel("box"))["id"]
    assert (await Executions(rest, other).run("print here"))["state"] == "ok"
    assert len(podman.containers()) == 2


async def test_an_image_is_pulled_and_that_is_told(
    server: ServerProcess, rest: RestClient, podman: Podman, home: Home
) -> None:
    host, _, port = podman.registry.partition(":")
    registry = Registry(host, int(port), layer("pulled"))
    try:
        options = {"pull": "missing", "image": registry.image}
        write_kernelspec(home.jupyter_path, "box", podman.spec(options))
        # What takes long does not hold up whoever has asked for it, and may be given up.
        starts = [asyncio.create_task(rest.start_kernel("box")) for _ in range(2)]
        given_up, late = [model["id"] for model in await asyncio.gather(*starts)]
        for kernel_id in (given_up, late):
            model = await rest.kernel(kernel_id)
            assert model["execution_state"] == "starting"
            assert f"{registry.image} is pulled" in model["reason"]
        await rest.delete(given_up)
        waiting = await Executions(rest, late).begin("print at last")
        registry.gate.set()
        ended = await Executions(rest, late).ended(waiting)
        assert ended["outputs"][0]["text"] == "at last\n"
        assert "reason" not in await rest.kernel(late)
        options = {"pull": "always", "image": f"{podman.registry}/nothing"}
        write_kernelspec(home.jupyter_path, "box", podman.spec(options))
        with pytest.raises(RestError) as raised:
            await rest.start_kernel("box")
        assert raised.value.error["cause"] == "image_unusable"
        assert len(podman.containers()) == 1
    finally:
        await asyncio.to_thread(registry.close)


async def test_a_kernel_whose_container_has_ended_is_dead_if_none_is_to_follow(
    servers: Servers, podman: Podman, home: Home
) -> None:
    write_kernelspec(home.jupyter_path, "box", podman.spec())
    port = free_ports()["shell_port"]
    where = f"{podman.network.here}:{port}"
    servers.arguments = (*KEEP, "--no-autorestart", "--agent-listen", where)
    server = await asyncio.to_thread(servers.start)
    async with RestClient(server.url, server.token) as rest:
        kernel_id = (await rest.start_kernel("box"))["id"]
        channels = await JupyterChannels.connect(server.ws_url, kernel_id, server.token)
        asked = await channels.send_execute("print before\nsleep 60")
        await channels.seen(lambda m: m.msg_type == "stream")
        await asyncio.to_thread(podman.kill, kernel_id)
        model = await rest.wait_for_state(kernel_id, "dead", timeout=30)
        assert "was killed by signal 9" in model["reason"]
        await finished(channels, asked)
        await rest.restart(kernel_id)
        run = await Executions(rest, kernel_id).run("print after")
        assert run["outputs"][0]["text"] == "after\n"
        await channels.close()
        await rest.delete(kernel_id)
    await asyncio.to_thread(server.stop)
    servers.present = None
    assert podman.containers() == []


async def test_a_dead_kernels_container_ends_by_itself_and_its_log_can_be_read(
    servers: Servers, podman: Podman, home: Home
) -> None:
    write_kernelspec(home.jupyter_path, "box", podman.spec())
    where = f"{podman.network.here}:{free_ports()['shell_port']}"
    servers.arguments = (*KEEP, "--no-autorestart", "--agent-listen", where)
    server = await asyncio.to_thread(servers.start)
    async with RestClient(server.url, server.token) as rest:
        held, gone = [(await rest.start_kernel("box"))["id"] for _ in range(2)]
        for each in (held, gone):
            await Executions(rest, each).run("print before")
        await Executions(rest, held).begin("kill SIGKILL")
        await rest.wait_for_state(held, "dead", timeout=30)
        assert podman.container_of(held)["State"]["Running"]
        await asyncio.to_thread(podman.kill, gone)
        await eventually(lambda: podman.containers() == [], 90)
        await was_said(server, held, "before\n")
    for end in (servers.crash, servers.terminate):
        await asyncio.to_thread(end)
        server = await asyncio.to_thread(servers.start)
        for each in (held, gone):
            await was_said(server, each, "before\n")
    async with RestClient(server.url, server.token) as rest:
        for each in (held, gone):
            model = await rest.kernel(each)
            assert model["execution_state"] == "dead"
            assert "was killed by signal 9" in model["reason"]
        await rest.restart(held)
        run = await Executions(rest, held).run("print after")
        assert run["outputs"][0]["text"] == "after\n"
        for each in (held, gone):
            await rest.delete(each)
        await eventually(lambda: podman.containers() == [], 30)
    await asyncio.to_thread(server.stop)
    servers.present = None


async def was_said(server: ServerProcess, kernel_id: str, text: str) -> None:
    """Read a kernel's log from its begin, up to this output."""
    channels = await JupyterChannels.connect(
        server.ws_url, kernel_id, server.token, query={"after": "0"}
    )
    await channels.seen(lambda m: m.content.get("text") == text)
    await channels.close()


async def test_what_is_wrong_with_a_container_is_told(
    server: ServerProcess, rest: RestClient, podman: Podman, home: Home
) -> None:
    async def refused(cause: str | None, text: str, **options: Any) -> None:
        write_kernelspec(home.jupyter_path, "box", podman.spec(options))
        with pytest.raises(RestError) as raised:
            await rest.start_kernel("box")
        error: dict[str, Any] = dict(raised.value.error)
        assert (error["code"], error.get("cause")) == ("kernel_start_failed", cause), error
        assert text in error["message"]
        assert await rest.kernels() == []

    await refused("image_unusable", "not to be pulled", image="127.0.0.1:1/none")
    await refused("image_unusable", "cannot be pulled", image="127.0.0.1:1/none", pull="always")
    await refused("host_without_python", "/nowhere/python", python="/nowhere/python")
    await refused("host_without_python", "lacks", python="/usr/bin/python3")
    await refused("host_unusable", "nowhere", network="nowhere")
    await refused("host_unreachable", "cannot be reached", docker="unix:///nowhere/docker.sock")
    await refused(None, "unknown field", imaeg="kernels")
    await refused(None, "size", memory="much")
    await refused(None, "image", image="--privileged")
    assert podman.containers() == []
    write_kernelspec(home.jupyter_path, "box", podman.spec())
    kernel_id = (await rest.start_kernel("box"))["id"]
    assert (await Executions(rest, kernel_id).run("print here"))["state"] == "ok"


async def test_a_warm_container_is_given_to_who_asks_for_just_that(
    servers: Servers, podman: Podman, home: Home
) -> None:
    may_set = {"pids": {"max": 600}}
    spec = podman.spec({"pids": 500, "caller_may_set": may_set})
    write_kernelspec(home.jupyter_path, "box", spec)
    address = f"{podman.network.here}:{free_ports()['shell_port']}"
    servers.arguments = (*KEEP, "--agent-listen", address, "--warm-kernels", "box=1")
    server = await asyncio.to_thread(servers.start)
    async with RestClient(server.url, server.token) as rest:

        async def parked() -> bool:
            return (await scrape(rest))("kernelkeep_warm_kernels", type="box") == 1

        await eventually(parked, 60)
        (warm,) = podman.containers()
        model = await rest.start_kernel("box")
        assert model["execution_state"] == "idle"
        claimed = podman.container_of(model["id"])
        assert claimed["Id"] == warm["Id"]
        assert "org.kernelkeep.owner" not in claimed["Config"]["Labels"]  # it cannot change
        assert await pid_of(rest, model["id"])
        await eventually(parked, 60)
        other = (await rest.start_kernel("box", engine_options={"pids": 555}))["id"]
        assert podman.container_of(other)["HostConfig"]["PidsLimit"] == 555
        assert podman.container_of(other)["Config"]["Labels"]["org.kernelkeep.owner"]
        for kernel_id in (model["id"], other):
            await rest.delete(kernel_id)
    await asyncio.to_thread(server.stop)
    servers.present = None
    await eventually(lambda: podman.containers() == [], 30)


async def test_an_image_is_pulled_with_the_credentials_of_a_file(
    server: ServerProcess, rest: RestClient, podman: Podman, home: Home
) -> None:
    host, _, port = podman.registry.partition(":")
    registry = Registry(host, int(port), layer("private"), login="ada:a-password")
    registry.gate.set()
    file = home.path / "config.json"
    options = {"pull": "always", "image": registry.image, "credentials": str(file)}
    write_kernelspec(home.jupyter_path, "box", podman.spec(options))

    async def refused(login: str, mode: int, why: str) -> None:
        auth = base64.b64encode(login.encode()).decode()
        file.write_text(json.dumps({"auths": {podman.registry: {"auth": auth}}}))
        file.chmod(mode)
        with pytest.raises(RestError) as raised:
            await rest.start_kernel("box")
        assert raised.value.error["cause"] == "image_unusable"
        assert why in raised.value.error["message"]

    try:
        await refused("ada:a-wrong-one", 0o600, "cannot be pulled")
        await refused("ada:a-password", 0o644, "Others may use the credentials")
        file.chmod(0o600)
        kernel_id = (await rest.start_kernel("box"))["id"]
        assert await pid_of(rest, kernel_id)
        told = f"{server.output()}{podman.container_of(kernel_id)}"
        for secret in ("a-password", base64.b64encode(b"ada:a-password").decode()):
            assert secret not in told
    finally:
        await asyncio.to_thread(registry.close)
