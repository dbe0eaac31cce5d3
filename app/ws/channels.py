"""The channels WebSocket of a kernel: it moves frames between a reader and a socket."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Annotated, Any, Final
from uuid import uuid4

from fastapi import Path, Query, WebSocket
from starlette.websockets import WebSocketDisconnect

from ..log_formats import about
from ..managers.kernels.callers import CallersKernels
from ..managers.kernels.kernel import Kernel
from ..managers.limits.queues import QueuePlace
from ..managers.log.message_log import Gap, Position, Reader
from ..plugins import load_class
from ..protocol import legacy, v1
from ..protocol.compose import make_message
from ..protocol.frames import FrameError
from ..protocol.messages import ClientMessage, MalformedMessage, Message
from ..protocol.subprotocols import accepted
from ..settings import Settings
from .holding import held
from .limiting import OutputLimit
from .rate_limits import RateLimits
from .sending import (
    CLOSE_SECONDS,
    CREDENTIAL_ENDED,
    EXTENSION,
    SERVICE_RESTART,
    FrameWriter,
    Sender,
    sender_for,
)

__all__ = ["ChannelsConnection", "channels_endpoint"]

logger = logging.getLogger(__name__)

KERNEL_GONE: Final = 4404
"""Close code when the kernel was shut down. JupyterLab looks the kernel up and reconnects after any
code but 1000 and 1001."""

REPLACED: Final = 1000
"""Close code when the same session has connected anew. After this code a client does not reconnect:
it would replace the connection that has just replaced this one."""

BROKEN: Final = 1002  # a frame that breaks the protocol, as uvicorn finds
WRONG_TYPE: Final = 1003
ABNORMAL: Final = 1006  # the connection was cut [RFC 6455, section 7.4.1]
MALFORMED: Final = 1007
TOO_BIG: Final = 1009
INTERNAL_ERROR: Final = 1011

_NOT_OF_THE_CLIENT: Final = frozenset(
    {BROKEN, ABNORMAL, MALFORMED, TOO_BIG, INTERNAL_ERROR, SERVICE_RESTART, CREDENTIAL_ENDED}
    | {KERNEL_GONE}
)
"""Codes with which a connection ends that its client has not closed. uvicorn tells the application
that a connection has ended with the code of the close frame that came first, the server's too."""

_NOT_SHARED: Final = (KERNEL_GONE, "the kernel is not shared any more")

MAX_REASON_BYTES: Final = 123  # RFC 6455, section 5.5: a control frame holds 125 bytes


def channels_endpoint(settings: Settings) -> Callable[..., Coroutine[Any, Any, None]]:
    """The endpoint of the channels WebSocket, made according to the settings.

    Raises `CannotLoad` if the connection class that an option names cannot be used.
    """
    connection_class: type[ChannelsConnection] = load_class(
        "kernel_websocket_connection_class",
        settings.kernel_websocket_connection_class,
        ChannelsConnection,
    )
    limits = None
    if settings.limit_rate:
        limits = RateLimits(
            settings.iopub_msg_rate_limit,
            settings.iopub_data_rate_limit,
            settings.rate_limit_window,
        )

    async def channels(
        websocket: WebSocket,
        kernel_id: Annotated[str, Path(description="The kernel's id.")],
        session_id: Annotated[
            str | None, Query(max_length=256, description="Any text; as in the messages' headers.")
        ] = None,
        after: Annotated[
            int | None, Query(ge=0, description="The number behind which the messages begin.")
        ] = None,
        epoch: Annotated[
            str | None, Query(max_length=64, description="The log's, that `after` is a number of.")
        ] = None,
    ) -> None:
        """Speak to a kernel, in the legacy framing or `v1.kernel.websocket.jupyter.org`.

        With a `session_id` the connection is accepted at once, whatever the kernel does: requests
        that come before the kernel is ready wait. Without one the handshake of a kernel that starts
        waits for the kernel, at most `kernel_info_timeout`. A `session_id` that was connected
        before goes on where it left off. With `after`, every message carries its number, and the
        messages begin behind that number (0: with the oldest in the log); `epoch`, as the first
        status tells it, makes sure that the number is of this log.
        """
        manager: CallersKernels = websocket.state.kernels
        manager.check_running()
        kernel = manager.get(kernel_id)
        is_v1 = _speaks_v1(websocket.scope["subprotocols"], settings.kernel_ws_protocol)
        session = manager.session_key(kernel, session_id) if session_id else uuid4().hex
        start = None if after is None else kernel.traffic.log.place_after(after, epoch)
        permission = manager.permission("execute", kernel)
        limit = settings.kernel_info_timeout
        if not session_id and not await held(websocket, kernel, limit, permission):
            return
        connection = connection_class(
            websocket, kernel, session, start=start, is_v1=is_v1, limits=limits
        )
        connection.is_permitted = permission
        await connection.run()

    return channels


