"""What a WebSocket client is known to have received.

A frame that was written is not a frame that arrived. A pong acknowledges everything that was sent
before its ping [RFC 6455, section 5.5.3: in order, over one connection], so pings that follow what
is written tell how far the client has got, through any proxy.
"""

from __future__ import annotations

from struct import pack
from typing import Final

from app.managers.entries import Position

__all__ = ["PING_SECONDS", "Acknowledgements"]

PING_SECONDS: Final = 0.1
"""How long after a ping the next goes out, at the earliest. What was sent within this and one
round trip may be sent again to a client whose connection broke."""

_PREFIX: Final = b"kk"  # tells our pings from the keepalive's


class Acknowledgements:
    """Which place in the log has been sent, and which has been acknowledged.

    At most one ping is on its way. The caller sends what `ping` returns and hands every pong to
    `pong`.
    """

    def __init__(self) -> None:
        self.acknowledged: Position | None = None
        self._sent: Position | None = None
        self._asked: tuple[bytes, Position] | None = None
        self._count = 0

    def sent(self, place: Position) -> None:
        """Everything before ``place`` has been written."""
        self._sent = place

    @property
    def ping_is_due(self) -> bool:
        """Whether something is unacknowledged and not asked about."""
        return self._asked is None and self._sent != self.acknowledged

    def ping(self) -> bytes | None:
        """The payload of a ping to send now, or None if there is nothing to ask."""
        if not self.ping_is_due or self._sent is None:
            return None
        self._count += 1
        payload = _PREFIX + pack("!Q", self._count)
        self._asked = (payload, self._sent)
        return payload

    def pong(self, payload: bytes) -> bool:
        """Take a pong; whether it was an answer to the ping that is on its way."""
        if self._asked is None or payload != self._asked[0]:
            return False
        self.acknowledged = self._asked[1]
        self._asked = None
        return True

    def all_arrived(self) -> None:
        """It is known by other means that everything sent has arrived."""
        self.acknowledged = self._sent
        self._asked = None
