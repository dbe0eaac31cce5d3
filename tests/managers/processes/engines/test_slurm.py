"""Kernels in jobs of a real Slurm: they have what local ones have.

One Slurm with two nodes serves all tests of this module, each with features of its own, so that a
test says by ``constraint`` where its kernel runs.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from tests.docs.test_curl_commands import run as run_commands
from tests.kernels.driver import free_ports
from tests.support.channels import Connector, JupyterChannels
from tests.support.clients import (
    WHERE,
    check_executed,
    client_environment,
    gateway_command,
    prepare,
    run,
)
from tests.support.drill import KEEP, Servers
from tests.support.executions import Executions
from tests.support.home import Home
from tests.support.jupyterlab import JupyterLab
from tests.support.kernelspecs import Spec, write_kernelspec
from tests.support.lively import (
    LINES,
    RATE,
    finished,
    goes_on_alone,
    has_printed_all,
    is_idle_anew,
    is_interrupted,
    numbers,
    pid_of,
    prints,
    says,
    started,
    takes_input,
)
from tests.support.processes import eventually
from tests.support.rest import RestClient, RestError
from tests.support.server import REPOSITORY, ServerProcess
from tests.support.slurm import Slurm

pytestmark = pytest.mark.timeout(600)

DOWN_SECONDS = 30.0


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    """The engine, which all tests of this module share."""
    slurm = Slurm()
    try:
        slurm.make()
        yield slurm
    finally:
        slurm.remove()


@pytest.fixture
async def server(servers: Servers, slurm: Slurm, home: Home) -> AsyncIterator[ServerProcess]:
    """A server that jobs can dial; what it has left at the end is ended."""
    write_kernelspec(home.jupyter_path, "job", slurm.spec())
    port = free_ports()["shell_port"]  # the next server has the same
    servers.arguments = (*KEEP, "--agent-listen", f"{slurm.here}:{port}")
    servers.env = {**slurm.env, "SECRET_OF_THE_SERVER": "1"}
    async with started(servers) as server:
        yield server


def python_spec(slurm: Slurm, options: dict[str, Any] | None = None) -> Spec:
    """A kernelspec whose kernels are jobs, of Python, that can print `WHERE`."""
    python = ("python", "-m", "ipykernel_launcher", "-f", "{connection_file}")
    fields = {"display_name": "Python 3", "language": "python"}
    return slurm.spec(options, argv=python, env={"WHERE": WHERE}, fields=fields)


async def follows(rest: RestClient, kernel_id: str, text: str) -> None:
    """Return when a kernel has been restarted, for this reason."""

    async def tells() -> bool:
        model = await rest.kernel(kernel_id)
        assert text in model.get("restarts", {"reason": ""})["reason"], model
        return bool(model["execution_state"] == "idle")

    await eventually(tells, 60)
    assert await pid_of(rest, kernel_id)  # it is ready: its end is a death


async def test_a_kernel_there_does_what_one_here_does(
    server: ServerProcess, rest: RestClient, slurm: Slurm
) -> None:
    kernel_id = (await rest.start_kernel("job"))["id"]
    runs = Executions(rest, kernel_id)
    pid = await pid_of(rest, kernel_id)
    job = slurm.job_of(kernel_id)
    # Its secret is gone, and was nowhere else; what it writes is nobody else's.
    await eventually(lambda: slurm.files("in") == [], 30)
    (out,) = slurm.files("out")
    assert out.stat().st_mode & 0o777 == 0o600
    shown = slurm.run("scontrol", "show", "job", job["id"]).stdout
    assert f"Comment=kernel={kernel_id} owner=" in shown
    assert "Requeue=0" in shown
    assert "secret" not in shown
    assert (await runs.run("env SECRET_OF_THE_SERVER"))["state"] == "error"
    assert (await runs.run("env SLURM_JOB_ID"))["outputs"][0]["text"] == f"{job['id']}\n"
    assert (await runs.run("env SLURM_EXPORT_ENV"))["outputs"][0]["text"] == "ALL\n"
    assert (await runs.run("cwd"))["outputs"][0]["text"] == f"{slurm.work}\n"

    await takes_input(server, kernel_id)
    await is_interrupted(rest, kernel_id)
    usage = (await rest.request("GET", f"/api/kernels/{kernel_id}/usage")).json()
    assert usage["memory"] > 0

    await rest.restart(kernel_id)
    after = await pid_of(rest, kernel_id)
    assert after != pid
    await runs.begin("kill SIGKILL")
    await eventually(lambda: is_idle_anew(rest, kernel_id), 30)
    assert "was killed by signal 9" in (await rest.kernel(kernel_id))["restarts"]["reason"]
    await pid_of(rest, kernel_id)
    # All of this was in one job, which goes with the kernel, and with all that it has written.
    assert slurm.job_of(kernel_id)["id"] == job["id"]
    directory = (await runs.run("env TMPDIR"))["outputs"][0]["text"].strip()
    assert slurm.has_directory(directory)
    await rest.delete(kernel_id)
    await eventually(lambda: slurm.jobs() == [] and slurm.files("out") == [], 60, 0.5)
    assert not slurm.has_directory(directory)


async def test_the_document_leads_to_a_first_cell(
    server: ServerProcess, rest: RestClient, slurm: Slurm, home: Home, tmp_path: Path
) -> None:
    document = (REPOSITORY / "docs" / "engines.md").read_text().partition("\n## Slurm")[2]
    kernel = json.loads(re.findall(r"```json\n(.*?)```", document, re.DOTALL)[0])
    command = re.findall(r"```sh\n(.*?)```", document, re.DOTALL)[2]
    asked = kernel["metadata"]["kernel_provisioner"]["config"]
    options = {name: asked[name] for name in ("time", "memory", "cpus")}
    kernel["metadata"] = slurm.spec({**options, "partition": "main"}).metadata
    directory = home.jupyter_path / "kernels" / "job"
    (directory / "kernel.json").write_text(json.dumps(kernel))
    await run_commands(command, tmp_path, {"URL": server.url, "TOKEN": server.token})
    answer = json.loads((tmp_path / "answer.json").read_text())
    assert answer["outputs"][0]["data"]["text/plain"] == "2"
    kernel_id = json.loads((tmp_path / "kernel.json").read_text())["id"]
    code = "%matplotlib inline\nimport matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()"
    ran = await Executions(rest, kernel_id).run(code)
    shown = [output["data"] for output in ran["outputs"] if output["output_type"] == "display_data"]
    assert "image/png" in shown[0]
    found = slurm.run("squeue", "-h", "-j", slurm.job_of(kernel_id)["id"], "-o", "%m %C %l").stdout
    assert found.split() == ["2G", str(options["cpus"]), "1:00:00"]


async def test_nbconvert_executes_a_notebook_by_a_gateway(
    server: ServerProcess, slurm: Slurm, home: Home, tmp_path: Path
) -> None:
    write_kernelspec(home.jupyter_path, "python3", python_spec(slurm))
    prepare(tmp_path)
    env = client_environment(server, Path(sys.executable).parent)
    command = ("sh", "-ec", gateway_command("jupyter nbconvert"))
    await asyncio.to_thread(run, tmp_path, *command, env=env)
    check_executed(tmp_path)


async def test_nbconvert_executes_a_notebook_by_a_jupyterlab_whose_kernels_are_jobs(
    server: ServerProcess, slurm: Slurm, home: Home, tmp_path: Path
) -> None:
    """nbconvert asks JupyterLab's server, that asks this service, and the kernel is a job."""
    spec = python_spec(slurm, {"root_dir": str(home.root_dir)})
    write_kernelspec(home.jupyter_path, "python3", spec)
    prepare(tmp_path)
    (home.root_dir / "folder").mkdir()
    lab = JupyterLab(server)
    await asyncio.to_thread(lab.__enter__)
    try:
        env = client_environment(server, Path(sys.executable).parent)
        env |= {"KERNELKEEP": lab.url, "TOKEN": lab.token}
        command = ("sh", "-ec", gateway_command("jupyter nbconvert"))
        await asyncio.to_thread(run, tmp_path, *command, env=env)
        check_executed(tmp_path)
        # As the page runs a notebook: by a session, in the folder of that, which the nodes have.
        asked = {"path": "folder/a.ipynb", "name": "a.ipynb", "type": "notebook"}
        asked_for = {**asked, "kernel": {"name": "python3"}}
        made = await asyncio.to_thread(lab.request, "POST", "/api/sessions", 201, json=asked_for)
        async with AsyncExitStack() as stack:
            connect = Connector(lab.ws_url, lab.token, stack)
            channels = await connect(made["kernel"]["id"])
            ran = await channels.execute(
                "import os; print(os.getcwd(), os.environ['SLURM_JOB_ID'])"
            )
        job = slurm.job_of(made["kernel"]["id"])["id"]
        assert ran.text == f"{home.root_dir}/folder {job}\n"
    finally:
        await asyncio.to_thread(lab.__exit__, None, None, None)


