"""The servers that have greeted a keeper, and what it tells each of them unasked.

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
"""When so much waits for a server that does not read, it is told the rest later, all at once."""

BELL_SECONDS: Final = 0.05


class Audience:
    """Servers by their connections. ``ring_all`` rings for all kernels, and is called later."""

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
        """The server has said what it is."""
        self._servers.add(server)

    def discard(self, server: ServerLink) -> None:
        """The server is gone."""
        self._servers.discard(server)

    def predecessors(self, server: ServerLink, hello: Fields) -> set[ServerLink]:
        """The connections that a server has had before, by its greeting.

        Other replicas are none of its predecessors: they go on beside it.
        """
        replica = str(hello.get("replica", ""))
        return {other for other in self._servers if other.replica == replica} - {server}

    def come(self, server: ServerLink, kernel_id: str, term: int | None) -> None:
        """A request of a server names this kernel, which is the server's, or is from now on.

        Whose the kernel was before is told. Raises `ValueError` if another replica has the kernel.
        """
        if term is None or not server.replica:
            if not self.is_obeyed(server, kernel_id):
                raise ValueError(f"another replica has kernel {kernel_id}")
            return
        try:
            before = self._terms.come(kernel_id, int(term), server.replica)
        except ValueError:
            self._fence(kernel_id, server.replica)
            raise
        if before is not None:
            self._fence(kernel_id, before)

    def is_obeyed(self, server: ServerLink, kernel_id: str) -> bool:
        """Whether a kernel obeys a server; one that it does not obey is told so."""
        if self._terms.obeys(kernel_id, server.replica):
            return True
        self._fence(kernel_id, server.replica)
        return False

    def only_own(self, server: ServerLink, answer: Any) -> Any:
        """The answer to a greeting, without the kernels that are not this server's."""
        if not (server.replica or self._terms):
            return answer
        told, has, replica = answer["answer"], self._terms.has, server.replica
        kept = [record for record in told["kept"] if has(replica, record["kernel_id"])]
        heard = [kernel_id for kernel_id in told["heard"] if has(replica, kernel_id)]
        return {"answer": told | {"kept": kept, "heard": heard}}

    def tell(self, kernel_id: str, event: dict[str, Any]) -> None:
        """Tell of an event of a kernel."""
        frame = pack({**event, "kernel_id": kernel_id})
        for server in self._servers:
            if self._terms.obeys(kernel_id, server.replica):
                server.write(frame)

    def _fence(self, kernel_id: str, replica: str) -> None:
        """Tell a replica that another has the kernel."""
        frame = pack({"event": "fenced", "kernel_id": kernel_id})
        for server in self._servers:
            if server.replica == replica:
                server.write(frame)

    def on_malformed(self, kernel_id: str, channel: str, reason: str) -> None:
        """Tell of a message that was dropped: of the first, and then more and more rarely."""
        count = self._malformed[kernel_id] = self._malformed.get(kernel_id, 0) + 1
        if not count & (count - 1):
            event = {"event": "malformed", "count": count, "channel": channel, "reason": reason}
            self.tell(kernel_id, event)

    def forget(self, kernel_id: str) -> None:
        """The kernel is gone."""
        self._malformed.pop(kernel_id, None)
        self._terms.forget(kernel_id)

    def ring(self, bells: Sequence[Bell], kernel_ids: Callable[[int], str]) -> None:
        """Tell how far logs go; who does not read is told of all later.

        ``kernel_ids`` has the id of the kernel with a handle.
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
            server.grown(bell.handle for bell in own)
            if server.unread <= UNREAD_BYTES:
                server.write(told)
            elif self._late_bells is None:
                loop = asyncio.get_running_loop()
                self._late_bells = loop.call_later(BELL_SECONDS, self._ring_late)

    def _ring_late(self) -> None:
        self._late_bells = None
        self._ring_all()

    def close(self) -> None:
        """Tell nothing later."""
        if self._late_bells is not None:
            self._late_bells.cancel()
