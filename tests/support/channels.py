"""A WebSocket client of a kernel's channels."""

from __future__ import annotations

import asyncio
import socket
import uuid
from collections import deque
from collections.abc import Callable, Collection, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import groupby
from typing import Any, NamedTuple, Self
from urllib.parse import urlencode, urlsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Origin, Subprotocol

from tests.support.framing import (
    V1_SUBPROTOCOL,
    FramingName,
    Json,
    Message,
    decode_legacy,
    decode_v1,
    encode_legacy,
    encode_v1,
)

REPLY_TIMEOUT = 30  # seconds
CONNECT_TIMEOUT = 30  # seconds
CLOSE_TIMEOUT = 5  # seconds


@dataclass
class Exchange:
    """A request, and all that came back with it as the parent, in order of arrival."""

    msg_id: str
    messages: list[Message] = field(default_factory=list)

    @property
    def replies(self) -> list[Message]:
        return [m for m in self.messages if m.msg_type.endswith("_reply") and m.channel != "iopub"]

    @property
    def reply(self) -> Json:
        """The content of the one reply."""
        (reply,) = self.replies
        return reply.content

    @property
    def states(self) -> list[str]:
        """The execution states that were told, normally busy and idle."""
        return [message.state for message in self.messages if message.state is not None]

    @property
    def outputs(self) -> list[Message]:
        """What came on iopub, but for ``status`` and ``execute_input``."""
        silent = ("status", "execute_input")
        return [m for m in self.messages if m.channel == "iopub" and m.msg_type not in silent]

    def of_type(self, msg_type: str) -> list[Message]:
        return [message for message in self.messages if message.msg_type == msg_type]

    def stream(self, name: str = "stdout") -> str:
        """The text of all ``stream`` messages of that name."""
        contents = [message.content for message in self.of_type("stream")]
        return "".join(content["text"] for content in contents if content["name"] == name)

    @property
    def text(self) -> str:
        return self.stream()

    @property
    def result(self) -> str:
        """``text/plain`` of the one ``execute_result``."""
        (message,) = self.of_type("execute_result")
        return str(message.content["data"]["text/plain"])

    @property
    def error(self) -> Json:
        """The content of the one ``error``."""
        (message,) = self.of_type("error")
        return message.content

    def is_complete(self, *, replies: bool = True) -> bool:
        return "idle" in self.states and (bool(self.replies) or not replies)


class Close(NamedTuple):
    """A close frame from the server; code 1006 means that there was none."""

    code: int
    reason: str