async def test_output_goes_on_where_the_link_was_down(
    server: ServerProcess, rest: RestClient, slurm: Slurm, home: Home
) -> None:
    for number in (1, 2):
        spec = slurm.spec({"constraint": f"node{number}"})
        write_kernelspec(home.jupyter_path, f"job{number}", spec)
    starts = [asyncio.create_task(rest.start_kernel(f"job{number}")) for number in (1, 2)]
    kernel_id, lost = [model["id"] for model in await asyncio.gather(*starts)]
    pid, _ = await pid_of(rest, kernel_id), await pid_of(rest, lost)
    channels = await JupyterChannels.connect(server.ws_url, kernel_id, server.token)
    asked = await channels.send_execute(f"flood {LINES} 20 {RATE}")
    await channels.seen(lambda m: m.msg_type == "stream")
    for network in slurm.nodes.values():
        network.pull_cable()
    down = asyncio.create_task(asyncio.sleep(DOWN_SECONDS))
    try:
        model = await rest.wait_for_state(kernel_id, "unknown", timeout=30)
        assert "cannot be reached" in model["reason"]
        with pytest.raises(RestError) as raised:
            await rest.interrupt(kernel_id)
        assert raised.value.error["code"] == "kernel_unreachable"
        # Slurm gives up the other node, and the job there: that is no end of its process.
        await rest.wait_for_state(lost, "unknown", timeout=30)
        before = slurm.job_of(lost)["id"]
        slurm.give_up("kkn2")
        await eventually(lambda: says(rest, lost, "(NODE_FAIL)"), 30)
        assert "its processes may live there" in (await rest.kernel(lost))["reason"]
        with pytest.raises(RestError) as raised:
            await rest.restart(lost)
        assert raised.value.error["code"] == "kernel_not_stopped"
        assert (await rest.kernel(lost))["execution_state"] == "unknown"
        await down
    finally:
        for network in slurm.nodes.values():
            network.plug_cable()
    await finished(channels, asked)
    assert numbers(channels) == [*range(1, LINES + 1)]
    assert await pid_of(rest, kernel_id) == pid
    assert "reason" not in await rest.kernel(kernel_id)
    await channels.close()
    # The other node is back, and has ended what Slurm had given up: now another job may follow.
    slurm.register("kkn2")
    await follows(rest, lost, "NODE_FAIL")
    assert slurm.job_of(lost)["id"] != before


