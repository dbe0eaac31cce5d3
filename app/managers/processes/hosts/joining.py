"""Keepers on other hosts that dial in: which are expected, which have come, and who waits for them.

An engine starts a keeper somewhere and hands it a *join document*: the addresses of this server,
the certificate by which it is known, and a secret that works once. The keeper dials in, again and
again for as long as it has kernels, whichever server of this state directory is there.

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
"""How long after a change among the replicas the waiting keepers are checked (`_look`)."""

ENDED: Final = Refused("keeper_replaced", "another keeper is in its place", ends=True)
LATER: Final = Refused("later", "nobody waits for this keeper now")


class Invitation(NamedTuple):
    """An invitation of a keeper. The engine hands it the ``document``, which has a secret."""

    keeper_id: str
    generation: int
    document: bytes


class Replicas(Book, Service, Protocol):
    """What the replicas of one service share: invitations, an authority, and their addresses.

    ``on_change`` is called when a replica or a kernel may have changed. ``authority`` is the shared
    key with its certificate, as PEM; None for a replica that does not listen for keepers.
    """

    on_change: Callable[[], None]
    authority: bytes | None

    @property
    def addresses(self) -> Sequence[str]:
        """The addresses at which keepers dial the replicas."""

    def having(self, keeper_id: str) -> Sequence[str]:
        """The addresses of the replica that has a keeper's kernel.

        Empty if that is this replica, or is not known.
        """


class Joining:
    """The keepers that dial in to one server. Make it in a running event loop; `close` it there.

    ``authority`` is None if this server does not listen for keepers. ``life`` is how many seconds a
    keeper lives without a server. The server may be one of several ``replicas``.
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
        self._generations: dict[str, int] = {}  # the newest that this server itself has invited
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

        A later call for the same keeper replaces this one: `unfollow` with the earlier ``tell``
        does nothing then.
        """
        self._told[keeper_id] = tell
        tell(self.addresses)

    def unfollow(self, keeper_id: str, tell: Callable[[Sequence[str]], None]) -> None:
        """Call ``tell`` no more, and drop what is known of the keeper: this server leaves it."""
        if self._told.get(keeper_id) != tell:  # a later `follow` counts: what is known is for that
            return
        del self._told[keeper_id]
        # If another replica has the kernel now, no call of `forget` comes here. When the kernel
        # comes back, its keeper may be a newer one: so nothing is remembered of this one.
        self._failures.pop(keeper_id, None)
        self._generations.pop(keeper_id, None)
        transport = self._open.get(keeper_id)
        if transport is not None and transport.is_closing():
            del self._open[keeper_id]

    async def invite(
        self, keeper_id: str, *, seconds: float = 3600.0, addresses: Sequence[str] = ()
    ) -> Invitation:
        """Expect a new keeper with this id; earlier keepers of this id are told to end.

        The secret works for so many ``seconds``. The keeper tries ``addresses`` (``host:port``)
        before the configured ones. Raises `HostUnusable`.
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
        """Have `arrived` raise this error for a keeper, until the next `invite`: none will come."""
        self._failures[keeper_id] = error
        self._wake(keeper_id)

    def has_come(self, keeper_id: str) -> bool:
        """Whether this keeper has dialled in, and waits to be taken in.

        Not after a `fail`, although the keeper's connection may not have ended here yet.
        """
        held = None if keeper_id in self._failures else self._held.get(keeper_id)
        return held is not None and not held[0].is_gone

    async def arrived(self, keeper_id: str, name: str, seconds: float) -> Guest:
        """The next connection of a keeper, which was answered, and is ready for a link.

        Raises the error of a `fail`, and `HostUnreachable` if the keeper has not come in time.
        """
        try:
            async with asyncio.timeout(seconds):
                while True:
                    # Nothing is awaited from here to the future in `_change`: a failure or a guest
                    # that comes after these checks wakes the future.
                    if (failure := self._failures.get(keeper_id)) is not None:
                        # The same error object is raised for every caller: without this each would
                        # add its frames, and their objects, to the traceback.
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
            # Another caller may have begun to wait meanwhile, with a new set.
            if not waiting and self._waiting.get(keeper_id) is waiting:
                del self._waiting[keeper_id]

    def _wake(self, keeper_id: str) -> None:
        # All callers that wait are woken, and one takes the guest. The set does not change during
        # this loop: each caller removes its future in a turn of its own.
        for change in self._waiting.get(keeper_id, ()):
            if not change.done():
                change.set_result(None)

    def _take(self, keeper_id: str) -> Guest | None:
        # Taken out of the table before it is answered: no other caller takes it in, and its timer
        # does not refuse it.
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
        """A new key and certificate, as PEM, for a keeper that was taken in.

        The certificate is valid for longer than the keeper lives without a server: so it is still
        valid whenever the keeper dials in.
        """
        assert self._authority is not None
        return self._authority.issue(guest.credential, self._life)

    def _on_guest(self, guest: Guest) -> None:
        """Take a keeper that has dialled in; its earlier connections are cut off."""
        keeper_id = guest.credential.keeper_id
        # The book checks a credential in a thread, or in the database. The answer about this keeper
        # may come after that about a newer invitation: then the newer keeper is expected.
        if guest.credential.generation < self._generations.get(keeper_id, 0):
            guest.refuse(ENDED)
            return
        self._send_away(keeper_id, LATER)
        elsewhere = self._elsewhere(guest)
        if elsewhere is not None or len(self._held) >= MAX_HELD:
            guest.refuse(elsewhere or LATER)
            return
        # `_send_away` has removed any earlier guest of this id and its timer: so a timer is always
        # for the guest in the table.
        timer = self._loop.call_later(HOLD_SECONDS, self._give_up, guest)
        self._held[keeper_id] = (guest, timer)
        self._wake(keeper_id)

    def _elsewhere(self, guest: Guest) -> Refused | None:
        """The refusal that sends a keeper to the replica that has its kernel.

        None if this replica has the kernel, or if the keeper has found nobody at those addresses.
        """
        if self._replicas is None:
            return None
        having = self._replicas.having(guest.credential.keeper_id)
        to = [each for each in having if each not in guest.away]
        if not to:
            return None
        return Refused("elsewhere", "another replica has this keeper", addresses=to)

    def _on_change(self) -> None:
        """Have `_look` called soon: replicas, or which of them has a kernel, may have changed."""
        # Many changes may come at once: the first sets the timer, and `_look` sees all of them.
        if self._looking is None:
            self._looking = self._loop.call_later(LOOK_SECONDS, self._look)

    def _look(self) -> None:
        """Send waiting keepers to the replicas that have their kernels, and tell new addresses."""
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
        """Take in no more keepers, and refuse those that wait. Close the links before."""
        if self._looking is not None:
            self._looking.cancel()
        # The replicas' object calls `on_change` until it is closed, which is later.
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
    """Do nothing: in the place of `Replicas.on_change` after the end."""
