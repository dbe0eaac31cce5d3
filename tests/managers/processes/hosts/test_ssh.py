"""Kernels on a host behind a real sshd: they have what local ones have, and lose nothing when the
way there is gone for a while.

These are the tests of all modules of `app.managers.processes.hosts` together, with
`app.managers.processes.hosts.errors`, and of giving up a kernel (`app.managers.kernels.stopping`).
"""

from __future__ import annotations

import asyncio
import json
import os
import pwd
import re
import signal
import sys
import venv
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from app.managers.handover.store import FILE, SQLiteRegistry
from app.managers.processes.hosts.pythons import MARK
from tests.docs.test_curl_commands import run as run_commands
from tests.support.channels import JupyterChannels
from tests.support.drill import Servers
from tests.support.executions import Executions
from tests.support.home import Home
from tests.support.kernelspecs import Spec, write_kernelspec
from tests.support.lively import (
    RATE,
    finished,
    has_printed_all,
    is_interrupted,
    numbers,
    pid_of,
    prints,
    started,
    takes_input,
)
from tests.support.networks import Network
from tests.support.processes import eventually, is_alive, keepers
from tests.support.rest import RestClient, RestError
from tests.support.server import REPOSITORY, ServerProcess
from tests.support.sshd import Sshd

CABLE_SECONDS = 30

Json = dict[str, Any]


@pytest.fixture
def lab(home: Home, request: pytest.FixtureRequest) -> Iterator[Sshd]:
    """A host behind an sshd, which the kernelspec ``far`` names. A test may want a `Network`."""
    network: Network | None = getattr(request, "param", None)
    lab = Sshd(home.path / "far", network)
    write_kernelspec(home.jupyter_path, "far", lab.spec())
    try:
        if network is not None:
            network.make()
        lab.start()
        yield lab
    finally:
        lab.remove()
        if network is not None:
            network.remove()


@pytest.fixture
async def server(servers: Servers, lab: Sshd) -> AsyncIterator[ServerProcess]:
    """A server that can reach it; what it has left at the end is ended."""
    async with started(servers) as server:
        yield server


async def test_the_document_leads_to_a_first_cell(
    server: ServerProcess, rest: RestClient, lab: Sshd, home: Home, tmp_path: Path
) -> None:
    document = (REPOSITORY / "docs" / "engines.md").read_text().partition("## The options")[0]
    (spec,) = re.findall(r"```json\n(.*?)```", document, re.DOTALL)
    command = re.findall(r"```sh\n(.*?)```", document, re.DOTALL)[-1]
    kernel = json.loads(spec)
    config = kernel["metadata"]["kernel_provisioner"]["config"]
    config |= {"python": sys.executable, "path": str(lab.far), "ssh_config": str(lab.config)}
    directory = home.jupyter_path / "kernels" / "lab"
    directory.mkdir(parents=True)
    (directory / "kernel.json").write_text(json.dumps(kernel))
    await run_commands(command, tmp_path, {"URL": server.url, "TOKEN": server.token})
    answer = json.loads((tmp_path / "answer.json").read_text())
    assert answer["outputs"][0]["data"]["text/plain"] == "2"


async def test_a_kernel_there_does_what_one_here_does(
    server: ServerProcess, rest: RestClient, lab: Sshd, home: Home
) -> None:
    model = await rest.start_kernel("far")
    kernel_id = model["id"]
    runs = Executions(rest, kernel_id)
    pid = await pid_of(rest, kernel_id)
    (keeper,) = [one for one in keepers(home.processes()) if str(lab.far) in one.cmdline()[-1]]
    assert pid in [child.pid for child in keeper.children()]
    # What it gets of the environment is the host's, not this server's.
    found = await runs.run("env KERNELKEEP_ON_SHUTDOWN")
    assert found["state"] == "error"
    user = pwd.getpwuid(os.geteuid())
    assert (await runs.run("env HOME"))["outputs"][0]["text"] == f"{user.pw_dir}\n"

    await takes_input(server, kernel_id)
    await is_interrupted(rest, kernel_id)

    await rest.restart(kernel_id)
    after = await pid_of(rest, kernel_id)
    assert after != pid
    assert not is_alive(pid)
    os.kill(after, signal.SIGKILL)

    async def anew() -> bool:
        model = await rest.kernel(kernel_id)
        return bool(model.get("restarts")) and model["execution_state"] == "idle"

    await eventually(anew, 30)
    assert "was killed by signal 9" in (await rest.kernel(kernel_id))["restarts"]["reason"]
    last = await pid_of(rest, kernel_id)
    await rest.delete(kernel_id)
    assert not is_alive(last)
    # With nothing to keep, the keeper there ends, and nothing of the kernel is left.
    await eventually(lambda: not keeper.is_running(), 30)
    assert [path for path in lab.far.rglob("*") if kernel_id in path.name] == []


