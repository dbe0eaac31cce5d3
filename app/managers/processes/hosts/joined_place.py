"""Where a keeper is that dials in: at the other end of its newest connection."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from ....keeper.joining import MAX_ADDRESSES
from ....keeper.protocol import SPOKEN, Garbled
from ...errors import KeeperUnavailable
from ..keeper.far_link import FarLink
from ..keeper.link import KeeperLink, LinkLost, LinkOwner
from ..keeper.places import START_SECONDS, Drained
from ..keeper.remote import Host
from .errors import HostKeeperIncompatible
from .joining import RENEW_SECONDS, Joining
from .listener import Guest

__all__ = ["JoinedPlace", "Submit"]

logger = logging.getLogger(__name__)

Submit = Callable[[], Awaitable[None]]
"""Finds a running keeper, or invites and starts one if it is wanted.

It is called each time before the keeper is waited for, and returns soon. It raises `HostUnusable`
if there can be no keeper."""


class JoinedPlace:
    """The place of the keeper with this id, which ``submit`` starts; ``name`` is for people.

    The keeper dials these ``addresses`` before those of the service.
    """

    patience: float = START_SECONDS
    """As `Place.patience`: an engine with a queue has more."""
    is_kernels_own = False
    """As `RemotePlace.is_kernels_own`."""

    ends_forgotten: bool = True
    """As `RemotePlace.ends_forgotten`."""

    def __init__(
        self,
        joining: Joining,
        keeper_id: str,
        name: str,
        submit: Submit | None = None,
        addresses: Sequence[str] = (),
    ) -> None:
        self.name = name
        self.host: Host | None = None
        """As `RemotePlace.host`."""
        self._joining = joining
        self._keeper_id = keeper_id
        self._submit = submit
        self._addresses = addresses
        self._link: KeeperLink | None = None
        self._renewal: asyncio.TimerHandle | None = None

    async def find(self, owner: LinkOwner, on_drained: Drained) -> KeeperLink:  # noqa: ARG002
        """As `Place.find`. Nothing is drained. Raises `HostUnusable`, too."""
        # Before anything is noted of the keeper in `Joining`: if an earlier place of the same
        # keeper is closed only now, its `unfollow` leaves those notes alone.
        self._joining.follow(self._keeper_id, self._tell)
        while True:
            # A keeper may have dialled in before this looks for it, as after a start of the server:
            # then no other keeper is started beside it.
            if self._submit is not None and not self._joining.has_come(self._keeper_id):
                await self._submit()
            guest = await self._joining.arrived(self._keeper_id, self.name, self.patience)
            link = await FarLink.over(guest.reader, guest, owner)
            if link is None:
                continue  # it has hung up, and dials in again
            try:
                await self._meet(link)
            except LinkLost:
                # The keeper dials in again by itself. `Connection` bounds how long that goes on.
                continue
            except BaseException:
                await link.close()
                raise
            self._renew_later(link, guest)
            self._link = link
            self._joining.follow(self._keeper_id, self._tell)
            return link

    async def _meet(self, link: KeeperLink) -> None:
        if link.protocol not in SPOKEN:
            raise HostKeeperIncompatible(
                f"The keeper of {self.name} speaks version {link.protocol}, and this server "
                f"{' and '.join(map(str, SPOKEN))}: start it with the version of this server"
            )
        answer, _ = await link.ask({"ask": "host"})
        try:
            self.host = msgspec.convert(answer, Host)
        except msgspec.ValidationError as error:
            raise Garbled(f"the keeper of {self.name} does not tell what it is on") from error
        logger.info("%s: process %d there is the keeper of the kernels", self.name, link.pid)

    def _renew_later(self, link: KeeperLink, guest: Guest) -> None:
        """Give the keeper a new certificate from time to time, as long as the link is there.

        By the monotonic clock: what the time of day is, here or there, does not matter.
        """

        def renew() -> None:
            if link.is_open:
                link.tell({"ask": "credential", "pem": self._joining.renewed(guest)})
                self._renew_later(link, guest)

        if self._renewal is not None:
            self._renewal.cancel()
        self._renewal = asyncio.get_running_loop().call_later(RENEW_SECONDS, renew)

    def _tell(self, addresses: Sequence[str]) -> None:
        """Tell the keeper where it may dial; an earlier one keeps what its join document says."""
        link, host = self._link, self.host
        if link is not None and link.is_open and host is not None and "addresses" in host.can:
            told = [*dict.fromkeys([*self._addresses, *addresses])][:MAX_ADDRESSES]
            link.tell({"ask": "addresses", "addresses": told})

    async def close(self, *, is_empty: bool) -> None:  # noqa: ARG002
        """As `Place.close`: the keeper dials in at the next server, if it has kernels."""
        self._joining.unfollow(self._keeper_id, self._tell)
        if self._renewal is not None:
            self._renewal.cancel()

    def let_go(self) -> None:
        """As `RemotePlace.let_go`."""

    async def retire(self) -> None:
        """As `RemotePlace.retire`: the keeper is not expected any more, and is to end."""
        try:
            await self._joining.forget(self._keeper_id)
        except KeeperUnavailable as error:
            logger.error("%s: %s", self.name, error.message)
