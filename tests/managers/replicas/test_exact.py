"""What is counted, or done once, is exact among replicas, whichever of them is asked."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager

import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus

from tests.support.channels import JupyterChannels
from tests.support.executions import Executions
from tests.support.postgresql import PostgreSQL
from tests.support.processes import eventually
from tests.support.replicas import TAKEOVER_SECONDS, Replicas
from tests.support.rest import RestClient
from tests.support.server import ServerProcess

NAMES = ("first", "second", "third")

MOST = 5
STARTS = 2
OPEN = 7
WAITING = 4


@pytest.fixture(scope="module")
def replicas(postgresql: PostgreSQL) -> Iterator[Replicas]:
    limits = json.dumps(
        {
            "counted": {"starts_per_minute": STARTS},
            "writer": {"contents_bytes_per_day": 1000},
            "sockets": {"websockets": OPEN},
            "queue": {"queued_executions": WAITING},
            "moved": {"queued_executions": 2},
        }
    )
    options = ("--max-kernels", str(MOST), "--limits-by-name", limits)
    with Replicas(postgresql.new_database(), *options) as replicas:
        for name in NAMES:
            replicas.start(name)
        yield replicas


@pytest.fixture
async def rests(replicas: Replicas) -> AsyncIterator[list[RestClient]]:
    async with AsyncExitStack() as stack:
        found = [
            await stack.enter_async_context(RestClient(server.url, replicas.token))
            for server in replicas.servers.values()
        ]
        yield found
        for kernel_id in await kernels_of_all(replicas):
            await found[0].delete(kernel_id)


async def owners_token(rest: RestClient, owner: str, *more: str) -> str:
    """A token of an owner's with the scopes of a user, and more."""
    asked = {"name": "laptop", "owner": owner, "scopes": ["user", *more]}
    return str((await rest.request("POST", "/api/tokens", 201, json=asked)).json()["token"])


@asynccontextmanager
async def clients(replicas: Replicas, token: str) -> AsyncIterator[list[RestClient]]:
    """A client of each replica."""
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(RestClient(server.url, token))
            for server in replicas.servers.values()
        ]


async def start(rest: RestClient, key: str | None = None, **body: str) -> httpx.Response:
    headers = {} if key is None else {"Idempotency-Key": key}
    return await rest.http.post("/api/kernels", json={"name": "fake", **body}, headers=headers)


async def kernels_of_all(replicas: Replicas) -> list[str]:
    """The ids of all kernels as the registry has them: a list may be a moment behind that."""
    rows = await asyncio.to_thread(replicas.query, "SELECT id FROM kernelkeep.kernel")
    return [kernel_id for (kernel_id,) in rows]


async def test_no_start_is_one_too_many_and_no_place_is_left_empty(
    replicas: Replicas, rests: list[RestClient]
) -> None:
    answers = await asyncio.gather(*(start(rests[number % 3]) for number in range(100)))
    codes = Counter(answer.json()["code"] if answer.is_error else "started" for answer in answers)
    assert codes == {"started": MOST, "too_many_kernels": 100 - MOST}
    ids = [answer.json()["id"] for answer in answers if not answer.is_error]
    # A place is free for every replica as soon as its kernel is gone.
    for number, kernel_id in enumerate(ids):
        rest = rests[number % 3]
        await rest.delete(kernel_id)
        assert (await start(rests[(number + 1) % 3])).status_code == 201
        assert (await start(rest)).status_code == 429
    query = "SELECT count(*) FROM kernelkeep.reservation"
    assert await asyncio.to_thread(replicas.query, query) == [(0,)]


async def test_starts_and_restarts_of_a_minute_are_counted_at_all_replicas(
    replicas: Replicas, rests: list[RestClient]
) -> None:
    async with clients(replicas, await owners_token(rests[0], "counted")) as own:
        answers = await asyncio.gather(*(start(own[number % 3]) for number in range(MOST)))
        codes = Counter(one.json()["code"] if one.is_error else "started" for one in answers)
        assert codes == {"started": STARTS, "starts_limit": MOST - STARTS}
        refused = next(one for one in answers if one.is_error)
        assert (refused.json()["value"], refused.json()["usage"]) == (STARTS, STARTS)
        assert 0 < int(refused.headers["Retry-After"]) <= 60 / STARTS
        kernel_id = next(one.json()["id"] for one in answers if not one.is_error)
        for rest in own:
            again = await rest.http.post(f"/api/kernels/{kernel_id}/restart")
            assert (again.status_code, again.json()["code"]) == (429, "starts_limit")


