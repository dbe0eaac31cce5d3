"""The connections to a process that has ended are known to have ended, with all that was sent."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from app.keeper.peer_ends import PATIENCE_SECONDS, PeerEnds
from tests.support.processes import eventually

NOW = 100.0


class Sockets:
    """Sockets of one context, which are closed with it."""

    def __init__(self) -> None:
        self.context: zmq.Context[Any] = zmq.Context()
        self._made: list[zmq.Socket[bytes]] = []

    def socket(self, kind: int) -> zmq.Socket[bytes]:
        socket: zmq.Socket[bytes] = self.context.socket(kind)
        self._made.append(socket)
        return socket

    def close(self) -> None:
        for socket in self._made:
            socket.close(linger=0)
        self.context.term()


@pytest.fixture
def context() -> Iterator[Sockets]:
    sockets = Sockets()
    yield sockets
    sockets.close()


def subscriber(context: Sockets, address: str) -> zmq.Socket[bytes]:
    socket = context.socket(zmq.SUB)
    socket.reconnect_ivl = 10
    socket.subscribe(b"")
    socket.connect(address)
    return socket


async def connected(context: Sockets, address: str) -> tuple[Any, zmq.Socket[bytes]]:
    """A publisher, and a subscriber of which it knows."""
    publisher = context.socket(zmq.XPUB)
    publisher.bind(address)
    socket = subscriber(context, address)
    await eventually(lambda: publisher.poll(0))
    return publisher, socket


async def test_an_end_is_seen_and_all_that_was_sent_has_arrived(
    context: Sockets, tmp_path: Path
) -> None:
    publisher, socket = await connected(context, f"ipc://{tmp_path}/k")
    ends = PeerEnds([socket], NOW)
    assert not ends.are_over(NOW)
    for number in range(100):
        publisher.send(b"%d" % number)
    publisher.close(linger=1000)
    await eventually(lambda: ends.are_over(NOW))
    got = [socket.recv(zmq.NOBLOCK) for _ in range(100)]
    assert got == [b"%d" % number for number in range(100)]
    ends.close()


async def test_an_end_that_was_before_is_seen(context: Sockets, tmp_path: Path) -> None:
    publisher, socket = await connected(context, f"ipc://{tmp_path}/k")
    publisher.close(linger=0)
    never = subscriber(context, f"ipc://{tmp_path}/never")
    ends = PeerEnds([socket, never], NOW)
    await eventually(lambda: ends.are_over(NOW))
    ends.close()


async def test_a_connection_that_goes_on_is_waited_for_for_a_while(
    context: Sockets, tmp_path: Path
) -> None:
    _, socket = await connected(context, f"ipc://{tmp_path}/k")
    ends = PeerEnds([socket], NOW)
    assert not ends.are_over(NOW + PATIENCE_SECONDS - 0.01)
    assert ends.are_over(NOW + PATIENCE_SECONDS)
    ends.close()
    # It can be watched again, and closed while it is watched.
    ends = PeerEnds([socket], NOW)
    socket.close(linger=0)
    ends.close()


async def test_a_socket_that_cannot_be_watched_is_not_waited_for(
    context: Sockets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, socket = await connected(context, f"ipc://{tmp_path}/k")

    def refuse(self: object, events: int) -> None:
        raise zmq.ZMQError(24)

    monkeypatch.setattr(zmq.Socket, "get_monitor_socket", refuse)
    assert PeerEnds([socket], NOW).are_over(NOW)