async def test_a_kernel_works_in_its_path_where_the_host_has_the_same_files(
    server: ServerProcess, rest: RestClient, servers: Servers, lab: Sshd, home: Home
) -> None:
    # The host has them at another path, as one with a share of the server's may.
    there = lab.directory / "books"
    there.symlink_to(home.root_dir)
    write_kernelspec(home.jupyter_path, "far", lab.spec({"root_dir": str(there)}))
    (home.root_dir / "work").mkdir()
    for name in ("work/module.py", "other.py"):
        (home.root_dir / name).touch()
    kernel_id = (await rest.start_kernel("far", path="work"))["id"]
    assert (await Executions(rest, kernel_id).run("cwd"))["state"] == "ok"

    async def found(rest: RestClient, path: str) -> list[str]:
        query = {"path": path, "kernel": kernel_id}
        answer = await rest.request("GET", "/api/resolvePath", params=query)
        resolved: list[Json] = answer.json()["resolved"]
        return [str(each["path"]) for each in resolved if each["scope"] == "kernel"]

    whole = f"{there}/work/module.py"
    for path, where in (("module.py", [whole]), (whole, [whole]), (f"{there}/other.py", [])):
        assert await found(rest, path) == where
    # A directory that is gone is looked for above, as for a kernel of this machine.
    (home.root_dir / "work" / "module.py").unlink()
    (home.root_dir / "work").rmdir()
    await rest.restart(kernel_id)
    ran = await Executions(rest, kernel_id).run("cwd")
    assert ran["outputs"][0]["text"] in (f"{there}\n", f"{home.root_dir}\n")
    assert await found(rest, "other.py") == [f"{there}/other.py"]
    servers.crash()
    server = await asyncio.to_thread(servers.start)
    async with RestClient(server.url, server.token) as rest:
        await rest.wait_for_state(kernel_id, "idle", timeout=30)
        assert await found(rest, "other.py") == [f"{there}/other.py"]
        write_kernelspec(home.jupyter_path, "far", lab.spec({"root_dir": "/nothing"}))
        with pytest.raises(RestError) as raised:
            await rest.start_kernel("far")
        assert "There is no directory /nothing on its host" in raised.value.error["message"]


@pytest.mark.parametrize("lab", [Network("kks")], indirect=True, ids=["cable"])
async def test_output_goes_on_where_the_cable_was_pulled_for_half_a_minute(
    server: ServerProcess, rest: RestClient, lab: Sshd
) -> None:
    network = lab.network
    assert network is not None
    lines = RATE * (CABLE_SECONDS + 10)
    kernel_id = (await rest.start_kernel("far"))["id"]
    pid = await pid_of(rest, kernel_id)
    channels = await JupyterChannels.connect(server.ws_url, kernel_id, server.token)
    asked = await channels.send_execute(f"flood {lines} 20 {RATE}")
    await channels.seen(lambda m: m.msg_type == "stream")
    network.pull_cable()
    try:
        pulled = asyncio.create_task(asyncio.sleep(CABLE_SECONDS))
        stuck = await Executions(rest, kernel_id).begin("append once x")  # in the old connection
        model = await rest.wait_for_state(kernel_id, "unknown", timeout=20)
        assert "lab cannot be reached" in model["reason"]
        with pytest.raises(RestError) as raised:
            await rest.interrupt(kernel_id)
        assert raised.value.error["code"] == "kernel_unreachable"
        with pytest.raises(RestError) as raised:
            await rest.restart(kernel_id)
        assert raised.value.error["code"] == "kernel_not_stopped"
        behind = await Executions(rest, kernel_id).begin("print behind")
        assert is_alive(pid)
        await pulled
        assert (await rest.kernel(kernel_id))["execution_state"] == "unknown"
    finally:
        network.plug_cable()
    await finished(channels, asked)
    assert numbers(channels) == [*range(1, lines + 1)]
    ended = await Executions(rest, kernel_id).ended(behind)
    assert ended["state"] == "ok"
    assert [output["text"] for output in ended["outputs"]] == ["behind\n"]
    assert (await Executions(rest, kernel_id).ended(stuck))["state"] == "ok"
    assert (lab.directory / "once").read_text() == "x\n"
    assert await pid_of(rest, kernel_id) == pid
    assert "reason" not in await rest.kernel(kernel_id)
    await channels.close()


