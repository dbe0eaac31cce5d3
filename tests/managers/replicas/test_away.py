"""The registry is away, or refuses: kernels go on, starts wait for it, and it comes back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import AsyncExitStack

import httpx
import psycopg
import pytest
from websockets.exceptions import InvalidStatus

from app.managers.replicas.database import Database, migrate
from app.managers.replicas.member import ABORT_SECONDS, ASK_SECONDS
from tests.support.events import listening
from tests.support.executions import Executions
from tests.support.postgresql import PostgreSQL, tells_password
from tests.support.processes import eventually
from tests.support.replicas import TAKEOVER_SECONDS, Replicas
from tests.support.rest import RestClient, RestError
from tests.support.server import ServerProcess, run_server

OPEN = 2


@pytest.fixture(scope="module")
def stopped() -> Iterator[PostgreSQL]:
    with PostgreSQL() as server:
        yield server


@pytest.fixture
def replicas(stopped: PostgreSQL) -> Iterator[Replicas]:
    with Replicas(stopped.new_database()) as replicas:
        yield replicas


async def test_kernels_go_on_without_the_registry_and_starts_do_when_it_is_back(
    stopped: PostgreSQL, replicas: Replicas
) -> None:
    server = await asyncio.to_thread(replicas.start, "one")
    async with RestClient(server.url, replicas.token) as rest:
        kernel = await rest.start_kernel("python3")
        executions = Executions(rest, kernel["id"])
        await executions.run("x = 1")
        await asyncio.to_thread(stopped.stop, "immediate")

        refusals: list[RestError] = []

        async def is_refused() -> bool:
            try:
                started = await rest.start_kernel("fake")
            except RestError as error:
                refusals.append(error)
                return True
            await rest.delete(started["id"])
            return False

        await eventually(is_refused, TAKEOVER_SECONDS)
        assert refusals[0].error["code"] == "registry_unavailable"
        assert refusals[0].response.headers["Retry-After"] == "1"
        # Behind the end of its lease, too: its keeper knows that no other has the kernel.
        running = await executions.begin("import time; time.sleep(4); print(x)")
        # What would have to wait is not stored: another replica would not know that it was asked.
        waiting = await executions.post("print('waits')")
        assert waiting.status_code == 503
        assert waiting.json()["code"] == "registry_unavailable"
        assert waiting.headers["Retry-After"] == "1"
        assert (await executions.ended(running))["state"] == "ok"
        assert [one["id"] for one in await executions.listed()][-1] == running
        await asyncio.to_thread(stopped.start)

        async def starts() -> bool:
            return not await is_refused()

        await eventually(starts, TAKEOVER_SECONDS)
        assert await asyncio.to_thread(replicas.owner_of, kernel["id"]) == "one"
        assert (await executions.run("print(x)"))["state"] == "ok"
        await rest.delete(kernel["id"])
    assert not tells_password(server.output())


async def test_without_the_registry_each_replica_s_own_count_decides_and_nobody_waits_for_it_twice(
    stopped: PostgreSQL,
) -> None:
    limits = ("--owner-limits", json.dumps({"websockets": OPEN}))
    with Replicas(stopped.new_database(), *limits) as replicas:
        replicas.lease_seconds = 10.0  # it does not end while the registry is away
        one, two = [await asyncio.to_thread(replicas.start, name) for name in ("one", "two")]
        async with AsyncExitStack() as here, AsyncExitStack() as there:

            async def opens(server: ServerProcess, stack: AsyncExitStack) -> bool:
                try:
                    await stack.enter_async_context(listening(server))
                except InvalidStatus as error:
                    return error.response.status_code != 429
                return True

            for _ in range(OPEN):
                assert await opens(one, here)
            assert not await opens(two, there)
            await asyncio.to_thread(stopped.pause)
            try:
                loop = asyncio.get_running_loop()
                began = loop.time()
                # The first waits until the registry is given up.
                for _ in range(OPEN):
                    assert await opens(two, there)
                assert not await opens(two, there)
                assert loop.time() - began < ASK_SECONDS + ABORT_SECONDS
            finally:
                await asyncio.to_thread(stopped.resume)
            await here.aclose()

            async def is_told() -> bool:
                query = (
                    "SELECT name, websockets FROM kernelkeep.share "
                    "JOIN kernelkeep.replica ON replica = id"
                )
                return await asyncio.to_thread(replicas.query, query) == [("two", OPEN)]

            await eventually(is_told, TAKEOVER_SECONDS)
            assert not await opens(one, here)
            await there.aclose()
            async with asyncio.timeout(TAKEOVER_SECONDS):
                while not await opens(one, here):
                    pass


REFUSING = """
CREATE FUNCTION kernelkeep.refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'no space left on device';
END $$;
CREATE TRIGGER refuse BEFORE INSERT ON kernelkeep.kernel
    FOR EACH ROW EXECUTE FUNCTION kernelkeep.refuse();
