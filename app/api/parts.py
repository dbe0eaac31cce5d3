"""Requests to which each replica has a part of the answer: the one that is asked asks the others.

The others get the request with the caller's own credentials, over the connections that replicas
have between them (`relay_links.py`). Each answers for its own kernels alone, as it sees that
another replica has sent the request. The part of a replica that does not answer in time is left
out. A request counts against its caller's limits at the replica to which the caller has sent it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

import msgspec
from starlette.requests import HTTPConnection
from starlette.types import Message, Receive, Scope

from .relay import RELAYED, Broken
from .relay_links import Links
from .streams import NDJSON

if TYPE_CHECKING:
    from ..managers.replicas.group import Group, Way

__all__ = ["Others", "has_parts", "is_part", "others_of"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

ANSWER_SECONDS: Final = 1.0
"""How long the other replicas may take to answer, or to begin a stream."""

SILENT_SECONDS: Final = 5.0
"""How long a replica that has not answered in time is not asked again: it would hold up each
request of a client that polls."""

LOOK_SECONDS: Final = 1.0
"""How often a stream looks for replicas that have come or gone."""

RETRY_SECONDS: Final = 1.0
LONGEST_RETRY_SECONDS: Final = 30.0
"""The longest pause before a replica is followed again that has ended its stream or begun none."""

CANCEL_SECONDS: Final = 5.0
"""How long a request to another replica may take to end when it is cancelled."""

MAX_BYTES: Final = 2**26
"""The longest answer, and the longest line of a stream."""

MISSED: Final = 1013
"""The close code of a replica whose events were not taken fast enough."""

_ROUTES: Final = frozenset(
    {
        ("GET", "/api/status"),
        ("GET", "/api/overview"),
        ("GET", "/api/owners"),
        ("PATCH", "/api/me"),
        ("WebSocket", "/api/events/subscribe"),
    }
)

_SENT: Final = frozenset(
    {b"host", b"authorization", b"origin", b"sec-fetch-site", b"x-request-id", b"traceparent"}
)
"""The headers of a request that the other replicas get: who asks, and from where."""


def has_parts(scope: Mapping[str, Any], prefix: str) -> bool:
    """Whether each replica has a part of the answer to a request.

    The request's path may begin with the proxy's ``prefix``.
    """
    path: str = scope["path"]
    if prefix and path.startswith(f"{prefix}/"):
        path = path.removeprefix(prefix)
    method = scope.get("method", "WebSocket")
    return (method, path) in _ROUTES or (method == "GET" and path.startswith("/api/owners/"))


def is_part(scope: Mapping[str, Any]) -> bool:
    """Whether another replica asks for this one's part, on behalf of a caller of its own."""
    return RELAYED in scope and has_parts(scope, scope.get("root_path", ""))


def others_of(connection: HTTPConnection) -> Others | None:
    """The replicas to ask for their parts; None if there are none, or if one of them is asking."""
    others: Others | None = connection.scope.get("state", {}).get("others")
    return None if RELAYED in connection.scope else others


class Taking(Protocol):
    """A subscription that takes the events of other replicas."""

    def put(self, event: str) -> None:
        """Take an event."""

    def miss(self) -> None:
        """Note that some events have been lost."""


