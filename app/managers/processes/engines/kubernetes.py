"""The engine Kubernetes: a job is a pod."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

import msgspec

from ...errors import KeeperUnavailable
from ..hosts.errors import HostUnreachable, HostUnusable
from .docker_words import KEEPER, SERVICE
from .engine import Job, JobState, Order
from .kubernetes_api import KubernetesApi
from .kubernetes_options import Cluster, KubernetesOptions
from .kubernetes_pods import (
    InvalidTemplate,
    Named,
    Share,
    name_of,
    owned_by,
    pod_of,
    read_template,
    secret_of,
    waits_for,
)
from .kubernetes_waits import Waits
from .kubernetes_watch import PodWatch, listed
from .kubernetes_words import Answer, Sight, job_of, refused, seen, why_ended

__all__ = ["KubernetesEngine"]

logger = logging.getLogger(__name__)

_Value = TypeVar("_Value")

ABSENT: Final = 404
EXISTS: Final = 409

LOOK_SECONDS: Final = 5.0
"""After how long without a change pods are looked at again: some may have waited for too long."""

TOGETHER_SECONDS: Final = 0.1

MAX_EVENTS: Final = 20
"""For how many waiting pods the events are asked for, at each look."""

END_SECONDS: Final = 30.0
"""How long a pod may take to go after its grace period is over."""

MAX_GONE: Final = 1000
"""How many pods that are gone are remembered, and how many that were given up. This bounds the
tables: pods of other replicas' kernels are seen here, too, and removed only by those replicas."""