async def test_how_jobs_end_is_told_and_others_follow(
    server: ServerProcess, rest: RestClient, slurm: Slurm, home: Home
) -> None:
    write_kernelspec(home.jupyter_path, "job", slurm.spec({"time": "5"}))
    kernel_id = (await rest.start_kernel("job"))["id"]
    runs = Executions(rest, kernel_id)
    assert (await runs.run("print first"))["state"] == "ok"
    # It has less than ten minutes, and that is told.
    await eventually(lambda: says(rest, kernel_id, "reaches its time limit at "), 30)
    job = slurm.job_of(kernel_id)["id"]
    slurm.run("scancel", job)
    await follows(rest, kernel_id, f"job {job} was cancelled")
    job = slurm.job_of(kernel_id)["id"]
    slurm.run("scontrol", "update", f"JobId={job}", "EndTime=now")
    await follows(rest, kernel_id, "has reached its time limit")
    # Nobody can have it run again, as a kernel of its own.
    job = slurm.job_of(kernel_id)["id"]
    assert slurm.run("scontrol", "requeue", job, check=False).returncode != 0
    slurm.kill(job)
    await follows(rest, kernel_id, "was killed by signal 9")
    assert (await runs.run("print last"))["state"] == "ok"
    # The log goes on where those of the other jobs ended.
    channels = await JupyterChannels.connect(
        server.ws_url, kernel_id, server.token, query={"after": "0"}
    )
    await channels.seen(lambda m: m.content.get("text") == "last\n")
    texts = [m.content["text"] for m in channels.log if m.msg_type == "stream"]
    assert (texts[0], texts[-1]) == ("first\n", "last\n")
    await channels.close()
    assert len(slurm.jobs()) == 1