async def test_what_is_asked_while_connections_break_is_done_once(
    server: ServerProcess, rest: RestClient, lab: Sshd
) -> None:
    kernel_id = (await rest.start_kernel("far"))["id"]
    runs = Executions(rest, kernel_id)
    await runs.run("print up")
    asked = []
    for number in range(6):
        asked += [await runs.begin(f"append done {number}.{part}") for part in range(5)]
        await asyncio.to_thread(lab.cut)
        asked += [await runs.begin(f"append done {number}.{part}") for part in range(5, 10)]
    states = [(await runs.ended(one))["state"] for one in asked]
    assert states == ["ok"] * len(asked)
    done = (lab.directory / "done").read_text().split()
    assert done == [f"{number}.{part}" for number in range(6) for part in range(10)]


async def test_an_answer_to_a_prompt_is_not_lost_with_a_connection(
    server: ServerProcess, rest: RestClient, lab: Sshd
) -> None:
    kernel_id = (await rest.start_kernel("far"))["id"]
    channels = await JupyterChannels.connect(server.ws_url, kernel_id, server.token)
    asked = await channels.send_execute("input name?", allow_stdin=True)
    prompt = await channels.seen(lambda m: m.msg_type == "input_request")
    lab.freeze()  # what is sent now is on its way until the server gives the connection up
    await channels.answer(prompt, "Ada")
    await rest.wait_for_state(kernel_id, "unknown", timeout=20)
    await asyncio.to_thread(lab.stop)
    await asyncio.to_thread(lab.start)
    await finished(channels, asked)
    assert "Ada\n" in [m.content["text"] for m in channels.log if m.msg_type == "stream"]
    await channels.close()


async def test_the_next_server_goes_on_with_it(
    server: ServerProcess, servers: Servers, lab: Sshd
) -> None:
    async with RestClient(server.url, server.token) as rest:
        kernel_id, dies = [(await rest.start_kernel("far"))["id"] for _ in range(2)]
        pid, dead = [await pid_of(rest, each) for each in (kernel_id, dies)]
        printing = await prints(rest, kernel_id)
    servers.crash()
    os.kill(dead, signal.SIGKILL)
    # Where its process is does not change with the kernelspec.
    write_kernelspec(servers.home.jupyter_path, "far", lab.spec({"port": 1}))
    server = await asyncio.to_thread(servers.start)
    await has_printed_all(server, kernel_id, printing, pid)
    async with RestClient(server.url, server.token) as rest:
        model = await rest.kernel(dies)
        assert model["execution_state"] == "dead"
        assert "was killed by signal 9" in model["reason"]


async def test_a_kernel_that_no_server_has_stored_is_ended_and_others_go_on(
    server: ServerProcess, servers: Servers, lab: Sshd, home: Home
) -> None:
    async with RestClient(server.url, server.token) as rest:
        kernel_id, stray = [(await rest.start_kernel("far"))["id"] for _ in range(2)]
        pid, ends = [await pid_of(rest, each) for each in (kernel_id, stray)]
    servers.crash()
    registry = SQLiteRegistry(home.state_dir / FILE)
    registry.delete(stray)  # as if the server had been killed before it had stored that kernel
    registry.close()
    server = await asyncio.to_thread(servers.start)
    await eventually(lambda: not is_alive(ends), 30)
    await eventually(lambda: not [*lab.far.rglob(f"*{stray}*")], 10)
    assert f"kernel {stray} on lab was nobody's, and is ended" in server.output()
    async with RestClient(server.url, server.token) as rest:
        assert [model["id"] for model in await rest.kernels()] == [kernel_id]
        # One that is being started, or restarted, while its keeper is met again is somebody's.
        slow = Spec(flags=("--slow-start", "2"), metadata=lab.spec().metadata)
        write_kernelspec(home.jupyter_path, "far", slow)

        async def met_meanwhile(launching: Coroutine[Any, Any, Any]) -> Any:
            before = slow_ones(home)
            task = asyncio.create_task(launching)
            await eventually(lambda: slow_ones(home) - before, 30)
            await asyncio.to_thread(lab.cut)
            return await task

        began = (await met_meanwhile(rest.start_kernel("far")))["id"]
        first = await pid_of(rest, began)
        await met_meanwhile(rest.restart(began))
        assert await pid_of(rest, began) != first
        assert await pid_of(rest, kernel_id) == pid
        assert server.output().count("was nobody's") == 1


