"""The kernels that one keeper hears: the lines to them, and where its doorbells go."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from ....keeper.hearings import Heard
from ....keeper.protocol import Fields, Garbled
from ....log_formats import about
from ....protocol import link as frames
from ....protocol.link import Bell, Said
from ....protocol.messages import ClientMessage, Message
from ...errors import KeeperUnavailable, KernelUnreachable
from ...messages.line import Line
from .claims import check_bell, heard_of
from .connection import Connection
from .link import KeeperLink, KeeperRefuses
from .mirrors import Mirrors

__all__ = ["Lines"]

logger = logging.getLogger(__name__)

MAX_UNHEARD: Final = 256
"""How many bells are remembered for handles that are not known yet; the oldest go first."""


class Lines:
    """The lines to one keeper's kernels, by the kernels' ids and by the keeper's handles.

    A line without a handle is to a kernel that the keeper does not hear yet, and is to hear. With
    ``mirrors`` the keeper is on another host.
    """

    def __init__(self, connection: Connection, mirrors: Mirrors | None = None) -> None:
        self._connection = connection
        self._mirrors = mirrors
        self._by_id: dict[str, Line] = {}
        self._by_handle: dict[int, Line] = {}
        self._unheard: dict[int, Bell] = {}
        self._beginning = 0
        self._late: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        # A kernel that the keeper is just asked to hear has no line here, and needs the keeper.
        return len(self._by_id) + self._beginning

    def __contains__(self, kernel_id: object) -> bool:
        return kernel_id in self._by_id

    async def hear(
        self, line: Line, directory: Path, info: Mapping[str, Any] | None, *, anew: bool
    ) -> Heard:
        """As `Hearer.hear`."""
        plain = None if info is None else {name: _text(value) for name, value in info.items()}
        self._beginning += 1
        try:
            asked = self._question(line, directory, plain, anew=anew)
            # The request may be sent again over another link, which does no harm: a keeper that
            # hears the kernel opens nothing. Nothing is awaited between the answer and `_put`, so
            # the handle is of the link in use, or of one whose end is seen before another keeper
            # is greeted.
            answer, _ = await self._connection.ask(**asked)
            line.remember(directory, plain)
            return self._put(line, self._heard(line, asked, answer))
        except (KeeperRefuses, Garbled, OSError) as error:
            raise KernelUnreachable(str(error)) from error
        finally:
            self._beginning -= 1

    async def end_of(self, kernel_id: str) -> int:
        """The number of the next message in a kernel's log, as the keeper has the log now.

        0 if the kernel is gone. Raises `KeeperUnavailable`.
        """
        line = self._by_id.get(kernel_id)
        if line is None:
            return 0
        asked = self._question(line, line.directory, None, anew=False)
        answer, _ = await self._connection.ask(**asked)
        return heard_of(answer, kernel_id).end[0]

    def _question(
        self, line: Line, directory: Path, info: dict[str, Any] | None, *, anew: bool
    ) -> dict[str, Any]:
        known, where = line.known, str(directory)
        if self._mirrors is not None:  # the keeper has its own directory
            known = max(known, self._mirrors.known(line.kernel_id, directory))
            where = f"logs/{line.kernel_id}"
        return {
            "ask": "hear",
            "kernel_id": line.kernel_id,
            "session": line.session,
            "epoch": line.epoch,
            "known": known,
            "directory": where,
            "info": info,
            "anew": anew,
            "share": line.share,
        }

    def _heard(self, line: Line, asked: dict[str, Any], answer: Any) -> Heard:
        """The keeper's answer to ``asked``, checked. Raises `Garbled`."""
        # A mirror goes on to grow after the question. So a log on another host is checked against
        # the place that was known when the question was asked, and not the present one.
        known = (1, 0) if self._mirrors is None else asked["known"]
        return heard_of(answer, line.kernel_id, known)

    def _put(self, line: Line, heard: Heard) -> Heard:
        if self._mirrors is not None:
            heard = self._mirrors.begin(line.directory, heard)
            self._mirrors.share(line.kernel_id, line.share)
        self._by_id[line.kernel_id] = self._by_handle[heard.handle] = line
        line.on_heard(heard)
        # The list is taken out first: `request` puts an input reply back that cannot be written.
        unsent, line.unsent = line.unsent, []
        for message, owner in unsent:
            self.request(line, message, owner)
        bell = self._unheard.pop(heard.handle, None)
        # A bell that was rung before the keeper answered tells less than the answer.
        if bell is not None and bell.end >= heard.end and bell.taken >= heard.taken:
            self._ring(line, bell)
        return heard

    def _ring(self, line: Line, bell: Bell) -> None:
        mirrors = self._mirrors
        line.on_bell(bell if mirrors is None else mirrors.on_bell(line.kernel_id, bell))

    def request(self, line: Line, message: ClientMessage, owner: str) -> None:
        """Send a request to a kernel. Without a link, or a handle, it is not written.

        A request that is missing in the log later is sent again (`Traffic`). An input reply, which
        is not logged, is put into ``line.unsent`` if it was not written.
        """
        # A line that the keeper does not hear yet may have the handle of an earlier keeper.
        written = self._is_heard(line) and self._connection.write(
            frames.pack_request(line.handle, message, owner)
        )
        # Each input reply closes a prompt, so there are no more of them than open prompts.
        if message.header.msg_type == "input_reply" and not written:
            line.unsent.append((message, owner))

    def say(self, line: Line, message: Message, owner: str | None, flags: int) -> None:
        """As `Hearer.say`. A message that is missing in the log later is said again (`Voice`)."""
        if self._is_heard(line):
            said = Said(line.handle, message.channel, flags, owner, message.frame)
            self._connection.write(frames.pack_said(said))

    def _is_heard(self, line: Line) -> bool:
        return self._by_handle.get(line.handle) is line

    def pop(self, kernel_id: str) -> Line | None:
        """Remove the line to a kernel that is gone."""
        line = self._by_id.pop(kernel_id, None)
        if line is not None and self._is_heard(line):
            del self._by_handle[line.handle]
        return line

    # One keeper after another

    def take_from(self, other: Lines) -> None:
        """Take the lines of another keeper, which is gone; call `hear_missing` next."""
        for line in other._by_id.values():
            line.handle = 0  # no keeper gives this handle
            self._by_id.setdefault(line.kernel_id, line)
        other._by_id.clear()
        other._by_handle.clear()

    async def hear_missing(self) -> None:
        """Have the keeper hear those kernels that it does not hear yet."""
        for kernel_id, line in [*self._by_id.items()]:
            if not self._is_heard(line):
                await self._try_to_hear(kernel_id)

    async def hear_again(self, link: KeeperLink) -> list[tuple[Line, Heard]]:
        """Have a keeper that was just connected hear all kernels; call `begin` next."""
        # A handle has a meaning in one keeper's process only. From here to `begin` no request is
        # sent, and bells are only remembered: the same handle may be another kernel's now.
        self._by_handle.clear()
        self._unheard.clear()
        found = []
        for line in [*self._by_id.values()]:
            try:
                found.append((line, await self._ask_again(link, line)))
            except (KeeperRefuses, Garbled, OSError) as error:
                if isinstance(error, Garbled):
                    line.on_lost(str(error))
                self._hear_later(line.kernel_id, error)
        return found

    async def _ask_again(self, link: KeeperLink, line: Line) -> Heard:
        asked = self._question(line, line.directory, line.info, anew=False)
        answer, _ = await link.ask(asked)
        return self._heard(line, asked, answer)

    def begin(self, heard: Sequence[tuple[Line, Heard]]) -> list[Line]:
        """Use the handles of a keeper that hears these kernels, and send what is still unsent.

        Returns the lines, except of kernels that have gone meanwhile, or whose logs or mirrors
        cannot be used.
        """
        # While the keeper was asked for others, a kernel may have gone, and another have come with
        # the same id.
        present = [(line, its) for line, its in heard if self._by_id.get(line.kernel_id) is line]
        begun = []
        for line, its in present:
            try:
                self._put(line, its)
            except (Garbled, OSError) as error:  # of a mirror
                line.on_lost(str(error))
                self._hear_later(line.kernel_id, error)
            else:
                begun.append(line)
        return begun

    def _hear_later(self, kernel_id: str, why: Exception) -> None:
        if kernel_id not in self._by_id:  # it has gone while the keeper was asked
            return
        about(logger, kernel_id=kernel_id).error("kernel %s is not heard: %s", kernel_id, why)
        self._connection.retry(self._hear_late, kernel_id)

    def _hear_late(self, kernel_id: str) -> None:
        """Ask the keeper once more to hear a kernel, which it has refused before."""
        if kernel_id in self._by_id:
            task = asyncio.get_running_loop().create_task(
                self._try_to_hear(kernel_id), name="hear a kernel late"
            )
            self._late.add(task)
            task.add_done_callback(self._late.discard)

    async def _try_to_hear(self, kernel_id: str) -> None:
        try:
            link = await self._connection.linked()
            line = self._by_id.get(kernel_id)
            if line is None or self._is_heard(line):
                return
            # The kernel may go while the keeper is asked. Then the keeper is told over this link,
            # after the question, to drop the kernel. So the question is not repeated over another
            # link, where the keeper would read it after that; each greeting asks for all lines
            # anyhow.
            heard = await self._ask_again(link, line)
            if self._by_id.get(kernel_id) is line:
                self._put(line, heard)
        except (KeeperUnavailable, Garbled, OSError) as error:
            self._hear_later(kernel_id, error)

    def on_lost(self, why: str) -> None:
        """Tell all lines that the keeper cannot be reached, for the reason ``why``."""
        for line in [*self._by_id.values()]:
            line.on_lost(why)

    async def close(self) -> None:
        """Give up the attempts to have kernels heard late."""
        for task in self._late:
            task.cancel()
        if self._late:
            await asyncio.wait(self._late)

    # What the keeper tells

    def on_bells(self, data: bytes) -> None:
        """Take a frame of bells, or of records for a mirror. Raises `Garbled` if it cannot be true.

        The link is ended then, and the next one's greeting agrees on the logs' places again.
        """
        if self._mirrors is not None and data[:1] == frames.RECORDS:
            grown = self._mirrors.on_records(data)
            if grown is not None and (line := self._by_id.get(grown[0])) is not None:
                line.on_bell(grown[1])
            return
        if data[:1] != frames.BELLS:
            raise Garbled(f"no frame {data[:1]!r}")
        for bell in frames.unpack_bells(data):
            line = self._by_handle.get(bell.handle)
            if line is not None:
                check_bell(bell, line.kernel_id, line.known)
                self._ring(line, bell)
                continue
            self._unheard[bell.handle] = bell  # the answer with this handle may be read next
            # The bell may also be of a kernel that is gone: such entries are never asked for.
            if len(self._unheard) > MAX_UNHEARD:
                del self._unheard[next(iter(self._unheard))]

    def on_malformed(self, event: Fields) -> None:
        """Tell a kernel's line that the keeper has dropped malformed messages of the kernel."""
        line = self._by_id.get(event["kernel_id"])
        if line is not None:
            line.on_malformed(event["count"], event["channel"], event["reason"])


def _text(value: Any) -> Any:
    """A value of a connection's information as text: jupyter_client has the key as bytes."""
    return value.decode() if isinstance(value, bytes) else value
