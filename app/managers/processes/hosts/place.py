"""Where the keeper of a host is: at the end of an SSH connection, which starts it if need be."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
from pathlib import Path

from ....keeper.protocol import SPOKEN
from ...errors import KeeperUnavailable
from ..keeper.far_link import FarLink
from ..keeper.link import KeeperLink, LinkOwner
from ..keeper.places import START_SECONDS, Drained
from ..keeper.remote import Host
from .errors import HostKeeperIncompatible
from .options import SSHOptions
from .ssh import Ready, SocketRefused, Stream, bring_keeper, connect, open_stream

__all__ = ["SSHPlace", "service_id"]

logger = logging.getLogger(__name__)


class SSHPlace:
    """The place of this service's keeper for one user of one host.

    ``state_dir`` is this server's own: it has the name that the keeper's directory there gets.
    """

    patience: float = START_SECONDS
    """As `Place.patience`."""
    is_kernels_own = False
    """As `RemotePlace.is_kernels_own`."""

    ends_forgotten: bool = False
    """As `RemotePlace.ends_forgotten`: it is told by this server, when the host is back."""

    def __init__(self, options: SSHOptions, state_dir: Path) -> None:
        self.name = options.name
        self.host: Host | None = None
        """As `RemotePlace.host`."""
        self._options = options
        self._state_dir = state_dir

    async def find(self, owner: LinkOwner, on_drained: Drained) -> KeeperLink:  # noqa: ARG002
        """As `Place.find`. Nothing is drained. Raises `HostUnusable`, too."""
        service = await asyncio.to_thread(service_id, self._state_dir)
        refused = False
        while True:
            try:
                ready, stream = await self._dial(service)
            except SocketRefused:
                if refused:
                    raise
                refused = True  # a keeper that was just killed may have seemed to listen
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
            logger.info("%s: process %d is the keeper of the kernels", self.name, link.pid)
            self.host = ready.host
            return link

    async def _dial(self, service: str) -> tuple[Ready, Stream]:
        connection = await connect(self._options)
        try:
            ready = await bring_keeper(connection, self._options, service)
            return ready, await open_stream(connection, ready.socket)
        except BaseException:
            connection.abort()
            raise

    async def close(self, *, is_empty: bool) -> None:
        """As `Place.close`: with nothing to keep, the keeper ends by itself."""

    async def retire(self) -> None:
        """As `RemotePlace.retire`."""


def service_id(state_dir: Path) -> str:
    """The name of this state directory among all services: the same for each server of it.

    Raises `KeeperUnavailable` if it can be neither read nor stored.
    """
    path = state_dir / "service-id"
    try:
        with contextlib.suppress(FileExistsError):
            temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                os.write(descriptor, secrets.token_hex(8).encode())
                os.fsync(descriptor)
                os.link(temporary, path)  # never there without its content
            finally:
                os.close(descriptor)
                temporary.unlink()
        name = path.read_text()
    except OSError as error:
        raise KeeperUnavailable(f"The name of this service cannot be stored: {error}") from error
    if len(name) != 16 or not set(name) <= set("0123456789abcdef"):
        raise KeeperUnavailable(f"{path} is not what a server has written: remove it")
    return name