class JupyterChannels:
    """A connection to one kernel; made by :meth:`connect`, an asynchronous context manager.

    ``log`` holds every message received (the last ones, if it was given a length). There is no
    background task: messages are read while a method waits for some, so that a client that
    does not call any is one that does not read, and its back-pressure reaches the server.
    """

    def __init__(
        self,
        websocket: ClientConnection,
        session: str,
        *,
        omit: Collection[str] = (),
        empty_buffers: object = None,
        log_length: int | None = None,
    ) -> None:
        self.websocket = websocket
        self.session = session
        self.log: deque[Message] = deque(maxlen=log_length)
        self._is_v1 = websocket.subprotocol == V1_SUBPROTOCOL
        self._omit = frozenset(omit)
        self._empty_buffers = [] if empty_buffers is None else empty_buffers

    @classmethod
    async def connect(
        cls,
        ws_url: str,
        kernel_id: str,
        token: str | None,
        *,
        framing: FramingName = "legacy",
        session_id: str | None = None,
        omit: Collection[str] = (),
        empty_buffers: object = None,
        query: dict[str, str] | None = None,
        headers: dict[str, str] | None = None,
        origin: str | None = None,
        offers: Sequence[str] | None = None,
        log_length: int | None = None,
        receive_buffer: int | None = None,
        compression: bool = False,
    ) -> Self:
        """Opens the WebSocket and checks which framing was negotiated.

        Args:
            token: Sent as ``Authorization: token``; ``None`` sends no credentials.
            session_id: Of the URL and of the headers; by default a new one.
            omit: What a sloppy client leaves out: ``session_id`` (of the URL), any header field
                (``date``, ``session``, ``username``, ``version``), and, with the legacy framing
                only, any key beside the header (``channel``, ``buffers``, ``metadata``, ...).
            empty_buffers: What a legacy text frame has as ``buffers`` (sloppy clients: ``{}``).
            query: Added to the URL (``{"token": ...}``).
            offers: Subprotocols to offer in the place of the framing's; then what was
                negotiated is not checked, and decides the framing.
            receive_buffer: Bytes of the socket's buffer, which then with one frame and what asyncio
                reads ahead is all that is taken from the server by a client that does not read.
            compression: Whether to offer permessage-deflate.

        Raises:
            websockets.exceptions.InvalidStatus: the server refused.
        """
        session = session_id or uuid.uuid4().hex
        parameters = {} if "session_id" in omit else {"session_id": session}
        url = f"{ws_url}/api/kernels/{kernel_id}/channels?{urlencode(parameters | (query or {}))}"
        credentials = {} if token is None else {"Authorization": f"token {token}"}
        default_offers = [V1_SUBPROTOCOL] if framing == "v1" else []
        offered = default_offers if offers is None else [Subprotocol(offer) for offer in offers]
        own_socket: dict[str, Any] = {}
        if receive_buffer is not None:
            own_socket = {"sock": _small_socket(ws_url, receive_buffer)}
        websocket = await connect(
            url.rstrip("?"),
            **own_socket,
            max_queue=16 if receive_buffer is None else 1,
            subprotocols=offered or None,
            additional_headers=credentials | (headers or {}),
            origin=None if origin is None else Origin(origin),
            compression="deflate" if compression else None,
            max_size=None,
            open_timeout=CONNECT_TIMEOUT,
            close_timeout=CLOSE_TIMEOUT,
            # A client that does not read does not answer pings either: no timer of ours ends it.
            ping_interval=None,
            proxy=None,
        )
        if offers is None:
            negotiated = websocket.subprotocol
            assert negotiated == (offered[0] if offered else None), f"negotiated {negotiated}"
        return cls(
            websocket, session, omit=omit, empty_buffers=empty_buffers, log_length=log_length
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Waits for the server's close frame, up to ``CLOSE_TIMEOUT`` seconds."""
        closing = asyncio.create_task(self.websocket.close())
        try:
            # What nobody has read lies before the close frame and would hold it up.
            async for _ in self.websocket:
                pass
        except ConnectionClosed:
            pass
        await closing

    # -- sending

    def header(self, msg_type: str, **fields: Any) -> Json:
        header = {
            "msg_id": uuid.uuid4().hex,
            "msg_type": msg_type,
            "session": self.session,
            "username": "tester",
            "date": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
            "version": "5.4",
            **fields,
        }
        return {name: value for name, value in header.items() if name not in self._omit}

    async def send(
        self,
        msg_type: str,
        content: Json | None = None,
        channel: str = "shell",
        *,
        buffers: Sequence[bytes] = (),
        parent: Json | None = None,
        metadata: Json | None = None,
        **header: Any,
    ) -> str:
        """Sends a message and returns its id; ``header`` overrides fields of the header."""
        fields = self.header(msg_type, **header)
        message = Message(
            channel, fields, parent or {}, metadata or {}, content or {}, list(buffers)
        )
        await self.send_frame(self.encode(message))
        return message.msg_id

    def encode(self, message: Message) -> str | bytes:
        if self._is_v1:
            return encode_v1(message)
        parts = {name: value for name, value in vars(message).items() if name not in self._omit}
        if message.buffers:
            parts.pop("buffers", None)
        elif "buffers" in parts:
            parts["buffers"] = self._empty_buffers
        return encode_legacy(parts, message.buffers)

    async def send_frame(self, frame: str | bytes) -> None:
        """Sends any frame, for what :meth:`send` would not."""
        async with asyncio.timeout(REPLY_TIMEOUT):
            await self.websocket.send(frame)

    # -- receiving

    async def recv(self, timeout: float = REPLY_TIMEOUT) -> Message:
        """The next message.

        Raises:
            TimeoutError: none came within ``timeout`` seconds.
            websockets.exceptions.ConnectionClosed: the connection ended.
        """
        async with asyncio.timeout(timeout):
            frame = await self.websocket.recv()
        message = decode_v1(frame) if self._is_v1 else decode_legacy(frame)
        self.log.append(message)
        return message

    async def collect_until(
        self, predicate: Callable[[Message], bool], timeout: float = REPLY_TIMEOUT
    ) -> list[Message]:
        """The messages from now on, up to the first that satisfies ``predicate``."""
        messages: list[Message] = []
        try:
            async with asyncio.timeout(timeout):
                while not messages or not predicate(messages[-1]):
                    messages.append(await self.recv(timeout))
        except TimeoutError as error:
            error.add_note(f"received: {summary(messages)}")
            raise
        return messages

    async def collect_for(self, seconds: float) -> list[Message]:
        """All messages that come within a time, to see what does *not* come."""
        messages: list[Message] = []
        try:
            async with asyncio.timeout(seconds):
                while True:
                    messages.append(await self.recv(seconds))
        except TimeoutError:
            return messages

    async def seen(
        self, predicate: Callable[[Message], bool], timeout: float = REPLY_TIMEOUT
    ) -> Message:
        """The first message that satisfies ``predicate``, of the log and of what follows."""
        for message in self.log:
            if predicate(message):
                return message
        return (await self.collect_until(predicate, timeout))[-1]

    async def closed(self, timeout: float = REPLY_TIMEOUT) -> Close:
        """Reads until the server closes the connection."""
        try:
            await self.collect_until(lambda _: False, timeout)
        except ConnectionClosed as closed:
            if closed.rcvd is not None:
                return Close(closed.rcvd.code, closed.rcvd.reason)
        return Close(1006, "")

    # -- requests

    async def request(
        self,
        msg_type: str,
        content: Json | None = None,
        channel: str = "shell",
        *,
        timeout: float = REPLY_TIMEOUT,
        replies: bool = True,
        **more: Any,
    ) -> Exchange:
        """Sends a request and waits for its reply (``replies``: whether there is one) and idle."""
        msg_id = await self.send(msg_type, content, channel, **more)
        return await self.exchange(msg_id, timeout=timeout, replies=replies)

    async def execute(
        self,
        code: str,
        *,
        timeout: float = REPLY_TIMEOUT,
        answers: Sequence[str] = (),
        **content: Any,
    ) -> Exchange:
        """Runs code to its end; ``answers`` are given to its input requests, one each."""
        msg_id = await self.send_execute(code, allow_stdin=bool(answers), **content)
        return await self.exchange(msg_id, timeout=timeout, answers=answers)

    async def send_execute(self, code: str, **content: Any) -> str:
        """Sends an execute_request and waits for nothing; ``content`` overrides its fields."""
        defaults = {
            "code": code,
            "silent": False,
            "store_history": True,
            "user_expressions": {},
            "allow_stdin": False,
            "stop_on_error": True,
        }
        return await self.send("execute_request", defaults | content)

    async def exchange(
        self,
        msg_id: str,
        *,
        timeout: float = REPLY_TIMEOUT,
        replies: bool = True,
        answers: Sequence[str] = (),
    ) -> Exchange:
        """All that belongs to a request, as soon as both its reply and its idle are there.

        Looks into the log first, so that of several requests any may be waited for first.
        """
        exchange = Exchange(msg_id, [m for m in self.log if m.parent_id == msg_id])
        unused = deque(answers)
        try:
            async with asyncio.timeout(timeout):
                is_complete = exchange.is_complete(replies=replies)
                while not is_complete:
                    message = await self.recv(timeout)
                    if message.parent_id != msg_id:
                        continue
                    exchange.messages.append(message)
                    # Nothing else completes it, and there may be thousands of messages to look at.
                    if message.state == "idle" or message.channel != "iopub":
                        is_complete = exchange.is_complete(replies=replies)
                    if message.msg_type == "input_request" and unused:
                        await self.answer(message, unused.popleft())
        except TimeoutError as error:
            error.add_note(f"received: {summary(exchange.messages)}")
            raise
        return exchange

    async def answer(self, input_request: Message, value: str) -> str:
        """Sends the input_reply to an input_request."""
        parent = input_request.header
        return await self.send("input_reply", {"value": value}, "stdin", parent=parent)


def _small_socket(ws_url: str, receive_buffer: int) -> socket.socket:
    """A connected socket; the size of its buffer must be there before the connection is."""
    parts = urlsplit(ws_url)
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.settimeout(CONNECT_TIMEOUT)
    connection.connect((parts.hostname, parts.port))
    connection.setblocking(False)
    return connection


def summary(messages: Sequence[Message]) -> str:
    """One line about messages, for the text of a failure."""
    what = (f"{message.channel}:{message.state or message.msg_type}" for message in messages)
    runs = ((name, len([*run])) for name, run in groupby(what))
    return ", ".join(name if count == 1 else f"{name} ({count} times)" for name, count in runs)


@dataclass
class Connector:
    """Opens channels of one server and closes them together."""

    ws_url: str
    token: str
    stack: AsyncExitStack

    async def __call__(self, kernel_id: str, **options: Any) -> JupyterChannels:
        """``options`` are those of :meth:`JupyterChannels.connect`."""
        options = {"token": self.token, **options}
        channels = await JupyterChannels.connect(self.ws_url, kernel_id, **options)
        return await self.stack.enter_async_context(channels)