async def test_bytes_of_a_day_are_counted_at_all_replicas(
    replicas: Replicas, rests: list[RestClient]
) -> None:
    async with clients(replicas, await owners_token(rests[0], "writer", "contents:write")) as own:
        body = {"type": "file", "format": "text", "content": 200 * "x"}
        text = json.dumps(body).ljust(300)
        answers = await asyncio.gather(
            *(
                own[number % 3].http.put(f"/api/contents/{number}.txt", content=text)
                for number in range(100)
            )
        )
        codes = Counter(one.json()["code"] if one.is_error else "written" for one in answers)
        assert codes == {"written": 3, "contents_limit": 97}
        refused = next(one for one in answers if one.is_error)
        assert (refused.json()["value"], refused.json()["usage"]) == (1000, 900)
        assert 16000 < int(refused.headers["Retry-After"]) <= 17280
        path = next(one.json()["path"] for one in answers if not one.is_error)
        copied = await own[0].http.post("/api/contents/", json={"copy_from": path})
        assert copied.status_code == 201
        for rest in own:
            more = await rest.http.post("/api/contents/", json={"type": "file"})
            assert (more.status_code, more.json()["code"]) == (429, "contents_limit")
            found = (await rest.request("GET", "/api/owners/writer")).json()
            assert found["usage"]["contents_bytes_per_day"] == more.json()["usage"]


async def subscribe(server: ServerProcess, token: str) -> ClientConnection | InvalidStatus:
    """A connection that its replica has itself, or the refusal of one."""
    try:
        return await connect(
            f"{server.ws_url}/api/events/subscribe",
            additional_headers={"Authorization": f"token {token}"},
            compression=None,
            open_timeout=TAKEOVER_SECONDS,
            proxy=None,
        )
    except InvalidStatus as error:
        return error


async def test_websockets_are_counted_at_all_replicas_and_those_of_one_that_is_killed_no_more(
    replicas: Replicas, rests: list[RestClient]
) -> None:
    token = await owners_token(rests[0], "sockets")
    async with clients(replicas, token) as own, AsyncExitStack() as stack:

        async def opened(servers: list[ServerProcess], count: int) -> list[ClientConnection]:
            tried = await asyncio.gather(
                *(subscribe(servers[number % len(servers)], token) for number in range(count))
            )
            found = [one for one in tried if isinstance(one, ClientConnection)]
            for one in found:
                stack.push_async_callback(one.close)
            for refused in tried:
                if isinstance(refused, InvalidStatus):
                    body = json.loads(refused.response.body or b"")
                    assert refused.response.status_code == 429
                    assert (body["code"], body["value"]) == ("websockets_limit", OPEN)
                    assert body["usage"] >= OPEN
            return found

        async def used() -> int:
            usage = (await own[0].request("GET", "/api/owners/sockets")).json()["usage"]
            return int(usage["websockets"])

        servers = [*replicas.servers.values()]
        left = await opened(servers[2:], 2)
        first = await opened(servers, 100)
        assert len(left) + len(first) == OPEN == await used()
        await first[0].close()
        async with asyncio.timeout(TAKEOVER_SECONDS):
            while not await opened(servers[1:2], 1):
                pass
        assert await used() == OPEN
        left += [one for one in first[1:] if one.remote_address[1] == servers[2].port]
        await asyncio.to_thread(replicas.end, "third")
        found = 0
        async with asyncio.timeout(TAKEOVER_SECONDS):
            while found < len(left):
                found += len(await opened(servers[:2], 2 * OPEN))
        assert await opened(servers[:2], OPEN) == []
    await asyncio.to_thread(replicas.start, "third")


async def test_executions_that_wait_are_counted_at_all_replicas(
    replicas: Replicas, rests: list[RestClient]
) -> None:
    token = await owners_token(rests[0], "queue")
    async with clients(replicas, token) as own, AsyncExitStack() as stack:
        kernels = [Executions(rest, (await rest.start_kernel("fake"))["id"]) for rest in own]
        for kernel in kernels:
            await kernel.rest.wait_for_state(kernel.kernel_id, "idle")
            await kernel.until(await kernel.begin("until go"), "started")
        channels = [
            await stack.enter_async_context(
                await JupyterChannels.connect(server.ws_url, kernel.kernel_id, token)
            )
            for server, kernel in zip(replicas.servers.values(), kernels, strict=True)
        ]
        codes: Counter[str] = Counter()

        async def post(number: int) -> None:
            answer = await kernels[number % 3].post("print x")
            codes[answer.json()["code"] if answer.is_error else "waits"] += 1

        async def send(channel: JupyterChannels) -> None:
            asked = {await channel.send_execute("print x") for _ in range(10)}
            while asked:
                message = await channel.recv(TAKEOVER_SECONDS)
                if message.msg_type == "execute_reply" and message.parent_id in asked:
                    asked.remove(message.parent_id)
                    codes[message.content.get("ename", "waits")] += 1

        query = "SELECT count(*) FROM kernelkeep.share WHERE queued_executions > 0"

        async def none_waits() -> bool:
            return await asyncio.to_thread(replicas.query, query) == [(0,)]

        await eventually(none_waits)
        sending = [asyncio.create_task(send(channel)) for channel in channels]
        await asyncio.gather(*(post(number) for number in range(70)))

        async def are_decided() -> bool:
            usage = (await own[0].request("GET", "/api/owners/queue")).json()["usage"]
            refused = codes["executions_limit"] + codes["ExecutionsLimit"]
            return refused == 100 - WAITING and usage["queued_executions"] == WAITING

        await eventually(are_decided, TAKEOVER_SECONDS)
        # The queues run dry, and there is room again at each replica.
        (replicas.home.root_dir / "go").touch()
        try:
            await asyncio.gather(*sending)
            for kernel in kernels:
                assert (await kernel.run("print y"))["state"] == "ok"
        finally:
            (replicas.home.root_dir / "go").unlink()
        assert codes["waits"] == WAITING
        # What a client sends comes to the kernel in the order of sending.
        for channel in channels:
            await eventually(none_waits)
            sent = [await channel.send_execute(f"print {number}") for number in range(3)]
            last = sent[-1]
            await channel.seen(lambda one: one.parent_id == last and one.state == "idle")  # noqa: B023
            run = [one.parent_id for one in channel.log if one.msg_type == "execute_input"]
            assert run[-3:] == sent


