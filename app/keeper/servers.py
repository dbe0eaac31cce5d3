"""The connection of one server to its keeper, as the keeper has it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from .protocol import Fields, Frames

__all__ = ["ServerLink"]


class ServerLink(Frames):
    """Calls ``on_frame`` for each frame of a server's, and ``on_end`` once, at the end.

    Of a server that does not read what it is told nothing more is taken until it does, so that what
    waits for it here is bounded.
    """

    def __init__(
        self,
        greeting: bytes,
        on_frame: Callable[[ServerLink, Fields, bytes], None],
        on_end: Callable[[ServerLink, Exception | None], None],
    ) -> None:
        super().__init__(
            lambda fields, data: on_frame(self, fields, data), lambda error: on_end(self, error)
        )
        self._greeting = greeting
        self._holds = 0
        self._writes: asyncio.Transport | None = None
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is there: the keeper speaks first."""
        super().connection_made(transport)
        self._writes = cast(asyncio.Transport, transport)
        self.write(self._greeting)

    def connection_lost(self, exc: Exception | None) -> None:
        """All that the server has sent is taken."""
        super().connection_lost(exc)
        self.ended.set_result(None)

    def write(self, frame: bytes) -> None:
        """Tell the server something; nothing is told to one that is gone."""
        if self._writes is not None and not self._writes.is_closing():
            self._writes.write(frame)

    @property
    def unread(self) -> int:
        """How many bytes wait for the server to read them."""
        return 0 if self._writes is None else self._writes.get_write_buffer_size()

    def close(self) -> None:
        """Close the connection when all is sent that was written."""
        if self._writes is not None:
            self._writes.close()

    # What waits for a server that does not read, and what for its predecessor's end, may overlap.

    def hold(self) -> None:
        """Take nothing more for now; for each call there is one of `go_on`."""
        self._holds += 1
        super().hold()

    def go_on(self) -> None:
        """Take what has come meanwhile."""
        self._holds -= 1
        if not self._holds:
            super().go_on()

    def pause_writing(self) -> None:
        """The server does not read."""
        self.hold()

    def resume_writing(self) -> None:
        """The server has read."""
        self.go_on()
