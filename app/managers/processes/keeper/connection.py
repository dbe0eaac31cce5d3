"""A connection to a keeper, made when it is first needed, and again when it has ended."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

import msgspec

from ....keeper.protocol import Fields, Garbled, TooOpen
from ....protocol.messages import Buffer
from ...errors import KeeperUnavailable
from .link import KeeperLink, KeeperRefuses, LinkLost
from .places import KeeperGone

__all__ = ["ATTEMPTS", "Connection"]

logger = logging.getLogger(__name__)

ATTEMPTS: Final = 2
"""How often something is asked for if the connection ends before the answer."""

PAUSE_SECONDS: Final = 0.05
"""Before another connection, if one ends while it is made."""

SOON_SECONDS: Final = 1.0
"""How long after a connection was made another is, at the earliest, which nobody waits for."""

RETRY_SECONDS: Final = 5.0
"""When a keeper that could not be started is tried again, if kernels need it."""


class ConnectionOwner(Protocol):
    """What finds a keeper, and talks to it first."""

    async def find(self) -> KeeperLink:
        """A link to the keeper. Raises what `Place.find` does."""

    async def greet(self, link: KeeperLink) -> Callable[[], None]:
        """Greet the keeper; what is returned is called when the link is in use.

        Raises `LinkLost`, and what else `find` does.
        """


class Connection:
    """Keeps a link to one keeper. Make it inside a running event loop, and `close` it there.

    ``patience`` is how long a keeper may take to be there, in seconds. Whatever asks raises
    `KeeperUnavailable` if there is no keeper.
    """

    def __init__(self, owner: ConnectionOwner, patience: float) -> None:
        self.link: KeeperLink | None = None
        """The link that was made last, until its end is seen."""
        self.on_trouble: Callable[[str], None] = lambda _: None
        """Called with the reason why there is no link although one is needed; it is tried again."""
        self._owner = owner
        self._patience = patience
        self._loop = asyncio.get_running_loop()
        self._linking: asyncio.Task[KeeperLink] | None = None
        self._linked_at = -SOON_SECONDS
        self._recovery: asyncio.Task[None] | None = None
        self._retries: set[asyncio.TimerHandle] = set()
        self._trouble = ""  # which was logged, and lasts
        self._failure = ""  # why the last link could not be made
        self.is_closed = False

    @property
    def open_link(self) -> KeeperLink | None:
        """The link, if requests can be sent over it now."""
        return self.link if self.link is not None and self.link.is_open else None

    def problem(self) -> str:
        """Why the keeper is known not to do what it is asked; empty if it does, as far as is known.

        Waits for nothing: what is not known yet is asked for, and a later call tells.
        """
        if (link := self.open_link) is not None:
            return "the keeper of kernels does not answer" if link.is_silent() else ""
        if self._failure:
            self.recover_soon()  # or nobody might, and the problem would stay
        return self._failure

    async def linked(self) -> KeeperLink:
        """The link, which is made if there is none."""
        if (link := self.open_link) is not None:
            return link
        if self.link is not None:
            await self.link.close()  # it has ended, which its reader has not yet seen
        if self.is_closed:
            raise KeeperUnavailable("The server is shutting down")
        if self._linking is None:
            self._linking = self._loop.create_task(self._connect(), name="link to the keeper")
            self._linking.add_done_callback(self._on_linked)
        # It is for all who wait: one that is cancelled does not end it for the others.
        return await asyncio.shield(self._linking)

    async def ask(self, ask: str, seconds: float | None = None, **fields: Any) -> tuple[Any, bytes]:
        """What `KeeperLink.ask` does, of what does no harm if it is done twice.

        Of an `OSError` that is told, only `ProcessLookupError` is raised as it is.
        """
        for _ in range(ATTEMPTS - 1):
            with contextlib.suppress(LinkLost):
                return await self._ask_once({"ask": ask, **fields}, seconds)
        return await self._ask_once({"ask": ask, **fields}, seconds)

    async def _ask_once(self, fields: Fields, seconds: float | None) -> tuple[Any, bytes]:
        try:
            return await (await self.linked()).ask(fields, seconds)
        except ProcessLookupError:
            raise
        except OSError as error:  # no descriptors are left, for one
            raise KeeperRefuses(str(error)) from error

    def write(self, pieces: Sequence[Buffer]) -> bool:
        """Send pieces of a frame that has no answer, if there is a link; or see to it that one is.

        Returns whether they were sent.
        """
        if (link := self.open_link) is not None:
            link.write(pieces)
            return True
        self.recover_soon()
        return False

    def cut_off(self, why: str) -> None:
        """End the link: the keeper tells what cannot be."""
        if (link := self.open_link) is not None:
            logger.error("the keeper makes no sense; the connection to it is ended: %s", why)
            link.abort()

    def retry(self, what: Callable[..., None], *arguments: Any) -> None:
        """Call something after `RETRY_SECONDS`, unless this is closed by then."""

        def call() -> None:
            self._retries.discard(timer)
            what(*arguments)

        timer = self._loop.call_later(RETRY_SECONDS, call)
        self._retries.add(timer)

    def _on_linked(self, linking: asyncio.Task[KeeperLink]) -> None:
        self._linking = None
        if not linking.cancelled():
            error = linking.exception()  # whoever waited for it may have been cancelled
            self._failure = "" if error is None else str(error)

    async def _connect(self) -> KeeperLink:
        pause, patience = PAUSE_SECONDS, self._patience
        try:
            async with asyncio.timeout(patience):
                while True:
                    link = await self._owner.find()
                    if await self._greet(link):
                        return link
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, SOON_SECONDS)
        except TimeoutError:
            text = f"The keeper of kernels was not ready within {patience:g} s"
            raise KeeperUnavailable(text) from None
        except (OSError, TooOpen, Garbled, msgspec.MsgspecError) as error:
            raise KeeperUnavailable(f"The keeper of kernels cannot be used: {error}") from error

    async def _greet(self, link: KeeperLink) -> bool:
        """Use a link from now on; False if it ends meanwhile, as it may at any time."""
        try:
            begin = await self._owner.greet(link)
        except LinkLost:
            await link.close()
            return False
        except BaseException:
            await link.close()
            raise
        if not link.is_open:
            return False
        self.link = link
        self._linked_at = self._loop.time()
        self._trouble = ""
        begin()
        return True

    def ended(self, link: KeeperLink) -> bool:
        """A link has ended; whether it was the one in use."""
        if link is not self.link or self.is_closed:
            return False
        self.link = None
        return True

    def recover_soon(self) -> None:
        """Make a link as soon as can be, and try until there is one."""
        if not self.is_closed and (self._recovery is None or self._recovery.done()):
            self._recovery = self._loop.create_task(self._recover(), name="new keeper")

    async def _recover(self) -> None:
        while True:
            try:
                # One that is sent away as soon as it has come: it would be for ever.
                await asyncio.sleep(self._linked_at + SOON_SECONDS - self._loop.time())
                link = await self.linked()
                if link.is_open:
                    return
                await asyncio.sleep(PAUSE_SECONDS)  # it has ended before anybody could use it
            except KeeperGone:
                return
            except KeeperUnavailable as error:
                if error.message != self._trouble:
                    logger.error("kernels have no keeper: %s", error.message)
                    self.on_trouble(error.message)
                self._trouble = error.message
                await asyncio.sleep(RETRY_SECONDS)

    async def close(self) -> None:
        """Make no link any more; the one in use stays until it is closed itself."""
        self.is_closed = True
        for timer in self._retries:
            timer.cancel()
        tasks = [task for task in (self._recovery, self._linking) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
