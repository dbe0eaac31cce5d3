"""A stand-in of a Kubernetes API server, over real HTTP: pods and secrets of one namespace.

It answers with the JSON that the real one answers with. It allows what the Role in deploy/ allows
and nothing else, and checks objects by the published schemas. Its pods are processes
(`tests.support.kubelet`), or stay as a test says.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import shutil
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import kubernetes_validate  # type: ignore[import-untyped]
import uvicorn
import yaml
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.support.kernelspecs import Spec
from tests.support.kubelet import Kubelet
from tests.support.processes import eventually
from tests.support.proxies import DEPLOY

Json = dict[str, Any]

NAMESPACE = "kernels"
SCHEMAS = "1.34"
ROLE = DEPLOY / "kubernetes" / "pods" / "rbac.yaml"


class Fault(NamedTuple):
    """What happens to a request in place of its answer: ``status`` 0 is for none at all."""

    method: str
    path: str
    """How the path ends."""
    status: int
    message: str = "the test says so"
    reason: str = ""
    body: str | None = None
    headers: Mapping[str, str] = {}


class Stopped(uvicorn.Server):
    """A server whose signals are its process's."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Cluster:
    """The API server and its one node, whose files are apart from those of any server."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="kkc-")).resolve()
        self.token = secrets.token_hex(8)
        self.port = 0
        self.pods: dict[str, Json] = {}
        self.secrets: dict[str, Json] = {}
        self.events: list[Json] = []
        self.faults: list[Fault] = []
        self.lasting: list[Fault] = []
        """Faults that do not pass when they have happened."""
        self.asked: list[tuple[str, str]] = []
        self.status: Json | None = None
        """What new pods have for a status, in place of running."""
        self.kubelet = Kubelet(self)
        self.version = 1000
        self._oldest = 0
        self._changes: list[tuple[int, str, Json]] = []
        self._changed = asyncio.Condition()
        self._streams = 0
        self._nonsense = ""
        self._server: Stopped | None = None
        self._serving: asyncio.Task[None] | None = None
        self._rules = _rules()

    # The server

    async def start(self) -> None:
        """Returns when it answers."""
        listening = socket.socket()
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", self.port))
        self.port = listening.getsockname()[1]
        methods = ["GET", "POST", "DELETE", "PUT", "PATCH"]
        app = Starlette(routes=[Route("/{path:path}", self._answer, methods=methods)])
        config = uvicorn.Config(app, log_level="critical", lifespan="off", ws="none", loop="none")
        config.timeout_graceful_shutdown = 0
        self._server = Stopped(config)
        self._serving = asyncio.create_task(self._server.serve([listening]))
        server = self._server
        await eventually(lambda: server.started, 30)

    async def stop(self) -> None:
        """The API server goes away, and the pods run on."""
        assert self._server is not None
        assert self._serving is not None
        self._server.should_exit = self._server.force_exit = True
        await self.cut()
        await self._serving

    async def close(self) -> None:
        """End everything."""
        await self.stop()
        await self.kubelet.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    def kubeconfig(self) -> Path:
        """A file with the credentials of now."""
        path = self.directory / "kubeconfig"
        user = {"name": "service", "user": {"token": self.token}}
        cluster = {"name": "stand-in", "cluster": {"server": f"http://127.0.0.1:{self.port}"}}
        context = {"cluster": "stand-in", "user": "service", "namespace": NAMESPACE}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [cluster],
            "users": [user],
            "contexts": [{"name": "stand-in", "context": context}],
            "current-context": "stand-in",
        }
        path.touch(mode=0o600)
        path.write_text(json.dumps(config))
        return path

    def spec(self, **options: Any) -> Spec:
        """A kernelspec whose kernels run in pods there; ``options`` are the provisioner's."""
        config = {
            "image": "registry.example.org/kernel:1",
            "namespace": NAMESPACE,
            "kubeconfig": str(self.kubeconfig()),
            "python": sys.executable,
            "grace": 5,
            **options,
        }
        stanza = {"provisioner_name": "kernelkeep-kubernetes", "config": config}
        return Spec(metadata={"kernel_provisioner": stanza})

    # What a test sees and does

    def pod_of(self, kernel_id: str) -> Json:
        """The pod of a kernel, if there is one."""
        (pod,) = [
            each
            for each in self.pods.values()
            if each["metadata"]["labels"]["org.kernelkeep.kernel"] == kernel_id
        ]
        return pod

    async def tell(self, kind: str, pod: Json) -> None:
        """Tell who watches of a change; ``kind`` is ADDED, MODIFIED or DELETED."""
        self.version += 1
        pod["metadata"]["resourceVersion"] = str(self.version)
        async with self._changed:
            self._changes.append((self.version, kind, json.loads(json.dumps(pod))))
            self._changed.notify_all()

    async def set_status(self, name: str, status: Mapping[str, Any]) -> None:
        """A pod gets another status."""
        self.pods[name]["status"] = {**self.pods[name]["status"], **status}
        await self.tell("MODIFIED", self.pods[name])

    async def remove(self, name: str) -> None:
        """An object goes, and its secrets go with it. What runs is not asked."""
        pod = self.pods.pop(name)
        uid = pod["metadata"]["uid"]
        for other, secret in [*self.secrets.items()]:
            if any(owner["uid"] == uid for owner in secret["metadata"].get("ownerReferences", [])):
                del self.secrets[other]
        await self.tell("DELETED", pod)

    async def delete(self, name: str, grace: int | None = None) -> None:
        """``kubectl delete pod``, by somebody or by this service."""
        pod = self.pods[name]
        done = pod["status"]["phase"] in ("Failed", "Succeeded")
        if done or not pod["spec"].get("nodeName") or grace == 0:
            await self.remove(name)
            self.kubelet.end(pod, grace)
            return
        seconds = pod["spec"]["terminationGracePeriodSeconds"] if grace is None else grace
        if "deletionTimestamp" not in pod["metadata"]:
            pod["metadata"]["deletionTimestamp"] = now()
            pod["metadata"]["deletionGracePeriodSeconds"] = seconds
            await self.tell("MODIFIED", pod)
        self.kubelet.end(pod, seconds)

    async def evict(self, name: str, reason: str, message: str) -> None:
        """The pod is disturbed for this reason, and deleted."""
        disturbed = {"type": "DisruptionTarget", "status": "True"}
        disturbed |= {"reason": reason, "message": message}
        conditions = [*self.pods[name]["status"].get("conditions", []), disturbed]
        await self.set_status(name, {"conditions": conditions})
        await self.delete(name)

    async def cut(self) -> None:
        """All watches break, in the middle."""
        async with self._changed:
            self._streams += 1
            self._changed.notify_all()

    @contextlib.asynccontextmanager
    async def nonsense(self, line: str) -> AsyncIterator[None]:
        """Within, watches begin with this line; those that there are end."""
        self._nonsense = line
        await self.cut()
        yield
        self._nonsense = ""

    async def forget(self) -> None:
        """Nobody can go on where they were: what changed until now is not known any more."""
        self.version += 10
        self._oldest = self.version
        self._changes.clear()
        await self.cut()

    # Requests

    async def _answer(self, request: Request) -> Response:
        path, method = request.url.path.rstrip("/"), request.method
        self.asked.append((method, path))
        fault = self._fault(method, path)
        if fault is not None:
            if fault.status == 0:
                await asyncio.sleep(3600)
            if fault.body is not None:
                return PlainTextResponse(fault.body, fault.status, fault.headers)
            return failure(fault.status, fault.reason, fault.message, fault.headers)
        if request.headers.get("authorization") != f"Bearer {self.token}":
            return failure(401, "Unauthorized", "Unauthorized")
        if path == "/version":
            return JSONResponse({"major": "1", "minor": "34", "gitVersion": "v1.34.0"})
        _, api, version, namespaces, namespace, kind, *name = path.split("/")
        assert (api, version, namespaces) == ("api", "v1", "namespaces")
        verbs = {"POST": "create", "DELETE": "delete", "PATCH": "patch"}
        verb = verbs.get(method, "get" if name else "list")
        verb = "watch" if request.query_params.get("watch") == "true" else verb
        if namespace != NAMESPACE or verb not in self._rules.get(kind, ()):
            who = "system:serviceaccount:kernelkeep:kernelkeep"
            text = f'{kind} is forbidden: User "{who}" cannot {verb} resource "{kind}" in API group'
            return failure(403, "Forbidden", f'{text} "" in the namespace "{namespace}"')
        if verb == "watch":
            return self._watch(request)
        if verb == "create":
            return await self._create(kind, await request.json())
        if verb == "delete":
            return await self._delete(kind, name[0])
        if verb == "patch":
            return await self._patch(kind, name[0], request)
        return self._read(kind, name, request)

    def _fault(self, method: str, path: str) -> Fault | None:
        for faults in (self.faults, self.lasting):
            for fault in faults:
                if fault.method in (method, "*") and path.endswith(fault.path):
                    if faults is self.faults:
                        faults.remove(fault)
                    return fault
        return None

    def _read(self, kind: str, name: list[str], request: Request) -> Response:
        if name:
            pod = self.pods.get(name[0])
            return absent(kind, name[0]) if pod is None else JSONResponse(pod)
        items = [*self.pods.values()] if kind == "pods" else self.events
        if "labelSelector" in request.query_params:
            items = [each for each in items if _has_labels(each, request)]
        if field := request.query_params.get("fieldSelector"):
            wanted = field.removeprefix("involvedObject.uid=")
            items = [each for each in items if each["involvedObject"]["uid"] == wanted]
        listed = {"kind": "PodList", "apiVersion": "v1", "items": items}
        return JSONResponse({**listed, "metadata": {"resourceVersion": str(self.version)}})

    def _watch(self, request: Request) -> Response:
        after = int(request.query_params["resourceVersion"])
        if self._nonsense:
            return StreamingResponse(iter([self._nonsense]), media_type="application/json")
        if after < self._oldest:
            too_old = f"too old resource version: {after} ({self._oldest})"
            # As the real one does: the stream begins, and says so.
            status = json.loads(bytes(failure(410, "Expired", too_old).body))
            line = json.dumps({"type": "ERROR", "object": status}) + "\n"
            return StreamingResponse(iter([line]), media_type="application/json")
        return StreamingResponse(self._lines(after, request), media_type="application/json")

    async def _lines(self, after: int, request: Request) -> AsyncIterator[str]:
        streams = self._streams
        bookmark = {"kind": "Pod", "apiVersion": "v1", "metadata": {"creationTimestamp": None}}
        bookmark["metadata"] = {"resourceVersion": str(after)}
        yield json.dumps({"type": "BOOKMARK", "object": bookmark}) + "\n"
        while True:
            async with self._changed:
                while not (found := [each for each in self._changes if each[0] > after]):
                    if streams != self._streams:
                        raise ConnectionResetError("the test cuts this stream")
                    await self._changed.wait()
            after = found[-1][0]
            for _, kind, pod in found:
                if _has_labels(pod, request):
                    yield json.dumps({"type": kind, "object": pod}) + "\n"

    async def _create(self, kind: str, made: Json) -> Response:
        name = made["metadata"]["name"]
        objects = self.pods if kind == "pods" else self.secrets
        if name in objects:
            return failure(409, "AlreadyExists", f'{kind} "{name}" already exists')
        try:
            kubernetes_validate.validate(made, SCHEMAS, strict=True)
        except kubernetes_validate.ValidationError as error:
            return failure(422, "Invalid", f'{kind} "{name}" is invalid: {error.message}')
        made["metadata"] |= {"uid": secrets.token_hex(16), "creationTimestamp": now()}
        objects[name] = made
        if kind == "pods":
            made["status"] = self.status or {"phase": "Pending", "qosClass": "Burstable"}
            await self.tell("ADDED", made)
            if self.status is None:
                self.kubelet.begin(made)
        return JSONResponse(made, 201)

    async def _patch(self, kind: str, name: str, request: Request) -> Response:
        """A merge patch of labels and annotations; nothing else of a pod is changed here."""
        pod = self.pods.get(name)
        if kind != "pods" or pod is None:
            return absent(kind, name)
        if request.headers.get("content-type") != "application/merge-patch+json":
            return failure(415, "UnsupportedMediaType", "the body of the request was in no format")
        ((field, changed),) = (await request.json()).items()
        assert field == "metadata"
        for table, entries in changed.items():
            assert table in ("labels", "annotations")
            pod["metadata"][table] |= entries
        kubernetes_validate.validate({**pod, "status": {}}, SCHEMAS, strict=True)
        await self.tell("MODIFIED", pod)
        return JSONResponse(pod)

    async def _delete(self, kind: str, name: str) -> Response:
        if kind == "secrets":
            found = self.secrets.pop(name, None)
            return absent(kind, name) if found is None else JSONResponse({"kind": "Status"})
        pod = self.pods.get(name)
        if pod is None:
            return absent(kind, name)
        await self.delete(name)
        return JSONResponse(pod)