async def test_executions_that_wait_count_for_the_replica_that_takes_their_kernel_over(
    replicas: Replicas, rests: list[RestClient]
) -> None:
    async with clients(replicas, await owners_token(rests[0], "moved")) as own:
        kernel_id = (await own[2].start_kernel("fake"))["id"]
        await own[2].wait_for_state(kernel_id, "idle")
        kernel = Executions(own[2], kernel_id)
        await kernel.until(await kernel.begin("until moved"), "started")
        waiting = [await kernel.begin("print x") for _ in range(2)]
        await asyncio.to_thread(replicas.end, "third")
        query = (
            "SELECT name, queued_executions FROM kernelkeep.share "
            "JOIN kernelkeep.replica ON replica = id WHERE share.owner = 'moved'"
        )

        async def none_waits() -> bool:
            return await asyncio.to_thread(replicas.query, query) == []

        async def are_counted() -> bool:
            rows = await asyncio.to_thread(replicas.query, query)
            return rows in ([("first", 2)], [("second", 2)])

        await eventually(are_counted, TAKEOVER_SECONDS)
        other = (await own[0].start_kernel("fake"))["id"]
        refused = await Executions(own[0], other).post("print y")
        assert (refused.status_code, refused.json()["code"]) == (429, "executions_limit")
        (replicas.home.root_dir / "moved").touch()
        kernel = Executions(own[0], kernel_id)
        assert [(await kernel.ended(one))["state"] for one in waiting] == ["ok", "ok"]
        await eventually(none_waits)
        assert (await Executions(own[0], other).run("print y"))["state"] == "ok"
    await asyncio.to_thread(replicas.start, "third")


async def test_a_key_starts_one_kernel_whichever_replica_has_it(
    replicas: Replicas, rests: list[RestClient]
) -> None:
    answers = await asyncio.gather(*(start(rests[number % 3], "one") for number in range(9)))
    assert {answer.status_code for answer in answers} == {201}
    (kernel_id,) = {answer.json()["id"] for answer in answers}
    assert await kernels_of_all(replicas) == [kernel_id]
    for rest in rests:
        other = await start(rest, "one", path="elsewhere")
        assert other.json()["code"] == "idempotency_conflict"
    await rests[0].delete(kernel_id)
    for rest in rests:
        answer = await start(rest, "one")
        assert (answer.status_code, answer.json()["code"]) == (404, "kernel_not_found")


async def test_a_start_with_a_key_that_fails_is_tried_again_by_another(
    rests: list[RestClient],
) -> None:
    failed = await start(rests[0], "failing", name="fake-missing")
    assert failed.json()["code"] == "kernel_start_failed"
    assert (await start(rests[1], "failing")).status_code == 201


async def test_a_path_has_one_session_whichever_replica_makes_it(
    replicas: Replicas, rests: list[RestClient]
) -> None:
    body = {"path": "a.ipynb", "type": "notebook", "name": "a", "kernel": {"name": "fake"}}
    answers = await asyncio.gather(
        *(rests[number % 3].http.post("/api/sessions", json=body) for number in range(9))
    )
    assert {answer.status_code for answer in answers} == {201}
    assert len({one.json()["id"] for one in answers}) == 1
    (kernel_id,) = {one.json()["kernel"]["id"] for one in answers}
    assert await kernels_of_all(replicas) == [kernel_id]
    for rest in rests:
        assert len((await rest.http.get("/api/sessions")).json()) == 1
    await rests[2].http.delete(f"/api/sessions/{answers[0].json()['id']}")

    async def is_gone() -> bool:
        return not (await rests[0].http.get("/api/sessions")).json()

    await eventually(is_gone)


async def test_one_id_is_one_kernel_of_one_replica(rests: list[RestClient]) -> None:
    kernel_id = "7a4b2b0e-7d4c-4a57-8a0e-6a7d1e0f4a11"
    answers = await asyncio.gather(*(start(rest, kernel_id=kernel_id) for rest in rests))
    codes = Counter(answer.json()["code"] if answer.is_error else "started" for answer in answers)
    assert codes == {"started": 1, "kernel_elsewhere": 2}
