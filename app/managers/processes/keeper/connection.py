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
from ...errors import KeeperUnavailable, KernelkeepError
from .link import KeeperLink, KeeperRefuses, LinkLost
from .places import KeeperGone

__all__ = ["ATTEMPTS", "Connection"]

logger = logging.getLogger(__name__)

ATTEMPTS: Final = 2
"""How often something is asked for if the connection ends before the answer."""

PAUSE_SECONDS: Final = 0.05
"""Before another connection, if one ends while it is made."""

SOON_SECONDS: Final = 1.0
"""The least time from one connection to the next, if no request waits for that."""

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
            # Several may wait here, and `close` may come meanwhile. So what follows is looked at
            # behind the wait; the first one makes the task, and the others find it.
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
        # Twice, and not again and again: a keeper that a request kills is not to be killed by it
        # for ever. `_connect` waits, within its bound, until there is a keeper.
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
        """Send pieces of a frame that has no answer; returns whether they were sent.

        Without a link they are not, and a link is made as soon as can be.
        """
        if (link := self.open_link) is not None:
            link.write(pieces)
            return True
        self.recover_soon()
        return False

    def tell(self, fields: Fields) -> None:
        """Do `KeeperLink.tell` if there is a link now. Nothing is told later."""
        if (link := self.open_link) is not None:
            link.tell(fields)

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
        # Before anybody who awaits the task goes on: a task calls its callbacks in the order in
        # which they were added, and this one was added first.
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
                    # A keeper that ends each time that it is greeted must not have this server
                    # spin.
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, SOON_SECONDS)
        except TimeoutError:
            text = f"The keeper of kernels was not ready within {patience:g} s"
            raise KeeperUnavailable(text) from None
        except (OSError, TooOpen, Garbled, msgspec.MsgspecError) as error:
            raise KeeperUnavailable(f"The keeper of kernels cannot be used: {error}") from error
        except KernelkeepError:
            raise
        except Exception as error:
            # A bug, here or in a package that reaches hosts, must not end the attempts: kernels
            # would be without a keeper for good.
            text = f"The keeper of kernels cannot be used: {type(error).__name__}"
            if text != self._trouble:
                logger.exception("a keeper cannot be found")
            raise KeeperUnavailable(text) from error

    async def _greet(self, link: KeeperLink) -> bool:
        """Use a link from now on; False if it ends meanwhile, as it may at any time."""
        try:
            begin = await self._owner.greet(link)
            if link.is_open:
                # No await stands between these and the end of `begin`: whoever finds the link finds
                # the kernels of the owner spoken for.
                self.link = link
                self._linked_at = self._loop.time()
                self._trouble = ""
                begin()
                return True
        except LinkLost:  # what `begin` writes may be the first to show that nobody reads
            pass
        except BaseException:
            await link.close()
            raise
        await link.close()
        return False

    def ended(self, link: KeeperLink) -> bool:
        """Note that a link has ended; returns whether that was the link in use."""
        # A link that ends while it is greeted was never in use: `_greet` sees to it. While this is
        # closed nobody is to have another link made.
        if link is not self.link or self.is_closed:
            return False
        self.link = None
        return True

    def recover_soon(self) -> None:
        """Make a link as soon as can be, and try until there is one."""
        # One task at a time. A link that ends just when that one has found it open, and returns,
        # ends a turn later at the earliest: its `on_end` finds the task done, and begins another.
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
        """Make no link any more. The link in use stays, until whoever closes this closes it."""
        self.is_closed = True
        for timer in self._retries:
            timer.cancel()
        # `is_closed` comes first: a caller whose wait these cancellations end, and that asks again,
        # is refused by `linked`.
        tasks = [task for task in (self._recovery, self._linking) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
