"""The connection of one server to its keeper, as the keeper has it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Final

from ..protocol import link
from .feeds import Feeds
from .hearings import Hearings
from .protocol import Fields, Frames, Garbled, cut_off, pack

__all__ = ["ServerLink"]

FEED_BYTES: Final = 2**18
"""While so many bytes wait for a server that follows logs, no further piece of a log is written."""

TOLD_BYTES: Final = 2**22
"""While so many bytes wait for a server that follows logs, none of its requests is read."""


class ServerLink(Frames):
    """Calls ``on_frame`` for each frame of a server's, and ``on_end`` once, at the end.

    While a server does not read, no more of its requests are read either, so that the answers that
    wait for it are bounded. A server that follows logs is different: the feeds bound what waits for
    it, and its requests are read all the same, so that an interrupt need not wait for output.
    """

    def __init__(
        self,
        greeting: bytes,
        on_frame: Callable[[ServerLink, Fields, bytes], None],
        on_end: Callable[[ServerLink, Exception | None], None],
    ) -> None:
        super().__init__(self._on_frame_in_time, lambda error: on_end(self, error))
        self._take_frame = on_frame
        self.replica = ""
        """Which of several servers this is, as it has said in its greeting; empty for the only one.
        """
        self._greeting = greeting
        self._holds = 0
        self._is_full = False
        self._is_late = False  # whether its requests are not read as it does not read
        self._feeds: Feeds | None = None
        self._is_cut_off = False  # whether its frames are ignored
        self.is_heard = True
        """Whether the server has sent anything since the watch (`Dialler`) last reset this."""
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Write the greeting: on a new connection the keeper speaks first."""
        super().connection_made(transport)
        self.write(self._greeting)

    def data_received(self, data: bytes) -> None:
        """Take bytes that the server has sent."""
        self.is_heard = True
        super().data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """Take what the server has sent and was held back, and then set `ended`."""
        # In this order: when `ended` is set, no further request of this server is taken.
        super().connection_lost(exc)
        self.ended.set_result(None)

    def _on_frame_in_time(self, fields: Fields, data: bytes) -> None:
        if not self._is_cut_off:
            self._take_frame(self, fields, data)

    def write(self, frame: bytes) -> None:
        """Send a frame to the server; a server that is gone gets nothing."""
        # A transport that is closing is not yet known to be gone: `connection_lost` is for a later
        # turn, and until then bells and events are still for this server.
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(frame)  # which may call `pause_writing`
            if self._feeds is not None and not self._is_late and self.unread > TOLD_BYTES:
                self._is_late = True
                self.hold()

    @property
    def unread(self) -> int:
        """How many bytes wait for the server to read them."""
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    def cut_off(self) -> None:
        """Take no more frames, not even those that have come already, and end the connection."""
        # The flag is set first: when the connection is lost, `Frames` hands on the frames that were
        # held back.
        self._is_cut_off = True
        if self._transport is not None:
            cut_off(self._transport)

    def close(self) -> None:
        """Close the connection when all is sent that was written."""
        if self._transport is not None:
            self._transport.close()

    # Two reasons for not reading may overlap: that the server does not read, and that it waits for
    # the end of its predecessor.

    def hold(self) -> None:
        """Take nothing more for now; for each call there is one of `go_on`."""
        self._holds += 1
        super().hold()

    def go_on(self) -> None:
        """Take the frames that have come meanwhile, and read on, once each `hold` has its call."""
        self._holds -= 1
        if not self._holds:  # what is handed on may hold again, as `Frames.go_on` expects
            super().go_on()

    def pause_writing(self) -> None:
        """Stop the feeds, or else the reading of requests: the server does not read."""
        # Requests of a server with feeds are still read: feeds stop, and `write` bounds the rest.
        self._is_full = True
        if self._feeds is None:
            self._is_late = True
            self.hold()

    def resume_writing(self) -> None:
        """Go on with the feeds or the requests: the server has read what waited."""
        self._is_full = False
        if self._is_late:
            self._is_late = False
            self.go_on()
        if self._feeds is not None:
            self._feeds.pump()

    # A server on another host, which follows logs

    def mirror(self) -> None:
        """Let the server follow logs from now on."""
        if self._feeds is None and self._transport is not None:
            self._transport.set_write_buffer_limits(high=FEED_BYTES)
            self._feeds = Feeds(lambda data: self.write(pack({}, data)), lambda: not self._is_full)

    def take(self, data: bytes, hearings: Hearings) -> bool:
        """Handle a heartbeat or a frame about logs; False for any other frame. Raises `Garbled`."""
        kind = data[:1]
        if data == link.HEARTBEAT:
            self.write(pack({}, data))
            return True
        if self._feeds is None or kind not in (link.FOLLOW, link.CREDIT):
            return False
        try:
            if kind == link.CREDIT:
                self._feeds.grant(*link.unpack_credit(data))
            else:
                handle, after, credit = link.unpack_follow(data)
                hearing = hearings.by_handle(handle)
                if hearing is not None:  # a kernel that is gone has no log
                    self._feeds.follow(handle, hearing.writer, after, credit)
        except ValueError as error:
            raise Garbled(str(error)) from None
        return True

    def grown(self, handles: Iterable[int]) -> None:
        """Send what is new in these logs, if the server follows logs."""
        if self._feeds is not None:
            self._feeds.grown(handles)
