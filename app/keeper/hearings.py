"""All kernels that one keeper hears, and the doorbell that tells how far their logs go."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

import msgspec
import zmq

from ..protocol.link import Bell
from .hearing import Hearing
from .log import LogRoom, LogWriter
from .log_room import NO_SHARE
from .memory import Memory
from .sockets import ConnectionInfo, new_context
from .turns import Turns

__all__ = ["Heard", "Hearings"]

EXPIRY_SECONDS: Final = 10.0
"""How often, in seconds, messages that have become too old are dropped."""


class Heard(msgspec.Struct, frozen=True):
    """What a server is told about a kernel that the keeper hears.

    ``first`` and ``end`` are places (`app.keeper.log.Position`), ``tip`` is a `Tip`. ``session`` is
    the server's own. ``taken`` counts requests, as in a bell. ``opened``: a server has taken the
    present process for ready. ``again``: sockets were just opened to a process that another keeper
    heard before, so that messages of the time between are lost. ``ahead`` is set by a server that
    has a copy of the log, to which all places refer then: the number up to which the keeper's goes.
    """

    kernel_id: str
    handle: int
    session: str
    epoch: str
    first: tuple[int, int]
    end: tuple[int, int]
    tip: tuple[int, int]
    taken: int
    connected: bool
    opened: bool
    again: bool = False
    ahead: int = 0

    @property
    def bell(self) -> Bell:
        """The same facts as a bell."""
        return Bell(self.handle, self.first, self.end, self.tip, self.taken)


class Hearings:
    """All kernels that one keeper hears, by id. Make it in a running event loop, and `close` it.

    ``ring`` is called once a turn of the loop, with the bells of all logs that have grown in it.
    ``on_malformed`` is called with kernel, channel and reason of each message that is dropped.
    """

    def __init__(
        self,
        ring: Callable[[list[Bell]], None],
        on_malformed: Callable[[str, str, str], None],
    ) -> None:
        self.room = LogRoom(2**28, 2**32, 86400.0)
        self._loop = asyncio.get_running_loop()
        self._ring = ring
        self._on_malformed = on_malformed
        self._turns = Turns()
        self._memory = Memory()
        self._context: zmq.Context[Any] | None = None
        self._hearings: dict[str, Hearing] = {}
        self._by_handle: dict[int, Hearing] = {}
        self._handles = 0
        self._changed: dict[Hearing, None] = {}
        self._plan: asyncio.Handle | None = None
        self._expiry = self._loop.call_later(EXPIRY_SECONDS, self._expire)

    @property
    def any_connected(self) -> bool:
        """Whether there are sockets to any kernel."""
        return any(hearing.connected for hearing in self._hearings.values())

    @property
    def ids(self) -> list[str]:
        """The ids of all kernels that are heard."""
        return [*self._hearings]

    def get(self, kernel_id: str) -> Hearing | None:
        """The kernel with this id, if it is heard."""
        return self._hearings.get(kernel_id)

    def hear(
        self,
        kernel_id: str,
        *,
        session: str,
        epoch: str,
        directory: Path,
        info: ConnectionInfo | None,
        anew: bool,
        known: tuple[int, int] = (1, 0),
        share: tuple[str, int] = NO_SHARE,
    ) -> Heard:
        """Hear a kernel: open its log and, with ``info``, sockets to its process.

        ``info`` is the connection information; ``anew``: the process was just launched. ``session``
        and ``epoch`` are for a kernel that is new here. ``known`` is the furthest place of the log
        that the server knows of. If less of the log is left, as files are damaged or gone, the rest
        is a gap, so that no number is given twice. ``share`` is as of `LogRoom.share`. Raises
        `OSError` if the log or the sockets cannot be had, as no descriptors are left, say, and
        `ValueError` if ``info`` is of no use.
        """
        hearing = self._hearings.get(kernel_id)
        if hearing is None:
            writer = LogWriter(directory, kernel_id, self.room, epoch)
            writer.share(*share)
            # An error in here leaves nothing behind: the server asks again, and gets a new writer.
            try:
                writer.resume()
                # Before the first file is made, which is named by its first number: no server
                # takes it for an older file of that name.
                writer.skip_to(*known)
                writer.prepare()
            except BaseException:
                writer.close()
                raise
            self._handles += 1
            hearing = Hearing(
                self._handles, kernel_id, session, writer, self._on_change, self._on_malformed
            )
            # The hearing stays even if the sockets fail below: the log is open now, and must never
            # have a second writer.
            self._hearings[kernel_id] = self._by_handle[hearing.handle] = hearing
        else:
            hearing.writer.share(*share)
            hearing.writer.skip_to(*known)
        # A server that connects again asks for all its kernels. Where this keeper has the sockets
        # already nothing is opened, and nothing of what comes over them is lost.
        again = info is not None and not anew and not hearing.connected
        try:
            if info is not None and anew:
                hearing.connect(self._zmq, info, self._turns)
            elif info is not None and again:
                hearing.connect_again(self._zmq, info, self._turns)
        except zmq.ZMQError as error:
            raise OSError(error.errno, f"no sockets to the kernel: {error.strerror}") from None
        # Bells before the answer: behind it the server counts from the places in the answer.
        self.flush()
        return _heard(hearing, again=again)

    def by_handle(self, handle: int) -> Hearing | None:
        """The kernel with this handle, if it is heard."""
        return self._by_handle.get(handle)

    def id_of(self, handle: int) -> str:
        """The id of the kernel with this handle; empty if it is not heard."""
        hearing = self._by_handle.get(handle)
        return "" if hearing is None else hearing.kernel_id

    def settle(self, kernel_id: str) -> bool:
        """As `Hearing.settle`, and ring."""
        hearing = self._hearings.get(kernel_id)
        found = hearing is not None and hearing.settle()
        self.flush()
        return found

    def disconnect(self, kernel_id: str) -> None:
        """Log the last messages of a process that has ended, close its sockets, and ring."""
        # The bell goes out before the answer: the server has the end of the log when it is told
        # that nothing more comes.
        hearing = self._hearings.get(kernel_id)
        if hearing is not None:
            hearing.disconnect()
            self.flush()

    def renew(self, kernel_id: str) -> None:
        """Have a kernel's log go on in another file: a server cannot read the newest one."""
        hearing = self._hearings.get(kernel_id)
        if hearing is not None:
            hearing.writer.renew()

    def forget(self, kernel_id: str, directory: str | None = None) -> None:
        """Remove the log of a kernel that is gone; ``directory`` is for one that is not heard."""
        hearing = self._hearings.pop(kernel_id, None)
        if hearing is not None:
            del self._by_handle[hearing.handle]
            hearing.remove()
            self._changed.pop(hearing, None)  # requests that waited are told of as it is removed
        elif directory is not None:  # a keeper before this one has heard it
            LogWriter(Path(directory), kernel_id, self.room).remove()

    def close(self) -> None:
        """Close every socket and every file; the logs stay."""
        # The last messages are written (`Hearing.close`); no bell tells of them, as the next keeper
        # tells the server how far the logs go.
        self._expiry.cancel()
        self._memory.close()
        if self._plan is not None:
            self._plan.cancel()
        for hearing in self._hearings.values():
            hearing.close()
        if self._context is not None:
            self._context.destroy(linger=0)

    @property
    def _zmq(self) -> zmq.Context[Any]:
        if self._context is None:  # a keeper without kernels does without its threads
            self._context = new_context()
        return self._context

    def _on_change(self, hearing: Hearing) -> None:
        self._changed[hearing] = None
        if self._plan is None:  # one flush, at the end of this turn, for all kernels
            self._plan = self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Write the messages of this turn, then ring one bell for all kernels that sent any."""
        if self._plan is not None:
            self._plan.cancel()
            self._plan = None
        if self._changed:
            # Taken out first: a log that grows from now on is for the next bell.
            changed, self._changed = self._changed, {}
            self.ring_for(changed)
            self._memory.note()

    def ring_for(self, hearings: Iterable[Hearing]) -> None:
        """Ring: tell how far these logs go.

        Each log is written before its bell is made, so a server that gets the bell can read all
        messages up to the place in it.
        """
        # The race: a write to one log may drop files of another (`LogRoom`) whose bell is made
        # already. The first place in that bell is then too low. It does no harm: a reader that
        # comes to the place finds the file gone, and takes it for a gap.
        bells = []
        for hearing in hearings:
            hearing.writer.flush()
            bells.append(hearing.bell())
        self._ring(bells)

    def ring_all(self) -> None:
        """Ring for all kernels."""
        self.ring_for([*self._hearings.values()])

    def _expire(self) -> None:
        # No bell tells of what is dropped here: it would wake the readers of thousands of silent
        # kernels. A reader that comes to such a place finds no file, and a gap.
        self.room.expire()
        pause = min(EXPIRY_SECONDS, self.room.age / 4)
        self._expiry = self._loop.call_later(pause, self._expire)


def _heard(hearing: Hearing, *, again: bool = False) -> Heard:
    writer = hearing.writer
    writer.flush()
    return Heard(
        hearing.kernel_id,
        hearing.handle,
        hearing.session,
        writer.epoch,
        writer.first,
        writer.end,
        writer.tip,
        hearing.taken,
        hearing.connected,
        hearing.opened,
        again,
    )
