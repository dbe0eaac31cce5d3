"""Pods that are kept warm: nobody's until they are claimed, and then their owner's.

The stand-in's pods are processes that run the real keeper, which dials in by TLS.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.kernels.driver import free_ports
from tests.support.cluster import Cluster, Fault
from tests.support.drill import KEEP, Servers
from tests.support.executions import Executions
from tests.support.home import Home
from tests.support.identities import token
from tests.support.kernelspecs import Spec, write_kernelspec
from tests.support.lively import is_idle_anew, pid_of
from tests.support.metrics import scrape
from tests.support.owners import MANY, USER
from tests.support.processes import eventually
from tests.support.rest import RestClient, RestError
from tests.support.server import ServerProcess

OWNER = "org.kernelkeep.owner"

MAY_SET = {"limits.memory": {"max": "8Gi"}, "image": ["kernel:1", "kernel:2"]}

Json = dict[str, Any]


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    cluster = Cluster()
    await cluster.start()
    yield cluster
    await cluster.close()


@pytest.fixture
async def server(servers: Servers, cluster: Cluster, home: Home) -> AsyncIterator[ServerProcess]:
    """A server of many owners that keeps one pod warm. Ada has limits of her own."""
    spec = cluster.spec(caller_may_set=MAY_SET, root_dir=str(home.root_dir))
    write_kernelspec(home.jupyter_path, "pod", spec)
    port = free_ports()["shell_port"]  # the next server has the same
    limits = json.dumps({"ada": {"open_files": 999}})
    servers.arguments = (
        *(*KEEP, *MANY, "--limits-by-name", limits, "--warm-kernels", "pod=1"),
        *("--agent-listen", f"127.0.0.1:{port}"),
    )
    server = await asyncio.to_thread(servers.start)
    yield server
    if servers.present is not None:
        async with client(servers.present, "root", "admin") as rest:
            for model in await rest.kernels():
                await rest.delete(model["id"])
        await asyncio.to_thread(servers.present.stop)
        servers.present = None


def client(server: ServerProcess, name: str, *scopes: str) -> RestClient:
    return RestClient(server.url, token(name, [*scopes] or USER))


async def parked(server: ServerProcess, cluster: Cluster, *but: str) -> Json:
    """The pod that is to be had, when there is one; ``but`` those of these kernels."""
    async with client(server, "root", "admin") as rest:

        async def there() -> bool:
            return (await scrape(rest))("kernelkeep_warm_kernels", type="pod") == 1

        await eventually(there, 60)
    (pod,) = [
        pod
        for pod in cluster.pods.values()
        if pod["metadata"]["labels"]["org.kernelkeep.kernel"] not in but
    ]
    return pod


def owner_of(pod: Json) -> tuple[str | None, str | None]:
    metadata = pod["metadata"]
    return metadata["labels"].get(OWNER), metadata["annotations"].get(OWNER)


async def test_a_warm_pod_is_claimed_without_another_and_the_pool_fills_again(
    server: ServerProcess, servers: Servers, cluster: Cluster
) -> None:
    pod = await parked(server, cluster)
    assert owner_of(pod) == (None, None)
    async with client(server, "Bob B.") as rest:
        assert await rest.kernels() == []
        cluster.asked.clear()
        model = await rest.start_kernel("pod", path="nowhere/here")
        asked = [(method, path.rpartition("/")[2]) for method, path in cluster.asked]
        name = pod["metadata"]["name"]
        # The next one of the pool comes later, and is not waited for.
        claimed = asked.index(("PATCH", name))
        assert ("POST", "pods") not in asked[:claimed]
        assert model["execution_state"] == "idle"
        kernel_id = model["id"]
        label, annotation = owner_of(cluster.pod_of(kernel_id))
        assert annotation == "Bob B."
        assert str(label).startswith("bob-b-x")
        assert cluster.pod_of(kernel_id)["metadata"]["name"] == name
        pid = await pid_of(rest, kernel_id)
        await rest.restart(kernel_id)
        assert await pid_of(rest, kernel_id) != pid
        assert cluster.pod_of(kernel_id)["metadata"]["name"] == name
        second = await parked(server, cluster, kernel_id)
        # The next server has the one that was claimed, and ends the other, which nobody has.
        pid = await pid_of(rest, kernel_id)
    servers.crash()
    server = await asyncio.to_thread(servers.start)
    await eventually(lambda: second["metadata"]["name"] not in cluster.pods, 30)
    async with client(server, "Bob B.") as rest:
        assert await pid_of(rest, kernel_id) == pid
        third = await parked(server, cluster, kernel_id)
        assert owner_of(third) == (None, None)
        # A pod that ends after its claim is followed by one that is its owner's from the start.
        cluster.kubelet.kill(name)
        await eventually(lambda: is_idle_anew(rest, kernel_id), 30)
        assert await pid_of(rest, kernel_id) != pid
        assert owner_of(cluster.pod_of(kernel_id)) == (label, annotation)


async def test_a_python_kernel_in_a_pod_is_given_its_variables_when_it_is_claimed(
    servers: Servers, cluster: Cluster, home: Home
) -> None:
    spec = cluster.spec()
    argv = ("python", "-m", "ipykernel_launcher", "-f", "{connection_file}")
    write_kernelspec(home.jupyter_path, "pod", Spec(argv=argv, metadata=spec.metadata))
    listening = ("--agent-listen", f"127.0.0.1:{free_ports()['shell_port']}")
    servers.arguments = (*KEEP, *MANY, *listening, "--warm-kernels", "pod=1")
    server = await asyncio.to_thread(servers.start)
    pod = await parked(server, cluster)
    async with client(server, "bob") as rest:
        asked = {"path": "of/a.ipynb", "type": "notebook", "kernel": {"name": "pod"}}
        made = (await rest.request("POST", "/api/sessions", 201, json=asked)).json()
        kernel_id = made["kernel"]["id"]
        assert cluster.pod_of(kernel_id)["metadata"]["uid"] == pod["metadata"]["uid"]
        run = await Executions(rest, kernel_id).run("import os; os.environ['JPY_SESSION_NAME']")
        assert run["outputs"][0]["data"]["text/plain"] == "'of/a.ipynb'"
        await rest.request("DELETE", f"/api/sessions/{made['id']}", 204)
    await asyncio.to_thread(server.stop)
    servers.present = None
    await eventually(lambda: not cluster.pods, 30)


async def test_what_a_warm_pod_is_not_is_started(
    server: ServerProcess, cluster: Cluster, home: Home
) -> None:
    kept: list[str] = []

    async def cold(rest: RestClient, **body: Any) -> Json:
        warm = await parked(server, cluster, *kept)
        model = await rest.start_kernel("pod", **body)
        kept.append(model["id"])
        await rest.wait_for_state(model["id"], "idle")
        pod = cluster.pod_of(model["id"])
        assert pod["metadata"]["uid"] != warm["metadata"]["uid"]
        assert owner_of(pod)[1] is not None
        return pod

    async with client(server, "bob") as rest:
        (home.root_dir / "work").mkdir()
        await cold(rest, path="work")  # which pods have, too: that one works above it
        ran = await Executions(rest, kept[-1]).run("cwd")
        assert ran["outputs"][0]["text"] == f"{home.root_dir}/work\n"
        await cold(rest, env={"MINE": "1"})  # the fake kernel is no Python, and cannot be moved
        pod = await cold(rest, engine_options={"limits.memory": "6Gi", "image": "kernel:2"})
        (container,) = pod["spec"]["containers"]
        assert (container["image"], container["resources"]["limits"]["memory"]) == (
            *("kernel:2", "6Gi"),
        )
        first = kept[-1]
        asked: Json = {"path": "a.ipynb", "type": "notebook"}
        asked["kernel"] = {"name": "pod", "engine_options": {"image": "kernel:1"}}
        made = await rest.request("POST", "/api/sessions", 201, json=asked)
        kept.append(made.json()["kernel"]["id"])
        (container,) = cluster.pod_of(kept[-1])["spec"]["containers"]
        assert container["image"] == "kernel:1"
        session = f"/api/sessions/{made.json()['id']}"
        asked["kernel"] = {"name": "pod", "engine_options": {"image": "kernel:3"}}
        with pytest.raises(RestError) as raised:
            await rest.request("PATCH", session, json=asked)
        assert raised.value.error["option"] == "image"
        await rest.request("DELETE", session, 204)
        # The first keeps its own in another pod.
        cluster.kubelet.kill(pod["metadata"]["name"])
        await eventually(lambda: is_idle_anew(rest, first), 30)
        await pid_of(rest, first)
        again = cluster.pod_of(first)
        assert again["spec"]["containers"][0]["image"] == "kernel:2"
    async with client(server, "ada") as rest:  # who has limits of her own
        await cold(rest)
        for refused, option in (
            ({"limits.memory": "9Gi"}, "limits.memory"),
            ({"namespace": "kube-system"}, "namespace"),
        ):
            with pytest.raises(RestError) as raised:
                await rest.start_kernel("pod", engine_options=refused)
            error = raised.value.error
            assert (error["code"], error["option"]) == ("engine_option_refused", option)
    # One whose claim the API server does not note is not given away.
    warm = await parked(server, cluster, *kept)
    cluster.faults = [Fault("PATCH", warm["metadata"]["name"], 403, "forbidden", "Forbidden")]
    async with client(server, "bob") as rest:
        await cold(rest)
    assert "could not be made somebody's" in server.output()
    await eventually(lambda: warm["metadata"]["name"] not in cluster.pods, 30)


async def test_a_pool_that_cannot_start_says_so_once_and_harms_nobody(
    servers: Servers, cluster: Cluster, home: Home
) -> None:
    text = 'pods "kernelkeep-{}" is forbidden: exceeded quota: kernels'
    cluster.lasting = [Fault("POST", "/pods", 403, text.format(1), "Forbidden")]
    template = home.path / "pod.yaml"
    template.write_text('{"metadata": {"labels": {"team": "${owner}"}}}')
    write_kernelspec(home.jupyter_path, "pod", cluster.spec())
    write_kernelspec(home.jupyter_path, "homely", cluster.spec(template=str(template)))
    elsewhere = {"provisioner_name": "kernelkeep-ssh", "config": {"host": "lab"}}
    write_kernelspec(home.jupyter_path, "lab", Spec(metadata={"kernel_provisioner": elsewhere}))
    servers.kind = Impatient
    servers.arguments = (
        *(*KEEP, "--max-concurrent-starts", "1", "--start-queue-limit", "0"),
        *("--warm-kernels", "pod=1,homely=1,lab=1"),
        *("--agent-listen", f"127.0.0.1:{free_ports()['shell_port']}"),
    )
    server = await asyncio.to_thread(servers.start)

    def tries() -> int:
        return sum(method == "POST" and path.endswith("/pods") for method, path in cluster.asked)

    await eventually(lambda: tries() >= 2, 60)
    cluster.lasting = [Fault("POST", "/pods", 403, text.format(2), "Forbidden")]
    before = tries()
    await eventually(lambda: tries() >= before + 2, 60)
    async with RestClient(server.url, server.token) as rest:
        # While a pod waits, it takes no turn to start from anybody.
        cluster.status = {"phase": "Pending"}
        cluster.lasting = []
        await eventually(lambda: cluster.pods, 60)
        kernel_id = (await rest.start_kernel("fake"))["id"]
        assert (await Executions(rest, kernel_id).run("print here"))["state"] == "ok"
        await rest.delete(kernel_id)
    output = server.output()
    assert output.count("warm_kernels: pod cannot be kept warm: The kernel could not be") == 1
    assert output.count("warm_kernels: homely cannot be kept warm") == 1
    assert "the placeholder ${owner} has no value as long as a pod is nobody's" in output
    assert output.count("warm_kernels: lab cannot be kept warm: on its host, none can be") == 1
    await asyncio.to_thread(server.stop)
    servers.present = None
    await eventually(lambda: not cluster.pods, 30)


class Impatient(ServerProcess):
    """A server that tries again after half a second to keep kernels warm."""

    @property
    def command(self) -> list[str]:
        python, _, _, *arguments = super().command
        program = (
            "from app.managers.kernels import warm\n"
            "warm.RETRY_SECONDS, warm.LONGEST_RETRY_SECONDS = 0.5, 1\n"
            "import app.cli; app.cli.main()"
        )
        return [python, "-c", program, *arguments]