class KubernetesEngine:
    """The pods of this service in one namespace: ``service`` is their label.

    ``key`` is a `Cluster` as JSON.
    """

    absent_is_ended = False
    """As `Engine.absent_is_ended`: a pod may be deleted while its node is away, and runs on there.
    """

    def __init__(self, key: str, service: str, on_words: Callable[[str, str], None]) -> None:  # noqa: ARG002
        cluster = msgspec.json.decode(key, type=Cluster)
        self.name = cluster.name
        self._namespace = cluster.namespace
        self._service = service
        self._api = KubernetesApi(cluster)
        self._watch = PodWatch(self._api, f"{SERVICE}={service}", self._on_gone)
        self._waits = Waits()
        # All of these by the names of pods.
        self._events: dict[str, list[dict[str, Any]]] = {}
        self._given_up: dict[str, HostUnusable] = {}
        self._gone: dict[str, Mapping[str, Any]] = {}
        self._cancelled: set[str] = set()

    # The verbs

    async def submit(self, order: Order) -> None:
        """As `Engine.submit`. The pod waits for its secret, which is deleted with the pod."""
        options: KubernetesOptions = order.options
        named = Named(
            *(self._service, order.keeper_id, order.kernel_id, order.owner, order.generation)
        )
        share = Share(order.limits.memory, order.limits.cpu)
        try:
            # Read at each submission: the operator may change the file while the server runs.
            template = await asyncio.to_thread(read_template, options.template)
            pod = pod_of(template, options, named, share)
        except InvalidTemplate as error:
            raise HostUnusable(f"No pod can be made: {error}") from error
        try:
            answer = await self._api.ask("POST", "pods", body=pod)
        except BaseException:
            # Without an answer there may be a pod. No other keeper's pod has its name.
            await self._delete_quietly(named.name)
            raise
        # The pod first, then the secret: the secret names the pod as its owner, by the uid, and is
        # collected with the pod. The kubelet starts no container before it can mount the secret: if
        # this server dies between the two, the pod never runs anything.
        uid = await self._uid(named, answer)
        try:
            secret = secret_of(named, self._namespace, uid, order.stdin)
            answer = await self._api.ask("POST", "secrets", body=secret)
            # A secret that exists already was created by an earlier try, whose answer was lost: its
            # name has the generation, for which there is one secret.
            if answer.status >= 400 and answer.body.get("reason") != "AlreadyExists":
                raise refused(answer)
        except BaseException:
            await self._delete_quietly(named.name)
            raise

    async def find(self, keeper_id: str) -> list[Job]:
        """As `Engine.find`. A pod that is gone counts as ended, unless it was last seen running."""
        selector = f"{SERVICE}={self._service},{KEEPER}={keeper_id}"
        answer = await self._api.ask("GET", "pods", params={"labelSelector": selector})
        there, _ = listed(answer, self.name)
        jobs = [self._job(pod) for pod in there.values()]
        names = {job.where for job in jobs if job is not None}
        # Only the watch tells how a pod that is gone has ended, and it may be a moment behind the
        # list: it is waited for. After that, the pod counts as one whose end was not seen.
        behind = [name for name in self._watch.pods if name not in names]
        await self._watch.until_told([name for name in behind if self._is_of(name, keeper_id)], 1.0)
        ended = Sight(JobState.ENDED)
        gone = [job_of(pod, ended) for name, pod in self._gone.items() if name not in names]
        found = [job for job in (*jobs, *gone) if job is not None and job.keeper_id == keeper_id]
        return sorted(found, key=lambda job: job.generation)

    async def watch(self) -> AsyncGenerator[Sequence[Job], None]:
        """As `Engine.watch`: a list, and then one stream of changes."""
        async with contextlib.aclosing(self._watch.changes(LOOK_SECONDS)) as changes:
            async for _ in changes:
                # `PodWatch` may change its pods during this await. Nothing is awaited from there to
                # the `yield`: so the list is of one moment.
                await self._ask_events()
                self._waits.keep(self._watch.pods)
                jobs = [self._job(pod) for pod in self._watch.pods.values()]
                yield [job for job in jobs if job is not None]
                await asyncio.sleep(TOGETHER_SECONDS)  # changes that come together make one list

    async def cancel(self, job: Job) -> None:
        """As `Engine.cancel`: the keeper gets SIGTERM, and after the grace period SIGKILL.

        Raises `HostUnreachable` if the pod's node does not say that it has gone.
        """
        name = job.where
        # For as long as this runs: the watch, which sees the pod go as well, need not remember it.
        self._cancelled.add(name)
        try:
            answer = await self._api.ask("DELETE", f"pods/{name}")
            if answer.status != ABSENT:
                if answer.status >= 400:
                    raise HostUnusable(f"A pod could not be deleted: {answer.message}")
                await self._until_gone(name, answer)
            self._gone.pop(name, None)
            self._given_up.pop(name, None)
        finally:
            self._cancelled.discard(name)

    async def explain(self, job: Job) -> KeeperUnavailable:
        """As `Engine.explain`."""
        if (why := self._given_up.get(job.where)) is not None:
            return why  # the pod itself says only that it waits
        # First the pod itself, if it is still there; else the watch's last sight of it.
        answer = await self._api.ask("GET", f"pods/{job.where}")
        if answer.status < 400:
            return why_ended(answer.body)
        pod = self._gone.get(job.where)
        return HostUnusable("The pod is gone") if pod is None else why_ended(pod)

    async def joined(self, keeper_id: str, generation: int) -> None:
        """As `Engine.joined`: the pod's secret is deleted. It has been used, and works no more."""
        try:
            answer = await self._api.ask("DELETE", f"secrets/{name_of(keeper_id, generation)}")
        except KeeperUnavailable as error:
            logger.warning("the secret of %s stays until its pod goes: %s", keeper_id, error)
            return
        if answer.status >= 400 and answer.status != ABSENT:
            logger.warning("the secret of %s stays: %s", keeper_id, answer.message)

    async def own(self, keeper_id: str, generation: int, owner: str) -> None:
        """As `ParkingEngine.own`: the pod gets the owner's label and annotation."""
        path = f"pods/{name_of(keeper_id, generation)}"
        answer = await self._api.ask("PATCH", path, body=owned_by(owner))
        if answer.status >= 400:
            raise refused(answer)

    async def close(self) -> None:
        """As `Engine.close`."""
        await self._api.close()

    # Helpers

    async def _uid(self, named: Named, answer: Answer) -> str:
        """The uid of the pod, which was created now, or by a request whose answer was lost."""
        if answer.status == EXISTS:
            answer = await self._api.ask("GET", f"pods/{named.name}")
            labels = (answer.body.get("metadata") or {}).get("labels") or {}
            if answer.status < 400 and named.labels.items() - labels.items():
                raise HostUnusable(f"The pod {named.name} is there already, and is another's")
        if answer.status >= 400:
            raise refused(answer)
        try:
            return str(answer.body["metadata"]["uid"])
        except (KeyError, TypeError):
            raise HostUnreachable(f"{self.name} answers what is no pod") from None

    def _is_of(self, name: str, keeper_id: str) -> bool:
        job = job_of(self._watch.pods[name], Sight(JobState.ENDED))
        return job is not None and job.keeper_id == keeper_id

    def _job(self, pod: Mapping[str, Any]) -> Job | None:
        """The job of a pod that is there; one that has waited for too long counts as ended."""
        name, patience = waits_for(pod)
        sight = seen(pod, self._events.get(name, ()))
        now = asyncio.get_running_loop().time()
        if (why := self._waits.see(name, sight, patience, now)) is not None:
            # It is listed as ended while the pod still waits; `Engines` then deletes it. If the pod
            # begins to run just now, its keeper is not taken in (`Joining.fail`).
            _remember(self._given_up, name, why)
            sight = Sight(JobState.ENDED)
        return job_of(pod, sight)

    def _on_gone(self, pod: Mapping[str, Any]) -> None:
        """Remember a pod that is gone from the API server, unless it was running until then.

        A node that is not away tells how the container has ended before its pod goes. So if the pod
        was last seen running, its process may live on.
        """
        name, _ = waits_for(pod)
        self._events.pop(name, None)
        if name in self._cancelled or seen(pod).state is JobState.RUNNING:
            return
        _remember(self._gone, name, pod)

    async def _ask_events(self) -> None:
        """Read the events of pods that wait and whose status does not say why."""
        # A copy as of now: any of these pods may be gone from the watch after the first await.
        waiting = {
            name: pod
            for name, pod in self._watch.pods.items()
            if (sight := seen(pod)).state is JobState.WAITING and not sight.trouble
        }
        self._events = {name: self._events.get(name, []) for name in waiting}
        # If events cannot be read, pods are listed without them. The first failure ends the loop:
        # while it runs, the ends of other pods are not seen.
        with contextlib.suppress(KeeperUnavailable):
            for name, pod in [*waiting.items()][:MAX_EVENTS]:
                uid = (pod.get("metadata") or {}).get("uid")
                params = {"fieldSelector": f"involvedObject.uid={uid}", "limit": "50"}
                answer = await self._api.ask("GET", "events", params=params)
                items = answer.body.get("items") or []
                self._events[name] = [each for each in items if isinstance(each, dict)]

    async def _until_gone(self, name: str, deleted: Answer) -> None:
        """Return when a pod that was deleted is gone. Raises `HostUnreachable` if it stays."""
        # The answer to the DELETE of a pod is the pod as it is then, and not a Status. The uid
        # tells it from another pod of the same name, which may have been created meanwhile.
        metadata = deleted.body.get("metadata") or {}
        uid, grace = metadata.get("uid"), metadata.get("deletionGracePeriodSeconds")
        seconds = END_SECONDS + (grace if isinstance(grace, int) else 0)
        pause = 0.1
        try:
            async with asyncio.timeout(seconds):
                while True:
                    answer = await self._api.ask("GET", f"pods/{name}")
                    there = (answer.body.get("metadata") or {}).get("uid")
                    if answer.status == ABSENT or (answer.status < 400 and there != uid):
                        return
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, 2.0)
        except TimeoutError:
            raise HostUnreachable(
                f"The pod {name} is being deleted, and its node does not say that it has ended. "
                "If you know that it has: kubectl delete pod --force"
            ) from None

    async def _delete_quietly(self, name: str) -> None:
        # The job that is left if this fails is ended before the kernel's next, or as a stranger.
        with contextlib.suppress(KeeperUnavailable):
            await self._api.ask("DELETE", f"pods/{name}")


def _remember(table: dict[str, _Value], name: str, what: _Value) -> None:
    table[name] = what
    while len(table) > MAX_GONE:
        del table[next(iter(table))]
