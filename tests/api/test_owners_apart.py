"""Two owners: by no route, and over no channel, does one see or touch what the other has.

Each operation of the OpenAPI document, and each WebSocket, is called for what Anna has, by Ben; and
again for an id that nobody has ever had. The answers are the same. A route that this test does not
know fails it. So `app.api.views` and `app.managers.kernels.callers` leave nothing out.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import httpx
import pytest
from fastapi.routing import APIRoute
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as websocket_connect
from websockets.exceptions import InvalidStatus

from app.main import create_app
from app.managers.telemetry.events import CORE_EVENT_SCHEMA_PATHS
from app.settings import Settings
from tests.conftest import servers
from tests.support.events import ACTIONS, EventListener
from tests.support.executions import Executions
from tests.support.identities import token
from tests.support.processes import eventually
from tests.support.rest import RestClient
from tests.support.server import ServerProcess

POSTED = "urn:example:posted"

USER = [
    *("kernels:write", "kernels:execute", "kernelspecs:read", "sessions:write", "sessions:execute"),
    *("contents:write", "events:write", "events:execute", "api:write", "tokens:write"),
    "owners:read",
]
"""The scopes of somebody who may do everything with what is their own."""

UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{32}")
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z?")
GROWING = re.compile(r'(?<="log_bytes":)\d+')  # with the kernels that Ben starts on the way


@dataclass(frozen=True)
class Plan:
    """How an operation is called: with which body, query and headers.

    In texts, ``KERNEL``, ``SESSION`` and ``EXECUTION`` stand for ids.
    """

    body: Any = None
    params: dict[str, str] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    path: dict[str, str] = field(default_factory=dict)


KEY = {"Idempotency-Key": "KEY"}
RUN = {"code": "print apart"}

PLANS: dict[str, list[Plan]] = {
    "kernels_list": [Plan(), Plan(params={"owner": "anna"})],
    "kernels_start": [
        Plan(body={"name": "fake", "kernel_id": "KERNEL"}),
        Plan(body={"name": "fake"}, headers=KEY),
    ],
    "kernels_get": [Plan()],
    "kernels_shut_down": [Plan()],
    "kernels_interrupt": [Plan()],
    "kernels_restart": [Plan()],
    "usage_get": [Plan(), Plan(params={"history": "true"})],
    "resource_usage_get": [Plan()],
    "overview_list": [Plan(), Plan(params={"owner": "anna"})],
    "process_output_get": [Plan()],
    "kernel_events_list": [Plan()],
    "shares_list": [Plan()],
    "shares_create": [Plan(body={"name": "ben", "access": "execute"}), Plan(body={})],
    "shares_delete": [Plan(params={"name": "carl"}), Plan(params={"name": "nobody"}), Plan()],
    "executions_run": [
        Plan(body=RUN),
        Plan(body=RUN, params={"wait": "5"}),
        Plan(body=RUN, headers=KEY),
        Plan(body=RUN, headers={"If-Generation": "7"}),
        Plan(body={}),
    ],
    "executions_list": [Plan(), Plan(params={"before": "EXECUTION"})],
    "executions_get": [Plan(), Plan(params={"wait": "5"})],
    "executions_follow": [Plan(), Plan(params={"after": "1000000"})],
    "executions_get_output": [Plan(path={"number": "0"}), Plan(path={"number": "x"})],
    "executions_cancel": [Plan(), Plan(body={"kill_after": 1})],
    "executions_answer": [Plan(body={"value": "apart"})],
    "messages_list": [
        Plan(),
        Plan(params={"after": "1000000"}),
        Plan(params={"epoch": "none"}),
        Plan(headers={"Accept": "text/event-stream"}),
        Plan(headers={"Accept": "application/x-ndjson"}),
    ],
    "sessions_list": [Plan(), Plan(params={"owner": "anna"})],
    "sessions_create": [
        Plan(body={"path": "a", "type": "notebook", "kernel": {"id": "KERNEL", "name": "fake"}}),
        Plan(body={"path": "PATH", "type": "notebook", "kernel": {"name": "fake"}}),
    ],
    "sessions_get": [Plan()],
    "sessions_update": [
        Plan(body={"name": "apart"}),
        Plan(body={"kernel": {"id": "KERNEL"}}),
        Plan(body={"kernel": {"name": "fake"}}),
    ],
    "sessions_delete": [Plan()],
    "events_post": [
        Plan(
            body={
                "schema_id": POSTED,
                "version": "1",
                "data": {"action": "start", "msg": "from ben", "kernel_id": "KERNEL"},
            }
        )
    ],
    "tokens_list": [Plan(), Plan(params={"owner": "anna"})],
    "tokens_create": [
        Plan(body={"name": "NAME", "scopes": ["kernels:read"], "owner": "anna"}),
        Plan(body={"name": "NAME", "scopes": ["kernels:admin"]}),
        Plan(body={}),
    ],
    "tokens_get": [Plan()],
    "tokens_revoke": [Plan()],
    "owners_list": [Plan()],
    "owners_get": [Plan(path={"name": "anna"}), Plan(path={"name": "."})],
    "login_ways": [Plan()],
    "login_take": [Plan()],
    "user_get": [Plan()],
    "user_update": [Plan(body={"display_name": "Ben"})],
    "server_version": [Plan()],
    "server_status": [Plan()],
    "server_resolve_path": [Plan(params={"path": "a.py", "kernel": "KERNEL"})],
    "metrics_get": [Plan()],
    "kernelspecs_list": [Plan()],
    "kernelspecs_get": [Plan(path={"name": "fake"})],
    "kernelspecs_resource": [Plan(path={"name": "fake", "path": "logo-64x64.png"})],
}
"""Every operation by its id, with the ways to call it."""

SHARED = re.compile(r"^(contents|files)_")
"""Operations on the files below the root directory, which are everybody's who has the scope."""

