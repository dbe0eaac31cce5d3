"""Kernels in pods, whose keepers dial in, and those behind SSH go on with any replica.

The pods are those of a stand-in of Kubernetes: processes that run the real keeper. A replica of
another host has a state directory of its own.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.kernels.driver import free_ports
from tests.support.channels import JupyterChannels
from tests.support.cluster import NAMESPACE, Cluster
from tests.support.executions import Executions
from tests.support.kernelspecs import Spec, write_kernelspec
from tests.support.lively import numbers, pid_of
from tests.support.processes import eventually
from tests.support.replicas import TAKEOVER_SECONDS, Replicas
from tests.support.rest import RestClient
from tests.support.server import ServerProcess
from tests.support.sshd import Sshd

pytestmark = pytest.mark.timeout(300)

LINES, RATE = 600, 20
"""How much a kernel prints in these tests, and how much of it in a second."""

LISTENS = ("--replica-listen", "127.0.0.1:0")

LEASE_SECONDS = 5.0
"""A replica that is slow, on a machine that has much to do, is not declared dead for that."""

HOSTS = {"first": "one", "second": "two", "neighbour": "one"}

PORTS: dict[str, int] = {}


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    cluster = Cluster()
    await cluster.start()
    yield cluster
    await cluster.close()


@pytest.fixture
def replicas(url: str, cluster: Cluster) -> Iterator[Replicas]:
    config = {
        "image": "registry.example.org/kernel:1",
        "namespace": NAMESPACE,
        "kubeconfig": str(cluster.kubeconfig()),
        "python": sys.executable,
        "grace": 5,
    }
    stanza = {"provisioner_name": "kernelkeep-kubernetes", "config": config}
    spec = Spec(metadata={"kernel_provisioner": stanza})
    with Replicas(url, *LISTENS) as replicas:
        replicas.lease_seconds = LEASE_SECONDS
        for host in ("one", "two"):
            write_kernelspec(replicas.home_of(host).jupyter_path, "pod", spec)
        yield replicas
        sys.stdout.write(replicas.output())


async def begin(replicas: Replicas, name: str) -> ServerProcess:
    """Start a replica on the host that it has; keepers dial it where they did before."""
    port = PORTS.setdefault(name, free_ports()["shell_port"])
    listens = ("--agent-listen", f"127.0.0.1:{port}")
    return await asyncio.to_thread(replicas.start, name, *listens, host=HOSTS[name])


async def has(replicas: Replicas, name: str, kernel_id: str) -> None:
    """Return when a replica has a kernel."""

    async def is_owner() -> bool:
        return await asyncio.to_thread(replicas.owner_of, kernel_id) == name

    await eventually(is_owner, TAKEOVER_SECONDS)


async def read_on(
    server: ServerProcess, kernel_id: str, upto: int, after: int
) -> tuple[list[int], int]:
    """The numbers that a client gets ``after`` a place until one of them, and its place then."""
    query = {"after": str(after)}
    async with await JupyterChannels.connect(
        server.ws_url, kernel_id, server.token, query=query
    ) as channels:
        await channels.seen(
            lambda m: m.msg_type == "stream" and f"\n{upto} " in f"\n{m.content['text']}"
        )
        return numbers(channels), channels.log[-1].seq or 0


def mirrors(replicas: Replicas, host: str) -> set[Path]:
    """The directories of the mirrors on a host: each replica writes in its own."""
    found = replicas.home_of(host).state_dir.glob("logs/mirrors/*/*/*.log")
    return {file.parent for file in found}


async def test_a_kernel_of_a_replica_that_is_killed_goes_on_with_one_of_another_host(
    replicas: Replicas, cluster: Cluster
) -> None:
    first = await begin(replicas, "first")
    second = await begin(replicas, "second")
    async with RestClient(first.url, first.token) as rest:
        kernel_id = (await rest.start_kernel("pod"))["id"]
        pid = await pid_of(rest, kernel_id)
        executions = Executions(rest, kernel_id)
        printing = await executions.begin(f"flood {LINES} 20 {RATE}")
        queued = await executions.begin("append once done")
        await executions.until(printing, "stream")
    assert mirrors(replicas, "one")
    assert not mirrors(replicas, "two")
    # Through the other replica, and on there when this one is gone.
    begun, place = await read_on(second, kernel_id, 20, after=0)
    await asyncio.to_thread(replicas.end, "first")
    await has(replicas, "second", kernel_id)
    went_on, place = await read_on(second, kernel_id, 150, after=place)
    # That one dies, too, and the first is back.
    first = await begin(replicas, "first")
    await asyncio.to_thread(replicas.end, "second")
    await has(replicas, "first", kernel_id)
    ended, _ = await read_on(first, kernel_id, LINES, after=place)
    printed = [each for each in begun + went_on + ended if each <= LINES]
    assert [each for each in printed if each != pid][-LINES:] == [*range(1, LINES + 1)]
    async with RestClient(first.url, first.token) as rest:
        executions = Executions(rest, kernel_id)
        assert (await executions.ended(printing))["state"] == "ok"
        assert (await executions.ended(queued))["state"] == "ok"
        assert await pid_of(rest, kernel_id) == pid
        assert len(cluster.pods) == 1
        await rest.delete(kernel_id)
    await eventually(lambda: not cluster.pods, 30)
    assert replicas.query("SELECT * FROM kernelkeep.invitation") == []
    assert not mirrors(replicas, "one")


async def test_a_replica_that_was_stopped_is_fenced_and_takes_the_kernel_later(
    replicas: Replicas, cluster: Cluster
) -> None:
    first = await begin(replicas, "first")
    neighbour = await begin(replicas, "neighbour")
    async with RestClient(first.url, first.token) as rest:
        kernel_id = (await rest.start_kernel("pod"))["id"]
        executions = Executions(rest, kernel_id)
        printing = await executions.begin(f"flood {LINES} 20 {RATE}")
        await executions.until(printing, "stream")
    (before,) = mirrors(replicas, "one")
    begun, place = await read_on(first, kernel_id, 20, after=0)
    replicas.send("first", signal.SIGSTOP)
    await has(replicas, "neighbour", kernel_id)
    went_on, place = await read_on(neighbour, kernel_id, 150, after=place)
    replicas.send("first", signal.SIGCONT)
    # It finds that the kernel is another's, and removes its mirror.
    await eventually(lambda: before not in mirrors(replicas, "one"), TAKEOVER_SECONDS)
    assert len(mirrors(replicas, "one")) == 1
    # Whoever is asked, the other one answers.
    more, place = await read_on(first, kernel_id, 200, after=place)
    await asyncio.to_thread(replicas.end, "neighbour", signal.SIGTERM)
    await has(replicas, "first", kernel_id)
    ended, _ = await read_on(first, kernel_id, LINES, after=place)
    assert begun + went_on + more + ended == [*range(1, LINES + 1)]
    async with RestClient(first.url, first.token) as rest:
        assert (await Executions(rest, kernel_id).ended(printing))["state"] == "ok"
        assert len(cluster.pods) == 1
        await rest.delete(kernel_id)
    await eventually(lambda: not cluster.pods, 30)


async def test_a_kernel_behind_ssh_goes_on_with_a_replica_of_another_host(
    replicas: Replicas,
) -> None:
    lab = Sshd(replicas.home.path / "far")
    lab.start()
    try:
        for host in ("one", "two"):
            write_kernelspec(replicas.home_of(host).jupyter_path, "lab", lab.spec())
        first = await begin(replicas, "first")
        second = await begin(replicas, "second")
        async with RestClient(first.url, first.token) as rest:
            kernel_id = (await rest.start_kernel("lab"))["id"]
            executions = Executions(rest, kernel_id)
            printing = await executions.begin(f"flood {LINES} 20 {RATE}")
            await executions.until(printing, "stream")
        begun, place = await read_on(first, kernel_id, 20, after=0)
        await asyncio.to_thread(replicas.end, "first")
        await has(replicas, "second", kernel_id)
        ended, _ = await read_on(second, kernel_id, LINES, after=place)
        assert begun + ended == [*range(1, LINES + 1)]
        async with RestClient(second.url, second.token) as rest:
            assert (await Executions(rest, kernel_id).ended(printing))["state"] == "ok"
            await rest.delete(kernel_id)
    finally:
        lab.remove()
