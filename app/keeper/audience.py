"""The servers that have greeted a keeper, and the bells and events that it sends to them.

A server that is a replica among others is told of its own kernels alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from ..protocol import link
from ..protocol.link import Bell
from .protocol import Fields, pack
from .servers import ServerLink
from .terms import Terms

__all__ = ["Audience"]

UNREAD_BYTES: Final = 2**16
"""While more bytes than this wait for a server to read them, the server is sent no bells. A later
bell tells it of all kernels."""

BELL_SECONDS: Final = 0.05
"""How many seconds after a bell was left out the bell for all kernels is rung."""


class Audience:
    """The connections of the servers that have greeted one keeper.

    ``ring_all`` rings for all kernels. It is called `BELL_SECONDS` after a bell was left out.
    """

    def __init__(self, terms: Terms, ring_all: Callable[[], None]) -> None:
        self._terms = terms
        self._ring_all = ring_all
        self._servers: set[ServerLink] = set()
        self._late_bells: asyncio.TimerHandle | None = None
        self._malformed: dict[str, int] = {}

    def __bool__(self) -> bool:
        return bool(self._servers)

    def __contains__(self, server: object) -> bool:
        return server in self._servers

    def __iter__(self) -> Iterator[ServerLink]:
        return iter([*self._servers])

    def add(self, server: ServerLink) -> None:
        """Note that a server has greeted the keeper."""
        self._servers.add(server)

    def discard(self, server: ServerLink) -> None:
        """Note that a server is gone."""
        self._servers.discard(server)

    def predecessors(self, server: ServerLink, hello: Fields) -> set[ServerLink]:
        """The connections that a server has had before, by its greeting.

        Other replicas are none of its predecessors: they go on beside it.
        """
        replica = str(hello.get("replica", ""))
        # An earlier connection may still be open. But no server greets a keeper over two: either
        # the server has given up the earlier one, or it is the next server of the state directory.
        return {other for other in self._servers if other.replica == replica} - {server}

    def come(self, server: ServerLink, kernel_id: str, term: int | None) -> None:
        """Note that a server has sent a request for a kernel, and so takes the kernel for its own.

        The replica that had the kernel before, if any, is told that it has lost the kernel. Raises
        `ValueError` if another replica has the kernel, and came with a higher term.
        """
        # A request without a term claims nothing. It is served if the kernel is this server's
        # already, or if no replica has it.
        if term is None or not server.replica:
            if not self.is_obeyed(server, kernel_id):
                raise ValueError(f"another replica has kernel {kernel_id}")
            return
        try:
            before = self._terms.come(kernel_id, int(term), server.replica)
        except ValueError:
            # The event is sent beside the error: frames of this replica that get no answer, as
            # requests for the kernel, are only ignored (`is_obeyed`).
            self._fence(kernel_id, server.replica)
            raise
        if before is not None:
            self._fence(kernel_id, before)

    def is_obeyed(self, server: ServerLink, kernel_id: str) -> bool:
        """Whether a kernel obeys a server. If not, the server is told that another has it."""
        if self._terms.obeys(kernel_id, server.replica):
            return True
        self._fence(kernel_id, server.replica)
        return False

    def only_own(self, server: ServerLink, answer: Fields) -> Fields:
        """The answer to a greeting, without the kernels that are not this server's."""
        if not (server.replica or self._terms):
            return answer
        has, replica = self._terms.has, server.replica
        kept = [record for record in answer["kept"] if has(replica, record["kernel_id"])]
        heard = [kernel_id for kernel_id in answer["heard"] if has(replica, kernel_id)]
        return {**answer, "kept": kept, "heard": heard}

    def tell(self, kernel_id: str, event: dict[str, Any]) -> None:
        """Tell an event of a kernel to each server that the kernel obeys."""
        frame = pack({**event, "kernel_id": kernel_id})
        for server in self._servers:
            if self._terms.obeys(kernel_id, server.replica):
                server.write(frame)

    def _fence(self, kernel_id: str, replica: str) -> None:
        """Tell a replica that another has the kernel."""
        # A replica that is not connected learns of it when it comes: each request has its term.
        frame = pack({"event": "fenced", "kernel_id": kernel_id})
        for server in self._servers:
            if server.replica == replica:
                server.write(frame)

    def on_malformed(self, kernel_id: str, channel: str, reason: str) -> None:
        """Tell that messages of a kernel were dropped: whenever their count is a power of two."""
        count = self._malformed[kernel_id] = self._malformed.get(kernel_id, 0) + 1
        if not count & (count - 1):
            event = {"event": "malformed", "count": count, "channel": channel, "reason": reason}
            self.tell(kernel_id, event)

    def forget(self, kernel_id: str) -> None:
        """Forget a kernel that is gone."""
        self._malformed.pop(kernel_id, None)
        self._terms.forget(kernel_id)

    def ring(self, bells: Sequence[Bell], kernel_ids: Callable[[int], str]) -> None:
        """Send bells to the servers; one that does not read gets a bell for all kernels later.

        ``kernel_ids`` returns the id of the kernel with a handle.
        """
        frame = pack({}, link.pack_bells(bells))
        for server in self._servers:
            own, told = bells, frame
            if self._terms:
                obeys, replica = self._terms.obeys, server.replica
                own = [bell for bell in bells if obeys(kernel_ids(bell.handle), replica)]
                if not own:
                    continue
                told = pack({}, link.pack_bells(own))
            # The feeds go on even if the bell is left out. A server with mirrors learns from the
            # records themselves how far a log goes, and needs the bell for the count of requests.
            server.grown(bell.handle for bell in own)
            # A bell that is left out is no loss: bells have totals, and the late one is for all
            # kernels. So `UNREAD_BYTES` bound the bells that wait for a server that reads nothing.
            if server.unread <= UNREAD_BYTES:
                server.write(told)
            elif self._late_bells is None:
                loop = asyncio.get_running_loop()
                self._late_bells = loop.call_later(BELL_SECONDS, self._ring_late)

    def _ring_late(self) -> None:
        self._late_bells = None
        self._ring_all()

    def close(self) -> None:
        """Cancel the bell that is due later."""
        if self._late_bells is not None:
            self._late_bells.cancel()
