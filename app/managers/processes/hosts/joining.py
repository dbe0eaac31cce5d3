"""Keepers on other hosts that dial in: who is expected, who has come, and who waits for them.

An engine starts a keeper somewhere and hands it a *join document*: where this server is, how to
know it, and a secret that works once. The keeper dials in, again and again for as long as it has
kernels, whichever server of this state directory is there.

Several servers may be one service, as replicas of each other. A keeper may dial any of them, and is
sent to the one that has its kernels (`Replicas`).
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from ....keeper.joining import MAX_ADDRESSES
from ....keeper.protocol import cut_off
from ...errors import KeeperUnavailable
from .authority import Authority
from .errors import HostUnreachable, HostUnusable, KeepersNotHeard
from .invitations import Book, Invitations, OwnBook, Refused
from .listener import Guest, Listener
from .service import Service

__all__ = ["RENEW_SECONDS", "Invitation", "Joining", "Replicas"]

RENEW_SECONDS: Final = 3600.0
"""How often a keeper gets a new certificate while the link to it is there."""

HOLD_SECONDS: Final = 8.0
"""How long a keeper waits to be taken in before it is told to come again.

It is longer than the pause after which a server that could not reach a keeper tries again."""

MAX_HELD: Final = 4096
"""How many keepers may wait to be taken in."""

LOOK_SECONDS: Final = 0.1
"""How long after a change among replicas is looked which keepers that concerns."""

ENDED: Final = Refused("keeper_replaced", "another keeper is in its place", ends=True)
LATER: Final = Refused("later", "nobody waits for this keeper now")


class Invitation(NamedTuple):
    """What an engine hands to a keeper that it starts, in a secret way: the ``document``."""

    keeper_id: str
    generation: int
    document: bytes


class Replicas(Book, Service, Protocol):
    """Several servers that are one service: the invitations that they share, and each other.

    ``on_change`` is called when a replica or a kernel may have changed. ``authority`` is the key
    that all have, with its certificate, as PEM; None for a replica that does not listen.
    """

    on_change: Callable[[], None]
    authority: bytes | None

    @property
    def addresses(self) -> Sequence[str]:
        """Where keepers dial any of them."""

    def having(self, keeper_id: str) -> Sequence[str]:
        """Where the replica listens that has a keeper; nothing if it is this one, or unknown."""


class Joining:
    """The keepers that dial in to one server. Make it in a running event loop; `close` it there.

    ``authority`` is None where this server does not listen for keepers. ``life`` is for how many
    seconds a keeper lives without a server. The server may be one of several ``replicas``.
    """

    def __init__(
        self,
        directory: Path,
        authority: Authority | None = None,
        server: socket.socket | None = None,
        addresses: Sequence[str] = (),
        *,
        life: float = 86400.0,
        replicas: Replicas | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._authority = authority
        self.own_addresses = [*addresses]
        self._life = life + 2 * RENEW_SECONDS
        self._held: dict[str, tuple[Guest, asyncio.TimerHandle]] = {}
        self._waiting: dict[str, set[asyncio.Future[None]]] = {}
        self._open: dict[str, asyncio.WriteTransport] = {}
        self._failures: dict[str, KeeperUnavailable] = {}
        self._generations: dict[str, int] = {}  # the newest, of those that were invited from here
        self._listener: Listener | None = None
        self._replicas = replicas
        self._told: dict[str, Callable[[Sequence[str]], None]] = {}
        self._looking: asyncio.TimerHandle | None = None
        self.port = 0
        """The port that keepers dial."""
        if authority is not None and server is not None:
            self._book = replicas or OwnBook(Invitations(directory))
            self.port = server.getsockname()[1]
            self._listener = Listener(server, authority.context, self._book, self._on_guest)
            if replicas is not None:
                replicas.on_change = self._on_change
        self._known = self.addresses

    @property
    def is_on(self) -> bool:
        """Whether keepers can dial in."""
        return self._listener is not None

    @property
    def addresses(self) -> list[str]:
        """Where keepers dial: this server first, then its other replicas."""
        others = () if self._replicas is None else self._replicas.addresses
        return [*dict.fromkeys([*self.own_addresses, *others])][:MAX_ADDRESSES]

    def follow(self, keeper_id: str, tell: Callable[[Sequence[str]], None]) -> None:
        """Call ``tell`` with the addresses that keepers dial: now, and when they change.

        Whoever does this last has the keeper: `unfollow` with another ``tell`` does nothing.
        """
        self._told[keeper_id] = tell
        tell(self.addresses)

    def unfollow(self, keeper_id: str, tell: Callable[[Sequence[str]], None]) -> None:
        """Do not call this any more: this server leaves the keeper."""
        if self._told.get(keeper_id) != tell:  # another has it, and what is known here is for that
            return
        del self._told[keeper_id]
        # The kernel may have gone to another replica: then no call of `forget` comes here. When it
        # comes back, its keeper may be a newer one, of which nothing that is known here holds.
        self._failures.pop(keeper_id, None)
        self._generations.pop(keeper_id, None)
        transport = self._open.get(keeper_id)
        if transport is not None and transport.is_closing():
            del self._open[keeper_id]

    async def invite(
        self, keeper_id: str, *, seconds: float = 3600.0, addresses: Sequence[str] = ()
    ) -> Invitation:
        """Expect a new keeper with this id; every earlier one is to end, and is cut off.

        Its secret works for so many ``seconds``. ``addresses`` (``host:port``) are tried before the
        configured ones. Raises `HostUnusable`.
        """
        if self._listener is None or self._authority is None:
            raise KeepersNotHeard("Keepers on other hosts cannot dial in: set agent_listen")
        try:
            credential, secret = await self._book.invite(keeper_id, seconds)
        except OSError as error:
            raise HostUnusable(f"The invitation of a keeper cannot be stored: {error}") from error
        self._failures.pop(keeper_id, None)
        self._generations[keeper_id] = credential.generation
        self._send_away(keeper_id, ENDED)
        document = {
            "join": 1,
            "keeper": keeper_id,
            "addresses": [*dict.fromkeys([*addresses, *self.addresses])][:MAX_ADDRESSES],
            "server_name": self._authority.server_name,
            "authority": self._authority.trusted,
            "secret": secret,
        }
        return Invitation(keeper_id, credential.generation, json.dumps(document).encode())

    async def forget(self, keeper_id: str) -> None:
        """Expect a keeper no more: one that dials in later is told to end.

        Raises `HostUnusable` if that cannot be stored.
        """
        if self._listener is None:
            return
        try:
            await self._book.forget(keeper_id)
        except OSError as error:
            raise HostUnusable(f"A keeper cannot be forgotten: {error}") from error
        self._failures.pop(keeper_id, None)
        self._generations.pop(keeper_id, None)
        self._send_away(keeper_id, ENDED)

    def fail(self, keeper_id: str, error: KeeperUnavailable) -> None:
        """No keeper with this id will come, for this reason, until the next `invite`."""
        self._failures[keeper_id] = error
        self._wake(keeper_id)

    def has_come(self, keeper_id: str) -> bool:
        """Whether this keeper waits to be taken in.

        One that has failed does not: its connection may not have ended here yet.
        """
        held = None if keeper_id in self._failures else self._held.get(keeper_id)
        return held is not None and not held[0].is_gone

    async def arrived(self, keeper_id: str, name: str, seconds: float) -> Guest:
        """The next connection of a keeper, which has been answered: it is for a link.

        Raises what `fail` was told, and `HostUnreachable` if it has not come in time.
        """
        try:
            async with asyncio.timeout(seconds):
                while True:
                    # From here to the future in `_change` nothing is awaited: what comes later
                    # wakes that.
                    if (failure := self._failures.get(keeper_id)) is not None:
                        # One error for all who ask, again and again: else each time would add
                        # its frames, and what these hold, to the error's traceback.
                        raise failure.with_traceback(None)
                    if (guest := self._take(keeper_id)) is not None:
                        return guest
                    await self._change(keeper_id)
        except TimeoutError:
            raise HostUnreachable(f"The keeper of {name} has not dialled in") from None

    async def _change(self, keeper_id: str) -> None:
        change: asyncio.Future[None] = self._loop.create_future()
        waiting = self._waiting.setdefault(keeper_id, set())
        waiting.add(change)
        try:
            await change
        finally:
            waiting.discard(change)
            # Another may have begun to wait since, and made a set of its own.
            if not waiting and self._waiting.get(keeper_id) is waiting:
                del self._waiting[keeper_id]

    def _wake(self, keeper_id: str) -> None:
        # All who wait are woken, and one takes the guest. Nobody leaves the set here: each future
        # does that in a turn of its own.
        for change in self._waiting.get(keeper_id, ()):
            if not change.done():
                change.set_result(None)

    def _take(self, keeper_id: str) -> Guest | None:
        # Out of the table before it is answered: nobody else takes it in, and its time is not up.
        guest, timer = self._held.pop(keeper_id, (None, None))
        if guest is None or timer is None:
            return None
        timer.cancel()
        if guest.is_gone:
            cut_off(guest.transport)
            return None
        guest.answer(self.renewed(guest))
        self._open[keeper_id] = guest.transport
        return guest

    def renewed(self, guest: Guest) -> str:
        """A new key and certificate for a keeper that was taken in.

        It outlives the longest time that the keeper goes on without a server: one that dials in
        after that time has a valid certificate still.
        """
        assert self._authority is not None
        return self._authority.issue(guest.credential, self._life)

    def _on_guest(self, guest: Guest) -> None:
        """A keeper has dialled in. Its earlier connection is of no use to it any more."""
        keeper_id = guest.credential.keeper_id
        # The book looks at a credential in a thread or another process. A newer invitation may be
        # stored, and told here, before the answer about this one is: it keeps its place.
        if guest.credential.generation < self._generations.get(keeper_id, 0):
            guest.refuse(ENDED)
            return
        self._send_away(keeper_id, LATER)
        elsewhere = self._elsewhere(guest)
        if elsewhere is not None or len(self._held) >= MAX_HELD:
            guest.refuse(elsewhere or LATER)
            return
        # `_send_away` has left no earlier guest of this id, so the timer is for the one in the
        # table.
        timer = self._loop.call_later(HOLD_SECONDS, self._give_up, guest)
        self._held[keeper_id] = (guest, timer)
        self._wake(keeper_id)

    def _elsewhere(self, guest: Guest) -> Refused | None:
        """The refusal that sends a keeper to the replica that has it.

        None if this one has it, or if the keeper has found no replica at those addresses.
        """
        if self._replicas is None:
            return None
        having = self._replicas.having(guest.credential.keeper_id)
        to = [each for each in having if each not in guest.away]
        if not to:
            return None
        return Refused("elsewhere", "another replica has this keeper", addresses=to)

    def _on_change(self) -> None:
        """Replicas, or who has which kernel, may have changed; many changes may come at a time."""
        # The first change of many sets the timer, and the look finds what all have come to.
        if self._looking is None:
            self._looking = self._loop.call_later(LOOK_SECONDS, self._look)

    def _look(self) -> None:
        """See which keepers that wait are wanted elsewhere, and what addresses there are."""
        self._looking = None
        # A copy: `_send_away` takes guests out.
        for guest, _ in [*self._held.values()]:
            if (elsewhere := self._elsewhere(guest)) is not None:
                self._send_away(guest.credential.keeper_id, elsewhere)
        if self._known != (addresses := self.addresses):
            self._known = addresses
            for tell in [*self._told.values()]:
                tell(addresses)

    def _give_up(self, guest: Guest) -> None:
        self._held.pop(guest.credential.keeper_id, None)
        guest.refuse(LATER)

    def _send_away(self, keeper_id: str, refused: Refused) -> None:
        """End all connections of a keeper."""
        guest, timer = self._held.pop(keeper_id, (None, None))
        if guest is not None and timer is not None:
            timer.cancel()
            guest.refuse(refused)
        transport = self._open.pop(keeper_id, None)
        if transport is not None:
            cut_off(transport)

    async def close(self) -> None:
        """Take in no more keepers, and let none wait. Links should be closed before."""
        if self._looking is not None:
            self._looking.cancel()
        # The replicas tell of changes until they are closed, which is later.
        if self._replicas is not None:
            self._replicas.on_change = _nothing
        if self._listener is not None:
            await self._listener.close()
        for guest, timer in self._held.values():
            timer.cancel()
            guest.refuse(LATER)
        self._held.clear()
        for transport in self._open.values():
            cut_off(transport)


def _nothing() -> None:
    """Nobody is told of changes any more."""
