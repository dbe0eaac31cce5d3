"""What a WebSocket client is known to have received.

A frame that was written need not have arrived. A pong acknowledges everything that was sent before
its ping, since one connection keeps the order of frames [RFC 6455, section 5.5.3]. So pings between
the messages tell how far the client has come, through any proxy.
"""

from __future__ import annotations

from collections import deque
from struct import pack
from typing import Final

from ..managers.log.entries import Position

__all__ = ["PING_BYTES", "PING_SECONDS", "Acknowledgements"]

PING_SECONDS: Final = 0.1
PING_BYTES: Final = 65536
"""The next ping goes out after so many seconds or bytes of output, in one write with other output
if there is some. It does not wait for the last pong: many pings may lie in the buffers of a client
that reads slowly. A client whose connection breaks may receive again what it was sent after the
last ping whose pong has come."""

_PREFIX: Final = b"kk"  # uvicorn's keepalive pings do not have it


class Acknowledgements:
    """The places in the log up to which messages were sent, and up to which they were acknowledged.

    The caller sends what `ping` returns and hands every pong to `pong`. There is a ping for each
    `PING_BYTES`, so the size of the connection's buffers bounds the pings that are unanswered.
    """

    def __init__(self) -> None:
        self.acknowledged: Position | None = None
        self._sent: Position | None = None
        self._asked: deque[tuple[bytes, Position]] = deque()
        self._count = 0

    def sent(self, place: Position) -> None:
        """Note that every message before ``place`` has been written."""
        self._sent = place

    @property
    def ping_is_due(self) -> bool:
        """Whether messages were sent behind the last ping."""
        # The place that the last ping asks about, or that its pong has acknowledged. The places of
        # one connection only grow, so another place lies behind this one.
        asked = self._asked[-1][1] if self._asked else self.acknowledged
        return self._sent != asked

    def ping(self) -> bytes | None:
        """The payload of a ping to send now, or None if none is due."""
        if not self.ping_is_due or self._sent is None:
            return None
        self._count += 1
        payload = _PREFIX + pack("!Q", self._count)
        self._asked.append((payload, self._sent))
        return payload

    def pong(self, payload: bytes) -> bool:
        """Take a pong; returns whether it answers one of our pings.

        A client may answer only the last of several pings [RFC 6455, section 5.5.3], so a pong
        answers all pings before its own, too.
        """
        # An unsolicited pong of the client, or one for uvicorn's keepalive, must take none of these
        # pings out.
        if not any(payload == asked for asked, _ in self._asked):
            return False
        while payload != self._asked[0][0]:
            self._asked.popleft()
        self.acknowledged = self._asked.popleft()[1]
        return True

    def all_arrived(self) -> None:
        """Note that everything sent has arrived, which is known by other means than a pong."""
        self.acknowledged = self._sent
        self._asked.clear()