HIDDEN = {
    *("/", "/api/spec.yaml", "/openapi.json", "/docs", "/docs/swagger-ui.css"),
    *("/docs/swagger-ui-bundle.js", "/livez", "/readyz", "/oauth_callback"),
    *("/kernelspecs/{name}/{path:path}", "/files/{path:path}"),
    *("/api/events/subscribe", "/api/kernels/{kernel_id}/channels"),  # for a WebSocket alone
}
"""Paths that the document does not have as operations: they tell the same to everybody."""

WEBSOCKETS = {"kernels_channels", "events_subscribe"}


class Owner:
    """One owner, with one of everything."""

    def __init__(self, server: ServerProcess, name: str, key: str) -> None:
        self.name = name
        self.token = token(name, USER, groups=[f"{name}s"])
        self.rest = RestClient(server.url, self.token)
        self.marker = f"{name}-secret"
        self.key = key

    async def settle(self) -> None:
        """Make a kernel that has run code, a session with a kernel, shares, and used keys."""
        rest, headers = self.rest, {"Idempotency-Key": self.key}
        started = await rest.request(
            "POST", "/api/kernels", 201, json={"name": "fake"}, headers=headers
        )
        self.kernel: str = started.json()["id"]
        await rest.wait_for_state(self.kernel, "idle")
        executions = Executions(rest, self.kernel)
        ran = await executions.post(f"print {self.marker}", query={"wait": 30}, headers=headers)
        self.execution: str = ran.json()["id"]
        session = {"path": f"{self.marker}.ipynb", "type": "notebook", "kernel": {"name": "fake"}}
        made = (await rest.request("POST", "/api/sessions", 201, json=session)).json()
        self.session: str = made["id"]
        self.second: str = made["kernel"]["id"]
        await rest.wait_for_state(self.second, "idle")
        asked = {"name": self.key, "scopes": ["kernels:read"]}
        token_made = await rest.request("POST", "/api/tokens", 201, json=asked)
        self.listed_token: str = token_made.json()["id"]
        for share in ({"name": "carl", "access": "execute"}, {"group": "art", "access": "read"}):
            await rest.request("POST", f"/api/kernels/{self.kernel}/shares", 201, json=share)

    @property
    def ids(self) -> dict[str, str]:
        """The ids of what the owner has, by what stands for them in a `Plan`."""
        return {
            "KERNEL": self.kernel,
            "SESSION": self.session,
            "EXECUTION": self.execution,
            "PATH": f"{self.marker}.ipynb",
            "KEY": self.key,
            "NAME": self.key,
            "TOKEN": self.listed_token,
        }

    async def snapshot(self) -> dict[str, Any]:
        """Everything that the owner has, as far as others could have changed it."""
        paths = [
            "/api/kernels",
            "/api/sessions",
            f"/api/kernels/{self.kernel}/executions",
            f"/api/kernels/{self.kernel}/messages",
            f"/api/kernels/{self.kernel}/shares",
            "/api/me",
            "/api/tokens",
            "/api/status",
        ]
        return {path: (await self.rest.request("GET", path)).json() for path in paths}


