"""An API server that is slow, refuses, talks nonsense, forgets, or goes away in the middle.

These are the tests of `app.managers.processes.engines.kubernetes_watch`, too.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any

import pytest

from app.keeper.limits import ProcessLimits
from app.managers.errors import KeeperUnavailable
from app.managers.processes.engines import kubernetes, kubernetes_api
from app.managers.processes.engines.engine import Job, JobState, Order
from app.managers.processes.engines.kubernetes import KubernetesEngine
from app.managers.processes.engines.kubernetes_options import KubernetesOptions
from app.managers.processes.engines.kubernetes_watch import PodWatch
from app.managers.processes.engines.kubernetes_words import Answer
from tests.support.cluster import NAMESPACE, Cluster, Fault, unschedulable, waiting
from tests.support.processes import eventually

WAIT = 30.0

RUNS = {
    "phase": "Running",
    "containerStatuses": [{"name": "kernel", "ready": True, "state": {"running": {}}}],
}


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    """One whose pods wait until a test says otherwise."""
    cluster = Cluster()
    cluster.status = unschedulable("0/1 nodes are available")
    await cluster.start()
    yield cluster
    await cluster.close()


@pytest.fixture
async def engine(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[KubernetesEngine]:
    monkeypatch.setattr(kubernetes_api, "PAUSE", 0.01)
    engine = KubernetesEngine(options(cluster).engine, "service-1", lambda *_: None)
    yield engine
    await engine.close()


def options(cluster: Cluster, **more: Any) -> KubernetesOptions:
    kubeconfig = str(cluster.kubeconfig())
    return KubernetesOptions(image="k:1", namespace=NAMESPACE, kubeconfig=kubeconfig, **more)


def order(cluster: Cluster, keeper: str = "k", generation: int = 1, **more: Any) -> Order:
    limits = ProcessLimits(owner="o", memory=2**30)
    return Order(keeper, keeper, "ada", generation, options(cluster, **more), b"secret", limits)


@contextlib.asynccontextmanager
async def watching(engine: KubernetesEngine) -> AsyncIterator[AsyncGenerator[Sequence[Job], None]]:
    async with contextlib.aclosing(engine.watch()) as watch:
        yield watch


async def seen(watch: AsyncGenerator[Sequence[Job], None], state: JobState | None) -> Job | None:
    """The one job of a list in which it has this state; None for a list without any."""
    async with asyncio.timeout(WAIT):
        async for jobs in watch:
            if state is None and not jobs:
                return None
            if jobs and jobs[0].state is state:
                return jobs[0]
    raise AssertionError("the watch has ended")


async def test_what_passes_is_tried_again(cluster: Cluster, engine: KubernetesEngine) -> None:
    cluster.faults = [
        Fault("POST", "/pods", 429, headers={"Retry-After": "0"}),
        Fault("POST", "/pods", 503, body="<html>away</html>"),
        Fault("POST", "/secrets", 409, reason="Conflict"),
        Fault("POST", "/secrets", 500),
    ]
    await engine.submit(order(cluster))
    (pod,) = cluster.pods.values()
    (secret,) = cluster.secrets.values()
    assert secret["metadata"]["ownerReferences"][0]["uid"] == pod["metadata"]["uid"]
    assert pod["spec"]["containers"][0]["resources"]["limits"] == {"memory": str(2**30)}
    # What was answered with nothing is done, and the same again changes nothing.
    await engine.submit(order(cluster))
    assert len(cluster.pods) == len(cluster.secrets) == 1
    await engine.joined("k", 1)
    assert not cluster.secrets
    await engine.joined("k", 1)


@pytest.mark.parametrize(
    ("fault", "code", "text"),
    [
        (Fault("*", "", 500, "etcd is away"), "host_unreachable", "status 500: etcd is away"),
        (Fault("*", "", 429, "slow down"), "host_unreachable", "status 429: slow down"),
        (Fault("*", "", 502, body="<html>x</html>"), "host_unreachable", "<html>x</html>"),
        (Fault("*", "", 200, body="[1]"), "host_unreachable", "no object of Kubernetes"),
        (Fault("*", "", 200, body='{"a": '), "host_unreachable", "no object of Kubernetes"),
        (Fault("*", "", 200, body="{}"), "host_unreachable", "no pod"),
        (Fault("*", "", 401, "Unauthorized"), "host_login_refused", "does not let this server in"),
        (Fault("*", "", 403, "may not"), "host_unusable", "may not"),
        (Fault("*", "", 422, "is invalid: x"), "host_unusable", "is invalid: x"),
        (Fault("*", "", 0), "host_unreachable", "does not answer"),
    ],
    ids=lambda each: f"{each.status}-{each.body}" if isinstance(each, Fault) else "",
)
async def test_what_does_not_pass_is_told(
    cluster: Cluster,
    engine: KubernetesEngine,
    monkeypatch: pytest.MonkeyPatch,
    fault: Fault,
    code: str,
    text: str,
) -> None:
    await engine.find("k")  # it is connected
    if fault.status == 0:
        monkeypatch.setattr(kubernetes_api, "TRY_SECONDS", 0.2)
    cluster.lasting = [fault]
    with pytest.raises(KeeperUnavailable) as raised:
        await engine.submit(order(cluster))
    assert (raised.value.code, text in raised.value.message) == (code, True), raised.value.message
    with pytest.raises(KeeperUnavailable):
        await engine.find("k")
    async with watching(engine) as watch:
        with pytest.raises(KeeperUnavailable):
            await seen(watch, JobState.RUNNING)
    cluster.lasting = []
    assert await engine.find("k") == []


async def test_credentials_that_are_renewed_are_read_again(
    cluster: Cluster, engine: KubernetesEngine
) -> None:
    await engine.submit(order(cluster))
    cluster.token = "another"
    cluster.kubeconfig()
    assert len(await engine.find("k")) == 1


async def test_wrong_credentials_are_told(cluster: Cluster) -> None:
    (cluster.directory / "broken").write_text("clusters: []\nusers: []\ncontexts: []\n")
    for name in ("broken", "none"):
        config = str(cluster.directory / name)
        engine = KubernetesEngine(
            KubernetesOptions(image="k:1", namespace="k", kubeconfig=config).engine,
            "service-1",
            lambda *_: None,
        )
        with pytest.raises(KeeperUnavailable) as raised:
            await engine.find("k")
        assert "credentials" in raised.value.message
        await engine.close()


async def test_nothing_is_left_of_what_fails(cluster: Cluster, engine: KubernetesEngine) -> None:
    cluster.faults = [Fault("POST", "/secrets", 403, "may not", "Forbidden")]
    with pytest.raises(KeeperUnavailable):
        await engine.submit(order(cluster))
    assert not cluster.pods
    cluster.faults = [Fault("POST", "/secrets", 0)]
    submitting = asyncio.create_task(engine.submit(order(cluster, generation=2)))
    await eventually(lambda: cluster.pods, WAIT)
    submitting.cancel()
    await asyncio.wait({submitting})
    assert not cluster.pods


async def test_a_pod_of_somebody_else_is_left_alone(
    cluster: Cluster, engine: KubernetesEngine
) -> None:
    other = KubernetesEngine(options(cluster).engine, "service-2", lambda *_: None)
    await other.submit(order(cluster))
    with pytest.raises(KeeperUnavailable, match="another's"):
        await engine.submit(order(cluster))
    assert len(cluster.pods) == 1
    assert await engine.find("k") == []
    async with watching(engine) as watch:
        assert await seen(watch, None) is None
    await other.close()


async def test_the_watch_goes_on_where_it_was(cluster: Cluster, engine: KubernetesEngine) -> None:
    lists = ("GET", f"/api/v1/namespaces/{NAMESPACE}/pods")
    async with watching(engine) as watch:
        assert await seen(watch, None) is None
        await engine.submit(order(cluster))
        (name,) = cluster.pods
        job = await seen(watch, JobState.WAITING)
        assert job is not None
        assert "0/1 nodes are available" in job.words
        await cluster.cut()
        await cluster.set_status(name, RUNS)
        await seen(watch, JobState.RUNNING)
        before = cluster.asked.count(lists)
        # What has changed meanwhile is not known any more: all is listed again.
        await cluster.forget()
        cluster.pods[name]["status"] = waiting("ErrImagePull", "not found")
        job = await seen(watch, JobState.WAITING)
        assert job is not None
        assert "not found" in job.words
        assert cluster.asked.count(lists) > before
        # It was not there to be told of the end of this one.
        await cluster.forget()
        del cluster.pods[name]
        assert await seen(watch, None) is None


async def test_what_is_streamed_may_be_nonsense(cluster: Cluster, engine: KubernetesEngine) -> None:
    async with watching(engine) as watch:
        await seen(watch, None)
        async with cluster.nonsense('{"type": "ADDED", "object": []}\n'):
            with pytest.raises(KeeperUnavailable, match="no change of a pod"):
                await seen(watch, JobState.RUNNING)


async def test_events_say_what_a_pod_waits_for(cluster: Cluster, engine: KubernetesEngine) -> None:
    cluster.status = waiting("ContainerCreating", "")
    await engine.submit(order(cluster))
    (pod,) = cluster.pods.values()
    event = {"type": "Warning", "reason": "FailedMount", "message": 'claim "home-ada" not found'}
    cluster.events = [{**event, "involvedObject": {"uid": pod["metadata"]["uid"]}}]
    async with watching(engine) as watch:
        job = await seen(watch, JobState.WAITING)
    assert job is not None
    assert job.words.endswith('FailedMount: claim "home-ada" not found')


async def test_one_that_goes_in_good_order_has_ended_and_another_may_live(
    cluster: Cluster, engine: KubernetesEngine
) -> None:
    async with watching(engine) as watch:
        await seen(watch, None)
        await engine.submit(order(cluster))
        (name,) = cluster.pods
        await seen(watch, JobState.WAITING)
        ended = {"exitCode": 0, "reason": "Completed"}
        state = {"name": "kernel", "state": {"terminated": ended}}
        await cluster.set_status(name, {"phase": "Running", "containerStatuses": [state]})
        await cluster.remove(name)
        assert await seen(watch, None) is None
        (job,) = await engine.find("k")
        assert job.state is JobState.ENDED
        assert (await engine.explain(job)).message == "The container ended with status 0"
        await engine.cancel(job)
        assert await engine.find("k") == []
        # Of this one, only its object is gone.
        await engine.submit(order(cluster, generation=2))
        (name,) = cluster.pods
        await cluster.set_status(name, RUNS)
        await seen(watch, JobState.RUNNING)
        await cluster.remove(name)
        assert await seen(watch, None) is None
        assert await engine.find("k") == []
        assert not engine.absent_is_ended


async def test_a_pod_whose_node_is_away_cannot_be_ended(
    cluster: Cluster, engine: KubernetesEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubernetes, "END_SECONDS", 0.3)
    await engine.submit(order(cluster, grace=1))
    (pod,) = cluster.pods.values()
    pod["spec"]["nodeName"] = "node-1"
    await cluster.set_status(pod["metadata"]["name"], RUNS)
    cluster.kubelet.is_away = True
    (job,) = await engine.find("k")
    with pytest.raises(KeeperUnavailable, match="does not say that it has ended"):
        await engine.cancel(job)
    await cluster.remove(job.where)  # somebody has forced it
    await engine.cancel(job)


async def test_one_that_waits_too_long_is_given_up(
    cluster: Cluster, engine: KubernetesEngine
) -> None:
    await engine.submit(order(cluster, pending_timeout=0.001))
    await engine.find("k")
    (job,) = await engine.find("k")
    assert job.state is JobState.ENDED
    why = await engine.explain(job)
    assert why.code == "job_not_started"
    assert "0/1 nodes are available" in why.message


async def test_a_pod_may_go_while_events_are_asked_for(
    cluster: Cluster, engine: KubernetesEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.status = waiting("ContainerCreating", "")
    for keeper in ("a", "b"):
        await engine.submit(order(cluster, keeper))
    ask, names = engine._api.ask, [*cluster.pods]

    async def slow(method: str, path: str, **more: Any) -> Answer:
        if path == "events" and len(cluster.pods) == 2:
            await cluster.remove(names[1])
            await eventually(lambda: names[1] not in engine._watch.pods, WAIT)
        return await ask(method, path, **more)

    monkeypatch.setattr(engine._api, "ask", slow)
    async with watching(engine) as watch:
        jobs = await anext(watch)
    assert [job.where for job in jobs] == names[:1]


async def test_events_that_are_not_told_hold_up_no_look(
    cluster: Cluster, engine: KubernetesEngine
) -> None:
    cluster.status = waiting("ContainerCreating", "")
    for keeper in ("a", "b"):
        await engine.submit(order(cluster, keeper))
    cluster.lasting = [Fault("GET", "/events", 500)]
    async with watching(engine) as watch:
        assert len(await anext(watch)) == 2
    asked = [path for _, path in cluster.asked if path.endswith("/events")]
    assert len(asked) == kubernetes_api.TRIES


async def test_what_is_remembered_of_pods_that_nobody_deletes_is_bounded(
    cluster: Cluster, engine: KubernetesEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubernetes, "MAX_GONE", 1)
    for keeper in ("a", "b"):
        await engine.submit(order(cluster, keeper, pending_timeout=0.001))
        for _ in range(2):
            (job,) = await engine.find(keeper)
        assert job.state is JobState.ENDED
    assert len(engine._given_up) == 1
    # A pod that could not be had is nothing to be remembered.
    cluster.faults = [Fault("POST", "/pods", 0)]
    with pytest.raises(KeeperUnavailable):
        await engine.submit(order(cluster, "c"))
    assert not engine._cancelled


async def test_a_stream_that_ends_at_once_is_asked_for_with_a_pause() -> None:
    class Api:
        name = "the API server"
        streams = 0

        async def ask(self, *_: Any, **__: Any) -> Answer:
            return Answer(200, {"metadata": {"resourceVersion": "1"}, "items": []})

        async def lines(self, *_: Any) -> AsyncGenerator[bytes, None]:
            self.streams += 1
            await asyncio.sleep(0)
            lines: tuple[bytes, ...] = ()
            for line in lines:
                yield line

    api: Any = Api()
    watch = PodWatch(api, "label", lambda _: None)
    async with contextlib.aclosing(watch.changes(0.01)) as changes:
        for _ in range(3):
            await anext(changes)
    assert api.streams == 1
