"""The events WebSocket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from app.managers.telemetry.events import CORE_EVENT_SCHEMA_PATHS
from tests.conftest import servers
from tests.support.events import EVENT_TIMEOUT, LIFECYCLE, EventListener, listening
from tests.support.rest import RestClient
from tests.support.running import KernelStarter
from tests.support.server import ServerProcess

POSTED = "urn:example:lifecycle"


@pytest.fixture(scope="module")
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    """A server with a schema that clients may post events of."""
    file = tmp_path_factory.mktemp("schemas") / "lifecycle.yaml"
    own = next(text for text in map(Path.read_text, CORE_EVENT_SCHEMA_PATHS) if LIFECYCLE in text)
    file.write_text(own.replace(LIFECYCLE, POSTED))
    with servers(request.config) as make_server:
        yield make_server("--extra-event-schema-paths", str(file))


@pytest.fixture
async def events(server: ServerProcess) -> AsyncIterator[EventListener]:
    async with listening(server) as listener:
        yield listener


async def tell(rest: RestClient, reason: str) -> None:
    """Post an event; any will do."""
    data = {"event": "dead", "kernel_id": "k", "kernel_name": "n", "reason": reason}
    body = {"schema_id": POSTED, "version": "1", "data": data}
    await rest.request("POST", "/api/events", 204, json=body)


@pytest.mark.parametrize("headers", [{}, {"Authorization": "token wrong"}])
async def test_nobody_listens_without_the_token(
    server: ServerProcess, headers: dict[str, str]
) -> None:
    with pytest.raises(InvalidStatus) as refused:
        async with connect(
            f"{server.ws_url}/api/events/subscribe", additional_headers=headers, proxy=None
        ):
            pass
    assert refused.value.response.status_code == 403
    assert json.loads(refused.value.response.body or b"")["code"] == "unauthorized"


async def test_each_event_is_one_text_frame_with_its_schema_and_data(
    events: EventListener, rest: RestClient
) -> None:
    await tell(rest, "why")
    async with asyncio.timeout(EVENT_TIMEOUT):
        frame = await events.websocket.recv()
    assert isinstance(frame, str)
    assert json.loads(frame) == {
        "schema_id": POSTED,
        "event": "dead",
        "kernel_id": "k",
        "kernel_name": "n",
        "reason": "why",
    }


async def test_there_is_no_replay(server: ServerProcess, rest: RestClient) -> None:
    async with listening(server) as first:
        await tell(rest, "before")
        assert (await first.recv())["reason"] == "before"
        async with listening(server) as second:
            await tell(rest, "after")
            assert (await second.recv())["reason"] == "after"


async def test_every_subscriber_gets_every_event(server: ServerProcess, rest: RestClient) -> None:
    async with listening(server) as one, listening(server) as other:
        for number in range(20):
            await tell(rest, str(number))
        for listener in (one, other):
            got = [(await listener.recv())["reason"] for _ in range(20)]
            assert got == [str(number) for number in range(20)]


async def test_what_a_subscriber_sends_is_ignored(events: EventListener, rest: RestClient) -> None:
    for frame in ("{}", "nonsense", b"\x00\xff", b"", ""):
        await events.websocket.send(frame)
    await tell(rest, "why")
    assert (await events.recv())["reason"] == "why"


async def test_a_subscriber_that_vanishes_hurts_nobody(
    server: ServerProcess, events: EventListener, rest: RestClient
) -> None:
    async with listening(server) as gone:
        gone.websocket.transport.abort()
        for number in range(20):
            await tell(rest, str(number))
        assert [(await events.recv())["reason"] for _ in range(20)] == [str(n) for n in range(20)]
    assert "Traceback" not in server.output()


async def test_a_subscriber_that_does_not_read_gets_what_was_kept_and_the_count_of_the_rest(
    server: ServerProcess, rest: RestClient, start: KernelStarter
) -> None:
    count, size = 700, 60_000  # more than all the buffers on the way hold
    options: dict[str, Any] = {"max_queue": 1, "ping_interval": None}
    async with listening(server) as quick, listening(server, **options) as slow:
        for number in range(count):
            await tell(rest, f"{number} {'x' * size}")
            assert (await quick.recv())["reason"].startswith(f"{number} ")
            quick.log.clear()
        kernel = await start()  # and the server's own events go on
        await quick.turn("ready", kernel_id=kernel.id)
        code, reason = await slow.closed()
        # What was there came in order and without a hole; then the end says what is missing.
        got = [int(event["reason"].partition(" ")[0]) for event in slow.log]
        assert got == list(range(len(got)))
        assert 0 < len(got) < count
        assert code == 1013
        assert reason == f"too slow: {count + len(quick.log) - len(got)} events dropped"
