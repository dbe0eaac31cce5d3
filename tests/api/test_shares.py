"""Kernels that are shared (`app.managers.kernels.sharing`): what a grantee may do, and the ends.

And what makes no sense.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from typing import Any
from uuid import uuid4

import pytest
from websockets.asyncio.client import connect as websocket_connect
from websockets.exceptions import InvalidStatus

from app.managers.owners.ownership import MAX_SHARES
from tests.api.errors import error_of
from tests.conftest import servers
from tests.support.executions import NDJSON, Executions
from tests.support.identities import token
from tests.support.owners import MANY, USER, Owners, end_share, kernel_of, share
from tests.support.rest import RestClient
from tests.support.server import ServerProcess

Json = dict[str, Any]


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest) -> Iterator[ServerProcess]:
    """A server that knows many owners."""
    with servers(request.config) as make_server:
        yield make_server(*MANY, "--trusted-gateways", "gateway")


@pytest.fixture
async def owners(server: ServerProcess) -> AsyncIterator[Owners]:
    async with AsyncExitStack() as stack:
        yield Owners(server, stack)
        async with RestClient(server.url, server.token) as admin:
            await asyncio.gather(*(admin.delete(one["id"]) for one in await admin.kernels()))


READS = ["", "/executions", "/messages"]


async def test_who_may_read_looks_and_does_no_more(owners: Owners) -> None:
    anna, ben = await owners.client("anna"), await owners.client("ben")
    kernel_id = await kernel_of(anna)
    ran = await Executions(anna, kernel_id).run("print a")
    assert await share(anna, kernel_id, name="ben", access="read") == {
        "name": "ben",
        "access": "read",
    }
    path = f"/api/kernels/{kernel_id}"
    for what in (*READS, f"/executions/{ran['id']}", f"/executions/{ran['id']}/events"):
        assert (await ben.request("GET", f"{path}{what}")).status_code == 200
    assert [kernel["id"] for kernel in await ben.kernels()] == [kernel_id]
    for method, what in [
        ("POST", "/executions"),
        ("POST", f"/executions/{ran['id']}/cancel"),
        ("POST", f"/executions/{ran['id']}/input"),
        ("POST", "/interrupt"),
        ("POST", "/restart"),
        ("DELETE", ""),
        ("GET", "/shares"),
        ("POST", "/shares"),
        ("DELETE", "/shares?name=ben"),
    ]:
        body = {"name": "carl", "access": "read"} if (method, what) == ("POST", "/shares") else None
        refused = await ben.http.request(method, f"{path}{what}", json=body)
        error_of(refused, 403, "not_authorized")
    with pytest.raises(InvalidStatus) as refusal:
        await owners.connect("ben", kernel_id)
    assert refusal.value.response.status_code == 403
    assert (await Executions(anna, kernel_id).run("print b"))["state"] == "ok"


@pytest.mark.parametrize("grantee", [{"name": "ben"}, {"group": "physics"}])
async def test_who_may_execute_runs_code_and_no_more(owners: Owners, grantee: Json) -> None:
    anna, ben = await owners.client("anna"), await owners.client("ben", "physics", "art")
    kernel_id = await kernel_of(anna)
    error_of(await ben.http.get(f"/api/kernels/{kernel_id}"), 404, "kernel_not_found")
    await share(anna, kernel_id, **grantee, access="execute")
    assert (await Executions(ben, kernel_id).run("print a"))["outputs"][0]["text"] == "a\n"
    for method, what in (("DELETE", ""), ("POST", "/restart")):
        refused = await ben.http.request(method, f"/api/kernels/{kernel_id}{what}")
        error_of(refused, 403, "not_authorized")
    carl = await owners.client("carl", "chemistry")
    error_of(await carl.http.get(f"/api/kernels/{kernel_id}"), 404, "kernel_not_found")


async def test_a_scope_limits_what_a_share_gives(owners: Owners) -> None:
    anna = await owners.client("anna")
    kernel_id = await kernel_of(anna)
    await share(anna, kernel_id, name="ben", access="execute")
    reader = await owners.client("ben", scopes=["kernels:read"])
    assert (await reader.kernel(kernel_id))["id"] == kernel_id
    refused = await Executions(reader, kernel_id).post("print a")
    assert "kernels:execute" in error_of(refused, 403, "not_authorized")
    nothing = await owners.client("ben", scopes=["api:read"])
    error_of(await nothing.http.get("/api/kernels"), 403, "not_authorized")


async def test_connections_end_with_the_share(owners: Owners) -> None:
    anna, ben = await owners.client("anna"), await owners.client("ben")
    kernel_id = await kernel_of(anna)
    await share(anna, kernel_id, name="ben", access="execute")
    hers = await owners.connect("anna", kernel_id)
    his = await owners.connect("ben", kernel_id)
    assert (await his.execute("print a")).text == "a\n"
    path = f"/api/kernels/{kernel_id}/messages"
    stream = ben.http.stream("GET", path, headers={"Accept": NDJSON})
    async with stream as response:
        lines = response.aiter_lines()
        await anext(lines)
        waiting = asyncio.create_task(
            ben.http.post(
                f"/api/kernels/{kernel_id}/executions?wait=30", json={"code": "sleep 0.5"}
            )
        )
        await asyncio.sleep(0)  # it is sent before the share ends, or it is refused: both are right
        await end_share(anna, kernel_id, name="ben")
        closed = await his.closed()
        assert (closed.code, closed.reason) == (4404, "the kernel is not shared any more")
        error_of(await waiting, 404, "kernel_not_found")
        assert (await hers.execute("print secret")).text == "secret\n"
        assert "secret" not in "".join([line async for line in lines])
    error_of(await ben.http.get(f"/api/kernels/{kernel_id}"), 404, "kernel_not_found")
    with pytest.raises(InvalidStatus) as refusal:
        await owners.connect("ben", kernel_id)
    assert refusal.value.response.status_code == 404
    assert await ben.kernels() == []


@pytest.mark.parametrize("accept", [NDJSON, "text/event-stream"])
@pytest.mark.parametrize("what", ["messages", "executions/{execution_id}/events"])
async def test_streams_of_a_kernel_that_says_nothing_end_with_the_share(
    owners: Owners, what: str, accept: str
) -> None:
    """At once: not at the kernel's next message, nor at the next keep-alive, 15 s later."""
    anna, ben = await owners.client("anna"), await owners.client("ben")
    kernel_id = await kernel_of(anna)
    executions = Executions(anna, kernel_id)
    running = await executions.begin("sleep 60")
    await executions.until(running, "started")
    await share(anna, kernel_id, name="ben", access="read")
    path = f"/api/kernels/{kernel_id}/{what.format(execution_id=running)}"
    async with (
        ben.http.stream("GET", path, headers={"Accept": accept}) as his,
        anna.http.stream("GET", path, headers={"Accept": accept}) as hers,
    ):
        lines, own = his.aiter_lines(), hers.aiter_lines()
        await anext(lines)
        await anext(own)
        await end_share(anna, kernel_id, name="ben")
        async with asyncio.timeout(1):
            told = "".join([line async for line in lines])
        assert "shut down" not in told
        assert "closing" not in told
        await executions.cancel(running)
        async with asyncio.timeout(30):  # the owner's stream goes on
            assert await anext(line async for line in own if "KeyboardInterrupt" in line)


