"""Whether the process at the other end of sockets is known to be gone.

A message that a process has sent before its end may still be on its way when the process is seen to
have ended: libzmq's thread reads it from the connection, and that thread may have to wait for a
processor. libzmq tells the end of a connection only when it has read all of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import zmq

__all__ = ["PATIENCE_SECONDS", "PeerEnds"]

PATIENCE_SECONDS: Final = 0.5
"""How long the ends are waited for. A child of the process may go on, and have its connections."""

_ENDS: Final = zmq.EVENT_DISCONNECTED | zmq.EVENT_CLOSED | zmq.EVENT_CONNECT_RETRIED
"""The connection ends, or has ended before: then a new one is tried every few milliseconds, and
fails."""


class PeerEnds:
    """Watches the connections of ``sockets`` to a process that has ended, from ``now`` on.

    ``now`` is of a monotonic clock, in seconds. A socket that cannot be watched, for want of
    descriptors, is taken for one whose connection has ended.
    """

    def __init__(self, sockets: Iterable[zmq.Socket[Any]], now: float) -> None:
        self._until = now + PATIENCE_SECONDS
        self._watched: list[tuple[zmq.Socket[Any], zmq.Socket[Any]]] = []
        # The end of a connection may lie before this. libzmq then tries to connect every 10 ms
        # (`Channels._connect`), and each try is an event that counts as an end.
        for socket in sockets:
            try:
                self._watched.append((socket, socket.get_monitor_socket(_ENDS)))
            except zmq.ZMQError:
                continue

    def are_over(self, now: float) -> bool:
        """Whether all connections have ended, or `PATIENCE_SECONDS` have passed."""
        # The events are not read from the monitor: that there is one tells of the end.
        for each in [each for each in self._watched if each[1].poll(0)]:
            self._watched.remove(each)
            _end(*each)
        return not self._watched or now >= self._until

    def close(self) -> None:
        """Close the monitors of the sockets."""
        for each in self._watched:
            _end(*each)
        self._watched.clear()


def _end(socket: zmq.Socket[Any], monitor: zmq.Socket[Any]) -> None:
    if not socket.closed:
        socket.disable_monitor()
    monitor.close(linger=0)