"""


async def test_a_kernel_that_cannot_be_stored_is_not_there(replicas: Replicas) -> None:
    server = await asyncio.to_thread(replicas.start, "one")

    def rows(table: str) -> int:
        (found,) = replicas.query(f"SELECT count(*) FROM kernelkeep.{table}")
        return int(found[0])

    with psycopg.connect(replicas.url, autocommit=True) as registry:
        registry.execute(REFUSING)
        async with RestClient(server.url, replicas.token) as rest:
            # It has its place already, and a process: only then its record cannot be stored.
            with pytest.raises(RestError) as refused:
                await rest.start_kernel("fake")
            assert refused.value.error["code"] == "registry_unavailable"
            assert await rest.kernels() == []

            async def begin() -> httpx.Response:
                key = {"Idempotency-Key": "once"}
                return await rest.http.post("/api/kernels", json={"name": "fake"}, headers=key)

            assert (await begin()).json()["code"] == "registry_unavailable"
            document = {"path": "a", "type": "notebook", "kernel": {"name": "fake"}}
            session = await rest.http.post("/api/sessions", json=document)
            assert session.json()["code"] == "registry_unavailable", session.text
            assert await rest.kernels() == []
            registry.execute("DROP TRIGGER refuse ON kernelkeep.kernel")
            await eventually(lambda: rows("reservation") == 0, TAKEOVER_SECONDS)
            kernel = (await begin()).json()
            assert (await begin()).json()["id"] == kernel["id"]
            assert [one["id"] for one in await rest.kernels()] == [kernel["id"]]
            assert rows("kernel") == 1
            await rest.delete(kernel["id"])


def refused(replicas: Replicas, name: str, token: str) -> str:
    """The one line with which another server is refused."""
    home = replicas.home
    ended = run_server(
        *("--port", "0", "--root-dir", str(home.root_dir), "--state-dir", str(home.state_dir)),
        *("--on-shutdown", "keep", "--replica-name", name, "--token", token),
        home=home,
        env={"KERNELKEEP_REGISTRY_URL": replicas.url},
    )
    assert ended.returncode == 2, ended
    (line,) = ended.stderr.splitlines()
    assert not tells_password(line)
    return line


def test_a_name_that_is_taken_another_token_and_no_registry_are_refused_in_one_line(
    stopped: PostgreSQL, replicas: Replicas
) -> None:
    replicas.start("one")
    taken = refused(replicas, "one", replicas.token)
    assert "--registry-url: another replica of this host has the name one" in taken
    other = refused(replicas, "two", "another token of some length")
    assert other.endswith("--registry-url: the other replicas of the registry have another token")
    stopped.stop("immediate")
    assert "the registry cannot be used" in refused(replicas, "three", replicas.token)
    stopped.start()


def test_a_registry_of_a_newer_version_is_refused_in_one_line(replicas: Replicas) -> None:
    database = Database(replicas.url)
    migrate(database)
    database.close()
    with psycopg.connect(replicas.url, autocommit=True) as registry:
        registry.execute("INSERT INTO kernelkeep.migration VALUES (99)")
        registry.execute("UPDATE kernelkeep.usable SET least = 99")
    line = refused(replicas, "one", replicas.token)
    assert "--registry-url: the registry was written by a newer kernelkeep" in line


ELSEWHERE = """
DELETE FROM kernelkeep.replica;
INSERT INTO kernelkeep.replica (id, name, address, version, secret, expires)
    VALUES ('x', 'one', 'unix:far:x', '0', '', clock_timestamp() + interval '1 hour');
"""
"""The others have declared the replica dead, and one of another host has its name by now."""


async def test_a_replica_that_was_declared_dead_is_not_ready_until_it_has_joined_again(
    replicas: Replicas,
) -> None:
    server = await asyncio.to_thread(replicas.start, "one")
    async with RestClient(server.url, replicas.token) as rest:

        async def readiness() -> int:
            answer: httpx.Response = await rest.http.get("/readyz")
            return answer.status_code

        async def is_ready() -> bool:
            return await readiness() == 200

        async def is_not_ready() -> bool:
            return await readiness() == 503

        assert await is_ready()
        with psycopg.connect(replicas.url) as registry:
            registry.execute(ELSEWHERE)
        await eventually(is_not_ready, TAKEOVER_SECONDS)
        with psycopg.connect(replicas.url) as registry:
            registry.execute("DELETE FROM kernelkeep.replica")
        await eventually(is_ready, TAKEOVER_SECONDS)
    told = "not ready: the other replicas have declared this one dead"
    assert server.output().count(told) == 1


def test_a_server_that_is_no_replica_gets_no_state_directory_of_replicas(
    replicas: Replicas,
) -> None:
    replicas.start("one")
    home = replicas.home
    ended = run_server(
        *("--port", "0", "--state-dir", str(home.state_dir), "--on-shutdown", "keep"),
        home=home,
    )
    assert ended.returncode == 2
    assert "is in use by another server" in ended.stderr