async def test_a_request_that_waits_ends_with_the_share(owners: Owners) -> None:
    anna, ben = await owners.client("anna"), await owners.client("ben")
    kernel_id = await kernel_of(anna)
    executions = Executions(anna, kernel_id)
    running = await executions.begin("sleep 60")
    await executions.until(running, "started")
    await share(anna, kernel_id, name="ben", access="read")
    path = f"/api/kernels/{kernel_id}/executions/{running}?wait=30"
    his, hers = (asyncio.create_task(one.http.get(path)) for one in (ben, anna))
    await asyncio.wait({his, hers}, timeout=0.5)  # until both wait, or he is refused at once
    await share(anna, kernel_id, name="carl", access="read")  # which concerns neither
    await end_share(anna, kernel_id, name="ben")
    async with asyncio.timeout(1):
        error_of(await his, 404, "kernel_not_found")
    assert not hers.done()
    await executions.cancel(running)
    assert (await hers).json()["state"] == "cancelled"


async def test_a_handshake_that_is_held_ends_with_the_share(owners: Owners) -> None:
    anna = await owners.client("anna")
    kernel_id = (await anna.start_kernel("fake-silent"))["id"]
    await share(anna, kernel_id, name="ben", access="execute")
    url = f"{owners.server.ws_url}/api/kernels/{kernel_id}/channels?token={token('ben', USER)}"
    held = asyncio.create_task(websocket_connect(url).__aenter__())
    done, _ = await asyncio.wait({held}, timeout=0.5)
    assert not done
    await end_share(anna, kernel_id, name="ben")
    with pytest.raises(InvalidStatus) as refusal:
        async with asyncio.timeout(1):
            await held
    assert refusal.value.response.status_code == 404
    assert b"kernel_not_found" in refusal.value.response.body


