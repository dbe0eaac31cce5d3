"""A link to a keeper on another host, over any stream that reaches it.

Such a stream may break without anybody being told. So the keeper is asked for a sign of life every
`BEAT_SECONDS`, and the link ends when nothing at all has come for `MISSED` of these.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

from ....keeper.protocol import Fields, Garbled
from ....protocol.link import HEARTBEAT
from .link import KeeperLink, LinkOwner, Writer, greeting_of

__all__ = ["BEAT_SECONDS", "MISSED", "FarLink"]

BEAT_SECONDS: Final = 1.0
MISSED: Final = 3


class FarLink(KeeperLink):
    """One connection to a keeper on another host."""

    def __init__(self, writer: Writer, greeting: Fields, owner: LinkOwner) -> None:
        # Clocks differ. That of the keeper was ahead by at least this much: the greeting took its
        # time to come, so a request is refused as too late a little early, and never late.
        self._ahead = float(greeting["now"]) - time.monotonic()
        self._is_heard = True
        super().__init__(writer, greeting, owner)
        self._beats = asyncio.get_running_loop().create_task(self._beat(), name="heartbeat")

    @classmethod
    async def over(
        cls, reader: asyncio.StreamReader, writer: Writer, owner: LinkOwner
    ) -> FarLink | None:
        """A link over a stream; None if the keeper is about to end.

        Raises `Garbled` if there is no keeper at the other end, or it says nothing.
        """
        try:
            greeting = await greeting_of(reader)
            if type(greeting.get("now")) not in (int, float):
                raise Garbled("it has no clock: a keeper from before there were remote ones")
        except (ConnectionError, asyncio.IncompleteReadError):
            writer.transport.abort()
            return None
        except TimeoutError:
            writer.transport.abort()
            raise Garbled("it says nothing; is its process stopped?") from None
        except BaseException:
            writer.transport.abort()
            raise
        return cls(writer, greeting, owner)

    def _clock(self) -> float:
        return time.monotonic() + self._ahead

    async def _beat(self) -> None:
        """Ask for a sign of life again and again, and end the link when none comes.

        It counts questions, not seconds: while this process itself does not run, nothing is missed.
        """
        missed = 0
        while missed < MISSED and self.is_open:
            self.write([HEARTBEAT])
            await asyncio.sleep(BEAT_SECONDS)
            missed = 0 if self._is_heard else missed + 1
            self._is_heard = False
        self._transport.abort()

    def _on_frame(self, fields: Fields, data: bytes) -> None:
        self._is_heard = True
        if fields or data != HEARTBEAT:
            super()._on_frame(fields, data)

    def _on_lost(self, error: Exception | None) -> None:
        self._beats.cancel()
        super()._on_lost(error)

    async def close(self) -> None:
        """As `KeeperLink.close`."""
        self._beats.cancel()
        await super().close()