def slow_ones(home: Home) -> set[int]:
    """The processes of kernels that take their time to come up."""
    found = set()
    for one in home.processes():
        with suppress(psutil.NoSuchProcess):
            if "--slow-start" in one.cmdline():
                found.add(one.pid)
    return found


async def test_a_host_that_is_away_when_the_server_starts_is_waited_for(
    server: ServerProcess, servers: Servers, lab: Sshd
) -> None:
    async with RestClient(server.url, server.token) as rest:
        kernel_id, dead = [(await rest.start_kernel("far"))["id"] for _ in range(2)]
        pid = await pid_of(rest, kernel_id)
        await Executions(rest, dead).run("print last words")
    servers.crash()
    await asyncio.to_thread(lab.stop)
    server = await asyncio.to_thread(servers.start)
    async with RestClient(server.url, server.token) as rest:
        model = await rest.wait_for_state(kernel_id, "unknown", timeout=30)
        assert "lab cannot be reached" in model["reason"]
        assert is_alive(pid)
        with pytest.raises(RestError) as raised:
            await rest.start_kernel("far")
        assert raised.value.status == 500
        assert raised.value.error["code"] == "kernel_start_failed"
        assert raised.value.error["cause"] == "host_unreachable"
        assert len(await rest.kernels()) == 2
        await asyncio.to_thread(lab.start)
        await rest.wait_for_state(kernel_id, "idle", timeout=60)
        assert await pid_of(rest, kernel_id) == pid


async def test_a_process_that_ends_while_the_host_is_away_is_dead_when_that_is_told(
    server: ServerProcess, rest: RestClient, lab: Sshd
) -> None:
    kernel_id = (await rest.start_kernel("far"))["id"]
    runs = Executions(rest, kernel_id)
    pid = await pid_of(rest, kernel_id)
    asked = await runs.begin("raw what it wrote last\nuntil go\nprint nearly\ndie 7")
    await runs.until(asked, "started")
    await asyncio.to_thread(lab.stop)
    await rest.wait_for_state(kernel_id, "unknown", timeout=20)
    (lab.directory / "go").touch()
    await eventually(lambda: not is_alive(pid), 10)
    assert not (await runs.get(asked))["ended"]
    await asyncio.to_thread(lab.start)
    ended = await runs.ended(asked)
    assert ended["outputs"][0]["text"] == "nearly\n"
    await rest.wait_for_state(kernel_id, "idle", timeout=30)
    reason = (await rest.kernel(kernel_id))["restarts"]["reason"]
    assert "exited with code 7" in reason
    assert "what it wrote last" in reason


async def test_a_kernel_is_given_up_and_ended_when_its_host_is_back(
    server: ServerProcess, rest: RestClient, lab: Sshd
) -> None:
    kernel_id, other = [(await rest.start_kernel("far"))["id"] for _ in range(2)]
    pid, others = await pid_of(rest, kernel_id), await pid_of(rest, other)
    await asyncio.to_thread(lab.stop)
    await rest.wait_for_state(kernel_id, "unknown", timeout=30)
    with pytest.raises(RestError) as raised:
        await rest.delete(kernel_id)
    assert raised.value.error["code"] == "kernel_not_stopped"
    async with asyncio.timeout(20):
        await rest.request("DELETE", f"/api/kernels/{kernel_id}?give_up=true", 204)
    assert [model["id"] for model in await rest.kernels()] == [other]
    assert is_alive(pid)
    await asyncio.to_thread(lab.start)
    await eventually(lambda: not is_alive(pid), 60)
    assert is_alive(others)
    await rest.wait_for_state(other, "idle", timeout=30)
    # One whose host is there is shut down as ever.
    await rest.request("DELETE", f"/api/kernels/{other}?give_up=true", 204)
    await eventually(lambda: not is_alive(others), 10)