class Apart(NamedTuple):
    """A server with the two owners."""

    server: ServerProcess
    anna: Owner
    ben: Owner


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the schemas and the audit log are."""
    return tmp_path_factory.mktemp("apart")


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest, directory: Path) -> Iterator[ServerProcess]:
    """A server that knows many owners, and an event of which clients may post."""
    file = directory / "posted.yaml"
    own = next(text for text in map(Path.read_text, CORE_EVENT_SCHEMA_PATHS) if ACTIONS in text)
    file.write_text(own.replace(ACTIONS, POSTED))
    with servers(request.config) as make_server:
        yield make_server(
            *("--identity-provider-class", "tests.support.identities:Telling"),
            *("--extra-event-schema-paths", str(file)),
            *("--audit-log", str(directory / "audit.jsonl")),
        )


@pytest.fixture
async def apart(server: ServerProcess) -> AsyncIterator[Apart]:
    anna, ben = (Owner(server, name, str(uuid4())) for name in ("anna", "ben"))
    async with anna.rest, ben.rest:
        await asyncio.gather(anna.settle(), ben.settle())
        yield Apart(server, anna, ben)
        async with RestClient(server.url, server.token) as admin:
            await asyncio.gather(*(admin.delete(one["id"]) for one in await admin.kernels()))


def _operations(document: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            yield operation["operationId"], method.upper(), path


def _filled(text: str, ids: dict[str, str]) -> str:
    for name, value in ids.items():
        text = text.replace(name, value)
    return text


async def _call(
    rest: RestClient, method: str, path: str, plan: Plan, ids: dict[str, str]
) -> httpx.Response:
    filled = {
        "kernel_id": ids["KERNEL"],
        "session_id": ids["SESSION"],
        "execution_id": ids["EXECUTION"],
        "checkpoint_id": "checkpoint",
        "token_id": ids["TOKEN"],
        **plan.path,
    }
    path = re.sub(r"\{(\w+)(:path)?\}", lambda match: filled[match[1]], path)
    more: dict[str, Any] = {}
    if plan.body is not None:
        more["content"] = _filled(json.dumps(plan.body), ids)
    params = {name: _filled(value, ids) for name, value in plan.params.items()}
    headers = {name: _filled(value, ids) for name, value in plan.headers.items()}
    async with asyncio.timeout(30):  # a stream of another's kernel would have no end
        return await rest.http.request(method, path, params=params, headers=headers, **more)


def _told(response: httpx.Response, ids: dict[str, str]) -> tuple[int, str, dict[str, str]]:
    """All that a response tells, but for the ids that were asked for and what is new each time."""
    text = response.text
    headers = dict(response.headers)
    for name in ("etag", "x-request-id", "date", "content-length", "last-modified"):
        headers.pop(name, None)
    for name, value in ids.items():
        text = text.replace(value, name)
        headers = {key: one.replace(value, name) for key, one in headers.items()}
    text = GROWING.sub("BYTES", TIME.sub("TIME", UUID.sub("UUID", text)))
    headers = {key: UUID.sub("UUID", value) for key, value in headers.items()}
    return response.status_code, text, headers


def _nothing_of(owner: Owner, response: httpx.Response, asked: dict[str, str]) -> None:
    """Assert that a response has nothing of an owner in it, but for what it was asked for."""
    told = response.text + str(dict(response.headers))
    secrets = {owner.kernel, owner.second, owner.session, owner.execution, owner.marker}
    secrets |= {owner.listed_token, owner.key}
    for secret in secrets - set(asked.values()):
        assert secret not in told.replace(asked["PATH"], ""), response.request.url


def _strangers() -> dict[str, str]:
    """Ids that nobody has ever had."""
    return {
        "KERNEL": str(uuid4()),
        "SESSION": str(uuid4()),
        "EXECUTION": uuid4().hex,
        "PATH": f"{uuid4()}.ipynb",
        "KEY": str(uuid4()),
        "NAME": str(uuid4()),
        "TOKEN": f"kk_{uuid4().hex[:8]}",
    }


async def _document(server: ServerProcess) -> dict[str, Any]:
    async with RestClient(server.url, server.token) as admin:
        document: dict[str, Any] = (await admin.request("GET", "/openapi.json")).json()
    return document


async def test_every_operation_and_websocket_is_known(
    server: ServerProcess, tmp_path: Path
) -> None:
    document = await _document(server)
    operations = {name for name, _, _ in _operations(document) if not SHARED.match(name)}
    assert operations == set(PLANS)
    app = create_app(Settings(state_dir=tmp_path, on_shutdown="stop"))
    routes = [route for route in app.routes if isinstance(route, APIRoute)]
    hidden = {route.path for route in routes if not route.include_in_schema}
    # The files of the page are named after what is in them.
    assert {path for path in hidden if not path.startswith("/page/")} == HIDDEN
    sockets = {socket["operationId"] for socket in document["x-websockets"].values()}
    assert sockets == WEBSOCKETS


HIDING = {"kernel_not_found", "session_not_found", "token_not_found", "no_such_kernel"}
"""The codes of errors for what is not there, or not there for the caller."""


def _refusals(audit: Path) -> dict[str, dict[str, Any]]:
    """The refused requests of the audit log, by their ids."""
    records = [json.loads(line) for line in audit.read_text().splitlines()]
    return {one.get("request_id", ""): one for one in records if one["action"] == "refused"}


async def test_what_is_another_s_is_what_never_was(apart: Apart, directory: Path) -> None:
    """And the audit log tells the two apart."""
    anna, ben, server = apart.anna, apart.ben, apart.server
    before = await anna.snapshot()
    hidden: dict[str, str] = {}
    never: set[str] = set()
    for name, method, path in _operations(await _document(server)):
        for plan in [] if SHARED.match(name) else PLANS[name]:
            for annas, nobodys in _variants(path, plan, anna, ben):
                theirs = await _call(ben.rest, method, path, plan, annas)
                _nothing_of(anna, theirs, annas)
                randoms = await _call(ben.rest, method, path, plan, nobodys)
                assert _told(theirs, annas) == _told(randoms, nobodys), (name, plan)
                never.add(randoms.headers["X-Request-Id"])
                if name == "server_resolve_path":
                    hidden[theirs.headers["X-Request-Id"]] = "kernel_not_found"
                elif theirs.is_error and (code := theirs.json()["code"]) in HIDING:
                    hidden[theirs.headers["X-Request-Id"]] = code
                if re.search(r"\{(kernel|session|execution|token)_id\}", path):
                    assert theirs.status_code in (400, 404), (name, theirs.text)
    assert _steady(await anna.snapshot()) == _steady(before)
    audit = directory / "audit.jsonl"
    await eventually(lambda: hidden.keys() <= _refusals(audit).keys())
    noted = _refusals(audit)
    assert set(hidden.values()) == HIDING
    for request_id, code in hidden.items():
        record = noted[request_id]
        assert (record["error"], record["outcome"], record["user"]) == (code, "refused", "ben")
        assert record.get("owner", record.get("token_owner")) == "anna"
        about = {record.get(name) for name in ("kernel_id", "session_id", "token")}
        assert about & {anna.kernel, anna.session, anna.listed_token}
    codes = {noted[request_id]["error"] for request_id in never & noted.keys()}
    assert not codes & HIDING


def _variants(
    path: str, plan: Plan, anna: Owner, ben: Owner
) -> Iterator[tuple[dict[str, str], dict[str, str]]]:
    """The ids with which Ben makes a call: some of Anna's, and in their place some of nobody's."""
    never = _strangers()
    yield anna.ids, never
    if "{execution_id}" in path or "EXECUTION" in str(plan):  # at his own kernel
        one = {**ben.ids, "EXECUTION": anna.execution}
        yield one, {**one, "EXECUTION": never["EXECUTION"]}
    if "{session_id}" in path and "KERNEL" in str(plan):  # for his own session
        one = {**ben.ids, "KERNEL": anna.kernel}
        yield one, {**one, "KERNEL": never["KERNEL"]}


def _steady(snapshot: dict[str, Any]) -> dict[str, Any]:
    """A snapshot without what time alone changes."""
    text = json.dumps(snapshot)
    steady: dict[str, Any] = json.loads(TIME.sub("TIME", text))
    return steady


async def test_lists_have_one_s_own_alone(apart: Apart) -> None:
    for me, other in itertools.permutations((apart.anna, apart.ben)):
        kernels = await me.rest.kernels()
        assert {kernel["id"] for kernel in kernels} == {me.kernel, me.second}
        assert {kernel.get("owner") for kernel in kernels} == {me.name}
        sessions = (await me.rest.request("GET", "/api/sessions")).json()
        assert [session["id"] for session in sessions] == [me.session]
        assert (await me.rest.status())["kernels"] == 2
        for path in ("/api/kernels", "/api/sessions", "/api/overview"):
            asked = (await me.rest.request("GET", path, params={"owner": other.name})).json()
            assert asked == []


async def test_an_administrator_sees_all(apart: Apart) -> None:
    async with RestClient(apart.server.url, apart.server.token) as admin:
        kernels = await admin.kernels()
        assert {kernel["owner"] for kernel in kernels} == {"anna", "ben"}
        params = {"owner": "anna"}
        annas = (await admin.request("GET", "/api/kernels", params=params)).json()
        assert {kernel["id"] for kernel in annas} == {apart.anna.kernel, apart.anna.second}
        rows = (await admin.request("GET", "/api/overview", params=params)).json()
        assert {row["kernel"]["id"] for row in rows} == {apart.anna.kernel, apart.anna.second}
        sessions = (await admin.request("GET", "/api/sessions")).json()
        assert {session["id"] for session in sessions} == {apart.anna.session, apart.ben.session}
        annas = (await admin.request("GET", "/api/sessions", params=params)).json()
        assert [session["id"] for session in annas] == [apart.anna.session]


async def _refusal(server: ServerProcess, path: str, shown: str) -> tuple[int, str]:
    """How a WebSocket is refused."""
    with pytest.raises(InvalidStatus) as refused:
        await _websocket(server, path, shown)
    response = refused.value.response
    return response.status_code, (response.body or b"").decode()


async def _websocket(server: ServerProcess, path: str, shown: str) -> ClientConnection:
    headers = {"Authorization": f"token {shown}"}
    return await websocket_connect(
        f"{server.ws_url}{path}", additional_headers=headers, compression=None, proxy=None
    )


@pytest.mark.parametrize("query", ["", "?session_id=annas", "?after=0", "?after=7&epoch=x"])
async def test_another_s_channels_are_those_of_no_kernel(
    apart: Apart, directory: Path, query: str
) -> None:
    anna, ben, server = apart.anna, apart.ben, apart.server
    mine = await _websocket(
        server, f"/api/kernels/{anna.kernel}/channels?session_id=annas", anna.token
    )
    async with mine:
        found = []
        for kernel_id in (anna.kernel, str(uuid4())):
            path = f"/api/kernels/{kernel_id}/channels{query}"
            status, body = await _refusal(server, path, ben.token)
            found.append((status, body.replace(kernel_id, "ID")))
        assert found[0] == found[1]
        assert found[0][0] == 404
        await (await mine.ping())

    def noted() -> list[dict[str, Any]]:
        records = _refusals(directory / "audit.jsonl").values()
        return [one for one in records if one.get("kernel_id") == anna.kernel]

    (record,) = await eventually(noted)
    assert record["asked"] == "WebSocket /api/kernels/{kernel_id}/channels"
    assert (record["user"], record["owner"]) == ("ben", "anna")


async def test_events_are_those_of_one_s_own_kernels(apart: Apart) -> None:
    anna, ben, server = apart.anna, apart.ben, apart.server
    async with AsyncExitStack() as stack:
        heard = {}
        for name, shown in (("anna", anna.token), ("ben", ben.token), ("admin", server.token)):
            websocket = await _websocket(server, "/api/events/subscribe", shown)
            heard[name] = EventListener(await stack.enter_async_context(websocket))
        for owner in (anna, ben):
            await owner.rest.request("POST", f"/api/kernels/{owner.kernel}/restart")
            await owner.rest.wait_for_state(owner.kernel, "idle")
            data = {"action": "start", "msg": f"from {owner.marker}", "kernel_id": owner.kernel}
            body = {"schema_id": POSTED, "version": "1", "data": data}
            await owner.rest.request("POST", "/api/events", 204, json=body)
            await owner.rest.delete(owner.second)
        for owner in (anna, ben):
            await heard[owner.name].next(action="shutdown", kernel_id=owner.second)
            await heard["admin"].next(action="shutdown", kernel_id=owner.second)
            assert {event["kernel_id"] for event in heard[owner.name].log} == {
                owner.kernel,
                owner.second,
            }
            assert owner.marker in str(heard[owner.name].log)
        everything = str(heard["admin"].log)
        assert anna.marker in everything
        assert ben.marker in everything


async def test_a_client_s_ids_are_its_owner_s(apart: Apart) -> None:
    """A kernel id that a client chooses leads to its owner's kernel, whatever others have."""
    chosen, made = str(uuid4()), []
    for owner in (apart.anna, apart.ben):
        for _ in range(2):
            body = {"name": "fake", "kernel_id": chosen}
            answer = await owner.rest.request("POST", "/api/kernels", 201, json=body)
            made.append(answer.json()["id"])
        again = {"name": "fake", "kernel_id": made[-1]}
        answer = await owner.rest.request("POST", "/api/kernels", 201, json=again)
        assert answer.json()["id"] == made[-1]
    assert made[0] == made[1]
    assert made[2] == made[3]
    assert len({*made, chosen}) == 3


