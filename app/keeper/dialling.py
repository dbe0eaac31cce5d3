"""The way of a keeper to a service that cannot dial it: it dials out, for as long as it lives.

The service sends a heartbeat every second. After three seconds without one the keeper takes the
connection for dead, and dials the next address that answers. The service then asks again for what
was under way in the old connection (see `Service`).

A service may have several replicas, of which one has this keeper. Every replica tells the keeper
the address of that one. The keeper tells which addresses have not answered. If that one is among
them, the replica that is asked has the keeper wait until another replica has taken it over.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from typing import Final

from .joining import Address, NotInvited, Trust, addresses_of
from .protocol import Fields, Garbled, cut_off, pack, receive
from .servers import ServerLink

__all__ = ["Dialler", "SentAway"]

logger = logging.getLogger(__name__)

BEAT_SECONDS: Final = 1.0
MISSED: Final = 3
"""How many times in a row, a second apart, the keeper finds nothing from the service before it
takes the connection for dead."""

CONNECT_SECONDS: Final = 10.0
"""How long a connection may take, TLS included."""

AWAY_SECONDS: Final = 4.0
"""How long a connection may take to an address that has not answered lately, or that fell silent.
This holds only if there are other addresses."""

HOPS: Final = 3
"""How often in one round this keeper follows a replica that sends it to another one."""

ANSWER_SECONDS: Final = 20.0
"""How long the service may take to accept this keeper."""

ANSWER_BYTES: Final = 2**16

SHORTEST_PAUSE: Final = 0.2
LONGEST_PAUSE: Final = 5.0
"""Seconds between two rounds through all addresses; a random part of up to a half is left out."""

LATER: Final = ("later", "elsewhere")
"""The codes of refusals after which a keeper dials on, even if it was never accepted before."""

LASTING_SECONDS: Final = 10.0
"""After a connection that lasted so long the pauses between rounds are short again."""


class SentAway(Exception):
    """The service has refused this keeper; ``ends`` tells whether its kernels are to end.

    ``to`` are the addresses of the replica that has this keeper, if there is one.
    """

    def __init__(self, code: str, text: str, *, ends: bool, to: Sequence[Address] = ()) -> None:
        super().__init__(f"{text} ({code})")
        self.code = code
        self.ends = ends
        self.to = to


class Dialler:
    """Dials the ``addresses`` in turn. ``new_link`` makes the keeper's end of a connection."""

    def __init__(
        self, addresses: Sequence[Address], trust: Trust, new_link: Callable[[], ServerLink]
    ) -> None:
        self._first = self._addresses = addresses
        self._trust = trust
        self._new_link = new_link
        self._away: dict[Address, int] = {}  # those that did not answer, and in which round
        self._rounds = 0
        self._silent: Address | None = None  # where the connection was dead
        self._said = ""

    def know(self, addresses: Sequence[Address]) -> None:
        """Dial these addresses from now on, and behind them those of the join document."""
        self._addresses = [*dict.fromkeys([*addresses, *self._first])]

    async def run(self) -> None:
        """Dial the service, and dial again whenever the connection ends, until this is cancelled.

        Raises `SentAway` when the service refuses this keeper for good.
        """
        pause = SHORTEST_PAUSE
        while True:
            if await self._round():
                pause = SHORTEST_PAUSE
            # Keepers that have lost their service at the same moment come back one by one.
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, LONGEST_PAUSE)

    async def _round(self) -> bool:
        """Dial all addresses, first those that a replica tells, until a connection has lasted.

        Returns whether one has.
        """
        self._rounds += 1
        # An address that only a replica has told is tried again a round later.
        self._away = {
            each: when
            for each, when in self._away.items()
            if each in self._addresses or when == self._rounds - 1
        }
        # Addresses that have not answered come last: it takes long to find that they still do not.
        rest = sorted(self._addresses, key=self._away.__contains__)
        hops = 0
        while rest:
            address = rest.pop(0)
            # A connection may take days: the addresses may have been told anew (`know`), so the
            # next round begins with those.
            lasted, told = await self._try(address)
            if lasted:
                return True
            if told and hops < HOPS:
                hops += 1
                rest = [*told, *(each for each in rest if each not in told)]
        return False

    async def _try(self, address: Address) -> tuple[bool, Sequence[Address]]:
        """Dial one address, and serve the connection until it ends.

        Returns whether the connection has lasted, and the addresses that the replica there told.
        """
        where = f"{address[0]}:{address[1]}"
        lasted = False
        told: Sequence[Address] = ()
        try:
            lasted = await self._dial(address)
            self._say(f"the connection to {where} has ended")
        except SentAway as error:
            if error.ends or (error.code not in LATER and not self._trust.has_joined):
                raise
            told = error.to
            self._say(f"{where} has no place for this keeper: {error}")
        except asyncio.TimeoutError:
            self._away[address] = self._rounds
            self._say(f"{where} does not answer in time")
        except (OSError, EOFError, Garbled, NotInvited, ValueError) as error:
            self._away[address] = self._rounds
            self._say(f"{where} cannot be reached: {error}")
        return lasted, told

    def _say(self, what: str) -> None:
        """Log a text, unless it is the one that was logged last."""
        if what != self._said:
            logger.info("%s", what)
        self._said = what

    async def _dial(self, address: Address) -> bool:
        """Connect, and serve the connection until its end.

        Returns whether it has lasted for `LASTING_SECONDS`. Raises `SentAway` if the service
        refuses this keeper.
        """
        host, port = address
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(ANSWER_BYTES)
        protocol = asyncio.StreamReaderProtocol(reader)
        name = self._trust.server_name(host)
        # A context for each connection: the certificate may have been replaced meanwhile.
        connecting = loop.create_connection(
            lambda: protocol, host, port, ssl=self._trust.context(), server_hostname=name
        )
        is_doubted = address in self._away or address == self._silent
        others = [each for each in self._addresses if each != address]
        is_late = is_doubted and any(each not in self._away for each in others)
        seconds = AWAY_SECONDS if is_late else CONNECT_SECONDS
        self._silent = None
        transport, _ = await asyncio.wait_for(connecting, seconds)
        try:
            transport.write(pack(self._trust.hello(each for each in self._away if each != address)))
            answer, _ = await asyncio.wait_for(receive(reader, ANSWER_BYTES), ANSWER_SECONDS)
            self._away.pop(address, None)
            if "refused" in answer:
                raise _sent_away(answer)
            # The certificate is stored before the keeper greets the service. If the connection
            # breaks earlier, the next hello shows the secret and the nonce once more (`Trust`); if
            # it breaks later, the certificate.
            self._trust.keep(str(answer.get("credential")))
            logger.info("%s:%d has taken this keeper in", host, port)
            self._said, began = "", loop.time()
            # No byte is lost between the two protocols. The service sends nothing more before the
            # greeting, which `connection_made` writes, so `reader` is empty; and nothing awaits
            # until then.
            server = self._new_link()
            transport.set_protocol(server)
            server.connection_made(transport)
            if not await self._watch(server):
                self._silent = address
            return loop.time() - began > LASTING_SECONDS
        finally:
            # Also after a cancellation. The link learns of its end only in a later turn of the
            # loop, perhaps when the service has already greeted the keeper over the next
            # connection. That greeting cuts off the earlier connections (`Service`).
            cut_off(transport)

    async def _watch(self, server: ServerLink) -> bool:
        """Return when the connection has ended (True), or is taken for dead (False).

        This counts looks rather than seconds: a time in which this process was stopped is no
        silence of the service.
        """
        missed = 0
        while missed < MISSED and not server.ended.done():
            # `wait` cancels nothing: `ended` belongs to the link, and others wait for it, too.
            await asyncio.wait({server.ended}, timeout=BEAT_SECONDS)
            missed = 0 if server.is_heard else missed + 1
            server.is_heard = False
        return server.ended.done()


def _sent_away(answer: Fields) -> SentAway:
    """The refusal that a service has answered. Raises `NotInvited`."""
    text = str(answer.get("text"))[:1000]
    to = addresses_of(answer["addresses"]) if answer.get("addresses") else ()
    return SentAway(str(answer["refused"]), text, ends=answer.get("ends") is True, to=to)
