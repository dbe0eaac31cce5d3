"""Each limit of an owner at its edge, asked for in parallel; and what owners see of theirs.

These are the tests of `app.managers.kernels.owners` and `app.managers.limits.errors`, too.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.exceptions import InvalidStatus

from app.identity_options import DEFAULT_SCOPES
from app.managers.kernels.owners import OwnerModel, UsageModel, together
from app.managers.limits.limits import Limits
from tests.conftest import MakeServer, servers
from tests.support.channels import JupyterChannels
from tests.support.documented import block
from tests.support.executions import Executions
from tests.support.home import Home
from tests.support.identities import token
from tests.support.metrics import scrape
from tests.support.processes import eventually
from tests.support.rest import RestClient
from tests.support.server import REPOSITORY, ServerProcess

UNKNOWN: dict[str, None] = dict.fromkeys(("memory", "cpu", "processes"))
"""What kernels use that nobody has asked about."""

TELLING = ("--identity-provider-class", "tests.support.identities:Telling")

LIMITS: dict[str, dict[str, Any]] = {
    "three": {"kernels": 3},
    "none": {"kernels": 0},
    "slow": {"starts_per_minute": 3},
    "queue": {"queued_executions": 2},
    "writer": {"contents_bytes_per_day": 1000},
    "hasty": {"requests_per_second": 5},
    "once": {"requests_per_second": 0.001},
    "wordy": {"log_bytes": "1MiB"},
    "tight": {"open_files": 200},
    "sockets": {"websockets": 3, "kernels": 2},
}


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest) -> Iterator[ServerProcess]:
    with servers(request.config) as make_server:
        yield make_server(
            *TELLING,
            *("--limits-by-name", json.dumps(LIMITS)),
            *("--group-limits", '{"few": {"kernels": 1}, "two": {"kernels": 2}}'),
            *("--trusted-gateways", "gateway", "--start-queue-limit", "200"),
        )


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


class Owner:
    """A client with a token of one owner; its kernels are gone after the test."""

    def __init__(self, server: ServerProcess, stack: AsyncExitStack, name: str) -> None:
        self.server, self.stack, self.name = server, stack, name

    async def rest(self, **more: Any) -> RestClient:
        rest = RestClient(self.server.url, token(self.name, **more))
        await self.stack.enter_async_context(rest)
        self.stack.push_async_callback(self._clear)
        return rest

    async def _clear(self) -> None:
        async with RestClient(self.server.url, self.server.token) as admin:
            kernels = [one for one in await admin.kernels() if one.get("owner") == self.name]
            await asyncio.gather(*(admin.delete(one["id"]) for one in kernels))

    async def usage(self) -> dict[str, Any]:
        async with RestClient(self.server.url, self.server.token) as admin:
            answer = await admin.request("GET", f"/api/owners/{self.name}")
        usage: dict[str, Any] = answer.json()["usage"]
        return usage


def told(response: httpx.Response) -> dict[str, Any]:
    """What a refusal says of a limit."""
    body = response.json()
    assert body["limit"] in body["message"]
    assert str(body["value"]) in body["message"]
    return {name: body[name] for name in ("code", "limit", "value", "usage")}


async def test_a_hundred_starts_at_once_are_exactly_as_many_as_the_owner_may(
    server: ServerProcess, stack: AsyncExitStack
) -> None:
    owner = Owner(server, stack, "three")
    rest = await owner.rest()
    gateway = await Owner(server, stack, "gateway").rest()

    async def post(number: int) -> httpx.Response:
        if number % 3 == 0:
            body = {"path": f"{number}", "type": "notebook", "kernel": {"name": "fake"}}
            return await rest.http.post("/api/sessions", json=body)
        if number % 3 == 1:  # on its behalf
            body = {"name": "fake", "env": {"KERNEL_USERNAME": "three"}}
            return await gateway.http.post("/api/kernels", json=body)
        return await rest.http.post("/api/kernels", json={"name": "fake"})

    responses = await asyncio.gather(*(post(number) for number in range(100)))
    assert Counter(response.status_code for response in responses) == {201: 3, 429: 97}
    for refusal in (response for response in responses if response.status_code == 429):
        assert told(refusal) == {
            **{"code": "kernels_limit", "limit": "kernels", "value": 3, "usage": 3}
        }
        assert int(refusal.headers["retry-after"]) > 0
    kernels = await rest.kernels()
    assert len(kernels) == 3 == (await owner.usage())["kernels"]
    # The gateway itself, whose requests they were, has none of them.
    assert (await Owner(server, stack, "gateway").usage())["kernels"] == 0
    # A start that fails takes no place, and one that is given back can be taken again.
    await rest.delete(kernels[0]["id"])
    assert (await rest.http.post("/api/kernels", json={"name": "missing"})).status_code == 404
    assert (await rest.http.post("/api/kernels", json={"name": "fake"})).status_code == 201
    # Who has a kernel already finds it again.
    again = {"name": "fake", "kernel_id": kernels[1]["id"]}
    assert (await rest.http.post("/api/kernels", json=again)).status_code == 201
    async with RestClient(server.url, server.token) as admin:
        metrics = await scrape(admin)
        assert metrics("kernelkeep_limit_refusals_total", limit="kernels") >= 97


async def test_starts_that_break_off_give_their_places_back(
    server: ServerProcess, stack: AsyncExitStack
) -> None:
    owner = Owner(server, stack, "three")
    rest = await owner.rest()
    starts = [
        asyncio.create_task(rest.http.post("/api/kernels", json={"name": "fake"})) for _ in range(3)
    ]
    await asyncio.sleep(0)
    for start in starts:
        start.cancel()
    await asyncio.wait(starts)

    async def settled() -> bool:
        usage = (await owner.usage())["kernels"]
        states = [one["execution_state"] for one in await rest.kernels()]
        return usage == len(states) and "starting" not in states

    await eventually(settled)
    await asyncio.gather(*(rest.delete(one["id"]) for one in await rest.kernels()))
    assert (await owner.usage())["kernels"] == 0


async def test_a_limit_of_nothing_is_no_matter_of_time(
    server: ServerProcess, stack: AsyncExitStack
) -> None:
    rest = await Owner(server, stack, "none").rest()
    refused = await rest.http.post("/api/kernels", json={"name": "fake"})
    assert refused.status_code == 403
    assert told(refused) == {"code": "beyond_limit", "limit": "kernels", "value": 0, "usage": 1}
    assert "retry-after" not in refused.headers


async def test_of_several_groups_the_most_generous_counts(
    server: ServerProcess, stack: AsyncExitStack
) -> None:
    rest = await Owner(server, stack, "member").rest(groups=["few", "two"])
    statuses = [
        (await rest.http.post("/api/kernels", json={"name": "fake"})).status_code for _ in range(3)
    ]
    assert statuses == [201, 201, 429]
    mine = (await rest.request("GET", "/api/owners/member")).json()
    assert mine["limits"] == {"kernels": 2}
    assert mine["usage"]["kernels"] == 2
    # An administrator sees the groups' limits, too.
    async with RestClient(server.url, server.token) as admin:
        theirs = (await admin.request("GET", "/api/owners/member")).json()
    assert theirs["limits"] == {"kernels": 2}


async def test_starts_and_restarts_a_minute(server: ServerProcess, stack: AsyncExitStack) -> None:
    owner = Owner(server, stack, "slow")
    rest = await owner.rest()
    kernel = (await rest.start_kernel("fake"))["id"]
    await rest.restart(kernel)
    answers = await asyncio.gather(
        *(rest.http.post("/api/kernels", json={"name": "fake"}) for _ in range(20))
    )
    assert Counter(answer.status_code for answer in answers) == {201: 1, 429: 19}
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert told(refused)["code"] == "starts_limit"
    assert told(refused)["value"] == 3
    assert 1 <= int(refused.headers["retry-after"]) <= 20
    restart = await rest.http.post(f"/api/kernels/{kernel}/restart")
    assert (restart.status_code, restart.json()["code"]) == (429, "starts_limit")
    assert (await owner.usage())["starts_per_minute"] == 3


async def test_requests_a_second(server: ServerProcess, stack: AsyncExitStack) -> None:
    rest = await Owner(server, stack, "hasty").rest()
    loop = asyncio.get_running_loop()
    began = loop.time()
    answers = await asyncio.gather(*(rest.http.get("/api/status") for _ in range(40)))
    most = 5 + 5 * (loop.time() - began)
    served = [answer for answer in answers if answer.status_code == 200]
    assert 5 <= len(served) <= most
    refused = [answer for answer in answers if answer.status_code != 200]
    assert {(one.status_code, told(one)["code"]) for one in refused} == {(429, "requests_limit")}
    assert {one.headers["retry-after"] for one in refused} == {"1"}

    rest = await Owner(server, stack, "once").rest()
    answers = await asyncio.gather(*(rest.http.get("/api/status") for _ in range(40)))
    assert Counter(answer.status_code for answer in answers) == {200: 1, 429: 39}
    other = await Owner(server, stack, "nobody-in-particular").rest()
    await other.request("GET", "/api/status")


async def test_websockets(server: ServerProcess, stack: AsyncExitStack) -> None:
    owner = Owner(server, stack, "sockets")
    rest = await owner.rest()
    kernel = (await rest.start_kernel("fake"))["id"]
    await rest.wait_for_state(kernel, "idle")

    async def connect() -> JupyterChannels | InvalidStatus:
        try:
            return await JupyterChannels.connect(server.ws_url, kernel, token("sockets"))
        except InvalidStatus as error:
            return error

    tried = await asyncio.gather(*(connect() for _ in range(20)))
    opened = [one for one in tried if isinstance(one, JupyterChannels)]
    refused = [one for one in tried if isinstance(one, InvalidStatus)]
    assert (len(opened), len(refused)) == (3, 17)
    for error in refused:
        assert error.response.status_code == 429
        body = json.loads(error.response.body or b"")
        assert (body["code"], body["value"], body["usage"]) == ("websockets_limit", 3, 3)
    assert (await owner.usage())["websockets"] == 3
    for one in opened[1:]:
        await one.close()
    opened[0].websocket.transport.abort()  # one that breaks gives its place back, too

    async def all_are_free() -> bool:
        return bool((await owner.usage())["websockets"] == 0)

    await eventually(all_are_free)
    again = await connect()
    assert isinstance(again, JupyterChannels)
    await again.close()


async def test_executions_that_wait(server: ServerProcess, stack: AsyncExitStack) -> None:
    owner = Owner(server, stack, "queue")
    rest = await owner.rest()
    kernels = [(await rest.start_kernel("fake"))["id"] for _ in range(2)]
    for kernel in kernels:
        await rest.wait_for_state(kernel, "idle")
    first, second = (Executions(rest, kernel) for kernel in kernels)
    for executions in (first, second):
        await executions.until(await executions.begin("until go"), "started")
    answers = await asyncio.gather(
        *((first if number % 2 else second).post("print x") for number in range(20))
    )
    assert Counter(answer.status_code for answer in answers) == {202: 2, 429: 18}
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert told(refused) == {
        **{"code": "executions_limit", "limit": "queued_executions", "value": 2, "usage": 2}
    }
    assert (await owner.usage())["queued_executions"] == 2
    # Over a WebSocket the request ends at once, with an error that people see.
    channels = await stack.enter_async_context(
        await JupyterChannels.connect(server.ws_url, kernels[0], token("queue"))
    )
    exchange = await channels.execute("print y")
    assert exchange.reply["status"] == "error"
    assert exchange.reply["ename"] == exchange.error["ename"] == "ExecutionsLimit"
    assert "queued_executions is 2" in exchange.error["evalue"]
    (server.home.root_dir / "go").touch()
    try:
        for answer in answers:
            if answer.status_code == 202:
                location = answer.headers["location"]
                ended = (await rest.request("GET", location, params={"wait": 30})).json()
                assert ended["state"] == "ok"
        assert (await channels.execute("print z")).text == "z\n"
    finally:
        (server.home.root_dir / "go").unlink()


async def test_limits_of_processes_are_those_of_the_kernel_s_owner(
    server: ServerProcess, stack: AsyncExitStack
) -> None:
    gateway = await Owner(server, stack, "gateway").rest()
    rest = await Owner(server, stack, "tight").rest()
    body = {"name": "fake", "env": {"KERNEL_USERNAME": "tight"}}
    kernel = (await gateway.request("POST", "/api/kernels", 201, json=body)).json()["id"]
    await rest.wait_for_state(kernel, "idle")
    usage = (await rest.request("GET", f"/api/kernels/{kernel}/usage")).json()
    assert usage["limits"]["open_files"]["value"] == 200
    limits = Path(f"/proc/{usage['pid']}/limits").read_text()  # noqa: ASYNC240
    assert re.search(r"Max open files +200 +200 ", limits)


async def test_what_processes_use_is_summed_up_as_far_as_somebody_has_asked(
    server: ServerProcess, stack: AsyncExitStack
) -> None:
    owner = Owner(server, stack, "curious")
    rest = await owner.rest()
    kernels = [(await rest.start_kernel("fake"))["id"] for _ in range(2)]
    for kernel in kernels:
        await rest.wait_for_state(kernel, "idle")
    assert UNKNOWN.items() <= (await owner.usage()).items()
    memory = threads = 0
    for kernel in kernels:
        used = (await rest.request("GET", f"/api/kernels/{kernel}/usage")).json()
        memory, threads = memory + used["memory"], threads + used["threads"]
        together = await owner.usage()
        assert (together["memory"], together["processes"]) == (memory, threads)


async def test_bytes_of_the_logs_of_all_kernels(
    server: ServerProcess, stack: AsyncExitStack
) -> None:
    owner, other = (Owner(server, stack, name) for name in ("wordy", "wordier"))
    rest = await owner.rest()
    flooding = []
    for client, number in ((rest, 3), (await other.rest(), 1)):
        for _ in range(number):
            kernel = (await client.start_kernel("fake"))["id"]
            await client.wait_for_state(kernel, "idle")
            flooding.append(Executions(client, kernel).run("flood 200 20000"))
    ended = await asyncio.gather(*flooding)
    assert {one["state"] for one in ended} == {"ok"}
    # A file of each kernel cannot be dropped, and has a quarter of its part.
    assert 2**18 < (await owner.usage())["log_bytes"] <= 1.25 * 2**20 + 2**18
    assert (await other.usage())["log_bytes"] > 2**21


async def test_bytes_that_are_written(server: ServerProcess, stack: AsyncExitStack) -> None:
    owner = Owner(server, stack, "writer")
    rest = await owner.rest()

    async def save(number: int, size: int) -> httpx.Response:
        body = {"type": "file", "format": "text", "content": "x"}
        text = json.dumps(body)
        text = text.replace('"x"', f'"{"x" * (size - len(text) + 1)}"')
        assert len(text) == size
        return await rest.http.put(f"/api/contents/{number}.txt", content=text)

    beyond = await save(0, 1001)
    assert beyond.status_code == 403
    assert told(beyond) == {
        **{"code": "beyond_limit", "limit": "contents_bytes_per_day", "value": 1000, "usage": 1001}
    }
    answers = await asyncio.gather(*(save(number, 300) for number in range(10)))
    assert Counter(answer.status_code for answer in answers) == {201: 3, 429: 7}
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert told(refused)["code"] == "contents_limit"
    assert int(refused.headers["retry-after"]) > 1000
    written = [*server.home.root_dir.glob("*.txt")]
    assert len(written) == 3  # nothing was done of what was refused
    assert 899 <= (await owner.usage())["contents_bytes_per_day"] <= 900
    # A copy counts with what it has written.
    copied = await rest.http.post("/api/contents/", json={"copy_from": written[0].name})
    assert copied.status_code == 201
    assert (await owner.usage())["contents_bytes_per_day"] > 1000
    refused = await rest.http.post("/api/contents/", json={"type": "file"})
    assert (refused.status_code, refused.json()["code"]) == (429, "contents_limit")
    assert (await rest.http.get(f"/api/contents/{written[0].name}")).status_code == 200


async def test_who_sees_whose_limits(server: ServerProcess, stack: AsyncExitStack) -> None:
    anna = await Owner(server, stack, "anna").rest(scopes=["owners:read", "kernels:write"])
    kernel = (await anna.start_kernel("fake"))["id"]
    await anna.wait_for_state(kernel, "idle")
    mine = (await anna.request("GET", "/api/owners/anna")).json()
    log = mine["usage"].pop("log_bytes")
    assert log > 0
    assert mine == {
        "name": "anna",
        "limits": {},
        "usage": {"kernels": 1, "queued_executions": 0, "websockets": 0, **UNKNOWN},
    }
    listed = (await anna.request("GET", "/api/owners")).json()
    assert [one["name"] for one in listed] == ["anna"]
    for other in ("three", "never-was", "anonymous", "%2e%2e", "a%00b", "x" * 300):
        refused = await anna.http.get(f"/api/owners/{other}")
        assert refused.status_code == 404
        assert refused.json()["code"] in ("owner_not_found", "not_found")
    blind = await Owner(server, stack, "blind").rest(scopes=["kernels:read", "api:write"])
    for path in ("/api/owners", "/api/owners/blind"):
        refused = await blind.http.get(path)
        assert refused.status_code == 403
        assert "owners:read" in refused.json()["message"]
    admin = await Owner(server, stack, "boss").rest(scopes=["owners:read", "kernels:admin"])
    names = [one["name"] for one in (await admin.request("GET", "/api/owners")).json()]
    assert {"anna", "boss"} <= {*names}
    assert names == sorted(names)
    theirs = (await admin.request("GET", "/api/owners/three")).json()
    assert theirs["limits"] == {"kernels": 3}
    assert (await admin.request("GET", "/api/owners/never-was")).json()["usage"]["kernels"] == 0


@pytest.mark.parametrize("scopes", [["user"], DEFAULT_SCOPES])
async def test_whoever_works_with_kernels_sees_what_it_may_use(
    server: ServerProcess, stack: AsyncExitStack, scopes: list[str]
) -> None:
    """With the preset of tokens, and with what people of a JupyterHub or a provider have."""
    rest = await Owner(server, stack, "three").rest(scopes=scopes)
    mine = (await rest.request("GET", "/api/owners/three")).json()
    assert mine["limits"] == {"kernels": 3}
    listed = (await rest.request("GET", "/api/owners")).json()
    assert [one["name"] for one in listed] == ["three"]
    permissions = {"permissions": '{"owners": ["read"]}'}
    me = (await rest.request("GET", "/api/me", params=permissions)).json()
    assert me["permissions"]["owners"] == ["read"]


async def test_kernels_that_a_killed_server_has_left_count(
    make_server: MakeServer, home: Home
) -> None:
    options = (*TELLING, "--on-shutdown", "keep", "--owner-limits", "kernels=2")
    server = make_server(*options, home=home)
    async with RestClient(server.url, token("anna")) as rest:
        for _ in range(2):
            await rest.start_kernel("fake")
    await asyncio.to_thread(server.crash)
    server = make_server(*options, home=home)
    async with RestClient(server.url, token("anna")) as rest:
        refused = await rest.http.post("/api/kernels", json={"name": "fake"})
        assert told(refused)["usage"] == 2
        kernels = await rest.kernels()
        await rest.delete(kernels[0]["id"])
        await rest.start_kernel("fake")
        await asyncio.gather(*(rest.delete(one["id"]) for one in await rest.kernels()))


async def test_the_documented_configuration_works(make_server: MakeServer, home: Home) -> None:
    text = block("toml", "[limits]", REPOSITORY / "docs" / "owners.md")
    path = home.path / "kernelkeep.toml"
    path.write_text(text)
    path.chmod(0o600)
    server = make_server(*TELLING, "--config", str(path), home=home)
    seen = {}
    async with RestClient(server.url, server.token) as admin:
        for name in ("anna", "ben"):
            seen[name] = (await admin.request("GET", f"/api/owners/{name}")).json()["limits"]
    async with RestClient(server.url, token("carl", groups=["staff"])) as rest:
        seen["carl"] = (await rest.request("GET", "/api/owners/carl")).json()["limits"]
    everybodys = {"starts_per_minute": 10, "websockets": 50, "lifetime": 172800.0}
    assert seen == {
        "anna": {**everybodys, "idle_timeout": 43200.0},
        "ben": {**everybodys, "kernels": 5},
        "carl": {**everybodys, "kernels": 20, "memory": 16 * 2**30},
    }


def test_what_replicas_tell_of_an_owner_is_summed_up() -> None:
    def owner(name: str, kernels: int, used: int, lately: int | None) -> OwnerModel:
        usage = UsageModel(kernels, used, used, used, lately, None, lately, lately, 0.1, None)
        return OwnerModel(name, Limits(kernels=5), usage)

    hers = [owner("ada", 2, 3, None), owner("ada", 3, 4, 2), owner("ada", 2, 0, 1)]
    found = together([owner("bob", 1, 0, None), *hers])
    ada = owner("ada", 3, 7, 3)
    ada.usage.starts_per_minute = 2  # each knows what was started at all of them until a moment ago
    ada.usage.cpu = 0.3
    assert found == [ada, owner("bob", 1, 0, None)]
