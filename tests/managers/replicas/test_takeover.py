"""Kernels of a replica that dies, or is stopped, go on with another, executions and all.

`app.managers.replicas.member` takes them, `app.managers.replicas.handover` adopts them, by
`app.managers.replicas.registry`.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import httpx
import psycopg
import pytest

from app.managers.errors import KeeperUnavailable
from app.managers.replicas.handover import SharedHandover
from tests.support.channels import JupyterChannels
from tests.support.executions import Executions
from tests.support.identities import token
from tests.support.owners import MANY, USER
from tests.support.processes import eventually
from tests.support.replicas import TAKEOVER_SECONDS, Replicas
from tests.support.rest import RestClient

COUNT = "import time\nfor number in range(40):\n    print(number)\n    time.sleep(0.1)\n"


@pytest.fixture
def replicas(url: str) -> Iterator[Replicas]:
    with Replicas(url) as replicas:
        yield replicas


async def test_a_kernel_of_a_replica_that_is_killed_goes_on_with_another(
    replicas: Replicas,
) -> None:
    first = await asyncio.to_thread(replicas.start, "first")
    second = await asyncio.to_thread(replicas.start, "second")
    async with RestClient(first.url, replicas.token) as rest:
        kernel = await rest.start_kernel("python3")
        executions = Executions(rest, kernel["id"])
        running = await executions.begin(COUNT)
        queued = await executions.begin("print('queued')")
    assert replicas.owner_of(kernel["id"]) == "first"
    await asyncio.to_thread(replicas.end, "first")

    async def is_taken_over() -> bool:
        return await asyncio.to_thread(replicas.owner_of, kernel["id"]) == "second"

    await eventually(is_taken_over, TAKEOVER_SECONDS)
    async with RestClient(second.url, replicas.token) as rest:
        executions = Executions(rest, kernel["id"])
        await eventually(lambda: executions.get(running), TAKEOVER_SECONDS)
        ended = await executions.ended(running)
        assert ended["state"] == "ok"
        assert (await executions.ended(queued))["state"] == "ok"
        await rest.delete(kernel["id"])
    assert replicas.query("SELECT * FROM kernelkeep.kernel") == []


async def test_a_replica_that_was_stopped_finds_that_its_kernel_is_anothers(
    replicas: Replicas,
) -> None:
    first = await asyncio.to_thread(replicas.start, "first")
    second = await asyncio.to_thread(replicas.start, "second")
    async with RestClient(first.url, replicas.token) as rest:
        kernel = await rest.start_kernel("python3")
        running = await Executions(rest, kernel["id"]).begin(COUNT)
    replicas.send("first", signal.SIGSTOP)

    async def is_taken_over() -> bool:
        return await asyncio.to_thread(replicas.owner_of, kernel["id"]) == "second"

    await eventually(is_taken_over, TAKEOVER_SECONDS)
    async with RestClient(second.url, replicas.token) as rest:
        executions = Executions(rest, kernel["id"])
        await executions.known(running)
        replicas.send("first", signal.SIGCONT)

        async def has_let_go() -> bool:
            return "kernels are taken over" in second.output() and (
                "have its kernels" in first.output() or "fenced" in first.output()
            )

        await eventually(has_let_go, TAKEOVER_SECONDS)
        assert (await executions.ended(running))["state"] == "ok"
        # It has joined again, and both take kernels.
        count = await asyncio.to_thread(replicas.query, "SELECT count(*) FROM kernelkeep.replica")
        assert count == [(2,)]
        await rest.delete(kernel["id"])


async def test_a_replica_that_ends_hands_its_kernels_over(replicas: Replicas) -> None:
    first = await asyncio.to_thread(replicas.start, "first")
    second = await asyncio.to_thread(replicas.start, "second")
    async with RestClient(first.url, replicas.token) as rest:
        kernel = await rest.start_kernel("python3")
        running = await Executions(rest, kernel["id"]).begin(COUNT)
    await asyncio.to_thread(replicas.end, "first", signal.SIGTERM)
    async with RestClient(second.url, replicas.token) as rest:
        executions = Executions(rest, kernel["id"])
        await executions.known(running)
        assert (await executions.ended(running))["state"] == "ok"
        await rest.delete(kernel["id"])


async def test_a_kernel_that_does_not_end_keeps_no_other_from_the_other_replicas(
    replicas: Replicas,
) -> None:
    """A replica that ends has to wait for the stop of one kernel: the others are not its any more.

    Their clients come back to whichever replica, the one that ends included.
    """
    stubborn = ("--shutdown-wait-time", str(2 * TAKEOVER_SECONDS))
    first = await asyncio.to_thread(replicas.start, "first", *stubborn)
    second = await asyncio.to_thread(replicas.start, "second")
    async with (
        RestClient(first.url, replicas.token) as ends,
        RestClient(second.url, replicas.token) as rest,
    ):
        kernel_id = (await ends.start_kernel("fake"))["id"]
        other_id = (await ends.start_kernel("fake-stubborn"))["id"]
        await Executions(ends, other_id).run("print up")  # one that is not ready is killed at once
        deletion = asyncio.create_task(ends.http.delete(f"/api/kernels/{other_id}", timeout=None))
        try:

            async def is_stopping() -> bool:
                return bool((await ends.kernel(other_id))["execution_state"] == "terminating")

            await eventually(is_stopping, TAKEOVER_SECONDS)
            channels = await JupyterChannels.connect(first.ws_url, kernel_id, replicas.token)
            async with channels:
                await channels.execute("print before")
                replicas.send("first", signal.SIGTERM)
                assert (await channels.closed(TAKEOVER_SECONDS)).code == 1012
            async with asyncio.timeout(TAKEOVER_SECONDS):
                # This request comes at once, and waits for the takeover.
                executions = Executions(rest, kernel_id)
                assert (await executions.run("print after"))["state"] == "ok"
                assert await asyncio.to_thread(replicas.owner_of, kernel_id) == "second"
                assert (await ends.kernel(kernel_id))["id"] == kernel_id
            async with await JupyterChannels.connect(
                first.ws_url, kernel_id, replicas.token
            ) as again:
                await again.execute("print again")
            members = "SELECT name FROM kernelkeep.replica ORDER BY name"
            assert replicas.query(members) == [("first",), ("second",)]
            assert not deletion.done()
        finally:
            await asyncio.to_thread(replicas.end, "first")
            await asyncio.gather(deletion, return_exceptions=True)
        await rest.delete(kernel_id)


HOLDING = """
CREATE FUNCTION kernelkeep.hold() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(42);
    RETURN NEW;