async def test_a_share_for_less_ends_what_takes_more(owners: Owners) -> None:
    anna, ben = await owners.client("anna"), await owners.client("ben")
    kernel_id = await kernel_of(anna)
    await share(anna, kernel_id, name="ben", access="execute")
    his = await owners.connect("ben", kernel_id)
    await share(anna, kernel_id, name="ben", access="read")
    assert (await his.closed()).code == 4404
    assert (await ben.kernel(kernel_id))["id"] == kernel_id
    shares = (await anna.request("GET", f"/api/kernels/{kernel_id}/shares")).json()
    assert shares == [{"name": "ben", "access": "read"}]


async def test_a_session_s_id_does_not_lead_to_another_s_session(owners: Owners) -> None:
    anna = await owners.client("anna")
    kernel_id = await kernel_of(anna)
    await share(anna, kernel_id, name="ben", access="execute")
    hers = await owners.connect("anna", kernel_id, session_id="the-same")
    his = await owners.connect("ben", kernel_id, session_id="the-same")
    asked = await hers.execute("input name?", answers=["anna"])
    assert asked.text == "anna\n"
    assert (await his.execute("print b")).text == "b\n"
    heard = [message for message in his.log if message.parent_id == asked.msg_id]
    assert {message.channel for message in heard} == {"iopub"}


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({}, "invalid_request"),
        ({"access": "read"}, "invalid_request"),
        ({"name": "ben"}, "invalid_request"),
        ({"name": "ben", "group": "art", "access": "read"}, "invalid_request"),
        ({"name": "ben", "access": "write"}, "invalid_request"),
        ({"name": "ben", "access": ["read"]}, "invalid_request"),
        ({"name": 5, "access": "read"}, "invalid_request"),
        ({"name": None, "access": "read"}, "invalid_request"),
        ({"name": "anna", "access": "read"}, "invalid_share"),
        ({"name": "", "access": "read"}, "invalid_share"),
        ({"group": "", "access": "read"}, "invalid_share"),
        *(
            ({kind: name, "access": "read"}, "invalid_share")
            for kind in ("name", "group")
            for name in ("a\0b", "a\x1b[0m", "a/b", "..", ".", " ben", "ben\n", "x" * 1024)
        ),
        ({"name": "a\u202eb", "access": "read"}, "invalid_share"),
    ],
)
async def test_shares_that_make_no_sense(owners: Owners, body: Json, code: str) -> None:
    anna = await owners.client("anna")
    kernel_id = (await anna.start_kernel("fake"))["id"]
    path = f"/api/kernels/{kernel_id}/shares"
    message = error_of(await anna.http.post(path, json=body), 400, code)
    assert len(message) < 200
    assert message.isprintable()
    assert (await anna.request("GET", path)).json() == []


async def test_a_lone_surrogate_is_no_name(owners: Owners) -> None:
    anna = await owners.client("anna")
    kernel_id = (await anna.start_kernel("fake"))["id"]
    path = f"/api/kernels/{kernel_id}/shares"
    refused = await anna.http.post(path, content=b'{"name": "\\ud800", "access": "read"}')
    assert refused.status_code == 400
    assert refused.json()["code"] in ("invalid_request", "invalid_share")


async def test_names_are_the_same_in_any_form_and_in_one_case(owners: Owners) -> None:
    anna = await owners.client("anna")
    kernel_id = await kernel_of(anna)
    told = await share(anna, kernel_id, name="Ame\u0301lie", access="read")
    assert told["name"] == "Am\u00e9lie"
    for name, status in [
        ("Am\u00e9lie", 200),
        ("Ame\u0301lie", 200),
        ("am\u00e9lie", 404),
        ("Amelie", 404),
        ("\uff21m\u00e9lie", 404),
    ]:
        someone = await owners.client(name)
        assert (await someone.http.get(f"/api/kernels/{kernel_id}")).status_code == status
    await end_share(anna, kernel_id, name="Ame\u0301lie")
    assert (await anna.request("GET", f"/api/kernels/{kernel_id}/shares")).json() == []


