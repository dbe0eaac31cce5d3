"""The way of a keeper to a service that cannot dial it: it dials out, for as long as it lives.

The service asks for a sign of life every second. When nothing has come for three of these, the
connection is taken for dead, and another is made, at the next address that answers. Whatever was
under way in the old one the service asks for again, or has had (see `Service`).
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from typing import Final

from .joining import Trust
from .protocol import Garbled, cut_off, pack, receive
from .servers import ServerLink

__all__ = ["Dialler", "SentAway"]

logger = logging.getLogger(__name__)

BEAT_SECONDS: Final = 1.0
MISSED: Final = 3

CONNECT_SECONDS: Final = 10.0
"""How long a connection may take, TLS included."""

ANSWER_SECONDS: Final = 20.0
"""How long the service may take to take this keeper in."""

ANSWER_BYTES: Final = 2**16

SHORTEST_PAUSE: Final = 0.2
LONGEST_PAUSE: Final = 5.0
"""Seconds between two rounds through all addresses, of which each takes a half of that or more."""

LASTING_SECONDS: Final = 10.0
"""A connection that lasted so long was none that is refused each time."""


class SentAway(Exception):
    """The service does not want this keeper; whether it ``ends`` what it has."""

    def __init__(self, code: str, text: str, *, ends: bool) -> None:
        super().__init__(f"{text} ({code})")
        self.code = code
        self.ends = ends


class Dialler:
    """Dials the ``addresses`` in turn. ``new_link`` makes the keeper's end of a connection."""

    def __init__(
        self,
        addresses: list[tuple[str, int]],
        trust: Trust,
        new_link: Callable[[], ServerLink],
    ) -> None:
        self._addresses = addresses
        self._trust = trust
        self._new_link = new_link
        self._said = ""

    async def run(self) -> None:
        """Have a connection to the service as often as can be, until it is cancelled.

        Raises `SentAway` when the service wants this keeper no more, or never did.
        """
        loop = asyncio.get_running_loop()
        pause = SHORTEST_PAUSE
        while True:
            for address in [*self._addresses]:
                began = loop.time()
                await self._try(address)
                if loop.time() - began > LASTING_SECONDS:
                    pause = SHORTEST_PAUSE
            # Keepers that have lost their service at the same moment come back one by one.
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, LONGEST_PAUSE)

    async def _try(self, address: tuple[str, int]) -> None:
        """Have a connection to one address until it ends."""
        try:
            await self._dial(*address)
            self._say(f"the connection to {address[0]}:{address[1]} has ended")
        except SentAway as error:
            if error.ends or (error.code != "later" and not self._trust.has_joined):
                raise
            self._say(f"{address[0]}:{address[1]} has no place for this keeper: {error}")
        except asyncio.TimeoutError:
            self._say(f"{address[0]}:{address[1]} does not answer in time")
        except (OSError, EOFError, Garbled, ValueError) as error:
            self._say(f"{address[0]}:{address[1]} cannot be reached: {error}")

    def _say(self, what: str) -> None:
        """Log something, but not again and again."""
        if what != self._said:
            logger.info("%s", what)
        self._said = what

    async def _dial(self, host: str, port: int) -> None:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(ANSWER_BYTES)
        protocol = asyncio.StreamReaderProtocol(reader)
        name = self._trust.server_name(host)
        connecting = loop.create_connection(
            lambda: protocol, host, port, ssl=self._trust.context(), server_hostname=name
        )
        transport, _ = await asyncio.wait_for(connecting, CONNECT_SECONDS)
        try:
            transport.write(pack(self._trust.hello))
            answer, _ = await asyncio.wait_for(receive(reader, ANSWER_BYTES), ANSWER_SECONDS)
            if "refused" in answer:
                text = str(answer.get("text"))[:1000]
                raise SentAway(str(answer["refused"]), text, ends=answer.get("ends") is True)
            self._trust.keep(str(answer.get("credential")))
            logger.info("%s:%d has taken this keeper in", host, port)
            self._said = ""
            server = self._new_link()
            transport.set_protocol(server)
            server.connection_made(transport)
            await self._watch(server)
        finally:
            cut_off(transport)

    async def _watch(self, server: ServerLink) -> None:
        """Return when the connection has ended, or is dead.

        It counts looks, not seconds: while this process itself does not run, nothing is missed.
        """
        missed = 0
        while missed < MISSED and not server.ended.done():
            await asyncio.wait({server.ended}, timeout=BEAT_SECONDS)
            missed = 0 if server.is_heard else missed + 1
            server.is_heard = False