async def test_the_next_server_goes_on_with_it(
    server: ServerProcess, servers: Servers, slurm: Slurm
) -> None:
    async with RestClient(server.url, server.token) as rest:
        starts = [asyncio.create_task(rest.start_kernel("job")) for _ in range(2)]
        kernel_id, dies = [model["id"] for model in await asyncio.gather(*starts)]
        pid = await pid_of(rest, kernel_id)
        await pid_of(rest, dies)
        printing = await prints(rest, kernel_id)
    servers.crash()
    slurm.run("scancel", slurm.job_of(dies)["id"])
    # Where its process is does not change with the kernelspec.
    other = slurm.spec({"shared": "/nowhere"})
    write_kernelspec(servers.home.jupyter_path, "job", other)
    server = await asyncio.to_thread(servers.start)
    await has_printed_all(server, kernel_id, printing, pid)
    async with RestClient(server.url, server.token) as rest:
        model = await rest.wait_for_state(dies, "dead", timeout=60)
        assert "was cancelled" in model["reason"]


async def test_a_controller_that_is_away_is_waited_for(
    server: ServerProcess, rest: RestClient, slurm: Slurm
) -> None:
    kernel_id = (await rest.start_kernel("job"))["id"]
    await pid_of(rest, kernel_id)
    await asyncio.to_thread(slurm.stop)
    try:
        pid = await goes_on_alone(rest, "job", kernel_id)
    finally:
        await asyncio.to_thread(slurm.start)
    other = (await rest.start_kernel("job"))["id"]
    assert (await Executions(rest, other).run("print here"))["state"] == "ok"
    assert await pid_of(rest, kernel_id) == pid
    assert len(slurm.jobs()) == 2


async def test_what_keeps_a_job_from_starting_is_told(
    server: ServerProcess, rest: RestClient, slurm: Slurm, home: Home
) -> None:
    names = count()

    async def refused(cause: str | None, text: str, **options: Any) -> None:
        name = f"job{next(names)}"
        write_kernelspec(home.jupyter_path, name, slurm.spec(options))
        with pytest.raises(RestError) as raised:
            await rest.start_kernel(name)
        error: dict[str, Any] = dict(raised.value.error)
        assert (error["code"], error.get("cause")) == ("kernel_start_failed", cause), error
        assert text in error["message"]

    await asyncio.gather(
        refused("host_unusable", "partition", partition="none"),
        refused("host_unusable", "Memory specification", memory="1TiB"),
        refused("host_unusable", "feature", constraint="fast"),
        refused("job_not_started", "PartitionTimeLimit", time="10-0"),
        refused("host_without_python", "/nowhere/python", python="/nowhere/python"),
        refused("host_without_python", "lacks", python="/usr/bin/python3"),
        refused("host_unusable", "open to others", shared="/tmp"),
        refused("host_unusable", "cannot be written", shared="/proc/nothing"),
        refused(None, "unknown field", partitoin="main"),
        refused(None, "size", memory="much"),
        refused(None, "partition", partition="--wrap=x"),
    )
    assert await rest.kernels() == []
    await eventually(lambda: slurm.jobs() == [], 60, 0.5)
    await eventually(lambda: [*slurm.shared.iterdir()] == [], 60, 0.5)

    # One that waits says what for, until it can run or is given up.
    write_kernelspec(home.jupyter_path, "job", slurm.spec({"cpus": 8, "constraint": "node1"}))
    first = (await rest.start_kernel("job"))["id"]
    await pid_of(rest, first)
    second = (await rest.start_kernel("job"))["id"]
    await eventually(lambda: says(rest, second, "waits ("), 30)
    assert (await rest.kernel(second))["execution_state"] == "starting"
    waiting = await Executions(rest, second).begin("print at last")
    options = {"cpus": 8, "constraint": "node1", "pending_timeout": 3}
    write_kernelspec(home.jupyter_path, "job", slurm.spec(options))
    with pytest.raises(RestError) as raised:
        await rest.start_kernel("job")
    assert raised.value.error["cause"] == "job_not_started"
    await rest.delete(first)
    ended = await Executions(rest, second).ended(waiting)
    assert ended["outputs"][0]["text"] == "at last\n"
    assert "reason" not in await rest.kernel(second)