async def test_a_key_that_two_have_is_two_keys(apart: Apart) -> None:
    headers, made = {"Idempotency-Key": str(uuid4())}, []
    for owner in (apart.anna, apart.ben, apart.anna):
        answer = await owner.rest.request("POST", "/api/kernels", 201, headers=headers)
        made.append(answer.json()["id"])
    assert made[0] == made[2] != made[1]
    # Another request with the key: for Ben it is the first one.
    body = {"name": "fake"}
    other = {"Idempotency-Key": apart.anna.key}
    await apart.ben.rest.request("POST", "/api/kernels", 201, json=body, headers=other)


async def test_the_same_path_makes_two_sessions(apart: Apart) -> None:
    body = {"path": "shared.ipynb", "type": "notebook", "kernel": {"name": "fake"}}
    made = []
    for owner in (apart.anna, apart.ben, apart.anna):
        answer = await owner.rest.request("POST", "/api/sessions", 201, json=body)
        made.append(answer.json())
    assert made[0]["id"] == made[2]["id"] != made[1]["id"]
    assert made[0]["kernel"]["owner"] == "anna"


async def test_activity_of_others_is_none_of_one_s_own(apart: Apart) -> None:
    anna, ben = apart.anna, apart.ben
    before = (await ben.rest.status())["last_activity"]
    async with asyncio.timeout(30):
        await Executions(anna.rest, anna.kernel).run("print x")
    assert (await ben.rest.status())["last_activity"] == before
    async with RestClient(apart.server.url, apart.server.token) as admin:
        assert (await admin.status())["last_activity"] > before


async def test_metrics_take_a_scope(apart: Apart) -> None:
    refused = await apart.ben.rest.http.get("/metrics")
    assert refused.status_code == 403
    assert "metrics:read" in refused.json()["message"]
    async with RestClient(apart.server.url, token("ops", ["metrics:read"])) as operator:
        text = (await operator.request("GET", "/metrics")).text
    assert apart.anna.kernel not in text
    assert "anna" not in text
