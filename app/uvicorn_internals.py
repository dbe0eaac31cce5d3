"""The undocumented parts of uvicorn that this server uses.

No other module of this package imports those parts. Each class here lies between a class of
uvicorn's and the subclass of it that this server runs. The subclass may use the attributes that are
declared here, and override the methods that ``hooks`` names. ``tests/test_uvicorn_internals.py``
checks that it does nothing else, and that uvicorn has what is declared. The upper bound on the
version of uvicorn in ``pyproject.toml`` is there because of this module: a later release is
admitted when those tests pass with it.
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

    uvicorn feeds the parser in `data_received`, and the parser calls the methods ``on_...``. If one
    of them raises, uvicorn calls `send_400_response`.
    """

    hooks: ClassVar = (
        *("connection_made", "data_received", "connection_lost"),
        *("on_message_begin", "on_header", "on_headers_complete", "on_body"),
        *("on_message_complete", "on_response_complete", "send_400_response"),
    )

    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport
    headers: list[tuple[bytes, bytes]]  # of the present request, with names in lower case
    url: bytes  # the target of the present request

    @property
    def others(self) -> set[Any]:
        """All connections of the server, of every protocol, with this one."""
        return self.connections

    @property
    def answer(self) -> RequestResponseCycle | None:
        """The response to the last request, if there has been one."""
        cycle: RequestResponseCycle | None = self.cycle
        return cycle

    @property
    def is_idle(self) -> bool:
        """Whether no response is being made: the head is incomplete, or the last one is sent."""
        return self.answer is None or self.answer.response_complete

    @property
    def waits_for_application(self) -> bool:
        """Whether the client cannot send more of its body before the application reads it."""
        go_ahead = not self.is_idle and self.cycle.waiting_for_100_continue
        return self.flow.read_paused or go_ahead

    @property
    def is_timed(self) -> bool:
        """Whether uvicorn's own timer runs, which ends a connection without a further request."""
        return self.timeout_keep_alive_task is not None

    @property
    def http_version(self) -> str:
        """The HTTP version in the request's first line."""
        return str(self.parser.get_http_version())

    @property
    def default_headers(self) -> list[tuple[bytes, bytes]]:
        """The headers of every response, such as ``Date``."""
        return self.server_state.default_headers

    def log_refusal(self) -> None:
        """Log the line that uvicorn logs for a request that its parser refuses."""
        self.logger.warning("Invalid HTTP request received.")

    def begin_answer(self, wrap: Callable[[RequestResponseCycle], object]) -> None:
        """Have uvicorn accept the head, and write the response to the object that ``wrap`` returns.

        That object needs the methods ``write``, ``close`` and ``is_closing`` of a transport. A
        request for a WebSocket gets no such response.
        """
        before = self.answer
        super().on_headers_complete()
        if self.answer is not None and self.answer is not before:
            # The application's task exists, but runs only in a later turn of the loop. So nothing
            # of the response has been written to the old transport.
            self.answer.transport = cast("asyncio.Transport", wrap(self.answer))


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket protocol over websockets' sans-I/O one; one object a connection.

    uvicorn feeds ``conn`` in `data_received`, and calls a method ``handle_...`` for each frame.
    With the last frame of a message it calls `send_receive_event_to_app`.
    """

    hooks: ClassVar = (
        *("connection_made", "data_received", "connection_lost", "resume_writing"),
        *("handle_connect", "handle_cont", "handle_ping", "handle_pong", "handle_close"),
        *("send_receive_event_to_app", "keepalive_timeout", "receive", "send", "shutdown"),
    )

    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport
    logger: logging.Logger
    client: tuple[str, int] | None
    conn: ServerProtocol
    queue: asyncio.Queue[ASGIReceiveEvent]  # the events that the application will receive
    writable: asyncio.Event  # cleared while the transport's buffer is full
    read_paused: bool

    handshake_initiated: bool  # the request has come
    handshake_complete: bool  # the request was answered, or the client is gone
    close_sent: bool
    disconnected: bool
    response: Response  # the answer to the request, unless the application refuses it
    default_headers: list[tuple[bytes, bytes]]  # those of every response, such as ``Date``

    frames: list[bytes]  # the payloads of the present message's frames
    ping_timeout: float | None
    pong_timer: asyncio.TimerHandle | None

    def fail(self) -> None:
        """Close the connection, which ``conn`` has failed [RFC 6455, section 7.1.7]."""
        self.handle_parser_exception()

    def ping_for_keepalive(self) -> None:
        """Send a ping; without a pong in ``ping_timeout`` seconds `keepalive_timeout` is called."""
        self.send_keepalive_ping()

    @property
    def is_text(self) -> bool:
        """Whether the present message is text."""
        return self.curr_msg_data_type == "text"

    @property
    def extensions(self) -> dict[str, object]:
        """The extensions of ASGI in the application's scope.

        `handle_connect` may still add to them: the application's task exists by then, but runs only
        in a later turn of the loop.
        """
        return cast("dict[str, object]", self.scope["extensions"])

    @property
    def request_line(self) -> tuple[str, str]:
        """The client's address (as a trusted proxy forwards it) and the target, for the log."""
        return get_client_addr(self.scope), get_path_with_query_string(self.scope)


class Server(uvicorn.Server):
    """uvicorn's server, which awaits `startup`, `main_loop` and `shutdown` in this order.

    `handle_exit` is called for each signal that ends the server.
    """

    hooks: ClassVar = ("startup", "main_loop", "handle_exit", "shutdown")

    config: uvicorn.Config
    started: bool
    force_exit: bool  # if set, the rest of the shutdown is skipped, with the lifespan's end
    lifespan: LifespanOff | LifespanOn

    @property
    def lifespan_state(self) -> dict[str, Any]:
        """The state that the application's lifespan has yielded."""
        return self.lifespan.state

    @property
    def connections(self) -> set[Any]:
        """All connections, of every protocol."""
        state: ServerState = self.server_state
        return {*state.connections}

    async def is_to_end(self) -> bool:
        """Whether a signal has stopped the server; also sets the ``Date`` of responses.

        Call it every second for that.
        """
        return await self.on_tick(0)
