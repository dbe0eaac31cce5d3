"""Kernels in pods of a stand-in of Kubernetes: they have what local ones have.

The stand-in's pods are processes that run the real keeper, which dials in by TLS.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from tests.kernels.driver import free_ports
from tests.support.cable import Cable
from tests.support.channels import JupyterChannels
from tests.support.cluster import Cluster, Fault, unschedulable, waiting
from tests.support.drill import KEEP, Servers
from tests.support.executions import Executions
from tests.support.home import Home
from tests.support.kernelspecs import write_kernelspec
from tests.support.lively import (
    LINES,
    RATE,
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
from tests.support.processes import eventually, is_alive
from tests.support.rest import RestClient, RestError
from tests.support.server import ServerProcess


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    cluster = Cluster()
    await cluster.start()
    yield cluster
    await cluster.close()


@pytest.fixture
async def cable() -> AsyncIterator[Cable]:
    """The way of keepers to the server, which listens at its target."""
    cable = Cable(free_ports()["shell_port"])
    await cable.start()
    yield cable
    await cable.close()


@pytest.fixture
async def server(servers: Servers, cluster: Cluster, home: Home) -> AsyncIterator[ServerProcess]:
    """A server that pods can dial; what it has left at the end is ended."""
    write_kernelspec(home.jupyter_path, "pod", cluster.spec())
    port = free_ports()["shell_port"]  # the next server has the same
    servers.arguments = (*KEEP, "--agent-listen", f"127.0.0.1:{port}")
    async with started(servers) as server:
        yield server


async def test_a_kernel_there_does_what_one_here_does(
    server: ServerProcess, rest: RestClient, cluster: Cluster
) -> None:
    kernel_id = (await rest.start_kernel("pod"))["id"]
    pid = await pid_of(rest, kernel_id)
    pod = cluster.pod_of(kernel_id)
    (process,) = cluster.kubelet.processes.values()
    assert process.pid != pid
    await eventually(lambda: not cluster.secrets, 30)

    await takes_input(server, kernel_id)
    await is_interrupted(rest, kernel_id)

    await rest.restart(kernel_id)
    assert await pid_of(rest, kernel_id) != pid
    assert cluster.pod_of(kernel_id)["metadata"]["uid"] == pod["metadata"]["uid"]

    os.kill(await pid_of(rest, kernel_id), signal.SIGKILL)
    await eventually(lambda: is_idle_anew(rest, kernel_id), 30)
    assert await pid_of(rest, kernel_id)

    await rest.delete(kernel_id)
    await eventually(lambda: not cluster.pods, 30)


async def test_python_calculates_and_plots_there(
    server: ServerProcess, rest: RestClient, cluster: Cluster, home: Home
) -> None:
    argv = (sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}")
    write_kernelspec(home.jupyter_path, "pod", replace(cluster.spec(), argv=argv))
    kernel_id = (await rest.start_kernel("pod"))["id"]
    runs = Executions(rest, kernel_id)
    ran = await runs.run("1+1")
    assert ran["outputs"][0]["data"]["text/plain"] == "2"
    code = "%matplotlib inline\nimport matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()"
    outputs = (await runs.run(code))["outputs"]
    shown = [output["data"] for output in outputs if output["output_type"] == "display_data"]
    assert "image/png" in shown[0]


async def name_of(cluster: Cluster, kernel_id: str) -> str:
    """The name of a kernel's pod, when it runs."""

    def found() -> bool:
        return any(
            pod["metadata"]["labels"]["org.kernelkeep.kernel"] == kernel_id
            and pod["status"]["phase"] == "Running"
            for pod in cluster.pods.values()
        )

    await eventually(found, 30)
    return str(cluster.pod_of(kernel_id)["metadata"]["name"])


