"""What a WebSocket client is known to have received.

A frame that was written is not a frame that arrived. A pong acknowledges everything that was sent
before its ping [RFC 6455, section 5.5.3: in order, over one connection], so pings between what is
written tell how far the client has got, through any proxy.
"""

from __future__ import annotations

from collections import deque
from struct import pack
from typing import Final

from ..managers.log.entries import Position

__all__ = ["PING_BYTES", "PING_SECONDS", "Acknowledgements"]

PING_SECONDS: Final = 0.1
PING_BYTES: Final = 65536
"""After so much time or output the next ping goes out, where it can with what is written then, and
whether or not the last one was answered: a client that reads slowly has many in its buffers. What
lies between two pings may be sent again to a client whose connection broke, and what it has
answered too late."""

_PREFIX: Final = b"kk"  # tells our pings from the keepalive's


class Acknowledgements:
    """Which place in the log has been sent, and which has been acknowledged.

    The caller sends what `ping` returns and hands every pong to `pong`. The pings on their way are
    bounded by what may wait in the connection's buffers, one for `PING_BYTES`.
    """

    def __init__(self) -> None:
        self.acknowledged: Position | None = None
        self._sent: Position | None = None
        self._asked: deque[tuple[bytes, Position]] = deque()
        self._count = 0

    def sent(self, place: Position) -> None:
        """Everything before ``place`` has been written."""
        self._sent = place

    @property
    def ping_is_due(self) -> bool:
        """Whether something is unacknowledged and not asked about."""
        asked = self._asked[-1][1] if self._asked else self.acknowledged
        return self._sent != asked

    def ping(self) -> bytes | None:
        """The payload of a ping to send now, or None if there is nothing to ask."""
        if not self.ping_is_due or self._sent is None:
            return None
        self._count += 1
        payload = _PREFIX + pack("!Q", self._count)
        self._asked.append((payload, self._sent))
        return payload

    def pong(self, payload: bytes) -> bool:
        """Take a pong; whether it was an answer to a ping that was on its way.

        A client may answer the last of several pings only.
        """
        if not any(payload == asked for asked, _ in self._asked):
            return False
        while payload != self._asked[0][0]:
            self._asked.popleft()
        self.acknowledged = self._asked.popleft()[1]
        return True

    def all_arrived(self) -> None:
        """It is known by other means that everything sent has arrived."""
        self.acknowledged = self._sent
        self._asked.clear()