END $$;
CREATE TRIGGER hold BEFORE UPDATE ON kernelkeep.idempotency
    FOR EACH ROW WHEN (NEW.made IS NOT NULL) EXECUTE FUNCTION kernelkeep.hold();
"""
"""What a key has made cannot be stored while somebody has the lock."""


async def test_what_a_replica_had_made_when_it_died_is_not_made_again(replicas: Replicas) -> None:
    servers = {}
    for name in ("first", "second", "third"):
        servers[name] = await asyncio.to_thread(replicas.start, name)
    key = {"Idempotency-Key": "once"}
    done = replicas.home.root_dir / "done"

    async def ask(name: str, path: str, body: dict[str, str]) -> httpx.Response:
        async with RestClient(servers[name].url, replicas.token) as rest:
            return await rest.http.post(path, json=body, headers=key)

    with psycopg.connect(replicas.url, autocommit=True) as registry:
        registry.execute(HOLDING)

        async def is_left(name: str, asked: tuple[str, dict[str, str]], made: Path | str) -> None:
            """A replica dies when it has made what is asked for, and before that is known."""
            registry.execute("SELECT pg_advisory_lock(42)")
            asking = asyncio.create_task(ask(name, *asked))

            def is_made() -> bool:
                if isinstance(made, str):
                    return registry.execute(made).fetchone() is not None
                return made.exists()

            await eventually(is_made, TAKEOVER_SECONDS)
            await asyncio.to_thread(replicas.end, name)
            await asyncio.wait({asking})
            registry.execute("SELECT pg_advisory_unlock(42)")

        start = "/api/kernels", {"name": "python3"}
        await is_left("first", start, "SELECT 1 FROM kernelkeep.kernel")
        answer = await ask("second", *start)
        assert answer.status_code == 201, answer.text
        async with RestClient(servers["third"].url, replicas.token) as rest:
            assert [kernel["id"] for kernel in await rest.kernels()] == [answer.json()["id"]]
        path = f"/api/kernels/{answer.json()['id']}/executions"
        run = path, {"code": f"with open({str(done)!r}, 'a') as file: file.write('once')"}

        async def owner() -> str:
            name = await asyncio.to_thread(replicas.owner_of, answer.json()["id"])
            return name if name in ("second", "third") else ""

        before = await eventually(owner, TAKEOVER_SECONDS)
        await is_left(before, run, done)
        other = "third" if before == "second" else "second"
        again = await ask(other, *run)
        assert again.is_success, again.text
        async with RestClient(servers[other].url, replicas.token) as rest:
            executions = Executions(rest, answer.json()["id"])
            assert (await executions.ended(again.json()["id"]))["state"] == "ok"
            assert len(await executions.listed()) == 1
        assert done.read_text() == "once"


async def test_what_an_owner_has_started_with_an_id_of_its_choice_is_found_by_its_key(
    replicas: Replicas,
) -> None:
    body = {"name": "fake", "kernel_id": str(uuid4()).upper()}
    async with AsyncExitStack() as stack:
        rests = {}
        for name in ("first", "second", "third"):
            server = await asyncio.to_thread(replicas.start, name, *MANY)
            rest = RestClient(server.url, token("anna", USER))
            rests[name] = await stack.enter_async_context(rest)

        def ask(rest: RestClient) -> Coroutine[Any, Any, httpx.Response]:
            return rest.http.post("/api/kernels", json=body, headers={"Idempotency-Key": "once"})

        def known() -> list[str]:
            return [
                kernel_id for (kernel_id,) in replicas.query("SELECT id FROM kernelkeep.kernel")
            ]

        registry = stack.enter_context(psycopg.connect(replicas.url, autocommit=True))
        registry.execute(HOLDING)
        registry.execute("SELECT pg_advisory_lock(42)")
        asking = asyncio.create_task(ask(rests["first"]))
        (kernel_id,) = await eventually(known, TAKEOVER_SECONDS)
        await asyncio.to_thread(replicas.end, "first")
        await asyncio.wait({asking})
        registry.execute("SELECT pg_advisory_unlock(42)")

        async def owner() -> str:
            name = await asyncio.to_thread(replicas.owner_of, kernel_id)
            return name if name in ("second", "third") else ""

        has_it = await eventually(owner, TAKEOVER_SECONDS)
        answer = await ask(rests["third" if has_it == "second" else "second"])
        assert (answer.status_code, answer.json()["id"]) == (201, kernel_id), answer.text
        assert kernel_id != body["kernel_id"].lower()
        assert known() == [kernel_id]


async def test_clients_of_a_replica_that_is_stopped_are_cut_by_the_one_that_they_have_asked(
    replicas: Replicas,
) -> None:
    first = await asyncio.to_thread(replicas.start, "first")
    second = await asyncio.to_thread(replicas.start, "second")
    async with RestClient(first.url, replicas.token) as rest:
        kernel = await rest.start_kernel("python3")
    async with (
        RestClient(second.url, replicas.token) as rest,
        await JupyterChannels.connect(second.ws_url, kernel["id"], replicas.token) as channels,
    ):
        executions = Executions(rest, kernel["id"])
        await channels.execute("x = 1")
        waiting = asyncio.create_task(executions.post("input()", query={"wait": 60}))

        async def are_both_there() -> bool:
            return len(await executions.listed()) == 2

        await eventually(are_both_there, TAKEOVER_SECONDS)
        replicas.send("first", signal.SIGSTOP)
        try:
            assert (await channels.closed(TAKEOVER_SECONDS)).code == 1012
            answer = await waiting
            assert (answer.status_code, answer.json()["code"]) == (503, "replica_unreachable")
            assert "may have been done" in answer.json()["message"]
            async with asyncio.timeout(TAKEOVER_SECONDS):
                assert (await rest.kernel(kernel["id"]))["id"] == kernel["id"]
        finally:
            replicas.send("first", signal.SIGCONT)
        await rest.delete(kernel["id"])


@pytest.mark.parametrize("error", [None, KeeperUnavailable("away"), ValueError("a bug")])
async def test_what_a_dead_replica_has_left_is_looked_for_again_unless_all_is_done(
    tmp_path: Path, error: Exception | None, caplog: pytest.LogCaptureFixture
) -> None:
    told: asyncio.Future[tuple[Sequence[str], bool]] = asyncio.get_running_loop().create_future()

    class Stub(SimpleNamespace):
        async def end_strays(self, dead: Sequence[str], known: Sequence[str]) -> None:
            assert (dead, known) == (["gone"], ["k"])
            if error is not None:
                raise error

        def take_no_more(self) -> None:
            """Nothing is taken in here."""

        async def buried(self, ids: Sequence[str], *, is_done: bool) -> None:
            told.set_result((ids, is_done))

    member: Any = Stub()
    registry: Any = Stub(member=member, fence=None)
    keepers: Any = Stub()
    isolation: Any = Stub()
    handover = SharedHandover(registry, keepers, tmp_path, isolation)
    member.on_gone(["gone"], ["k"])
    assert await asyncio.wait_for(told, 10) == (["gone"], error is None)
    assert ("may be left" in caplog.text) is (error is not None)
    await handover.close()
