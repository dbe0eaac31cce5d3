"""Kernels in pods, whose keepers dial in, go on with any replica of any host.

The pods are those of a stand-in of Kubernetes: processes that run the real keeper. Each replica has
a state directory of its own, as on a host of its own.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.managers.processes.engines.test_kubernetes import numbers
from tests.support.channels import JupyterChannels
from tests.support.cluster import NAMESPACE, Cluster
from tests.support.executions import Executions
from tests.support.kernelspecs import Spec, write_kernelspec
from tests.support.lively import pid_of
from tests.support.processes import eventually
from tests.support.replicas import TAKEOVER_SECONDS, Replicas
from tests.support.rest import RestClient
from tests.support.server import ServerProcess

LINES, RATE = 600, 20
"""How much a kernel prints in these tests, and how much of it in a second."""

LISTENS = ("--replica-listen", "127.0.0.1:0", "--agent-listen", "127.0.0.1:0")

LEASE_SECONDS = 5.0
"""A replica that is slow, on a machine that has much to do, is not declared dead for that."""

HOSTS = {"first": "one", "second": "two"}


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
        for host in HOSTS.values():
            write_kernelspec(replicas.home_of(host).jupyter_path, "pod", spec)
        yield replicas
        sys.stdout.write(replicas.output())


async def begin(replicas: Replicas, name: str) -> ServerProcess:
    """Start a replica on the host that it has."""
    return await asyncio.to_thread(replicas.start, name, host=HOSTS[name])


async def has(replicas: Replicas, name: str, kernel_id: str) -> None:
    """Return when a replica has a kernel."""

    async def is_owner() -> bool:
        return await asyncio.to_thread(replicas.owner_of, kernel_id) == name

    await eventually(is_owner, TAKEOVER_SECONDS)


async def read_on(
    server: ServerProcess, kernel_id: str, after: int, upto: int
) -> tuple[list[int], int]:
    """The numbers that a client gets behind a place until one of them, and its place then."""
    query = {"after": str(after)}
    async with await JupyterChannels.connect(
        server.ws_url, kernel_id, server.token, query=query
    ) as channels:
        await channels.seen(
            lambda m: m.msg_type == "stream" and f"\n{upto} " in f"\n{m.content['text']}"
        )
        return numbers(channels), channels.log[-1].seq or 0


def mirrors(replicas: Replicas, name: str) -> list[Path]:
    """The files of the mirrors on the host of a replica."""
    return [*replicas.home_of(HOSTS[name]).state_dir.glob("logs/mirrors/*/*/*.log")]


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
    assert mirrors(replicas, "first")
    assert not mirrors(replicas, "second")
    # Through the other replica, and on there when this one is gone.
    begun, place = await read_on(second, kernel_id, 0, 20)
    await asyncio.to_thread(replicas.end, "first")
    await has(replicas, "second", kernel_id)
    went_on, place = await read_on(second, kernel_id, place, 150)
    # That one dies, too, and the first is back.
    first = await begin(replicas, "first")
    await asyncio.to_thread(replicas.end, "second")
    await has(replicas, "first", kernel_id)
    ended, _ = await read_on(first, kernel_id, place, LINES)
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
    assert not mirrors(replicas, "first")


async def test_a_replica_that_was_stopped_is_fenced_and_takes_the_kernel_later(
    replicas: Replicas, cluster: Cluster
) -> None:
    first = await begin(replicas, "first")
    second = await begin(replicas, "second")
    async with RestClient(first.url, first.token) as rest:
        kernel_id = (await rest.start_kernel("pod"))["id"]
        executions = Executions(rest, kernel_id)
        printing = await executions.begin(f"flood {LINES} 20 {RATE}")
        await executions.until(printing, "stream")
    replicas.send("first", signal.SIGSTOP)
    await has(replicas, "second", kernel_id)
    begun, place = await read_on(second, kernel_id, 0, 100)
    replicas.send("first", signal.SIGCONT)

    async def has_let_go() -> bool:
        said = first.output()
        return "have its kernels" in said or "fenced" in said

    await eventually(has_let_go, TAKEOVER_SECONDS)
    await eventually(lambda: not mirrors(replicas, "first"), TAKEOVER_SECONDS)
    # Whoever is asked, the other one answers.
    went_on, place = await read_on(first, kernel_id, place, 200)
    await asyncio.to_thread(replicas.end, "second", signal.SIGTERM)
    await has(replicas, "first", kernel_id)
    ended, _ = await read_on(first, kernel_id, place, LINES)
    assert begun + went_on + ended == [*range(1, LINES + 1)]
    async with RestClient(first.url, first.token) as rest:
        assert (await Executions(rest, kernel_id).ended(printing))["state"] == "ok"
        assert len(cluster.pods) == 1
        await rest.delete(kernel_id)
    await eventually(lambda: not cluster.pods, 30)