def now() -> str:
    """The moment, as the API writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def failure(
    code: int, reason: str, message: str, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """The object Status of something that went wrong."""
    status = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure"}
    body = {**status, "message": message, "reason": reason, "code": code}
    return JSONResponse(body, code, headers)


def absent(kind: str, name: str) -> JSONResponse:
    """There is no such object."""
    return failure(404, "NotFound", f'{kind} "{name}" not found')


def _has_labels(item: Json, request: Request) -> bool:
    wanted = dict(
        each.split("=", 1) for each in request.query_params["labelSelector"].split(",") if each
    )
    labels: dict[str, str] = item["metadata"].get("labels", {})
    return wanted.items() <= labels.items()


def _rules() -> dict[str, list[str]]:
    """Which verbs the Role of deploy/ allows for which resource."""
    (role,) = [
        each for each in yaml.safe_load_all(ROLE.read_text()) if each and each["kind"] == "Role"
    ]
    found: dict[str, list[str]] = {}
    for rule in role["rules"]:
        assert rule["apiGroups"] == [""]
        for resource in rule["resources"]:
            found.setdefault(resource, []).extend(rule["verbs"])
    return found


def waiting(reason: str, message: str) -> Json:
    """The status of a pod whose container waits for this reason."""
    container = {"name": "kernel", "image": "registry.example.org/kernel:1", "ready": False}
    state = {"waiting": {"reason": reason, "message": message}}
    scheduled = {"type": "PodScheduled", "status": "True"}
    statuses = [{**container, "state": state}]
    return {"phase": "Pending", "conditions": [scheduled], "containerStatuses": statuses}


def unschedulable(message: str) -> Json:
    """The status of a pod that no node takes."""
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
    return {"phase": "Pending", "conditions": [{**condition, "message": message}]}
