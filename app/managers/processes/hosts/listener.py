"""Where keepers on other hosts dial in: the socket, TLS, and the messages before there is a link.

A keeper shows which one it is, by its certificate, or at its first time by its join secret:

    keeper  -> {"join": 1, "keeper": ID, "secret": S, "nonce": N}    or, with a certificate,
    keeper  -> {"join": 1}
    service -> {"joined": 1, "credential": PEM}      a new key and certificate, and the link follows
    service -> {"refused": CODE, "text": TEXT, "ends": BOOL}

With the code ``elsewhere`` come the ``addresses`` of the replica of this service that has the
keeper's kernel. A keeper adds to its message the addresses that are ``away``, where it found
nobody.

Before these messages a connection is a stranger's, so there are bounds: on the number of such
connections, on the time of each, and on the bytes that it may send.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from ....keeper.protocol import Garbled, cut_off, pack, receive
from .accepting import Accepting
from .authority import Credential, credential_of
from .invitations import Book, Refused

__all__ = ["Guest", "Listener"]

JOIN: Final = 1
"""The version of these first messages."""

STRANGER_SECONDS: Final = 10.0
"""How long a keeper may take to show which one it is."""

CLOSE_SECONDS: Final = 3.0
"""How long a keeper that is refused may take to read the refusal, and to end TLS."""

HELLO_BYTES: Final = 4096


class _Hello(msgspec.Struct):
    """The first message of a keeper."""

    join: int
    keeper: str = ""
    secret: str = ""
    nonce: str = ""
    away: list[str] = []


class Guest:
    """A keeper that has dialled in and shown which one it is, and waits to be answered.

    The object is the `Writer` of the connection, too.
    """

    def __init__(
        self,
        credential: Credential,
        reader: asyncio.StreamReader,
        transport: asyncio.Transport,
        away: Sequence[str] = (),
    ) -> None:
        self.credential = credential
        self.away = away
        """The addresses at which the keeper has found no replica."""
        self.reader = reader
        self.transport = transport

    @property
    def is_gone(self) -> bool:
        """Whether the keeper has hung up."""
        return self.transport.is_closing() or self.reader.at_eof()

    def answer(self, credential: str) -> None:
        """Take the keeper in; what follows is the link."""
        self.transport.write(pack({"joined": JOIN, "credential": credential}))

    def refuse(self, refused: Refused) -> None:
        """Send the keeper away."""
        _refuse(self.transport, refused)


class Listener:
    """Takes connections on ``server``, a socket that listens, and calls ``on_guest`` with keepers.

    Make it in a running event loop, and `close` it there.
    """

    def __init__(
        self,
        server: socket.socket,
        context: ssl.SSLContext,
        invitations: Book,
        on_guest: Callable[[Guest], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._context = context
        self._invitations = invitations
        self._on_guest = on_guest
        self._accepting = Accepting(server, self._receive, "keepers")

    async def close(self) -> None:
        """Listen no more; connections of strangers are cut off."""
        await self._accepting.close()

    async def _receive(self, connection: socket.socket, address: Any) -> None:
        """Receive a stranger's first message, and call ``on_guest`` or refuse."""
        reader = asyncio.StreamReader(HELLO_BYTES)
        protocol = asyncio.StreamReaderProtocol(reader)
        transport: asyncio.Transport | None = None
        guest: Guest | None = None
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            async with asyncio.timeout(STRANGER_SECONDS):
                transport, _ = await self._loop.connect_accepted_socket(
                    lambda: protocol,
                    connection,
                    ssl=self._context,
                    ssl_shutdown_timeout=CLOSE_SECONDS,
                )
                credential, away = await self._who(reader, transport)
                guest = Guest(credential, reader, transport, away)
        except Refused as refused:
            assert transport is not None
            _refuse(transport, refused)
            self._accepting.log(address, f"{refused} ({refused.code})")
            # TLS ends when both ends have said so. Until then the connection counts as that of a
            # stranger: otherwise refused ones could take all descriptors.
            writer = asyncio.StreamWriter(transport, protocol, reader, self._loop)
            try:
                await writer.wait_closed()
            except OSError:
                pass
            except asyncio.CancelledError:
                # The server ends: do not wait until the transport, which is closing, has closed.
                cut_off(transport)
                raise
        except TimeoutError:
            self._accepting.log(
                address, f"it has not shown who it is within {STRANGER_SECONDS:g} s"
            )
        except (asyncio.IncompleteReadError, ConnectionError):
            self._accepting.log(address, "it has hung up before it has shown who it is")
        except (OSError, Garbled, msgspec.MsgspecError) as error:  # ssl.SSLError is an OSError
            self._accepting.log(address, str(error))
        finally:
            if guest is None:
                if transport is None:
                    connection.close()
                elif not transport.is_closing():
                    cut_off(transport)
        # The keeper is no stranger any more: neither the bound on their number nor that on their
        # time holds for it. A guest waits as long as `Joining` lets it.
        if guest is not None:
            self._on_guest(guest)

    async def _who(
        self, reader: asyncio.StreamReader, transport: asyncio.Transport
    ) -> tuple[Credential, list[str]]:
        """Who it is that says this, and what is away. Raises `Refused`, and what reading does."""
        hello = msgspec.convert((await receive(reader, HELLO_BYTES))[0], _Hello)
        if hello.join != JOIN:
            text = f"it joins by version {hello.join}, and this server by {JOIN}"
            raise Refused("host_keeper_incompatible", text)
        # TLS has verified it: it is this authority's, and its time is not up. What is asked of the
        # book is whether it has been replaced or forgotten since.
        certificate = transport.get_extra_info("peercert")
        credential = credential_of(certificate)
        if certificate and credential is None:
            raise Refused("not_a_keeper", "this certificate is not a keeper's")
        if credential is None:
            credential = await self._invitations.join(hello.keeper, hello.secret, hello.nonce)
        else:
            await self._invitations.check(credential)
        return credential, hello.away


def _refuse(transport: asyncio.Transport, refused: Refused) -> None:
    told = {"refused": refused.code, "text": str(refused), "ends": refused.ends}
    if refused.addresses:
        told["addresses"] = [*refused.addresses]
    # `close` sends this first, and takes `CLOSE_SECONDS` with a peer that never ends TLS.
    transport.write(pack(told))
    transport.close()