async def test_how_pods_end_is_told_and_others_follow(
    server: ServerProcess, rest: RestClient, cluster: Cluster, home: Home
) -> None:
    limited = cluster.spec(limits={"memory": "1Gi"})
    write_kernelspec(home.jupyter_path, "pod", limited)
    kernel_id = (await rest.start_kernel("pod"))["id"]

    async def follows(text: str) -> None:
        await eventually(lambda: is_idle_anew(rest, kernel_id), 40)
        await eventually(lambda: tells(text), 40)
        assert await pid_of(rest, kernel_id)  # it is ready: its end is a death

    async def tells(text: str) -> bool:
        model = await rest.kernel(kernel_id)
        assert text in model.get("restarts", {"reason": ""})["reason"], model
        return bool(model["execution_state"] == "idle")

    await pid_of(rest, kernel_id)
    # The kernel of the node kills all of it.
    name = await name_of(cluster, kernel_id)
    cluster.kubelet.reason = "OOMKilled"
    cluster.kubelet.kill(name)
    await follows("want of memory: it may take 1Gi")
    assert await name_of(cluster, kernel_id) != name
    # Somebody kills the container.
    cluster.kubelet.kill(await name_of(cluster, kernel_id))
    await follows("killed by signal 9")
    # A node is drained: the keeper gets SIGTERM, and tells of the end.
    name = await name_of(cluster, kernel_id)
    await cluster.evict(name, "EvictionByEvictionAPI", "Eviction API: evicting")
    await follows(" evicted (EvictionByEvictionAPI): Eviction API: evicting")
    # Somebody deletes the pod.
    name = await name_of(cluster, kernel_id)
    await cluster.delete(name)
    await follows("deleted")
    assert await name_of(cluster, kernel_id) != name
    assert len(cluster.pods) == 1


async def test_the_next_server_goes_on_with_it(
    server: ServerProcess, servers: Servers, cluster: Cluster, home: Home
) -> None:
    async with RestClient(server.url, server.token) as rest:
        kernel_id, dies = [(await rest.start_kernel("pod"))["id"] for _ in range(2)]
        pid = await pid_of(rest, kernel_id)
        await pid_of(rest, dies)
        printing = await prints(rest, kernel_id)
    servers.crash()
    cluster.kubelet.kill(cluster.pod_of(dies)["metadata"]["name"])
    server = await asyncio.to_thread(servers.start)
    await has_printed_all(server, kernel_id, printing, pid)
    async with RestClient(server.url, server.token) as rest:
        model = await rest.wait_for_state(dies, "dead", timeout=60)
        assert "killed by signal 9" in model["reason"]


async def test_a_pod_that_the_cluster_has_lost_is_not_dead(
    servers: Servers, cluster: Cluster, home: Home, cable: Cable
) -> None:
    write_kernelspec(home.jupyter_path, "pod", cluster.spec())
    listening = ("--agent-listen", f"127.0.0.1:{cable.target}")
    servers.arguments = (*KEEP, *listening, "--agent-addresses", f"127.0.0.1:{cable.port}")
    server = await asyncio.to_thread(servers.start)
    async with RestClient(server.url, server.token) as rest:
        kernel_id = (await rest.start_kernel("pod"))["id"]
        pid = await pid_of(rest, kernel_id)
        channels = await JupyterChannels.connect(server.ws_url, kernel_id, server.token)
        # The link is down for a while, in the middle of what the kernel prints.
        asked = await channels.send_execute(f"flood {LINES} 20 {RATE}")
        await channels.seen(lambda m: m.msg_type == "stream")
        cable.pull()
        model = await rest.wait_for_state(kernel_id, "unknown", timeout=30)
        assert "cannot be reached" in model["reason"]
        cable.plug()
        await channels.seen(lambda m: m.channel == "shell" and m.parent_id == asked, timeout=60)
        assert numbers(channels) == [*range(1, LINES + 1)]
        await channels.close()
        # Its node is away, for the API server alone: first it says so, and then it forgets the pod.
        cluster.kubelet.is_away = True
        name = await name_of(cluster, kernel_id)
        await cluster.set_status(name, {"conditions": [{"type": "Ready", "status": "False"}]})
        await eventually(lambda: says(rest, kernel_id, "The node node-1 is not ready"), 30)
        await cluster.evict(name, "DeletionByTaintManager", "Taint manager: deleting")
        await eventually(lambda: says(rest, kernel_id, "The pod is evicted"), 30)
        await cluster.remove(name)
        await eventually(lambda: says(rest, kernel_id, "has lost the job"), 30)
        assert await pid_of(rest, kernel_id) == pid
        # Now it is away for everybody: nobody knows, and no other process is started.
        cable.pull()
        await rest.wait_for_state(kernel_id, "unknown", timeout=30)
        assert cluster.pods == {}
        # Somebody says that it is over: the next is a new generation. The old one comes back then.
        old = cluster.kubelet.processes[name]
        cluster.kubelet.is_away = False
        restarting = asyncio.create_task(rest.restart(kernel_id))
        (there,) = await eventually(lambda: cluster.pods, 30)
        assert there != name
        cable.plug()
        await restarting
        assert await pid_of(rest, kernel_id) != pid
        await asyncio.wait_for(old.wait(), 60)  # the service has told it to end
        await eventually(lambda: not is_alive(pid), 30)
        await rest.delete(kernel_id)
    await asyncio.to_thread(server.stop)
    servers.present = None


