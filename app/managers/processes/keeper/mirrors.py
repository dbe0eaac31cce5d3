"""The mirrors of one keeper on another host: copies of its kernels' logs, which this server writes.

Readers find a mirror's files where those of a local kernel's log would be. A mirror may be behind
the keeper's log, as while a link is made anew. So readers are never told the keeper's places: when
its doorbell says that the log has grown, they are told how far the mirror goes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from ....keeper.hearings import Heard
from ....keeper.log import LogRoom
from ....keeper.log_room import NO_SHARE
from ....keeper.protocol import Garbled
from ....protocol import link as frames
from ....protocol.link import Bell, Credit, Follow
from ....protocol.messages import Buffer, Message
from ....protocol.records import DamagedLog
from ...errors import KeeperUnavailable
from ...log.mirror import MirrorWriter

__all__ = ["Mirrors"]

CREDIT_BYTES: Final = 2**20
"""How many bytes of one kernel's log the keeper may send before it gets new credit."""

SILENT_SECONDS: Final = 10.0
"""How long a mirror that is behind may get no records before a call that waits for it fails."""

EXPIRY_SECONDS: Final = 10.0


class _Mirror:
    """One mirror. ``handle`` and ``taken`` are the keeper's; see `Bell`."""

    def __init__(self, writer: MirrorWriter) -> None:
        self.writer = writer
        self.handle = 0
        self.taken = 0
        self.credit = 0  # bytes that may come
        self.owed = 0  # bytes that have come, and for which no credit was given yet
        self.waiting: set[asyncio.Future[None]] = set()

    @property
    def bell(self) -> Bell:
        """How far the mirror goes."""
        writer = self.writer
        return Bell(self.handle, writer.first, writer.end, writer.tip, self.taken)