class Others:
    """The other replicas, as far as this one reaches them."""

    def __init__(self, group: Group, links: Links) -> None:
        self._group = group
        self._links = links
        self._silent: dict[str, float] = {}  # until when they are not asked
        self._loop = asyncio.get_running_loop()

    async def ask(
        self, connection: HTTPConnection, read: Callable[[bytes], T], body: bytes = b""
    ) -> dict[str, T]:
        """Send the same request to the other replicas; returns their answers by replicas' ids.

        ``read`` decodes the body of each answer with status 200. Other answers, and those that it
        cannot decode (`msgspec.MsgspecError`), are left out. A replica that was silent lately is
        not asked, unless the request changes something: it may do so although it does not answer.
        """
        now = self._loop.time()
        self._silent = {one: until for one, until in self._silent.items() if until > now}
        spared = self._silent if connection.scope["method"] == "GET" else ()
        ways = [way for way in self._group.others() if way.replica not in spared]
        scope = _asked(connection.scope, b"application/json", body)
        tasks = {
            way.replica: self._loop.create_task(self._answer(way, scope, body)) for way in ways
        }
        if not tasks:
            return {}
        try:
            await asyncio.wait(tasks.values(), timeout=ANSWER_SECONDS)
            # If the client goes before the time is over, this is cancelled, and no replica counts
            # as silent.
            late = [one for one, task in tasks.items() if not task.done()]
            self._silent |= dict.fromkeys(late, self._loop.time() + SILENT_SECONDS)
        finally:
            # A task that is late closes its connection: the late answer is not taken for that of a
            # later request.
            await _end(tasks.values())
        ended = {one: task for one, task in tasks.items() if task.done() and not task.cancelled()}
        answers = {one: task.result() for one, task in ended.items()}
        found = {}
        for way in ways:
            if (answer := answers.get(way.replica)) is not None:
                try:
                    found[way.replica] = read(answer)
                except msgspec.MsgspecError as error:
                    logger.warning("replica %s answers what is no answer: %s", way.name, error)
        return found

    async def _answer(self, way: Way, scope: Scope, body: bytes) -> bytes | None:
        # An answer that has not come to its end is left out: half a list is no list.
        answer, status, is_whole = bytearray(), 0, False

        async def send(message: Message) -> None:
            nonlocal status, is_whole
            if message["type"] == "http.response.start":
                status = message["status"]
            elif message["type"] == "http.response.body":
                answer.extend(message.get("body", b""))
                is_whole = not message.get("more_body")
                _check_length(answer)

        first = {"type": "http.request", "body": body, "more_body": False}
        try:
            await self._links.run(way, scope, _said(first), send)
        except (Broken, OSError) as error:
            logger.debug("replica %s has not answered: %s", way.name, error)
        except Exception:
            logger.exception("replica %s could not be asked", way.name)
        return bytes(answer) if is_whole and status == 200 else None

    # Streams

    @asynccontextmanager
    async def lines(
        self,
        scope: Scope,
        take: Callable[[str, bytes], bool],
        ended: Callable[[str], None],
    ) -> AsyncIterator[None]:
        """Within, follow the streams of lines with which the other replicas answer this request.

        ``take`` gets a replica's id and each of its lines, and returns whether the line is the one
        that ends the replica's first, whole account. ``ended`` gets the id of a replica whose
        stream has ended; another stream of that replica may follow.
        """
        asked = _asked(scope, NDJSON.encode(), b"")

        async def follow(way: Way, ready: Callable[[], None]) -> None:
            begun = bytearray()

            async def send(message: Message) -> None:
                if message["type"] == "http.response.start" and message["status"] != 200:
                    raise OSError(f"it answers {message['status']}")
                # A part of the body may end in the middle of a line.
                *lines, rest = (bytes(begun) + message.get("body", b"")).split(b"\n")
                begun[:] = rest
                _check_length(begun)
                for line in filter(None, lines):
                    if take(way.replica, line):
                        ready()

            first = {"type": "http.request", "body": b"", "more_body": False}
            try:
                await self._links.run(way, asked, _said(first), send)
            finally:
                ended(way.replica)

        async with self._followed(follow):
            yield

    @asynccontextmanager
    async def events(self, scope: Scope, taking: Taking) -> AsyncIterator[None]:
        """Within, put the events of the other replicas into ``taking``, too."""
        asked = _asked(scope, b"*/*", b"")

        async def follow(way: Way, ready: Callable[[], None]) -> None:
            async def send(message: Message) -> None:
                # The other replica accepts when it has subscribed: none of its events is missed
                # from then on.
                if message["type"] == "websocket.accept":
                    ready()
                elif message["type"] == "websocket.send":
                    taking.put(message["text"])
                elif message["type"] == "websocket.close" and message.get("code") == MISSED:
                    taking.miss()

            await self._links.run(way, asked, _said({"type": "websocket.connect"}), send)

        async with self._followed(follow):
            yield

    @asynccontextmanager
    async def _followed(self, follow: Follow) -> AsyncIterator[None]:
        """Within, follow every other replica.

        The block begins when each has begun its stream, or after `ANSWER_SECONDS`.
        """
        following = _Following(self._group, follow)
        task = self._loop.create_task(following.run(), name="follow the other replicas")
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ANSWER_SECONDS):
                    await following.begun()
            yield
        finally:
            await _end([task], 2 * CANCEL_SECONDS)  # `run` ends its own tasks, and waits for them


