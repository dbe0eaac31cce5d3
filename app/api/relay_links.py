"""The connections between replicas: over unix sockets within a host, by TLS between hosts.

Those that are idle are kept for a while, so that a request costs no handshake. Both ends of TLS
show a certificate of the authority that all replicas share. The end that dials looks for the name
of the replica that it wants; the other one takes every replica. Neither takes a keeper, whose
certificate is of the same authority.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable, Collection
from typing import TYPE_CHECKING, Any, Final

from starlette.types import Receive, Scope, Send

from ..keeper.protocol import address_of, cut_off
from ..managers.processes.hosts.accepting import Accepting
from ..managers.processes.hosts.authority import replica_of
from .relay import Broken, Remote

if TYPE_CHECKING:
    from ..managers.replicas.group import Way

__all__ = ["Door", "Links"]

logger = logging.getLogger(__name__)

CONNECT_SECONDS: Final = 2.0
HANDSHAKE_SECONDS: Final = 5.0
"""How long it may take to connect, and to connect with TLS."""

IDLE: Final = 8
"""Connections to one replica that are kept while they are idle."""

IDLE_SECONDS: Final = 60.0

MOST_TROUBLES: Final = 256
"""Replicas that could not be reached and are remembered; the first one is forgotten."""


LOST_SECONDS: Final = 30.0
"""After so many seconds without a request to a replica, a new failure does not count together with
earlier ones."""

GONE: Final = {
    **{"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3},  # seconds, and how often
    "TCP_USER_TIMEOUT": 20_000,  # milliseconds
}
"""Socket options that end a connection when the other host has been silent for some 20 s. They are
set where the system has them."""


def _break_when_gone(connection: socket.socket) -> None:
    """Have a connection end when the other host has vanished.

    A request may wait there for long, and meanwhile nothing is sent whose failure would tell.
    """
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in GONE.items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


# The replica that has the request


async def dial(way: Way, context: ssl.SSLContext | None) -> Remote:
    """A new connection to a replica. Raises `Broken`."""
    try:
        if way.socket is not None:
            async with asyncio.timeout(CONNECT_SECONDS):
                with address_of(way.socket) as name:
                    return Remote(*await asyncio.open_unix_connection(name))
        if way.dial is None or context is None:
            raise Broken("it listens for no other host", begun=False)
        async with asyncio.timeout(HANDSHAKE_SECONDS):
            reader, writer = await asyncio.open_connection(*way.dial, ssl=context)
            _break_when_gone(writer.get_extra_info("socket"))
    except TimeoutError:
        raise Broken("it does not answer", begun=False, silent=True) from None
    except OSError as error:  # ssl.SSLError is one
        raise Broken(str(error), begun=False) from None
    found = replica_of(writer.get_extra_info("peercert"))
    if found != way.name:
        cut_off(writer.transport)
        who = "is no replica" if found is None else f"is the replica {found}"
        raise Broken(f"who answers there {who}", begun=False)
    return Remote(reader, writer)


class Links:
    """Connections to all other replicas. Make it in a running event loop, and `close` it there.

    ``context`` is this end of TLS, for replicas of other hosts.
    """

    def __init__(self, context: ssl.SSLContext | None) -> None:
        self._context = context
        self._loop = asyncio.get_running_loop()
        self._idle: dict[str, list[tuple[Remote, asyncio.TimerHandle]]] = {}
        self._busy: dict[str, set[Remote]] = {}
        self._lost: dict[str, tuple[float, float]] = {}  # first and last found to be so

    async def run(self, way: Way, scope: Scope, receive: Receive, send: Send) -> bool:
        """As `Remote.run`, over an idle connection or a new one. Raises `Broken`."""
        try:
            done = await self._run(way, scope, receive, send)
        except Broken as broken:
            if not broken.begun:
                self._note_lost(way, broken)
            raise
        if self._lost.pop(way.replica, None) is not None:
            logger.info("replica %s is reached again", way.name)
        return done

    def is_lost(self, replica: str, seconds: float) -> bool:
        """Whether a replica could not be reached for so many seconds."""
        first, last = self._lost.get(replica, (0.0, 0.0))
        return last - first >= seconds and replica in self._lost

    def keep(self, replicas: Collection[str]) -> None:
        """Cut off the connections to all replicas but these, and the requests that are under way.

        A replica that was declared dead has no kernel any more. Its process may only be stopped: it
        would never answer, and never close a connection.
        """
        for replica in self._busy.keys() - replicas:
            for remote in self._busy[replica]:
                remote.cut_off()
        for replica in self._idle.keys() - replicas:
            self._drop(replica)

    def close(self) -> None:
        """Close the idle connections."""
        for replica in [*self._idle]:
            self._drop(replica)

    async def _run(self, way: Way, scope: Scope, receive: Receive, send: Send) -> bool:
        remote = self._take(way.replica)
        if remote is not None:
            try:
                return await self._use(remote, way.replica, scope, receive, send)
            except Broken as broken:
                # An idle connection may have been lost unnoticed, and then the other idle ones to
                # that replica have, too.
                self._drop(way.replica)
                if remote.is_heard or broken.silent:
                    raise
        remote = await dial(way, self._context)
        return await self._use(remote, way.replica, scope, receive, send)

    async def _use(
        self, remote: Remote, replica: str, scope: Scope, receive: Receive, send: Send
    ) -> bool:
        # Nothing awaits between these two lines. Otherwise another request that ends meanwhile
        # could take the empty set out of the dict, and `keep` would not find this connection.
        busy = self._busy.setdefault(replica, set())
        busy.add(remote)
        try:
            done = await remote.run(scope, receive, send)
        finally:
            busy.discard(remote)
            if not busy:
                self._busy.pop(replica, None)
        # `keep` may have cut the connection off while the last frame was read: `_take` sees that.
        if remote.is_kept:
            idle = self._idle.setdefault(replica, [])
            if len(idle) < IDLE:
                timer = self._loop.call_later(IDLE_SECONDS, self._expire, replica, remote)
                idle.append((remote, timer))
            else:
                remote.close()
        return done

    def _take(self, replica: str) -> Remote | None:
        """The idle connection to a replica that was used last; None if there is none."""
        found = None
        while found is None and (idle := self._idle.get(replica)):
            # The last is taken, so that idle connections beyond those that are needed at once
            # expire.
            remote, timer = idle.pop()
            timer.cancel()
            if remote.is_gone:
                remote.close()
            else:
                found = remote
        if not self._idle.get(replica, True):
            del self._idle[replica]
        return found

    def _expire(self, replica: str, remote: Remote) -> None:
        kept = [one for one in self._idle.pop(replica, []) if one[0] is not remote]
        if kept:
            self._idle[replica] = kept
        remote.close()

    def _drop(self, replica: str) -> None:
        for remote, timer in self._idle.pop(replica, []):
            timer.cancel()
            remote.close()

    def _note_lost(self, way: Way, why: Broken) -> None:
        now = self._loop.time()
        # A replica is dialled only for a request. So it counts as lost for the time from the first
        # to the last request that has failed, if no longer than `LOST_SECONDS` lay between two.
        first, last = self._lost.get(way.replica, (now, now))
        if way.replica in self._lost and now - last < LOST_SECONDS:
            self._lost[way.replica] = first, now
            return
        if len(self._lost) >= MOST_TROUBLES:
            del self._lost[next(iter(self._lost))]
        self._lost[way.replica] = now, now
        place = "its socket" if way.dial is None or way.socket else "{}:{}".format(*way.dial)
        logger.warning("replica %s cannot be reached at %s: %s", way.name, place, why)


# The replica that has the kernel


class Door:
    """Takes TLS connections on ``server``, which listens, and awaits ``serve`` with replicas.

    Make it in a running event loop, and `close` it there, which closes ``server``, too.
    """

    def __init__(
        self,
        server: socket.socket,
        context: ssl.SSLContext,
        serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._context = context
        self._serve = serve
        self._serving: set[asyncio.Future[None]] = set()
        self._accepting = Accepting(server, self._receive, "replicas")

    async def close(self) -> None:
        """Close the listening socket, and cut off every connection."""
        await self._accepting.close()  # first: no further connection is served from now on
        for task in self._serving:
            task.cancel()
        if self._serving:
            await asyncio.wait(self._serving)

    async def _receive(self, connection: socket.socket, address: Any) -> None:
        """Serve a connection that was accepted, if a replica has dialled in."""
        reader = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(reader)
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _break_when_gone(connection)
            async with asyncio.timeout(HANDSHAKE_SECONDS):
                transport, _ = await self._loop.connect_accepted_socket(
                    lambda: protocol, connection, ssl=self._context
                )
        except TimeoutError:
            connection.close()
            self._accepting.log(
                address, f"it has not shown who it is within {HANDSHAKE_SECONDS:g} s"
            )
            return
        except OSError as error:  # ssl.SSLError is one
            connection.close()
            self._accepting.log(address, str(error) or type(error).__name__)
            return
        except asyncio.CancelledError:
            connection.close()
            raise
        if replica_of(transport.get_extra_info("peercert")) is None:
            cut_off(transport)
            self._accepting.log(address, "its certificate is not a replica's")
            return
        writer = asyncio.StreamWriter(transport, protocol, reader, self._loop)
        task = asyncio.ensure_future(self._serve(reader, writer))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)
