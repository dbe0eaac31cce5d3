"""Which requests replicas answer together, and what becomes of those that do not answer.

What three of them answer is in tests/managers/replicas/test_parts.py.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from starlette.requests import HTTPConnection
from starlette.types import Receive, Scope, Send

from app.api import parts
from app.api.parts import Others, has_parts, is_part, others_of
from app.api.relay import RELAYED, RelayServer
from app.api.relay_links import Links
from app.managers.replicas.group import Way
from app.managers.telemetry.events import Subscription
from tests.support.processes import eventually

App = Callable[[Scope, Receive, Send], Any]


@pytest.mark.parametrize(
    ("method", "path", "prefix", "are_there"),
    [
        ("GET", "/api/status", "", True),
        ("GET", "/lab/api/status", "/lab", True),
        ("GET", "/api/status", "/lab", True),
        ("GET", "/lab/api/status", "", False),
        ("GET", "/api/owners/ada", "", True),
        ("PATCH", "/api/me", "", True),
        ("GET", "/api/me", "", False),
        ("POST", "/api/events", "", False),
        (None, "/api/events/subscribe", "", True),
        (None, "/api/status", "", False),
    ],
)
def test_which_requests_have_parts(
    method: str | None, path: str, prefix: str, are_there: bool
) -> None:
    scope = {"path": path} if method is None else {"path": path, "method": method}
    assert has_parts(scope, prefix) is are_there
    # It is one only if another replica asks.
    assert not is_part({**scope, "root_path": prefix})
    assert is_part({**scope, "root_path": prefix, RELAYED: True}) is are_there


def asked(**more: Any) -> Scope:
    """A request for the status."""
    return {
        **{"type": "http", "method": "GET", "path": "/api/status", "query_string": b"a=b"},
        "http_version": "1.1",
        "headers": [
            (b"authorization", b"token secret"),
            (b"accept", b"text/event-stream"),
            (b"if-none-match", b'"known"'),
        ],
        "state": {},
        **more,
    }


def test_who_is_asked_by_another_asks_nobody() -> None:
    others = object()
    scope = asked(state={"others": others})
    assert others_of(HTTPConnection(scope)) is others
    assert others_of(HTTPConnection({**scope, RELAYED: True})) is None
    assert others_of(HTTPConnection(asked())) is None


class Group:
    """The group as the replica sees it that asks."""

    def __init__(self) -> None:
        self.ways: list[Way] = []

    def others(self) -> list[Way]:
        return self.ways


class Peers:
    """Other replicas: each an application that answers whatever it is asked."""

    def __init__(self, directory: Path, stack: AsyncExitStack) -> None:
        self.group = Group()
        self.links = Links(None)
        self.others = Others(self.group, self.links)  # type: ignore[arg-type]
        self._directory = directory
        self._stack = stack

    async def add(self, name: str, app: App) -> RelayServer:
        """One more, of this name."""
        way = Way(name, name, self._directory / f"{name}.sock", None)
        assert way.socket is not None
        server = RelayServer(app, {}, way.socket, lambda _: True)
        await server.open()
        self._stack.push_async_callback(server.close)
        self.group.ways.append(way)
        return server

    async def answers(self, **more: Any) -> dict[str, bytes]:
        return await self.others.ask(HTTPConnection(asked(**more)), bytes)


@pytest.fixture
async def peers(tmp_path: Path) -> AsyncIterator[Peers]:
    async with AsyncExitStack() as stack:
        peers = Peers(tmp_path, stack)
        stack.callback(peers.links.close)
        yield peers


def answering(body: bytes, status: int = 200) -> App:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        assert RELAYED in scope
        headers = dict(scope["headers"])
        assert headers[b"authorization"] == b"token secret"
        assert headers[b"accept"] == b"application/json"
        assert b"if-none-match" not in headers
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b"."})

    return app


async def silent(_scope: Scope, _receive: Receive, _send: Send) -> None:
    await asyncio.Event().wait()


async def breaking_off(_scope: Scope, _receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"half", "more_body": True})
    raise OSError


async def flooding(_scope: Scope, _receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    while True:
        await send({"type": "http.response.body", "body": bytes(2**20), "more_body": True})


async def test_only_whole_answers_count(peers: Peers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "MAX_BYTES", 2**22)
    assert await peers.answers() == {}
    await peers.add("one", answering(b"1"))
    await peers.add("two", answering(b"2"))
    await peers.add("refusing", answering(b"3", 403))
    await peers.add("breaking", breaking_off)
    await peers.add("flooding", flooding)
    peers.group.ways.append(Way("nowhere", "nowhere", Path("/nowhere/sock"), None))
    assert await peers.answers() == {"one": b"1.", "two": b"2."}
    # Also those by connections that are kept.
    assert await peers.answers() == {"one": b"1.", "two": b"2."}


async def test_one_that_says_nothing_is_waited_for_once(
    peers: Peers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "ANSWER_SECONDS", 0.05)
    monkeypatch.setattr(parts, "SILENT_SECONDS", 3600.0)
    await peers.add("silent", silent)
    assert await peers.answers() == {}
    monkeypatch.setattr(parts, "ANSWER_SECONDS", 3600.0)
    await peers.add("one", answering(b"1"))
    async with asyncio.timeout(30):
        assert await peers.answers() == {"one": b"1."}


async def test_one_that_has_said_nothing_is_told_of_changes_all_the_same(
    peers: Peers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "ANSWER_SECONDS", 0.05)
    monkeypatch.setattr(parts, "SILENT_SECONDS", 3600.0)
    apps = [answering(b"1"), silent]

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await apps.pop()(scope, receive, send)

    await peers.add("one", app)
    assert await peers.answers() == {}
    monkeypatch.setattr(parts, "ANSWER_SECONDS", 30.0)
    assert await peers.answers() == {}
    assert await peers.answers(method="PATCH", path="/api/me") == {"one": b"1."}


async def test_a_strange_answer_of_one_is_no_answer(peers: Peers) -> None:
    def read(answer: bytes) -> int:
        return msgspec.json.decode(answer.removesuffix(b"."), type=int)

    await peers.add("strange", answering(b'{"connections": 1}'))
    await peers.add("one", answering(b"1"))
    assert await peers.others.ask(HTTPConnection(asked()), read) == {"one": 1}


async def test_a_client_that_goes_makes_nobody_silent(
    peers: Peers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "ANSWER_SECONDS", 30.0)
    asked_for = asyncio.Event()
    apps = [answering(b"1"), silent]

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        asked_for.set()
        await apps.pop()(scope, receive, send)

    await peers.add("one", app)
    asking = asyncio.create_task(peers.answers())
    await asked_for.wait()
    asking.cancel()
    await asyncio.wait({asking})
    assert await peers.answers() == {"one": b"1."}


async def test_one_that_was_silent_is_asked_again_later(
    peers: Peers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "ANSWER_SECONDS", 0.05)
    monkeypatch.setattr(parts, "SILENT_SECONDS", 0.0)
    apps = [answering(b"1"), silent]

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await apps.pop()(scope, receive, send)

    await peers.add("one", app)
    assert await peers.answers() == {}
    monkeypatch.setattr(parts, "ANSWER_SECONDS", 30.0)
    assert await peers.answers() == {"one": b"1."}


async def test_a_request_that_does_not_end_when_it_is_given_up_is_left(
    peers: Peers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "ANSWER_SECONDS", 0.05)
    monkeypatch.setattr(parts, "CANCEL_SECONDS", 0.05)
    run, go = peers.links.run, asyncio.Event()

    async def stubborn(way: Way, *more: Any) -> bool:
        if way.replica != "one":
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
            await go.wait()
        return await run(way, *more)

    monkeypatch.setattr(peers.links, "run", stubborn)
    await peers.add("one", answering(b"1"))
    await peers.add("stubborn", silent)
    before = asyncio.all_tasks()
    async with asyncio.timeout(30):
        assert await peers.answers() == {"one": b"1."}
        async with peers.others.lines(asked(), lambda *_: True, lambda _: None):
            pass
    late = asyncio.all_tasks() - before
    for task in late:
        task.cancel()
    go.set()
    assert late
    assert not (await asyncio.wait(late, timeout=30))[1]


async def test_a_fault_in_asking_one_concerns_that_one(
    peers: Peers, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = peers.links.run

    async def failing(way: Way, *more: Any) -> bool:
        if way.replica != "one":
            raise RuntimeError
        return await run(way, *more)

    monkeypatch.setattr(peers.links, "run", failing)
    await peers.add("one", answering(b"1"))
    await peers.add("two", answering(b"2"))
    assert await peers.answers() == {"one": b"1."}
    assert "replica two could not be asked" in caplog.text


class Lines:
    """What `Others.lines` gives."""

    def __init__(self) -> None:
        self.taken: list[tuple[str, bytes]] = []
        self.ended: list[str] = []

    def take(self, replica: str, line: bytes) -> bool:
        self.taken.append((replica, line))
        return line == b"whole"


@asynccontextmanager
async def following(peers: Peers) -> AsyncIterator[Lines]:
    lines = Lines()
    async with peers.others.lines(asked(), lines.take, lines.ended.append):
        yield lines


def telling(*bodies: bytes, then: App | None = None) -> App:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert (b"accept", b"application/x-ndjson") in scope["headers"]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for body in bodies:
            await send({"type": "http.response.body", "body": body, "more_body": True})
        if then is not None:
            await then(scope, receive, send)

    return app


async def test_lines_come_in_whole(peers: Peers) -> None:
    await peers.add("one", telling(b"a\nb", b"", b"c\n\nwhole\nd", then=silent))
    async with following(peers) as lines:
        # There at once: the block begins when each has told what there was.
        assert lines.taken == [("one", b"a"), ("one", b"bc"), ("one", b"whole")]
        assert lines.ended == []
    assert lines.ended == ["one"]


async def test_one_that_ends_is_followed_again(
    peers: Peers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "RETRY_SECONDS", 0.01)
    apps = [telling(b"2\nwhole\n", then=silent), answering(b"", 403), telling(b"1\nwhole\n")]

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if len(apps) == 2:
            apps.pop()
            await send({"type": "http.response.start", "status": 403, "headers": []})
        else:
            await apps.pop()(scope, receive, send)

    await peers.add("one", app)
    async with following(peers) as lines:
        await eventually(lambda: len(lines.taken) == 4)
        assert [line for _, line in lines.taken] == [b"1", b"whole", b"2", b"whole"]
        assert lines.ended == ["one", "one"]


async def test_replicas_come_and_go(peers: Peers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(parts, "ANSWER_SECONDS", 0.05)
    await peers.add("silent", silent)
    async with following(peers) as lines:
        assert lines.taken == []
        await peers.add("one", telling(b"1\nwhole\n", then=silent))
        await eventually(lambda: lines.taken == [("one", b"1"), ("one", b"whole")])
        peers.group.ways.clear()
        await eventually(lambda: sorted(lines.ended) == ["one", "silent"])


async def test_events_of_others_are_in_the_subscription(
    peers: Peers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "RETRY_SECONDS", 0.01)
    codes = [1013, 1012]

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert (await receive())["type"] == "websocket.connect"
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": f"event {len(codes)}"})
        if codes:
            await send({"type": "websocket.close", "code": codes.pop()})
        else:
            await silent(scope, receive, send)

    await peers.add("one", app)
    subscription = Subscription()
    scope = asked(type="websocket", path="/api/events/subscribe", subprotocols=["token"])
    del scope["method"]
    async with peers.others.events(scope, subscription):
        assert await subscription.take() == "event 2"
        assert await subscription.take() == "event 1"
        # That replica has had events which this subscriber misses, so it is told no more.
        await eventually(lambda: subscription.dropped == 2)
        assert await subscription.take() is None