class Mirrors:
    """The mirrors of one keeper's kernels. Make it in a running event loop, and `close` it there.

    ``send`` sends the pieces of a frame to the keeper. The bounds are those of `LogRoom`.
    """

    def __init__(
        self, send: Callable[[Sequence[Buffer]], object], *, each: int, together: int, age: float
    ) -> None:
        self.room = LogRoom(each, together, age)
        self._send = send
        self._by_id: dict[str, _Mirror] = {}
        self._by_handle: dict[int, str] = {}
        self._loop = asyncio.get_running_loop()
        self._expiry = self._loop.call_later(EXPIRY_SECONDS, self._expire)

    def _expire(self) -> None:
        self.room.expire()
        pause = min(EXPIRY_SECONDS, self.room.age / 4)
        self._expiry = self._loop.call_later(pause, self._expire)

    def known(self, kernel_id: str, directory: Path) -> tuple[int, int]:
        """The place in a kernel's log up to which its mirror goes, which is in ``directory``.

        Raises `OSError` if the mirror cannot be read or made.
        """
        mirror = self._by_id.get(kernel_id)
        if mirror is None:
            mirror = self._by_id[kernel_id] = _Mirror(self._resumed(kernel_id, directory, ""))
        return mirror.writer.end

    def _resumed(self, kernel_id: str, directory: Path, epoch: str) -> MirrorWriter:
        writer = MirrorWriter(directory, kernel_id, self.room, epoch)
        try:
            writer.resume()
        except BaseException:
            writer.close()
            raise
        return writer

    def alone(self, kernel_id: str, directory: Path, session: str) -> Heard | None:
        """Have a mirror follow no log any more; returns how far it goes, or None if it is empty.

        The answer has the form of a keeper's about a log. Raises `OSError`.
        """
        self.known(kernel_id, directory)
        mirror = self._by_id[kernel_id]
        self._release_handle(mirror, kernel_id)
        mirror.handle = mirror.taken = 0
        writer = mirror.writer
        if not writer.segments:
            return None
        end, tip = writer.end, writer.tip
        return Heard(
            *(kernel_id, 0, session, writer.epoch, writer.first, end, tip, 0),
            connected=False,
            opened=False,
        )

    def begin(self, directory: Path, heard: Heard) -> Heard:
        """Follow a log that the keeper has opened; returns ``heard`` with the mirror's places.

        Records that came after the keeper's answer may be in the mirror already. Raises `OSError`
        if the mirror cannot be written.
        """
        kernel_id = heard.kernel_id
        self.known(kernel_id, directory)
        mirror = self._by_id[kernel_id]
        writer = mirror.writer
        if writer.epoch != heard.epoch:
            # The mirror is of another log, as when the keeper's disk was lost. The numbers of the
            # two logs have nothing to do with each other.
            if writer.segments:
                writer.remove()
            else:
                writer.close()
            writer = mirror.writer = self._resumed(kernel_id, directory, heard.epoch)
        if writer.end.cursor < heard.first[0]:
            writer.skip_to(*heard.first)
        writer.prepare()
        self._release_handle(mirror, kernel_id)
        mirror.handle, mirror.taken, mirror.owed = heard.handle, heard.taken, 0
        # The link before has ended: records that were under way in it have arrived, or never will.
        # So the credit begins anew.
        mirror.credit = CREDIT_BYTES
        self._by_handle[heard.handle] = kernel_id
        self._send(frames.pack_follow(Follow(heard.handle, writer.end.cursor, CREDIT_BYTES)))
        return self._now(mirror, heard)

    def _release_handle(self, mirror: _Mirror, kernel_id: str) -> None:
        # Each keeper counts its handles from 1. A mirror that begins late at a new keeper still has
        # the handle of the keeper before, which may be another kernel's at the new one.
        if self._by_handle.get(mirror.handle) == kernel_id:
            del self._by_handle[mirror.handle]

    def _now(self, mirror: _Mirror, heard: Heard) -> Heard:
        first, end, tip = mirror.writer.first, mirror.writer.end, mirror.writer.tip
        ahead = max(heard.end[0], heard.ahead)
        return msgspec.structs.replace(heard, first=first, end=end, tip=tip, ahead=ahead)

    async def whole(self, heard: Heard) -> Heard:
        """Wait until the mirror has come as far as the log went when the keeper answered.

        Returns ``heard`` with the mirror's places. Raises what `reach` raises.
        """
        await self.reach(heard.kernel_id, heard.ahead)
        mirror = self._by_id.get(heard.kernel_id)
        return heard if mirror is None else self._now(mirror, heard)

    async def reach(self, kernel_id: str, number: int) -> None:
        """Return when a mirror has all messages before a number; at once if there is no mirror.

        Raises `KeeperUnavailable` when no records have come for `SILENT_SECONDS`.
        """
        mirror = self._by_id.get(kernel_id)
        while mirror is not None and mirror.writer.end.cursor < number:
            more: asyncio.Future[None] = self._loop.create_future()
            mirror.waiting.add(more)
            try:
                # The bound is for each frame of records: a long log over a slow line takes its
                # time. The loop looks at the writer again, as it may be replaced during the wait.
                async with asyncio.timeout(SILENT_SECONDS):
                    await more
            except TimeoutError:
                raise KeeperUnavailable("The kernel's log does not come over the link") from None
            finally:
                mirror.waiting.discard(more)

    def on_records(self, data: bytes) -> tuple[str, Bell] | None:
        """Append a frame's records to a mirror; returns the kernel's id, and how far it goes now.

        Returns None if the kernel is gone. Raises `Garbled` for records that were not asked for, or
        that are no continuation of the log.
        """
        piece = frames.unpack_records(data)
        kernel_id = self._by_handle.get(piece.handle, "")
        mirror = self._by_id.get(kernel_id)
        if mirror is None:
            return None
        # The keeper counts its credit, too: one that sends more than it may is not to be believed.
        mirror.credit -= len(piece.data)
        if mirror.credit < 0 or not piece.data:
            raise Garbled(f"kernel {kernel_id}: more of its log comes than was asked for")
        try:
            mirror.writer.feed(piece.data, anew=piece.anew)
        except DamagedLog as error:
            raise Garbled(f"kernel {kernel_id}: its log makes no sense: {error}") from None
        mirror.owed += len(piece.data)
        # Credit is given for a quarter at a time: for each frame of records it would cost a frame,
        # and if it were given only when all is used up, the keeper would have to wait for it.
        if mirror.owed >= CREDIT_BYTES // 4:
            self._send(frames.pack_credit(Credit(mirror.handle, mirror.owed)))
            mirror.credit += mirror.owed
            mirror.owed = 0
        for waiting in mirror.waiting:
            if not waiting.done():
                waiting.set_result(None)
        return kernel_id, mirror.bell

    def append(
        self, kernel_id: str, message: Message, owner: str | None, flags: int
    ) -> Bell | None:
        """Append a message to a mirror whose keeper has ended; None if the kernel is gone."""
        mirror = self._by_id.get(kernel_id)
        if mirror is None:
            return None
        mirror.writer.append(message.frame, message.channel, owner, flags)
        mirror.writer.flush()
        return mirror.bell

    def on_bell(self, kernel_id: str, bell: Bell) -> Bell:
        """The bell of the mirror, when the keeper rings this one of its log."""
        # The keeper's bell may be ahead of the records, which wait for credit: its place is not
        # passed on.
        mirror = self._by_id[kernel_id]
        mirror.taken = bell.taken
        return mirror.bell

    def share(self, kernel_id: str, share: tuple[str, int] | None) -> None:
        """Have a mirror share so many bytes with others (`LogRoom.share`)."""
        if (mirror := self._by_id.get(kernel_id)) is not None:
            mirror.writer.share(*(share or NO_SHARE))

    def renew(self, kernel_id: str) -> None:
        """Have a mirror go on in another file: the newest one cannot be read."""
        if (mirror := self._by_id.get(kernel_id)) is not None:
            mirror.writer.renew()

    def remove(self, kernel_id: str) -> None:
        """Remove the mirror of a kernel that is gone."""
        mirror = self._by_id.pop(kernel_id, None)
        if mirror is not None:
            self._release_handle(mirror, kernel_id)
            mirror.writer.remove()

    def close(self) -> None:
        """Close the files, which the next server goes on with."""
        self._expiry.cancel()
        for mirror in self._by_id.values():
            mirror.writer.close()