async def test_a_kernel_that_the_server_has_never_reached_is_given_up(
    server: ServerProcess, servers: Servers, lab: Sshd
) -> None:
    async with RestClient(server.url, server.token) as rest:
        kernel_id = (await rest.start_kernel("far"))["id"]
        pid = await pid_of(rest, kernel_id)
    servers.crash()
    await asyncio.to_thread(lab.stop)
    server = await asyncio.to_thread(servers.start)
    async with RestClient(server.url, server.token) as rest:
        await rest.wait_for_state(kernel_id, "unknown", timeout=30)
        async with asyncio.timeout(60):
            await rest.request("DELETE", f"/api/kernels/{kernel_id}?give_up=true", 204)
        assert await rest.kernels() == []
        await asyncio.to_thread(lab.start)
        await eventually(lambda: not is_alive(pid), 60)


async def test_what_is_wrong_with_a_host_is_told(
    server: ServerProcess, rest: RestClient, lab: Sshd, home: Home
) -> None:
    async def refused(cause: str | None, text: str, **options: Any) -> None:
        write_kernelspec(home.jupyter_path, "far", lab.spec(options))
        with pytest.raises(RestError) as raised:
            await rest.start_kernel("far")
        error: Json = dict(raised.value.error)
        assert (error["code"], error.get("cause")) == ("kernel_start_failed", cause), error
        assert text in error["message"]
        assert await rest.kernels() == []

    lab.trust("stranger")
    await refused("host_key_refused", "known_hosts")
    (lab.directory / "known_hosts").write_text("")
    await refused("host_key_refused", "known_hosts")
    (lab.directory / "known_hosts").unlink()
    await refused("host_unusable", "known_hosts")
    lab.trust("host")
    lab.write_config("stranger")
    await refused("host_login_refused", "does not let the user in")
    lab.write_config()
    await refused("host_unreachable", "cannot be reached", port=1)
    await refused("host_without_python", "/nowhere/python", python="/nowhere/python; echo")
    await refused("host_without_python", "lacks", python=bare_python(lab))
    for answer in ("{", "[]", "{}", '{"ready": {"socket": 1}}'):
        await refused("host_unusable", "makes no sense", python=answering(lab, answer))
    await refused("host_unusable", "Not a directory", path=str(lab.config / "far"))
    await refused("host_unusable", "too long", path=str(lab.directory / ("x" * 90)))
    await refused(None, "unknown field", hots="lab")
    await refused(None, "character", host="-oProxyCommand=touch /tmp/x")
    await refused(None, "There is no directory /nowhere/at all", directory="/nowhere/at all")
    # None of that holds up who comes next.
    write_kernelspec(home.jupyter_path, "far", lab.spec())
    kernel_id = (await rest.start_kernel("far"))["id"]
    run = await Executions(rest, kernel_id).run("cwd")
    assert run["outputs"][0]["text"] == f"{lab.directory}\n"


def bare_python(lab: Sshd) -> str:
    """An interpreter that has the standard library only."""
    venv.create(lab.directory / "bare", with_pip=False)
    return str(lab.directory / "bare" / "bin" / "python")


async def test_one_kernels_flood_does_not_hold_up_another(
    server: ServerProcess, rest: RestClient, lab: Sshd
) -> None:
    floods, other = [(await rest.start_kernel("far"))["id"] for _ in range(2)]
    flooding = await Executions(rest, floods).begin("flood 40000 50000")
    await Executions(rest, floods).until(flooding, "stream")
    runs = Executions(rest, other)
    sleeping = await runs.begin("sleep 60")
    await runs.until(sleeping, "started")
    await rest.interrupt(other)
    assert (await runs.ended(sleeping))["state"] == "error"
    assert not (await Executions(rest, floods).get(flooding))["ended"]
    await rest.interrupt(floods)
    await Executions(rest, floods).ended(flooding)


def answering(lab: Sshd, answer: str) -> str:
    """A program that gives this answer in the place of the bootstrap."""
    program = lab.directory / "answering"
    program.write_text(f"#!/bin/sh\necho '{MARK}{answer}'\n")
    program.chmod(0o700)
    return str(program)