def _speaks_v1(offered: Sequence[str], wanted: str | None) -> bool:
    """Whether to use the v1 framing: if the client offers it, and the option does not exclude it.

    A client that offers only other subprotocols gets the legacy framing.
    """
    return v1.SUBPROTOCOL in offered and wanted in (None, v1.SUBPROTOCOL)


class ChannelsConnection:
    """One connection of a client to a kernel.

    ``start`` is the place in the log where its reader begins; None lets the session go on where it
    left off. The option ``kernel_websocket_connection_class`` may name a subclass.
    """

    def __init__(
        self,
        websocket: WebSocket,
        kernel: Kernel,
        session: str,
        *,
        start: Position | None,
        is_v1: bool,
        limits: RateLimits | None,
    ) -> None:
        self._limits = limits
        self._websocket = websocket
        self._kernel = kernel
        self._session = session
        self._is_v1 = is_v1
        self._start = start
        self.is_permitted: Callable[[], bool] = lambda: True
        """Whether the client may still use the kernel. A share of another owner's kernel may end.
        """

    async def run(self) -> None:
        """Accept the connection and greet the client, then move frames until one side ends."""
        traffic = self._kernel.traffic
        # The greeting tells the kernel's state at the reader's first position. A message of the
        # kernel that came between the two would be in neither or in both, but none can: the log is
        # advanced by the event loop, and nothing here awaits.
        greeting, reader = (
            traffic.voice.greeting(),
            traffic.clients.attach(self._session, self._start),
        )
        first = [greeting, *traffic.clients.open_prompts(reader)]
        live_from = traffic.log.next_seq
        closed = False
        try:
            # The place of a new session is stored before the client knows of its connection. From
            # then on the client may come back to the next server, and would miss messages there if
            # its session had no place.
            await traffic.clients.known(reader)
            try:
                await self._accept()
            except OSError:
                closed = True  # the client has gone, and was sent nothing
                return
            closed = await self._move(reader, first, live_from)
        finally:
            traffic.clients.detach(reader, closed=closed)

    async def _accept(self) -> None:
        offered = self._websocket.scope["subprotocols"]
        chosen = accepted(offered, v1.SUBPROTOCOL if self._is_v1 else None)
        await self._websocket.accept(chosen)

    async def _move(self, reader: Reader, first: list[Message], live_from: int) -> bool:
        """Move frames until one side ends; returns whether the client has closed the connection."""
        numbered = self._start is not None
        sender = sender_for(
            *(self._websocket, self._kernel.traffic.log, reader.position),
            is_v1=self._is_v1,
            numbered=numbered,
        )
        reader.confirm_with(sender.arrived)
        reader.large = sender.large
        pump = asyncio.get_running_loop().create_task(
            self._pump(sender, reader, first, live_from), name=f"pump to {self._session}"
        )
        try:
            return await self._listen(sender)
        finally:
            pump.cancel()
            # The reader is detached only when the pump has ended and sends no more. This uses
            # `wait`, as `await pump` would raise CancelledError even if only the pump is cancelled.
            await asyncio.wait({pump})

    # To the client

    async def _pump(
        self, sender: Sender, reader: Reader, first: list[Message], live_from: int
    ) -> None:
        """Send the messages that the reader takes, until the kernel or the connection ends.

        The next batch is taken when the socket has room again, so there is no queue.
        """
        try:
            counters = self._kernel.traffic.counters
            limit = (
                OutputLimit(self._limits, live_from, counters.held_back) if self._limits else None
            )
            await sender.send(first, reader.position)
            # Everything that ends this loop wakes the readers of the log: a newer connection, the
            # end of a share, the end of the log, the end of the server. The conditions are looked
            # at, and `wait` begins, without an await in between: so no such event is missed.
            while not reader.finished and self.is_permitted():
                gap, entries = reader.take()
                messages = limit.select(entries) if limit else [entry.message for entry in entries]
                if gap is not None:
                    messages.insert(0, self._notice(gap))
                    counters.outdated.messages += gap.messages
                    counters.outdated.bytes += gap.bytes
                if messages or entries:
                    await sender.send(messages, reader.position)
                del entries, messages  # large ones are not to be in memory while this waits
                if reader.behind:
                    # A send that the socket takes at once does not yield to the event loop.
                    await asyncio.sleep(0)
                elif self._kernel.executions.closing:
                    break
                else:
                    await reader.wait()
            if not self.is_permitted():
                await self._close(*_NOT_SHARED)
            elif reader.replaced:
                await self._close(REPLACED, "a newer connection has this session")
            elif self._kernel.executions.closing:
                await self._close(SERVICE_RESTART, "the server is shutting down")
            else:
                await self._close(KERNEL_GONE, "the kernel was shut down")
        except (WebSocketDisconnect, OSError):
            pass  # `_listen` sees the disconnection, too, and ends the connection
        except Exception:
            about(logger, kernel_id=self._kernel.id).exception(
                "kernel %s: cannot send to a client", self._kernel.id
            )
            await self._close(INTERNAL_ERROR, "the server failed")

    def _notice(self, gap: Gap) -> Message:
        text = (
            f"kernelkeep: {gap.messages} messages ({gap.bytes} bytes) of this kernel's output are "
            "no longer kept and cannot be shown.\n"
        )
        if not gap.bytes:  # no keeper has heard these messages, so their size is not known
            text = (
                "kernelkeep: for a while nobody has heard this kernel; what it said then is lost.\n"
            )
        content = {"name": "stderr", "text": text}
        return make_message("iopub", "stream", content, session=self._kernel.traffic.voice.session)

    # From the client

    async def _listen(self, sender: Sender) -> bool:
        """Submit each frame of the client as a request to the kernel.

        While the kernel takes no more requests, nothing is read from the client. Returns whether
        the client has closed the connection itself, with a close frame.
        """
        traffic = self._kernel.traffic
        while True:
            event = await self._websocket.receive()
            if event["type"] == "websocket.disconnect":
                return event.get("code") not in _NOT_OF_THE_CLIENT
            if not self.is_permitted():
                # The race: the end of the share has woken the pump, which closes the connection.
                # But the client's frame came in the same turn of the loop, and this runs first. It
                # closes in the pump's place, and its return has the pump cancelled.
                await self._close_at_once()
                return False
            try:
                message = self._decode(event.get("text"), event.get("bytes"))
            except _WrongType as error:
                await self._close(WRONG_TYPE, str(error))
                return False
            except (FrameError, MalformedMessage) as error:
                await self._close(MALFORMED, str(error))
                return False
            # Nothing awaits between a look at the permission and the call of `_submit`: no request
            # is submitted after the end of the share.
            asking = traffic.submissions.place(message, self._session)
            if asking is None:
                self._submit(message)
            else:
                # No further frame is read while this one waits for its place in the queue: so the
                # client's requests come to the kernel in their order.
                async with asking as place:
                    if self.is_permitted():
                        self._submit(message, place)
            if not traffic.has_room:
                await self._hold_back(sender)

    def _submit(self, message: ClientMessage, place: QueuePlace | None = None) -> None:
        passed = self._kernel.traffic.submit(message, self._session, place)
        self._kernel.reports.received(message, self._session, passed=passed)

    async def _hold_back(self, sender: Sender) -> None:
        """Return when the kernel takes more requests, or when the connection is lost.

        No frame is received from the client meanwhile, so `receive` does not tell that it is lost.
        """
        loop = asyncio.get_running_loop()
        # The race: all connections of the kernel that wait here are woken together, and each may
        # submit one request before it looks for room again. So the bound on requests is exceeded by
        # one request of each connection at the most.
        events = {
            loop.create_task(self._kernel.traffic.room()),
            loop.create_task(sender.lost()),
        }
        try:
            await asyncio.wait(events, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for event in events:
                event.cancel()

    def _decode(self, text: str | None, data: bytes | None) -> ClientMessage:
        if self._is_v1:
            if data is None:
                raise _WrongType(f"{v1.SUBPROTOCOL} has binary frames only")
            return v1.decode(data, self._session)
        if text is not None:
            return legacy.decode_text(text, self._session)
        return legacy.decode_binary(data or b"", self._session)

    async def _close_at_once(self) -> None:
        """Close a connection whose share has ended.

        The close frame waits behind output. If the client does not take that within
        `CLOSE_SECONDS`, the connection is cut.
        """
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._close(*_NOT_SHARED)
        except TimeoutError:
            writer: FrameWriter | None = self._websocket.scope.get("extensions", {}).get(EXTENSION)
            if writer is not None:
                writer.abort()

    async def _close(self, code: int, reason: str) -> None:
        # The pump and `_listen` may each close, and the client may be gone: the first close counts.
        shortened = reason.encode()[:MAX_REASON_BYTES].decode("utf-8", "ignore")
        with contextlib.suppress(WebSocketDisconnect, OSError, RuntimeError):
            await self._websocket.close(code, shortened)


class _WrongType(ValueError):
    """The client has sent a text frame in a framing that has binary frames only."""
