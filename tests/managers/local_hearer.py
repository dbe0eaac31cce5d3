"""Hears kernels as the keeper does, with no process of its own and no link to it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from app.keeper.hearings import Heard, Hearings
from app.keeper.log_room import NO_SHARE
from app.managers.errors import KernelUnreachable
from app.managers.messages.line import Line
from app.protocol.link import Bell
from app.protocol.messages import ClientMessage, Message
from app.settings import Settings


class LocalHearer:
    """Plays the keeper's part for lines (`app.managers.messages.line.Hearer`).

    Make it inside a running event loop, and `close` it there.
    """

    def __init__(self, settings: Settings) -> None:
        self._lines: dict[int, Line] = {}
        self._by_id: dict[str, Line] = {}
        self._malformed: dict[str, int] = {}
        self._hearings = Hearings(self._ring, self._on_malformed)
        room = self._hearings.room
        room.each, room.together = settings.log_bytes, settings.log_total_bytes
        room.age = settings.log_age

    async def hear(
        self, line: Line, directory: Path, info: Mapping[str, Any] | None, *, anew: bool
    ) -> Heard:
        """As `Hearer.hear`."""
        try:
            heard = self._hearings.hear(
                line.kernel_id,
                session=line.session,
                epoch=line.epoch,
                directory=directory,
                info=info,
                anew=anew,
                share=line.share or NO_SHARE,
            )
        except (OSError, ValueError) as error:
            raise KernelUnreachable(str(error)) from error
        self._lines[heard.handle] = self._by_id[line.kernel_id] = line
        line.on_heard(heard)
        return heard

    def request(self, line: Line, message: ClientMessage, owner: str) -> None:
        """As `Hearer.request`."""
        hearing = self._hearings.by_handle(line.handle)
        if hearing is not None:
            hearing.request(message, owner)

    def say(self, line: Line, message: Message, owner: str | None, flags: int) -> None:
        """As `Hearer.say`."""
        hearing = self._hearings.by_handle(line.handle)
        if hearing is not None:
            hearing.say(message.channel, message.frame, owner, flags)

    async def settle(self, kernel_id: str) -> bool:
        """As `Hearer.settle`."""
        return self._hearings.settle(kernel_id)

    async def stdin_connected(self, kernel_id: str) -> bool:
        """As `Hearer.stdin_connected`."""
        hearing = self._hearings.get(kernel_id)
        return hearing is None or hearing.stdin_connected

    def opened(self, kernel_id: str, share: tuple[str, int] | None) -> None:
        """As `Hearer.opened`."""
        hearing = self._hearings.get(kernel_id)
        if hearing is not None:
            hearing.opened = True
            self._hearings.room.share(hearing.writer, *(share or NO_SHARE))

    async def disconnect(self, kernel_id: str) -> None:
        """As `Hearer.disconnect`."""
        self._hearings.disconnect(kernel_id)

    def renew(self, kernel_id: str) -> None:
        """As `Hearer.renew`."""
        self._hearings.renew(kernel_id)

    def drop(self, kernel_id: str) -> None:
        """As `Hearer.drop`."""
        self._hearings.flush()
        self._hearings.forget(kernel_id)
        self._malformed.pop(kernel_id, None)
        line = self._by_id.pop(kernel_id, None)
        if line is not None:
            self._lines.pop(line.handle, None)

    def close(self) -> None:
        """Close every socket and every file."""
        self._hearings.close()

    def _ring(self, bells: list[Bell]) -> None:
        for bell in bells:
            line = self._lines.get(bell.handle)
            if line is not None:
                line.on_bell(bell)

    def _on_malformed(self, kernel_id: str, channel: str, reason: str) -> None:
        count = self._malformed[kernel_id] = self._malformed.get(kernel_id, 0) + 1
        line = self._by_id.get(kernel_id)
        if line is not None:
            line.on_malformed(count, channel, reason)
