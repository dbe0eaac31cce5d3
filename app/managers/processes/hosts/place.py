"""Where the keeper of a host is: at the end of an SSH connection, which starts it if need be."""

from __future__ import annotations

import hashlib
import logging

from ....keeper.protocol import SPOKEN
from ..keeper.far_link import FarLink
from ..keeper.link import KeeperLink, LinkOwner
from ..keeper.places import START_SECONDS, Drained
from ..keeper.remote import Host
from .errors import HostKeeperIncompatible
from .options import SSHOptions
from .service import Service
from .ssh import Ready, SocketRefused, Stream, bring_keeper, connect, open_stream

__all__ = ["SSHPlace", "keeper_name"]

logger = logging.getLogger(__name__)


class SSHPlace:
    """The place of this ``service``'s keeper for one user of one host."""

    patience: float = START_SECONDS
    """As `Place.patience`."""
    is_kernels_own = False
    """As `RemotePlace.is_kernels_own`."""

    ends_forgotten: bool = False
    """As `RemotePlace.ends_forgotten`: this server ends the kernels when the host is back."""

    def __init__(self, options: SSHOptions, service: Service) -> None:
        self.name = options.name
        self.host: Host | None = None
        """As `RemotePlace.host`."""
        self._options = options
        self._service = service

    async def find(self, owner: LinkOwner, on_drained: Drained) -> KeeperLink:  # noqa: ARG002
        """As `Place.find`. Nothing is drained. Raises `HostUnusable`, too."""
        name = keeper_name(await self._service.name(), self._options.key)
        refused = False
        while True:
            try:
                ready, stream = await self._dial(name)
            except SocketRefused:
                # The second refusal comes from sshd's configuration: further tries would only hide
                # that until `patience` is over. The first may have another cause: a keeper that was
                # just killed seemed to listen.
                if refused:
                    raise
                refused = True
                continue
            link = await FarLink.over(stream.reader, stream, owner)
            if link is None:
                continue  # the keeper that was there is about to end: there will be another
            if link.protocol not in SPOKEN:
                await link.close()
                raise HostKeeperIncompatible(
                    f"The keeper on {self.name} speaks version {link.protocol}, and this server "
                    f"{' and '.join(map(str, SPOKEN))}: end its kernels with the server that "
                    "started them"
                )
            told = (self.name, link.pid, ready.directory)
            logger.info("%s: process %d is the keeper of the kernels, in %s", *told)
            self.host = ready.host
            return link

    async def _dial(self, name: str) -> tuple[Ready, Stream]:
        connection = await connect(self._options)
        try:
            ready = await bring_keeper(connection, self._options, name)
            return ready, await open_stream(connection, ready.socket)
        except BaseException:
            # Also when this is cancelled: nothing else refers to the connection yet. Later it ends
            # with the stream.
            connection.abort()
            raise

    async def close(self, *, is_empty: bool) -> None:
        """As `Place.close`: with nothing to keep, the keeper ends by itself."""

    def let_go(self) -> None:
        """As `RemotePlace.let_go`."""

    async def retire(self) -> None:
        """As `RemotePlace.retire`."""


def keeper_name(service: str, key: str) -> str:
    """The name of a keeper among all on its host: 16 hexadecimal digits.

    Services have different keepers, and so have options with different keys (`SSHOptions.key`). If
    two places used the same keeper, each would end the link of the other.
    """
    return hashlib.sha256(f"{service} {key}".encode()).hexdigest()[:16]
