"""A keeper on another host, as the service sees it.

The server asks it the same as any keeper. But the server sees neither the processes nor the files
of its kernels. Only the keeper can tell *that* a process has ended; as long as the keeper cannot be
reached, the kernel is *unreachable*, and neither dead nor replaced.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Protocol, Unpack

import msgspec

from ....keeper.hearings import Heard
from ....keeper.processes import UNKNOWN_EXIT
from ....keeper.protocol import Fields, Garbled
from ....log_formats import about
from ....protocol.messages import Message
from ...errors import KeeperUnavailable, KernelUnreachable
from ...messages.line import Line
from .claims import check_exit
from .client import QUICK_SECONDS, Keeper
from .greeting import KeeperOptions, ReplicaTerms
from .kept import Kept, Processes, ProcessUsage
from .lines import Lines
from .link import KeeperLink, KeeperRefuses
from .mirrors import Mirrors
from .places import Place

__all__ = ["Host", "RemoteKeeper", "RemotePlace"]

logger = logging.getLogger(__name__)

ORPHAN_SECONDS: Final = 600.0
"""How long kernels that are to end with the server go on after the server was killed. A keeper on
another host cannot see that the server's process has ended: it waits for a new connection."""


TAIL_CHARACTERS: Final = 8192


class Host(msgspec.Struct, frozen=True):
    """A host: the user's ``home`` there, and the interpreter (``python``) that runs the keeper.

    ``env`` has the variables that the user's programs get there. ``can`` has requests that this
    keeper knows and earlier ones do not.
    """

    home: str
    python: str
    env: dict[str, str]
    can: tuple[str, ...] = ()


_Load = Annotated[float, msgspec.Meta(ge=0, le=1e9)]


class _Prepared(msgspec.Struct):
    file: str
    info: dict[str, Any]


class RemotePlace(Place, Protocol):
    """Where a keeper on another host is."""

    name: str
    """The host, for people."""

    @property
    def host(self) -> Host | None:
        """The host; None before the first connection."""

    @property
    def is_kernels_own(self) -> bool:
        """Whether the keeper is there for one kernel only, as in a job, and ends with it."""

    ends_forgotten: bool
    """Whether a keeper that is not needed is told to end when it comes back after `retire`."""

    def let_go(self) -> None:
        """Leave the keeper to another replica, which has taken the kernel (`is_kernels_own`)."""

    async def retire(self) -> None:
        """Leave the keeper for good: no kernel is there any more, nor will be. Raises nothing."""


