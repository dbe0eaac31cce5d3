"""Requests that go from replica to replica: by TLS and unix sockets, kept, refused, cut off.

`app.api.relay_links` has the connections, `app.managers.replicas.wire` the ends of TLS.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path

import pytest
import uvloop
from starlette.types import Message, Receive, Scope, Send

from app.api import relay, relay_links
from app.api.relay import RELAYED, Broken, RelayServer
from app.api.relay_frames import Frames, pack
from app.api.relay_links import Door, Links
from app.keeper.protocol import address_of
from app.managers.processes.hosts import accepting
from app.managers.processes.hosts.authority import Credential, Signer, new_authority
from app.managers.replicas.group import Way
from app.managers.replicas.wire import Wire
from app.settings import Settings
from tests.support.processes import eventually
from tests.support.streams import aborted

WAIT = 30.0


def settings(directory: Path) -> Settings:
    return Settings(
        registry_url="postgresql://user@127.0.0.1/name",  # type: ignore[arg-type]
        token="a token of some length",  # type: ignore[arg-type]
        on_shutdown="keep",
        replica_listen="127.0.0.1:0",
        state_dir=directory,
    )


class Replica:
    """One that has every kernel, and answers each request with what it has got."""

    def __init__(self, directory: Path, authority: bytes, name: str) -> None:
        self.wire = Wire(settings(directory), name, directory, authority)
        self.answered = 0
        self.accepted = 0
        self.hold: asyncio.Event | None = None
        host, port = self.wire.dial.split(":")
        self.way = Way(f"id-{name}", name, None, (host, int(port)))
        self.near = Way(f"id-{name}", name, directory / f"{name}.sock", None)
        assert self.near.socket is not None
        self.server = RelayServer(self._app, {}, self.near.socket, self._is_here)
        self.door: Door | None = None

    async def __aenter__(self) -> Replica:
        await self.server.open()
        self.door = Door(self.wire.listening, self.wire.server, self._serve)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self.door is not None
        await self.door.close()
        await self.server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        await self.server.serve(reader, writer)

    @staticmethod
    def _is_here(scope: Scope) -> bool:
        return bool(scope["path"] != "/elsewhere")

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope[RELAYED]
        self.answered += 1
        if scope["type"] == "websocket":
            await send({"type": "websocket.accept"})
            while (message := await receive())["type"] != "websocket.disconnect":
                if message["type"] == "websocket.receive":
                    await send({"type": "websocket.send", "text": message["text"]})
            return
        body = b""
        if scope["path"] != "/unread":
            while (message := await receive()).get("more_body"):
                body += message["body"]
            body += message.get("body", b"")
        if self.hold is not None:
            await self.hold.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]})
        await send({"type": "http.response.body", "body": scope["path"].encode() + b":" + body})


class Client:
    """What a client sends, and has been answered."""

    def __init__(self, path: str = "/", *bodies: bytes, kind: str = "http") -> None:
        self.scope: Scope = {
            **{"type": kind, "method": "POST", "path": path, "headers": [], "query_string": b""},
            **{"http_version": "1.1", "scheme": "http", "client": ("192.0.2.1", 1)},
        }
        self.to_send = asyncio.Queue[Message]()
        for number, body in enumerate(bodies or (b"",), 1):
            more = number < len(bodies)
            self.to_send.put_nowait({"type": "http.request", "body": body, "more_body": more})
        self.answer: list[Message] = []

    async def send(self, message: Message) -> None:
        self.answer.append(message)

    async def by(self, links: Links, way: Way) -> bytes:
        """The body of the answer."""
        assert await links.run(way, self.scope, self.to_send.get, self.send)
        assert self.answer[0]["headers"] == [(b"a", b"b")]
        return b"".join(message["body"] for message in self.answer[1:])


@pytest.fixture(scope="module")
def authority() -> bytes:
    return new_authority()


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


@pytest.fixture
async def other(tmp_path: Path, authority: bytes, stack: AsyncExitStack) -> Replica:
    return await stack.enter_async_context(Replica(tmp_path, authority, "other"))


@pytest.fixture
async def links(tmp_path: Path, authority: bytes, stack: AsyncExitStack) -> Links:
    wire = Wire(settings(tmp_path), "one", tmp_path, authority)
    wire.close()
    links = Links(wire.client)
    stack.callback(links.close)
    return links


def links_with(pem: str, trusted: str, directory: Path, stack: AsyncExitStack) -> Links:
    """Of somebody who shows this certificate, and trusts another."""
    context = ssl.create_default_context(cadata=trusted)
    context.check_hostname = False
    if pem:
        (directory / "shown.pem").write_text(pem)
        context.load_cert_chain(directory / "shown.pem")
    links = Links(context)
    stack.callback(links.close)
    return links


async def refusal(links: Links, way: Way) -> str:
    with pytest.raises(Broken) as broken:
        await Client().by(links, way)
    assert not broken.value.begun
    return str(broken.value)


@pytest.mark.parametrize("near", [False, True])
async def test_one_connection_takes_one_request_after_another(
    other: Replica, links: Links, near: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    way = other.near if near else other.way
    dialled = 0
    dial = relay_links.dial

    async def counted(way: Way, context: ssl.SSLContext | None) -> relay.Remote:
        nonlocal dialled
        dialled += 1
        return await dial(way, context)

    monkeypatch.setattr(relay_links, "dial", counted)
    for number in range(20):
        parts = [b"x" * 100_000, str(number).encode()]
        assert await Client(f"/{number}", *parts).by(links, way) == (
            f"/{number}:".encode() + b"".join(parts)
        )
    elsewhere = Client("/elsewhere")
    assert not await links.run(way, elsewhere.scope, elsewhere.to_send.get, elsewhere.send)
    # What was not read of a request does not get into the next one.
    for _ in range(5):
        assert await Client("/unread", *(100 * [b"rest"])).by(links, way) == b"/unread:"
        assert await Client("/read", b"new").by(links, way) == b"/read:new"
    assert dialled == 1


async def test_requests_at_once_have_connections_of_their_own_of_which_some_are_kept(
    other: Replica, links: Links
) -> None:
    other.hold = asyncio.Event()
    clients = [Client(f"/{number}") for number in range(3 * relay_links.IDLE)]
    asked = [asyncio.ensure_future(client.by(links, other.way)) for client in clients]
    await eventually(lambda: other.answered == len(clients), WAIT)
    other.hold.set()
    assert await asyncio.gather(*asked) == [f"/{n}:".encode() for n in range(len(clients))]
    assert len(links._idle["id-other"]) == relay_links.IDLE
    links.close()
    assert links._idle == {}


async def test_a_websocket_and_then_a_request(other: Replica, links: Links) -> None:
    client = Client(kind="websocket")
    client.to_send = asyncio.Queue()
    for text in ("a", "b"):
        client.to_send.put_nowait({"type": "websocket.receive", "text": text})
    client.to_send.put_nowait({"type": "websocket.disconnect", "code": 1000})
    assert await links.run(other.way, client.scope, client.to_send.get, client.send)
    assert [message.get("text") for message in client.answer] == [None, "a", "b"]
    assert await Client("/then").by(links, other.way) == b"/then:"
    assert other.accepted == 1


async def test_a_connection_to_a_host_that_vanishes_ends_at_both_ends(
    other: Replica, links: Links, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[socket.socket] = []
    monkeypatch.setattr(relay_links, "_break_when_gone", lambda one: asked.append(one.dup()))
    await Client().by(links, other.way)
    monkeypatch.undo()
    assert len(asked) == 2
    for connection in asked:
        with connection:
            relay_links._break_when_gone(connection)
            assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 5


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_an_idle_connection_that_was_lost_costs_no_request(
    other: Replica, links: Links, method: str
) -> None:
    for _ in range(3):
        client = Client()
        client.scope["method"] = method
        await client.by(links, other.way)
        ((remote, _),) = links._idle["id-other"]
        remote.cut_off()
    assert (other.answered, other.accepted) == (3, 3)


async def test_an_idle_connection_ends(
    other: Replica, links: Links, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_links, "IDLE_SECONDS", 0.01)
    await Client().by(links, other.way)
    await eventually(lambda: links._idle == {}, WAIT)
    await eventually(lambda: not other.server._tasks, WAIT)


async def test_a_replica_that_is_gone_is_told_of_once_until_it_is_back(
    other: Replica,
    links: Links,
    tmp_path: Path,
    authority: bytes,
    stack: AsyncExitStack,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.INFO)
    await Client().by(links, other.way)
    assert other.door is not None
    await other.door.close()
    for _ in range(3):
        await refusal(links, other.way)
    assert links.is_lost("id-other", 0.0)
    assert not links.is_lost("id-other", 60.0)
    assert not links.is_lost("unknown", 0.001)
    assert caplog.text.count("replica other cannot be reached at 127.0.0.1:") == 1
    # What was long ago has nothing to do with what is now.
    monkeypatch.setattr(relay_links, "LOST_SECONDS", 0.0)
    await refusal(links, other.way)
    assert links._lost["id-other"][0] == links._lost["id-other"][1]
    assert caplog.text.count("replica other cannot be reached at 127.0.0.1:") == 2
    again = await stack.enter_async_context(Replica(tmp_path, authority, "other"))
    await Client().by(links, again.way)
    assert caplog.text.count("replica other is reached again") == 1


async def test_who_is_no_replica_of_this_authority_is_not_let_in(
    other: Replica,
    authority: bytes,
    tmp_path: Path,
    stack: AsyncExitStack,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(accepting, "LOGGED_SECONDS", 0.0)
    ours, theirs = Signer(authority), Signer(new_authority())
    for pem, why in (
        (ours.issue(Credential("k", 1), 60), "not a replica's"),
        (theirs.issue_replica("one"), "CERTIFICATE_VERIFY_FAILED"),
        (ours.issue_server(["one"]), "unsuitable certificate purpose"),
        ("", "PEER_DID_NOT_RETURN_A_CERTIFICATE"),
    ):
        caplog.clear()
        await refusal(links_with(pem, ours.own, tmp_path, stack), other.way)
        await eventually(lambda: why in caplog.text, WAIT)  # noqa: B023
    assert other.accepted == other.answered == 0


async def test_who_is_dialled_has_to_be_the_replica_of_that_name(
    other: Replica, links: Links, tmp_path: Path, authority: bytes, stack: AsyncExitStack
) -> None:
    wrong = other.way._replace(name="another")
    assert await refusal(links, wrong) == "who answers there is the replica other"
    elsewhere = await stack.enter_async_context(Replica(tmp_path, new_authority(), "another"))
    assert "CERTIFICATE_VERIFY_FAILED" in await refusal(links, elsewhere.way)
    served = Signer(authority).issue_server(["127.0.0.1"])
    (tmp_path / "server.pem").write_text(served)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.pem")
    async with listening(lambda _reader, _writer: asyncio.sleep(0), context) as way:
        assert await refusal(links, way) == "who answers there is no replica"
    assert await refusal(Links(None), other.way) == "it listens for no other host"
    assert other.answered == elsewhere.answered == 0


@asynccontextmanager
async def listening(
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
    context: ssl.SSLContext | None = None,
) -> AsyncIterator[Way]:
    """Somebody who listens, and the way there; connections are closed behind ``serve``."""

    async def then_close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(then_close, "127.0.0.1", 0, ssl=context)
    yield Way("id-x", "x", None, server.sockets[0].getsockname()[:2])
    server.close()


async def test_silence_is_bounded_at_every_step(
    other: Replica,
    links: Links,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(relay_links, "HANDSHAKE_SECONDS", 0.2)
    monkeypatch.setattr(accepting, "LOGGED_SECONDS", 0.2)
    monkeypatch.setattr(relay, "FIRST_SECONDS", 0.2)
    forever = asyncio.Event()

    async def wait(*_: object) -> None:
        await forever.wait()

    async with listening(wait) as way:
        assert await refusal(links, way) == "it does not answer"
    async with listening(wait, other.wire.server) as way:
        said = await refusal(links, way._replace(name="other"))
        assert said == "it does not answer"
    # A stranger who says nothing, and a replica that asks for nothing.
    assert other.way.dial is not None
    with aborted(await asyncio.open_connection(*other.way.dial)):
        await eventually(lambda: "has not shown who it is within" in caplog.text, WAIT)
    monkeypatch.setattr(relay_links, "HANDSHAKE_SECONDS", WAIT)
    remote = await relay_links.dial(other.way, links._context)
    await eventually(lambda: remote.is_gone, WAIT)
    remote.close()
    forever.set()


async def test_a_request_that_was_given_up_before_it_began_is_not_done_late(other: Replica) -> None:
    assert other.near.socket is not None
    with address_of(other.near.socket) as name:
        stream = await asyncio.open_unix_connection(name)
    with aborted(stream) as (reader, writer):
        writer.write(pack("scope", (1, {**Client("/unread").scope, "frames": False})))
        writer.write_eof()
        assert await reader.read() == pack("ready", None)
        assert other.answered == 0


async def test_who_is_declared_dead_and_takes_nothing_holds_no_request(links: Links) -> None:
    forever = asyncio.Event()

    async def stopped(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await Frames(reader, writer).next()
        writer.write(pack("ready", None))
        await forever.wait()

    def has_unsent() -> bool:
        return any(
            one._link._writer.transport.get_write_buffer_size()
            for one in links._busy.get("id-x", ())
        )

    async with unix_server(stopped) as way:
        asking = asyncio.ensure_future(Client("/", bytes(2**22)).by(links, way))
        await eventually(has_unsent, WAIT)
        links.keep([])
        with pytest.raises(Broken) as broken:
            await asyncio.wait_for(asking, WAIT)
        assert broken.value.begun
        forever.set()


async def test_strangers_are_bounded(
    other: Replica,
    links: Links,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(accepting, "STRANGERS", 2)
    assert other.way.dial is not None
    with ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(aborted(await asyncio.open_connection(*other.way.dial)))
        await eventually(lambda: "too many others are being looked at" in caplog.text, WAIT)

    async def is_free() -> bool:
        try:
            return await Client().by(links, other.way) == b"/:"
        except Broken:
            return False

    await eventually(is_free, WAIT)


@pytest.mark.parametrize(
    ("method", "headers", "is_told"),
    [
        ("GET", [], True),
        ("HEAD", [(b"accept", b"*/*")], True),
        ("GET", [(b"content-length", b"1")], False),
        ("GET", [(b"transfer-encoding", b"chunked")], False),
        ("DELETE", [], False),
        ("POST", [], False),
    ],
)
async def test_only_a_request_that_changes_nothing_and_has_no_body_does_not_wait_for_the_replica(
    links: Links, method: str, headers: list[tuple[bytes, bytes]], is_told: bool
) -> None:
    came: list[str] = []

    async def replica(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        kinds = [(await Frames(reader, writer).next())[0]]
        if is_told:
            kinds.append((await Frames(reader, writer).next())[0])
        writer.write(pack("ready", None))
        if not is_told:
            kinds.append((await Frames(reader, writer).next())[0])
        start = {"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]}
        writer.write(pack("event", start))
        writer.write(pack("event", {"type": "http.response.body", "body": b"answer"}))
        writer.write(pack("end", None))
        # The event is not sent a second time.
        kinds.append((await Frames(reader, writer).next())[0])
        came.extend(kinds)

    client = Client("/")
    client.scope.update(method=method, headers=headers)
    async with unix_server(replica) as way:
        assert await client.by(links, way) == b"answer"
        await eventually(lambda: len(came) == 3, WAIT)
    assert came == ["scope", "event", "over"]


async def test_an_event_that_nobody_has_read_does_not_get_into_the_next_request(
    other: Replica, links: Links
) -> None:
    for path in ("/elsewhere", "/here", "/elsewhere", "/here", "/here"):
        client = Client(path)
        client.scope["method"] = "GET"
        is_here = await links.run(other.way, client.scope, client.to_send.get, client.send)
        assert is_here == (path == "/here")
    # Whoever waits for a takeover asks again and again, and not by a handshake each time.
    assert (other.answered, other.accepted) == (3, 1)


async def test_an_earlier_release_does_not_read_an_event_that_came_too_early(links: Links) -> None:
    accepted = 0

    async def earlier(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal accepted
        accepted += 1
        kind, _ = await Frames(reader, writer).next()
        assert kind == "scope"
        writer.write(pack("elsewhere", None))
        kind, _ = await Frames(reader, writer).next()
        assert kind == "event"  # which it takes for the end of the connection

    async with unix_server(earlier) as way:
        for _ in range(2):
            client = Client()
            client.scope["method"] = "GET"
            assert not await links.run(way, client.scope, client.to_send.get, client.send)
            assert links._idle == {}
        assert accepted == 2


# Replicas of an earlier release close the connection when a request has ended, at either end.


async def test_an_earlier_release_is_asked(links: Links) -> None:
    served = 0

    async def earlier(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal served
        kind, (version, _) = await Frames(reader, writer).next()
        assert (kind, version) == ("scope", 1)
        writer.write(pack("ready", None))
        kind, _ = await Frames(reader, writer).next()
        assert kind == "event"
        start = {"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]}
        writer.write(pack("event", start))
        writer.write(pack("event", {"type": "http.response.body", "body": b"earlier"}))
        writer.write(pack("end", None))
        await writer.drain()
        served += 1

    async with unix_server(earlier) as way:
        for _ in range(3):
            assert await Client().by(links, way) == b"earlier"
    assert served == 3


@asynccontextmanager
async def unix_server(
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[Way]:
    import tempfile

    async def then_close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve(reader, writer)
        finally:
            writer.close()

    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "x.sock")
        server = await asyncio.start_unix_server(then_close, str(path))
        yield Way("id-x", "x", path, None)
        server.close()


async def test_an_earlier_release_asks(other: Replica) -> None:
    assert other.near.socket is not None
    with address_of(other.near.socket) as name:
        stream = await asyncio.open_unix_connection(name)
    with aborted(stream) as (reader, writer):
        writer.write(pack("scope", (1, {**Client("/a").scope, "frames": False})))
        assert await Frames(reader, writer).next() == ("ready", None)
        writer.write(pack("event", {"type": "http.request", "body": b"b", "more_body": False}))
        kinds = [await Frames(reader, writer).next() for _ in range(3)]
        assert [kind for kind, _ in kinds] == ["event", "event", "end"]
        assert kinds[1][1]["body"] == b"/a:b"
    await eventually(lambda: not other.server._tasks, WAIT)


async def test_a_version_that_is_not_spoken_is_told(
    other: Replica, links: Links, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "VERSION", 99)
    said = await refusal(links, other.way)
    assert said == "it speaks version [1], and this replica 99"
    assert other.answered == 0


def test_a_frame_for_one_that_is_gone_is_a_connection_that_is_reset() -> None:
    """uvloop raises a `RuntimeError` where asyncio's own loop says nothing."""

    async def say_it() -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            reader, writer = await asyncio.open_unix_connection(sock=ours)
            writer.transport.abort()
            await asyncio.sleep(0)
            with pytest.raises(ConnectionResetError):
                Frames(reader, writer).say("event", {})

    uvloop.run(say_it())
