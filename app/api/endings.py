"""Requests and connections end with the credential that they were begun with.

A token that expires or is revoked closes what is open with it, in this one place, whatever the
route: a WebSocket is closed with 4401, a stream ends, a request that waits is answered with 403.
To the route it looks as if the client had gone, which every route knows how to deal with.

Nothing here costs a request with the server's own token anything, for that does not end.
"""

from __future__ import annotations

import asyncio
import contextvars
from typing import Any, Final

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..managers.owners.principal import Principal
from ..ws.sending import CLOSE_SECONDS, CREDENTIAL_ENDED, EXTENSION, FrameWriter
from .errors import error_response

__all__ = ["serve_while_valid"]

_GONE: Final[Message] = {"type": "http.disconnect"}


class _CredentialEnded(OSError):
    """Raised in a route that goes on sending. `OSError` is what ASGI servers raise for a client
    that has gone."""


async def serve_while_valid(
    app: ASGIApp, principal: Principal, scope: Scope, receive: Receive, send: Send
) -> None:
    """Call the application, until it is done or the principal's credential ends."""
    kind = _WebSocket if scope["type"] == "websocket" else _Request
    await kind(scope, receive, send).run(app, principal)


class _Open:
    """An open request or WebSocket, which ends with its credential."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._ended = False
        self._begun = False  # whether the client has a part of the answer
        self._ending: asyncio.Task[None] | None = None
        self._context = contextvars.copy_context()

    async def run(self, app: ASGIApp, principal: Principal) -> None:
        self._task = asyncio.current_task()
        # `AccessMiddleware` has just seen that the credential is valid (`Principal.over`), and
        # nothing has awaited since: so no end of it is missed before this registers `_end`.
        principal.opened(self._end)
        try:
            await app(self._scope, self.receive, self.send)
        except (_CredentialEnded, ClientDisconnect):
            if not self._ended:
                raise
        finally:
            principal.closed(self._end)
        # The task that `_end` has made sends the refusal or the close frame. It is awaited: the
        # ASGI server takes no event of a request whose application has returned.
        if self._ending is not None:
            await self._ending

    def _end(self) -> None:
        """Called when the credential ends."""
        loop = asyncio.get_running_loop()
        if asyncio.current_task(loop) is self._task:
            return  # the request that has revoked its own token gets its answer
        self._ended = True
        # This runs in the context of the request that revokes the token. The close is logged in the
        # context of the request that ends.
        self._ending = loop.create_task(self._close(), context=self._context)

    async def receive(self) -> Message:
        return await self._receive()

    async def send(self, message: Message) -> None:
        raise NotImplementedError

    async def _close(self) -> None:
        raise NotImplementedError

    async def _refuse(self) -> None:
        """Answer with 403 in the place of the application, which has not begun an answer."""
        self._begun = True
        response = error_response(403, "Forbidden", "unauthorized")
        await response(self._scope, self._receive, self._send)


class _Request(_Open):
    _has_body = True  # whether more of the request's body may come
    _sized = False  # whether the response has said how long it is
    _complete = False
    _over: asyncio.Future[None] | None = None

    async def run(self, app: ASGIApp, principal: Principal) -> None:
        await super().run(app, principal)
        if self._ended and not self._complete and not self._sized:
            # A stream is closed as if it had come to its end. A response with a Content-Length
            # cannot be: the ASGI server finds it incomplete, and cuts its connection.
            await self._send({"type": "http.response.body", "body": b""})

    async def _close(self) -> None:
        if self._over is not None and not self._over.done():
            self._over.set_result(None)
        # The route and this task may both want to answer. But `send` of the route has failed since
        # `_end`, and nothing awaits between this look and the first send of `_refuse`: so a client
        # never gets two answers.
        if not self._begun:
            self._complete = True
            await self._refuse()

    async def receive(self) -> Message:
        if self._ended:
            return _GONE
        if self._has_body:
            # The pace of a body has a bound of its own, so this does not wait for the end as well.
            message = await self._receive()
            self._has_body = message["type"] == "http.request" and message.get("more_body", False)
        else:
            message = await self._received_or_ended()
        return message if self._is_valid() else _GONE

    def _is_valid(self) -> bool:
        return not self._ended

    async def _received_or_ended(self) -> Message:
        loop = asyncio.get_running_loop()
        over = self._over = loop.create_future()
        receiving = asyncio.ensure_future(self._receive())
        events: set[asyncio.Future[Any]] = {receiving, over}
        try:
            await asyncio.wait(events, return_when=asyncio.FIRST_COMPLETED)
            # The whole body has been received before. So the call of `receive` that is cancelled
            # here could only have told that the client has gone.
            return receiving.result() if receiving.done() else _GONE
        finally:
            receiving.cancel()

    async def send(self, message: Message) -> None:
        if self._ended:
            raise _CredentialEnded("the credential has ended")
        self._begun = True
        if message["type"] == "http.response.start":
            self._sized = any(name.lower() == b"content-length" for name, _ in message["headers"])
        elif message["type"] == "http.response.body":
            self._complete = not message.get("more_body", False)
        await self._send(message)


class _WebSocket(_Open):
    async def send(self, message: Message) -> None:
        if self._ended:
            raise _CredentialEnded("the credential has ended")
        self._begun = True
        await self._send(message)

    async def _close(self) -> None:
        """Close the connection; the server then tells the application that it is closed."""
        closing: Message = {
            "type": "websocket.close",
            "code": CREDENTIAL_ENDED,
            "reason": "the token has expired or was revoked",
        }
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await (self._send(closing) if self._begun else self._refuse())
        except TimeoutError:
            writer: FrameWriter | None = self._scope.get("extensions", {}).get(EXTENSION)
            if writer is not None:
                writer.abort()
        except (OSError, RuntimeError):
            pass  # it is closed already