Follow = Callable[["Way", Callable[[], None]], Awaitable[None]]
"""Follows a replica until its stream ends, and calls the second argument when that has begun."""


class _Following:
    """A task for each of the other replicas that the registry has."""

    def __init__(self, group: Group, follow: Follow) -> None:
        self._group = group
        self._follow = follow
        self._loop = asyncio.get_running_loop()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._begun = {way.replica: asyncio.Event() for way in group.others()}

    async def begun(self) -> None:
        """Return when the stream of each replica that was there at first has begun."""
        # One after the other will do: each of these events stays set.
        for begun in self._begun.values():
            await begun.wait()

    async def run(self) -> None:
        """Follow each replica that joins, and stop following each that leaves."""
        try:
            while True:
                ways = {way.replica: way for way in self._group.others()}
                # The cancelled tasks are not awaited: nothing here depends on their ends.
                for gone in self._tasks.keys() - ways.keys():
                    self._tasks.pop(gone).cancel()
                for replica in ways.keys() - self._tasks.keys():
                    task = self._loop.create_task(self._again(ways[replica]))
                    self._tasks[replica] = task
                await asyncio.sleep(LOOK_SECONDS)
        finally:
            await _end(self._tasks.values())

    async def _again(self, way: Way) -> None:
        """Follow a replica, and again when that has ended: it may have been restarted."""
        pause = RETRY_SECONDS
        while True:
            begun = False

            def ready() -> None:
                nonlocal begun
                begun = True
                if way.replica in self._begun:
                    self._begun[way.replica].set()

            try:
                await self._follow(way, ready)
            except (Broken, OSError) as error:
                logger.debug("replica %s is not followed: %s", way.name, error)
            except Exception:
                logger.exception("replica %s could not be followed", way.name)
            pause = RETRY_SECONDS if begun else min(2 * pause, LONGEST_RETRY_SECONDS)
            await asyncio.sleep(pause)


async def _end(tasks: Collection[asyncio.Task[Any]], seconds: float = CANCEL_SECONDS) -> None:
    """Cancel tasks; returns when they have ended, or after so many ``seconds``."""
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=seconds)


def _check_length(answer: bytearray) -> None:
    if len(answer) > MAX_BYTES:
        raise OSError("it answers too much")


def _said(first: Message) -> Receive:
    """The ``receive`` of a client that sends one event, and then waits for the answer."""
    waiting = [first]

    async def receive() -> Message:
        if waiting:
            return waiting.pop()
        await asyncio.get_running_loop().create_future()  # until the answer has ended
        raise AssertionError

    return receive


def _asked(scope: Scope, accept: bytes, body: bytes) -> Scope:
    """The scope of a request as the other replicas get it."""
    headers = [(name, value) for name, value in scope["headers"] if name in _SENT]
    headers.append((b"accept", accept))
    if body:
        headers.append((b"content-type", b"application/json"))
        headers.append((b"content-length", b"%d" % len(body)))
    return {**scope, "headers": headers, "extensions": {}}
