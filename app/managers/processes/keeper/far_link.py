"""A link to a keeper on another host, over any stream that reaches it.

Such a stream may break without either end being told. So the keeper is asked for a sign of life
every `BEAT_SECONDS`, and the link ends when nothing has come for `MISSED` questions in a row.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Final

from ....keeper.protocol import Fields, Garbled, cut_off, pack
from ....protocol.link import HEARTBEAT
from .link import KeeperLink, LinkOwner, Writer, greeting_of

__all__ = ["BEAT_SECONDS", "MISSED", "FarLink"]

logger = logging.getLogger(__name__)

BEAT_SECONDS: Final = 1.0
MISSED: Final = 3

SLOTS: Final = 8
"""Into how many moments `BEAT_SECONDS` are divided; each link is asked at one of them. So this
process wakes once for many links, but not for so many that other work would wait for long."""

FRAMES: Final = 50_000
"""How many frames may come within `BEAT_SECONDS`. A keeper that sends more floods this server."""

FAR_FRAME_BYTES: Final = 2**24
"""How many bytes a frame may have; none of an honest keeper has nearly as many."""

_BEAT: Final = pack({}, HEARTBEAT)

FAR_FUTURE: Final = 1e12
"""More seconds than any monotonic clock shows."""


class FarLink(KeeperLink):
    """One connection to a keeper on another host."""

    most = FAR_FRAME_BYTES

    def __init__(self, writer: Writer, greeting: Fields, owner: LinkOwner) -> None:
        # By how many seconds the keeper's clock is ahead, or a little less, as the greeting took
        # its time to come. So the keeper refuses a late request a little early, and never too late.
        self._ahead = float(greeting["now"]) - time.monotonic()
        self._is_heard = True
        self._missed = 0
        self._frames = 0
        # No frame comes before this method is done: the loop hands on frames in another turn.
        super().__init__(writer, greeting, owner)
        self._loop = asyncio.get_running_loop()
        self._next_beat = self._loop.call_soon(self._beat)

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
            if not abs(greeting["now"]) < FAR_FUTURE:
                raise Garbled("its clock makes no sense")
        except (ConnectionError, asyncio.IncompleteReadError):
            cut_off(writer.transport)
            return None
        except TimeoutError:
            cut_off(writer.transport)
            raise Garbled("it says nothing; is its process stopped?") from None
        except BaseException:
            cut_off(writer.transport)
            raise
        return cls(writer, greeting, owner)

    def _clock(self) -> float:
        return time.monotonic() + self._ahead

    def _beat(self) -> None:
        """Ask for a sign of life, every `BEAT_SECONDS`, and end the link when none comes.

        Questions are counted, and not seconds: while this process itself does not run, none is
        missed.
        """
        # Any frame counts, not only the answer to a beat: a keeper that sends a long log is there,
        # although its answer waits behind the records.
        self._missed = 0 if self._is_heard else self._missed + 1
        if not self.is_open:
            return
        if self._missed >= MISSED:
            self.abort()
            return
        self._is_heard, self._frames = False, 0
        self._transport.write(_BEAT)
        slot = BEAT_SECONDS / SLOTS
        due = round((self._loop.time() + BEAT_SECONDS) / slot) * slot
        self._next_beat = self._loop.call_at(due, self._beat)

    def _on_frame(self, fields: Fields, data: bytes) -> None:
        self._is_heard = True
        self._frames += 1
        # Frames are counted, too: credit bounds the bytes of records, but a small frame costs time.
        if self._frames > FRAMES:
            logger.error("the keeper, process %d, floods; the connection is ended", self.pid)
            raise Garbled("it says too much")
        if fields or data != HEARTBEAT:
            super()._on_frame(fields, data)

    def _on_lost(self, error: Exception | None) -> None:
        self._next_beat.cancel()
        super()._on_lost(error)

    async def close(self) -> None:
        """As `KeeperLink.close`."""
        self._next_beat.cancel()
        await super().close()
