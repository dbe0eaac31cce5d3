"""What this server uses of uvicorn that its documentation does not promise.

Nothing else in this package imports those parts of uvicorn. Each class here stands between one of
uvicorn's and the subclass of it that this server runs. The subclass may use what is declared here,
and override what ``hooks`` names; ``tests/test_uvicorn_internals.py`` holds it to that, and uvicorn
to what is declared. The upper bound in ``pyproject.toml`` stands for this module: a release beyond
it is admitted when those tests pass with it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, ClassVar, cast

import uvicorn
from uvicorn._types import ASGIReceiveEvent, ASGISendEvent
from uvicorn.lifespan.off import LifespanOff
from uvicorn.lifespan.on import LifespanOn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.protocols.utils import (
    ClientDisconnected,
    get_client_addr,
    get_path_with_query_string,
)
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState
from websockets.http11 import Response
from websockets.server import ServerProtocol

__all__ = [
    "ASGIReceiveEvent",
    "ASGISendEvent",
    "ClientDisconnected",
    "HTTPProtocol",
    "RequestResponseCycle",
    "Server",
    "WebSocketProtocol",
]


class HTTPProtocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol over httptools; one object a connection.

    uvicorn feeds the parser in `data_received`; the parser calls the methods ``on_...``, and what
    they raise makes uvicorn call `send_400_response`.
    """

    hooks: ClassVar = (
        *("connection_made", "data_received", "connection_lost"),
        *("on_message_begin", "on_header", "on_headers_complete", "on_body"),
        *("on_message_complete", "on_response_complete", "send_400_response"),
    )

    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport
    headers: list[tuple[bytes, bytes]]  # of the request that comes, names in lower case
    url: bytes  # its target

    @property
    def others(self) -> set[Any]:
        """The connections of the whole server, of all protocols, this one among them."""
        return self.connections

    @property
    def answer(self) -> RequestResponseCycle | None:
        """The response to the request that came last, if one has come."""
        return cast("RequestResponseCycle | None", self.cycle)

    @property
    def is_idle(self) -> bool:
        """Whether nobody works for this connection: its request is not all there, or answered."""
        return self.answer is None or self.answer.response_complete

    @property
    def waits_for_application(self) -> bool:
        """Whether the client cannot go on with its body before the application reads it."""
        go_ahead = not self.is_idle and self.cycle.waiting_for_100_continue
        return self.flow.read_paused or go_ahead

    @property
    def is_timed(self) -> bool:
        """Whether uvicorn's own timer ends the connection when no further request comes."""
        return self.timeout_keep_alive_task is not None

    @property
    def http_version(self) -> str:
        """The version in the request's first line."""
        return str(self.parser.get_http_version())

    @property
    def default_headers(self) -> list[tuple[bytes, bytes]]:
        """What every response has: ``Date``, for one."""
        return self.server_state.default_headers

    def log_refusal(self) -> None:
        """Log the line that uvicorn has for what its parser refuses."""
        self.logger.warning("Invalid HTTP request received.")

    def begin_answer(self, wrap: Callable[[RequestResponseCycle], object]) -> None:
        """Have the head taken in, and the response to it written to what ``wrap`` returns.

        That needs the methods ``write``, ``close`` and ``is_closing`` of a transport. A request for
        a WebSocket has no response of this kind.
        """
        before = self.answer
        super().on_headers_complete()
        if self.answer is not None and self.answer is not before:
            # The task of the application has been made but has not run yet.
            self.answer.transport = cast("asyncio.Transport", wrap(self.answer))


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket protocol over websockets' sans-I/O one; one object a connection.

    uvicorn feeds ``conn`` in `data_received`, and calls a method ``handle_...`` for each frame.
    With the last frame of a message it calls `send_receive_event_to_app`.
    """

    hooks: ClassVar = (
        *("connection_made", "data_received", "connection_lost", "resume_writing"),
        *("handle_connect", "handle_cont", "handle_ping", "handle_pong", "handle_close"),
        *("send_receive_event_to_app", "keepalive_timeout", "receive", "send"),
    )

    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport
    logger: logging.Logger
    client: tuple[str, int] | None
    conn: ServerProtocol
    queue: asyncio.Queue[ASGIReceiveEvent]  # what the application will receive
    writable: asyncio.Event  # not set while the transport's buffer is full
    read_paused: bool

    handshake_initiated: bool  # a request has come
    handshake_complete: bool  # it was answered, or there is nobody to answer
    close_sent: bool
    disconnected: bool
    response: Response  # to the request, unless the application refuses it

    frames: list[bytes]  # of the message that comes
    ping_timeout: float | None
    pong_timer: asyncio.TimerHandle | None

    def fail(self) -> None:
        """Close, now that ``conn`` has failed the connection."""
        self.handle_parser_exception()

    def ping_for_keepalive(self) -> None:
        """Send a ping, and call `keepalive_timeout` without a pong in ``ping_timeout`` seconds."""
        self.send_keepalive_ping()

    @property
    def is_text(self) -> bool:
        """Whether the message that comes is text."""
        return self.curr_msg_data_type == "text"

    @property
    def extensions(self) -> dict[str, object]:
        """The extensions of ASGI that the application will see.

        While `handle_connect` runs: the application's task has been made but has not run yet.
        """
        return cast("dict[str, object]", self.scope["extensions"])

    @property
    def request_line(self) -> tuple[str, str]:
        """The client's address and the target, for the log; what a proxy forwards is in it."""
        return get_client_addr(self.scope), get_path_with_query_string(self.scope)


class Server(uvicorn.Server):
    """uvicorn's server, which awaits `startup`, `main_loop` and `shutdown` in this order.

    `handle_exit` is called for each signal that ends the server.
    """

    hooks: ClassVar = ("startup", "main_loop", "handle_exit", "shutdown")

    config: uvicorn.Config
    started: bool
    force_exit: bool  # skip what is left of the end, that of the lifespan too
    lifespan: LifespanOff | LifespanOn

    @property
    def lifespan_state(self) -> dict[str, Any]:
        """What the application's lifespan has yielded."""
        return self.lifespan.state

    @property
    def connections(self) -> set[Any]:
        """All connections, of every protocol."""
        state: ServerState = self.server_state
        return {*state.connections}

    async def is_to_end(self) -> bool:
        """Whether a signal has said so. Sets the ``Date`` of responses, so call it every second."""
        return await self.on_tick(0)