class RemoteKeeper(Keeper):
    """The server's connection to its keeper on another host.

    Arguments are those of `Keeper`. Kernels that are to end with this server end when the server
    says so at its end. If the server is killed, the keeper waits `ORPHAN_SECONDS` for another.
    """

    def __init__(
        self,
        place: RemotePlace,
        *,
        terms: ReplicaTerms | None = None,
        **options: Unpack[KeeperOptions],
    ) -> None:
        lasts = options["orphan_timeout"]
        # This process's id and its directories (``own``) mean nothing on another host.
        options["orphan_timeout"] = ORPHAN_SECONDS if lasts is None else lasts
        super().__init__(Path(), terms=terms, place=place, **options)
        self._lasts = lasts is not None
        self._where = place
        told = self._options
        self._mirrors = Mirrors(
            self._connection.write,
            each=told["log_bytes"],
            together=told["log_total_bytes"],
            age=told["log_age"],
        )
        self.may_have: Callable[[str], bool] = lambda _: True
        """Whether a kernel of this id may be one of this keeper's."""
        self.is_stray: Callable[[str], bool] = lambda _: False
        """Whether a kernel of this id is neither stored nor one of this server's."""
        self._processes = Processes(here=False)
        self.has_given_up = False
        """Whether a kernel of this keeper was given up (`give_up`)."""
        self._declared: dict[str, str] = {}  # why a kernel counts as ended (`declare_ended`)
        self._lines = Lines(self._connection, self._mirrors)
        self._resting: dict[str, Line] = {}  # lines to kernels whose mirrors follow no log (`rest`)
        self._connection.on_trouble = self._on_trouble

    @property
    def host(self) -> Host:
        """The host. The keeper must have been connected before."""
        assert self._where.host is not None, "a connection comes first"
        return self._where.host

    @property
    def is_kernels_own(self) -> bool:
        """As `RemotePlace.is_kernels_own`."""
        return self._where.is_kernels_own

    def bound_logs(self, total: int) -> None:
        """Have the mirrors of all kernels of this keeper take ``total`` bytes together at most."""
        self._mirrors.room.together = total

    def _hello(self, link: KeeperLink) -> Fields:
        return {**super()._hello(link), "mirrors": True}

    # Paths on the host are relative to the keeper's own directory.

    async def prepare(self, kernel_id: str, info: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """Have a connection file written on the host; returns its path there, and its content.

        ``info`` is the connection information without addresses. Raises `KeeperUnavailable`.
        """
        answer, _ = await self._connection.ask("prepare", kernel_id=kernel_id, info=dict(info))
        with self._cutting_off():
            prepared = msgspec.convert(answer, _Prepared)
        return prepared.file, prepared.info

    async def launch(
        self, kernel_id: str, command: Sequence[str], *, output: Path, **options: Any
    ) -> Kept:
        """As `Keeper.launch`."""
        self._declared.pop(kernel_id, None)
        with self._cutting_off():
            return await super().launch(kernel_id, command, output=_output(output), **options)

    async def adopt(
        self, kernel_id: str, pid: int, start_time: str, output: Path, *more: Any
    ) -> Kept | None:
        """As `Keeper.adopt`."""
        # The kernel was given up, and its keeper is still away. The keeper may still have the
        # process: it is asked to end it when it comes back.
        if self._is_lost(kernel_id):
            self._errands.end(kernel_id, pid=pid)
            return None
        with self._cutting_off():
            return await super().adopt(kernel_id, pid, start_time, _output(output), *more)

    async def usage(self, kernel_id: str) -> ProcessUsage | None:
        """As `Keeper.usage`."""
        with self._cutting_off():
            return await super().usage(kernel_id)

    async def load(self) -> float:
        """The load of the host for each of its processors; 1 if the keeper is too old to tell.

        Raises `KeeperUnavailable`.
        """
        try:
            answer, _ = await self._connection.ask("load", QUICK_SECONDS)
        except KeeperRefuses:
            return 1.0
        with self._cutting_off():
            return msgspec.convert(answer, _Load)

    @property
    def has_nothing(self) -> bool:
        """Whether the keeper has no kernel and no errand, as far as is known here."""
        kernels = len(self._processes) + len(self._lines) + len(self._heard)
        return kernels + len(self._errands) == 0

    @contextlib.contextmanager
    def _cutting_off(self) -> Iterator[None]:
        """A block in which a senseless answer cuts the connection. Raises `KeeperUnavailable`."""
        try:
            yield
        except (Garbled, msgspec.ValidationError) as error:
            # The next answers of such a keeper cannot be believed either. The next greeting tells
            # again which kernels it has.
            self._connection.cut_off(str(error))
            raise KeeperUnavailable(f"{self._where.name} makes no sense: {error}") from error

    async def signal(self, kernel_id: str, number: int) -> None:
        """As `Keeper.signal`, by the keeper only. Raises `KeeperUnavailable`, too."""
        # The link is not waited for: a signal that arrives when the host is back would come at a
        # moment for which it was not meant.
        link = self._connection.open_link
        if link is None:
            raise KeeperUnavailable(f"{self._where.name} cannot be reached")
        fields: Fields = {"kernel_id": kernel_id, "number": int(number)}
        await link.ask({"ask": "signal", **fields}, QUICK_SECONDS)

    def declare_ended(self, kernel_id: str, reason: str) -> None:
        """Take a kernel's process for ended, as its engine or a person says, with the ``reason``.

        The keeper cannot tell. `tail` then returns the reason instead of the process's output.
        """
        watched = self._processes.get(kernel_id)
        runs = watched is not None and not watched.exited.done()
        if self.is_kernels_own or runs:
            self._declared[kernel_id] = reason
        if self.is_kernels_own and (link := self._connection.link) is not None:
            link.abort()  # it may not have noticed yet that the keeper is gone
        # After `_declared` is set: the code that learns of the end asks for the reason at once.
        if watched is not None:
            watched.end(UNKNOWN_EXIT)

    def give_up(self, kernel_id: str, reason: str) -> bool:
        """Take a kernel's process for ended, so that its host is not waited for any more.

        The process is ended when the host is back. Does nothing if the keeper is connected, and can
        be asked itself. Returns whether the process was given up.
        """
        if self.is_connected:
            return False
        self.has_given_up = True
        self.declare_ended(kernel_id, reason)
        self._declared.setdefault(kernel_id, reason)
        return True

    async def forget(self, kernel_id: str, pid: int | None = None) -> None:
        """As `Keeper.forget`; if the kernel's own keeper has ended, so has the process."""
        if self.is_kernels_own and self._is_lost(kernel_id):
            self._processes.forget(kernel_id, pid)
        else:
            await super().forget(kernel_id, pid)

    async def tail(self, kernel_id: str) -> str:
        """As `Keeper.tail`."""
        if (reason := self._declared.get(kernel_id)) is not None:
            return reason
        with contextlib.suppress(KeeperUnavailable, OSError):
            answer, _ = await self._connection.ask("tail", QUICK_SECONDS, kernel_id=kernel_id)
            return str(answer)[-TAIL_CHARACTERS:]
        return ""

    # Logs

    async def hear(
        self, line: Line, directory: Path, info: Mapping[str, Any] | None, *, anew: bool
    ) -> Heard:
        """As `Keeper.hear`; returns when the mirror has come as far as the log.

        For a kernel without a process, whose keeper cannot be reached, the mirror is the log. If
        the keeper is connected, and does not answer now, this raises: it can be asked again.
        """
        kernel_id = line.kernel_id
        try:
            if self._is_lost(kernel_id):
                raise KernelUnreachable(self._declared[kernel_id])
            heard = await super().hear(line, directory, info, anew=anew)
            # Only now: if the keeper has refused, `rest` must not take the mirror for complete.
            self._resting.pop(kernel_id, None)
            return await self._mirrors.whole(heard)
        except (KeeperUnavailable, KernelUnreachable):
            # `is_away` is computed now, and not before: the link may have ended during the wait.
            is_away = self._is_lost(kernel_id) or not self.is_connected
            found = self._rest(line, directory) if is_away and info is None else None
            if found is None:
                raise
            return found

    def _rest(self, line: Line, directory: Path) -> Heard | None:
        """Use the mirror as the log of a kernel without a process; None if there is no mirror."""
        kernel_id = line.kernel_id
        try:
            found = self._mirrors.alone(kernel_id, directory, line.session)
        except OSError as error:
            raise KernelUnreachable(f"The copy of its log cannot be read: {error}") from error
        if found is not None:
            self._lines.pop(kernel_id)
            self._heard.discard(kernel_id)
            self._resting[kernel_id] = line
            line.remember(directory, None)
            line.on_heard(found)
        return found

    async def rest(self, kernel_id: str) -> None:
        """Complete the mirror of a kernel without a process, and use it as the kernel's log.

        The kernel's own keeper is not needed then, and can be ended. Raises `KeeperUnavailable` and
        `KernelUnreachable` if the mirror is not complete.
        """
        if not self._is_lost(kernel_id):
            if (line := self._resting.get(kernel_id)) is not None:  # its keeper was away
                await self.hear(line, line.directory, None, anew=False)
                if kernel_id in self._resting:
                    raise KeeperUnavailable(f"{self._where.name} cannot be reached")
            # The kernel is dead: only this server appends messages now, and appends those that are
            # missing here to the next log (`Voice`).
            await self._catch_up(kernel_id)
            await self._errands.answered(QUICK_SECONDS)
            self.declare_ended(kernel_id, "The kernel is dead, and its keeper was ended")
        line = self._lines.pop(kernel_id)
        if line is not None:
            self._rest(line, line.directory)

    async def settle(self, kernel_id: str) -> bool:
        """As `Keeper.settle`; returns when the mirror has come as far as the log."""
        if self._is_lost(kernel_id):
            return False
        found = await super().settle(kernel_id)
        await self._catch_up(kernel_id)
        return found

    async def disconnect(self, kernel_id: str) -> None:
        """As `Keeper.disconnect`; returns when the mirror has come as far as the log."""
        if self._is_lost(kernel_id):
            return
        await super().disconnect(kernel_id)
        await self._catch_up(kernel_id)

    async def end(self, kernel_id: str) -> None:
        """As `Keeper.end`."""
        if not self._is_lost(kernel_id):
            await super().end(kernel_id)

    def _is_lost(self, kernel_id: str) -> bool:
        """Whether a kernel counts as ended (`declare_ended`), and its keeper is not connected."""
        return kernel_id in self._declared and not self.is_connected

    async def _catch_up(self, kernel_id: str) -> None:
        """Return when the mirror has all messages that the keeper has logged until now."""
        # The keeper's answer may overtake records that were logged before: those wait for credit.
        end = await self._lines.end_of(kernel_id)
        await self._mirrors.reach(kernel_id, end)

    def opened(self, kernel_id: str, share: tuple[str, int] | None) -> None:
        """As `Keeper.opened`; the share holds for the kernel's mirror, too."""
        super().opened(kernel_id, share)
        self._mirrors.share(kernel_id, share)

    def renew(self, kernel_id: str) -> None:
        """As `Keeper.renew`, but of the mirror: readers here read its files, not the keeper's."""
        self._mirrors.renew(kernel_id)

    def drop(self, kernel_id: str) -> None:
        """As `Keeper.drop`; the keeper's other files of the kernel, and the mirror, go as well."""
        # All of it in one turn of the loop: records of the kernel that are under way then find
        # neither handle nor mirror.
        self._declared.pop(kernel_id, None)
        self._mirrors.remove(kernel_id)
        self._resting.pop(kernel_id, None)
        self._lines.pop(kernel_id)
        self._heard.discard(kernel_id)
        self._errands.drop(kernel_id, directory=f"logs/{kernel_id}", prepared="all")

    def let_go(self, kernel_id: str) -> None:
        """As `Keeper.let_go`: the next replica makes a mirror of its own."""
        self._declared.pop(kernel_id, None)
        self._resting.pop(kernel_id, None)
        super().let_go(kernel_id)
        self._mirrors.remove(kernel_id)
        if self.is_kernels_own:
            self._where.let_go()

    def say(self, line: Line, message: Message, owner: str | None, flags: int) -> None:
        """As `Keeper.say`.

        If the kernel's own keeper has ended with its job, the message is appended to the mirror,
        from which the next keeper's log goes on: so readers learn how the kernel ended.
        """
        is_over = self.is_kernels_own and line.kernel_id in self._declared
        if not is_over or self._connection.open_link is not None:
            super().say(line, message, owner, flags)
            return
        bell = self._mirrors.append(line.kernel_id, message, owner, flags)
        if bell is not None:  # in another turn: the caller begins to wait for it after this call
            asyncio.get_running_loop().call_soon(line.on_bell, bell)

    # The connection

    async def greet(self, link: KeeperLink) -> Callable[[], None]:
        """As `Keeper.greet`. Raises `Garbled` if the keeper claims another keeper's kernel."""
        begin = await super().greet(link)
        self._check(*self._heard, *(watched.kernel_id for watched in self._processes))
        return begin

    def _begin(self, link: KeeperLink, heard: Sequence[tuple[Line, Heard]]) -> None:
        super()._begin(link, heard)
        if not self.is_kernels_own:  # the job of such a keeper ends by its engine
            self._end_strays()

    def _end_strays(self) -> None:
        """End the keeper's kernels that are neither stored nor this server's.

        An earlier server has left them, which was killed between their launch and their record.
        """
        # None of them is a kernel that is being started: this server assigns a kernel before it
        # asks the keeper to launch it, and no other server has this state directory.
        there = {*self._heard, *(watched.kernel_id for watched in self._processes)}
        for kernel_id in filter(self.is_stray, sorted(there)):
            log = about(logger, kernel_id=kernel_id)
            log.warning("kernel %s on %s was nobody's, and is ended", kernel_id, self._where.name)
            pid = self._processes.forget(kernel_id, None)
            if pid is not None:
                self._errands.end(kernel_id, pid=pid)
            self.drop(kernel_id)

    def _check(self, *kernel_ids: str) -> None:
        """Raise `Garbled` if one of these kernels is another keeper's, or of this machine."""
        for kernel_id in kernel_ids:
            # `Keeper.greet` has noted a process for it here. The other keeper's client has its own.
            if not self.may_have(kernel_id):
                self._processes.forget(kernel_id, None)
                raise Garbled(f"it claims kernel {kernel_id}, which is not one of its own")

    def on_event(self, fields: Fields) -> None:
        """As `LinkOwner.on_event`. Raises `Garbled` for an event that cannot be true."""
        self._check(str(fields.get("kernel_id")))
        if fields["event"] == "exited":
            check_exit(fields)
        super().on_event(fields)

    def on_end(self, link: KeeperLink) -> None:
        """The connection has ended: the kernels are out of reach until there is another."""
        # This comes first: the callbacks of `on_lost` are to find the kernels out of reach.
        if link is self._connection.link and not self._connection.is_closed:
            self._on_trouble("the connection has ended")
        super().on_end(link)

    def _on_trouble(self, why: str) -> None:
        self._lines.on_lost(f"{self._where.name} cannot be reached: {why}")

    async def close(self) -> None:
        """As `Keeper.close`."""
        await super().close()
        self._mirrors.close()

    @property
    def ends_forgotten(self) -> bool:
        """As `RemotePlace.ends_forgotten`."""
        return self._where.ends_forgotten

    async def retire(self) -> None:
        """Close the connection, and leave the keeper for good: no kernel is there any more."""
        await self.close()
        await self._where.retire()


def _output(output: Path) -> Path:
    """The file for a process's output on its host, relative to the keeper's directory."""
    return Path("output", output.name)