async def test_ending_a_share_that_there_is_not(owners: Owners) -> None:
    anna = await owners.client("anna")
    kernel_id = (await anna.start_kernel("fake"))["id"]
    path = f"/api/kernels/{kernel_id}/shares"
    await share(anna, kernel_id, name="ben", access="read")
    for params, code in [
        ({"name": "carl"}, "share_not_found"),
        ({"group": "ben"}, "share_not_found"),
    ]:
        error_of(await anna.http.delete(path, params=params), 404, code)
    senseless: list[dict[str, str]] = [{}, {"name": "ben", "group": "art"}, {"name": "a/b"}]
    for params in senseless:
        error_of(await anna.http.delete(path, params=params), 400, "invalid_share")
    unknown = f"/api/kernels/{uuid4()}/shares"
    error_of(await anna.http.get(unknown), 404, "kernel_not_found")


async def test_the_number_of_shares_is_bounded(owners: Owners) -> None:
    anna = await owners.client("anna")
    kernel_id = (await anna.start_kernel("fake"))["id"]
    made = (share(anna, kernel_id, name=f"n{n}", access="read") for n in range(MAX_SHARES))
    await asyncio.gather(*made)
    path = f"/api/kernels/{kernel_id}/shares"
    one_more = await anna.http.post(path, json={"name": "more", "access": "read"})
    error_of(one_more, 429, "too_many_shares")
    await share(anna, kernel_id, name="n0", access="execute")  # in place of another


async def test_a_share_lasts_over_restarts_and_the_kernel_s_death(owners: Owners) -> None:
    anna, ben = await owners.client("anna"), await owners.client("ben")
    kernel_id = await kernel_of(anna)
    await share(anna, kernel_id, name="ben", access="execute")
    await anna.restart(kernel_id)
    await anna.wait_for_state(kernel_id, "idle")
    assert (await Executions(ben, kernel_id).run("print a"))["state"] == "ok"
    failing = (await anna.start_kernel("fake-exit"))["id"]
    await anna.wait_for_state(failing, "dead")
    await share(anna, failing, name="ben", access="read")
    assert (await ben.kernel(failing))["execution_state"] == "dead"


async def test_an_administrator_shares_too(owners: Owners, server: ServerProcess) -> None:
    anna, ben = await owners.client("anna"), await owners.client("ben")
    kernel_id = await kernel_of(anna)
    async with RestClient(server.url, server.token) as admin:
        await share(admin, kernel_id, name="ben", access="read")
    assert (await ben.kernel(kernel_id))["owner"] == "anna"
    helper = await owners.client("dora", scopes=["kernels:admin!owner=anna"])
    await end_share(helper, kernel_id, name="ben")
    error_of(await ben.http.get(f"/api/kernels/{kernel_id}"), 404, "kernel_not_found")


async def test_a_session_with_a_shared_kernel_leaves_it_to_its_owner(owners: Owners) -> None:
    anna, ben = await owners.client("anna"), await owners.client("ben")
    kernel_id = await kernel_of(anna)
    await share(anna, kernel_id, name="ben", access="execute")
    body = {"path": "b.ipynb", "type": "notebook", "kernel": {"id": kernel_id}}
    session = (await ben.request("POST", "/api/sessions", 201, json=body)).json()
    assert session["kernel"]["id"] == kernel_id
    assert (await anna.request("GET", "/api/sessions")).json() == []
    hidden = await anna.http.get(f"/api/sessions/{session['id']}")  # although the kernel is hers
    error_of(hidden, 404, "session_not_found")
    await ben.request("DELETE", f"/api/sessions/{session['id']}", 204)
    assert (await anna.kernel(kernel_id))["execution_state"] == "idle"
    # The kernel of a session is somebody else's again: the session is not shown any more.
    session = (await ben.request("POST", "/api/sessions", 201, json=body)).json()
    await end_share(anna, kernel_id, name="ben")
    assert (await ben.request("GET", "/api/sessions")).json() == []
    gone = await ben.http.get(f"/api/sessions/{session['id']}")
    error_of(gone, 404, "session_not_found")


async def test_a_trusted_gateway_starts_kernels_for_others(owners: Owners) -> None:
    gateway = await owners.client("gateway", scopes=["kernels:admin"])
    anna, ben = await owners.client("anna"), await owners.client("ben")
    started = await gateway.start_kernel("fake", env={"KERNEL_USERNAME": "anna"})
    assert started["owner"] == "anna"
    assert (await anna.kernel(started["id"]))["owner"] == "anna"
    bad = {"name": "fake", "env": {"KERNEL_USERNAME": "a/b"}}
    error_of(await gateway.http.post("/api/kernels", json=bad), 400, "invalid_environment")
    own = await ben.start_kernel("fake", env={"KERNEL_USERNAME": "anna"})
    assert own["owner"] == "ben"
