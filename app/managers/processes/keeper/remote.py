"""A keeper on another host, as the service sees it.

It is asked for what any keeper is asked for. But nothing of its kernels can be seen from here: no
process, no file. *That* a process has ended only its keeper can tell; as long as that cannot be
reached, the kernel is *unreachable*, and neither dead nor replaced.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec

from ....keeper.hearings import Heard
from ....keeper.protocol import Fields
from ...errors import KeeperUnavailable
from ...messages.line import Line
from .client import QUICK_SECONDS, Keeper
from .greeting import ReplicaTerms
from .kept import Kept, Processes
from .lines import Lines
from .link import KeeperLink
from .mirrors import Mirrors
from .places import Place

__all__ = ["Host", "RemoteKeeper", "RemotePlace"]

ORPHAN_SECONDS: Final = 600.0
"""How long kernels that end with the server go on when it is killed: nobody sees that there."""


class Host(msgspec.Struct, frozen=True):
    """What is known of a host: the user's ``home``, and the interpreter that runs the keeper.

    ``env`` has the variables that the user's programs get there.
    """

    home: str
    python: str
    env: dict[str, str]


class RemotePlace(Place, Protocol):
    """Where a keeper on another host is."""

    name: str
    """The host, for people."""

    @property
    def host(self) -> Host | None:
        """What is known of the host; None before the first connection."""


class RemoteKeeper(Keeper):
    """The server's connection to its keeper on another host.

    Arguments are those of `Keeper`. Kernels end with this server (``lasts`` is false) when that
    says so at its end; a server that is killed is waited for, as it cannot be seen from there.
    """

    def __init__(
        self,
        place: RemotePlace,
        *,
        log_bytes: int,
        log_total_bytes: int,
        log_age: float,
        orphan_timeout: float | None,
        output_bytes: int,
        own: Sequence[Path] = (),  # noqa: ARG002 - directories of this host
        terms: ReplicaTerms | None = None,
    ) -> None:
        super().__init__(
            Path(),
            log_bytes=log_bytes,
            log_total_bytes=log_total_bytes,
            log_age=log_age,
            orphan_timeout=ORPHAN_SECONDS if orphan_timeout is None else orphan_timeout,
            output_bytes=output_bytes,
            terms=terms,
            place=place,
        )
        self._lasts = orphan_timeout is not None
        self._where = place
        self._mirrors = Mirrors(
            self._connection.write, each=log_bytes, together=log_total_bytes, age=log_age
        )
        self._processes = Processes(here=False)
        self._lines = Lines(self._connection, self._mirrors)
        self._connection.on_trouble = self._on_trouble

    @property
    def host(self) -> Host:
        """What is known of the host. Something was asked of the keeper before."""
        assert self._where.host is not None, "a connection comes first"
        return self._where.host

    def bound_logs(self, total: int) -> None:
        """Have the mirrors of all kernels of this keeper take so many bytes at most."""
        self._mirrors.room.together = total

    def _hello(self, link: KeeperLink) -> Fields:
        return {**super()._hello(link), "mirrors": True}

    # Paths on the host are relative to the keeper's own directory.

    async def prepare(self, kernel_id: str, info: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """Have a connection file written on the host; its path there, and what it says.

        ``info`` is the connection information without addresses. Raises `KeeperUnavailable`.
        """
        answer, _ = await self._connection.ask("prepare", kernel_id=kernel_id, info=dict(info))
        return str(answer["file"]), dict(answer["info"])

    async def launch(
        self, kernel_id: str, command: Sequence[str], *, output: Path, **options: Any
    ) -> Kept:
        """As `Keeper.launch`."""
        return await super().launch(kernel_id, command, output=_output(output), **options)

    async def adopt(
        self, kernel_id: str, pid: int, start_time: str, output: Path, *more: Any
    ) -> Kept | None:
        """As `Keeper.adopt`."""
        return await super().adopt(kernel_id, pid, start_time, _output(output), *more)

    async def signal(self, kernel_id: str, number: int) -> None:
        """As `Keeper.signal`; nobody else can do that. Raises `KeeperUnavailable`, too."""
        link = self._connection.open_link
        if link is None:
            raise KeeperUnavailable(f"{self._where.name} cannot be reached")
        fields: Fields = {"kernel_id": kernel_id, "number": int(number)}
        await link.ask({"ask": "signal", **fields}, QUICK_SECONDS)

    async def tail(self, kernel_id: str) -> str:
        """As `Keeper.tail`."""
        with contextlib.suppress(KeeperUnavailable, OSError):
            answer, _ = await self._connection.ask("tail", QUICK_SECONDS, kernel_id=kernel_id)
            return str(answer)
        return ""

    # Logs

    async def hear(
        self, line: Line, directory: Path, info: Mapping[str, Any] | None, *, anew: bool
    ) -> Heard:
        """As `Keeper.hear`; returns when the mirror has come as far as the log."""
        return await self._mirrors.whole(await super().hear(line, directory, info, anew=anew))

    async def settle(self, kernel_id: str) -> bool:
        """As `Keeper.settle`; returns when the mirror has come as far as the log."""
        found = await super().settle(kernel_id)
        await self._catch_up(kernel_id)
        return found

    async def disconnect(self, kernel_id: str) -> None:
        """As `Keeper.disconnect`; returns when the mirror has come as far as the log."""
        await super().disconnect(kernel_id)
        await self._catch_up(kernel_id)

    async def _catch_up(self, kernel_id: str) -> None:
        """Return when all messages are here that the keeper has logged."""
        end = await self._lines.end_of(kernel_id)
        await self._mirrors.reach(kernel_id, end)

    def opened(self, kernel_id: str, share: tuple[str, int] | None) -> None:
        """As `Keeper.opened`; the share is of the mirrors of this keeper's kernels, too."""
        super().opened(kernel_id, share)
        self._mirrors.share(kernel_id, share)

    def renew(self, kernel_id: str) -> None:
        """As `Keeper.renew`, of the mirror: the keeper's file is not the one that is read here."""
        self._mirrors.renew(kernel_id)

    def drop(self, kernel_id: str) -> None:
        """As `Keeper.drop`, with all that the keeper has made for the kernel, and the mirror."""
        self._mirrors.remove(kernel_id)
        self._lines.pop(kernel_id)
        self._heard.discard(kernel_id)
        self._errands.drop(kernel_id, directory=f"logs/{kernel_id}", prepared="all")

    # The connection

    def on_end(self, link: KeeperLink) -> None:
        """The connection has ended: the kernels are out of reach until there is another."""
        if link is self._connection.link and not self._connection.is_closed:
            self._on_trouble("the connection has ended")
        super().on_end(link)

    def _on_trouble(self, why: str) -> None:
        self._lines.on_lost(f"{self._where.name} cannot be reached: {why}")

    async def close(self) -> None:
        """As `Keeper.close`."""
        await super().close()
        self._mirrors.close()


def _output(output: Path) -> Path:
    """Where the output of a process goes that would go here if the process were."""
    return Path("output", output.name)
