"""What a real engine does now and then only: by an API that answers as Docker's does.

A container that somebody else is removing, events that come together, and nonsense.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from app.managers.processes.engines import docker
from app.managers.processes.engines.docker import DockerEngine
from app.managers.processes.engines.engine import Job, JobState
from app.managers.processes.hosts.errors import HostUnreachable, HostUnusable

JOB = Job("c", "k", 1, JobState.RUNNING)


class Api:
    """What answers: DELETE with this ``status``, and who waits for the removal when it is done."""

    def __init__(self) -> None:
        self.status = 409
        self.waits = asyncio.Event()
        self.removed = asyncio.Event()
        self.listing = "[]"
        self.lists = 0
        self.events: asyncio.Queue[str] = asyncio.Queue()
        self.all_sent = asyncio.Event()

    async def delete(self, request: web.Request) -> web.Response:
        assert request.query["force"] in ("true", "True", "1")
        return web.json_response({"message": "told"}, status=self.status)

    async def wait(self, request: web.Request) -> web.Response:
        assert request.query["condition"] == "removed"
        self.waits.set()
        await self.removed.wait()
        return web.json_response({"StatusCode": 0})

    async def list(self, _request: web.Request) -> web.Response:
        self.lists += 1
        return web.Response(text=self.listing, content_type="application/json")

    async def stream(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while text := await self.events.get():
            await response.write(f"{text}\n".encode())
            if self.events.empty():
                self.all_sent.set()
        return response


async def version(_request: web.Request) -> web.Response:
    return web.json_response({"ApiVersion": "1.41"})


@pytest.fixture
def api() -> Api:
    return Api()


@pytest.fixture
async def engine(tmp_path: Path, api: Api) -> AsyncIterator[DockerEngine]:
    app = web.Application()
    app.router.add_get("/version", version)
    app.router.add_delete("/{version}/containers/c", api.delete)
    app.router.add_post("/{version}/containers/c/wait", api.wait)
    app.router.add_get("/{version}/containers/json", api.list)
    app.router.add_get("/{version}/events", api.stream)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.UnixSite(runner, str(tmp_path / "docker.sock")).start()
    engine = DockerEngine(f"unix://{tmp_path}/docker.sock", "s", lambda *_: None)
    yield engine
    api.removed.set()
    api.events.put_nowait("")
    await engine.close()
    await runner.cleanup()


async def test_the_end_of_the_removal_is_waited_for(engine: DockerEngine, api: Api) -> None:
    cancelling = asyncio.create_task(engine.cancel(JOB))
    async with asyncio.timeout(30):
        await api.waits.wait()
        assert not cancelling.done()
        api.removed.set()
        await cancelling


async def test_a_removal_that_never_ends_has_a_bound(
    engine: DockerEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(docker, "START_SECONDS", 0.2)
    with pytest.raises(HostUnreachable, match="does not answer within"):
        await engine.cancel(JOB)


async def test_a_container_that_is_gone_is_no_error(engine: DockerEngine, api: Api) -> None:
    api.status = 404
    await engine.cancel(JOB)


async def test_one_that_cannot_be_removed_is(engine: DockerEngine, api: Api) -> None:
    api.status = 500
    with pytest.raises(HostUnusable, match=r"could not be removed: .*told"):
        await engine.cancel(JOB)


async def test_events_that_come_together_are_followed_by_one_list_and_two_more(
    engine: DockerEngine, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(docker, "AGAIN_SECONDS", (0.0, 0.0))
    monkeypatch.setattr(docker, "TOGETHER_SECONDS", 2.0)
    watch = engine.watch()
    assert await anext(watch) == []
    for _ in range(20):
        api.events.put_nowait('{"Action": "die"}')
    await api.all_sent.wait()
    for _ in range(3):
        assert await anext(watch) == []
    another = asyncio.ensure_future(anext(watch))
    await asyncio.wait({another}, timeout=0.2)
    assert (another.done(), api.lists) == (False, 4)
    # The stream ends, and so does the watch.
    api.events.put_nowait("")
    with pytest.raises(HostUnreachable, match="has ended its stream"):
        await another


@pytest.mark.parametrize("listing", ["<html>", "7", '[{"State": "running"}, 7]'])
async def test_an_answer_that_makes_no_sense_is_no_list(
    engine: DockerEngine, api: Api, listing: str, caplog: pytest.LogCaptureFixture
) -> None:
    api.listing = listing
    with pytest.raises(HostUnreachable, match="makes no sense"):
        await engine.find("k")
    (told,) = (each for each in caplog.records if each.name == docker.__name__)
    assert told.exc_info is not None