async def test_what_keeps_a_pod_from_starting_is_told(
    server: ServerProcess, rest: RestClient, cluster: Cluster, home: Home
) -> None:
    async def refused(cause: str | None, text: str, **options: Any) -> None:
        write_kernelspec(home.jupyter_path, "pod", cluster.spec(**options))
        with pytest.raises(RestError) as raised:
            await rest.start_kernel("pod")
        error = dict(raised.value.error)
        assert (error["code"], error.get("cause")) == ("kernel_start_failed", cause), error
        assert text in str(error["message"])
        assert await rest.kernels() == []

    await refused("host_without_python", "has no /nowhere/python", python="/nowhere/python")
    await refused("host_without_python", "lacks", python="/usr/bin/python3")
    await refused(None, "unknown field", imaeg="kernels")
    await refused(None, "no quantity", limits={"memory": "much"})
    await refused("host_unusable", "cannot be read", template="/nowhere/pod.yaml")
    await refused("host_login_refused", 'in the namespace "another"', namespace="another")
    quota = 'pods "kernelkeep-x" is forbidden: exceeded quota: kernels, requested: pods=1, used: '
    cluster.faults = [Fault("POST", "/pods", 403, quota + "pods=6, limited: pods=6", "Forbidden")]
    await refused("quota_met", "exceeded quota: kernels")
    cluster.faults = [Fault("POST", "/secrets", 403, "secrets is forbidden", "Forbidden")]
    await refused("host_unusable", "secrets is forbidden")
    cluster.status = waiting("InvalidImageName", "Failed to apply default image tag")
    await refused("image_unusable", "Failed to apply default image tag")
    cluster.status = unschedulable("0/2 nodes are available: 2 Insufficient memory.")
    await refused("job_not_started", "Insufficient memory", pending_timeout=1)
    await eventually(lambda: not cluster.pods and not cluster.secrets, 30)
    # What passes is told while it lasts.
    write_kernelspec(home.jupyter_path, "pod", cluster.spec())
    starting = asyncio.create_task(rest.start_kernel("pod"))
    kernel_id = await eventually(lambda: first(rest), 30)
    await eventually(lambda: says(rest, kernel_id, "Unschedulable: 0/2 nodes are available"), 30)
    (name,) = cluster.pods
    cluster.status = None
    await cluster.set_status(name, waiting("ImagePullBackOff", 'Back-off pulling image "x"'))
    await eventually(lambda: says(rest, kernel_id, "(ImagePullBackOff): Back-off pulling"), 30)
    cluster.kubelet.begin(cluster.pods[name])
    await starting
    assert await pid_of(rest, kernel_id)
    assert "reason" not in await rest.kernel(kernel_id)


async def first(rest: RestClient) -> str:
    return str(next((each["id"] for each in await rest.kernels()), ""))


async def test_an_api_server_that_is_away_is_waited_for(
    server: ServerProcess, rest: RestClient, cluster: Cluster
) -> None:
    await cluster.stop()
    with pytest.raises(RestError) as raised:
        await rest.start_kernel("pod")
    assert raised.value.error["cause"] == "host_unreachable"
    await cluster.start()
    kernel_id = (await rest.start_kernel("pod"))["id"]
    pid = await pid_of(rest, kernel_id)
    # The kernels that run do not need it.
    await cluster.stop()
    assert await pid_of(rest, kernel_id) == pid
    await rest.restart(kernel_id)
    assert await pid_of(rest, kernel_id) != pid
    await cluster.start()
    assert len(cluster.pods) == 1  # no second one was made


async def test_pods_that_belong_to_no_kernel_are_ended(
    server: ServerProcess, rest: RestClient, cluster: Cluster
) -> None:
    kernel_id = (await rest.start_kernel("pod"))["id"]
    own = cluster.pod_of(kernel_id)
    for name, keeper, labels in (
        ("stranger", "nobody", own["metadata"]["labels"]),
        ("other", "nobody", {**own["metadata"]["labels"], "org.kernelkeep.service": "another"}),
    ):
        metadata = {**own["metadata"], "name": name, "uid": name}
        metadata["labels"] = {**labels, "org.kernelkeep.keeper": keeper}
        del metadata["labels"]["org.kernelkeep.owner"]
        pod = {**own, "metadata": metadata, "status": {"phase": "Failed"}}
        cluster.pods[name] = pod
        await cluster.tell("ADDED", pod)
    # One that is nobody's goes at once. What is of another service is none of its business.
    await eventually(lambda: "stranger" not in cluster.pods, 30)
    assert set(cluster.pods) == {own["metadata"]["name"], "other"}
    assert await pid_of(rest, kernel_id)
