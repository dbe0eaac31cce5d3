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
"""How often a request is sent at the most, if the connection ends before the answer."""

PAUSE_SECONDS: Final = 0.05
"""The first pause before another attempt, if a link ends while it is made."""

SOON_SECONDS: Final = 1.0
"""The least time from one link to the next, if no request waits for the next one."""

RETRY_SECONDS: Final = 5.0
"""The pause before another attempt to start a keeper, or to have it do what it refused."""


class ConnectionOwner(Protocol):
    """The owner of a `Connection`, which finds the keeper and greets it."""

    async def find(self) -> KeeperLink:
        """A link to the keeper. Raises what `Place.find` does."""

    async def greet(self, link: KeeperLink) -> Callable[[], None]:
        """Greet the keeper; returns a function that is called when the link is in use.

        Raises `LinkLost`, and what `find` raises.
        """


class Connection:
    """Keeps a link to one keeper. Make it inside a running event loop, and `close` it there.

    ``patience`` is how long a keeper may take to be there, in seconds. Methods that ask the keeper
    raise `KeeperUnavailable` if there is none.
    """

    def __init__(self, owner: ConnectionOwner, patience: float) -> None:
        self.link: KeeperLink | None = None
        """The link that was made last, until its end is seen."""
        self.on_trouble: Callable[[str], None] = lambda _: None
        """Called with the reason when a link is needed and cannot be made; it is tried again."""
        self._owner = owner
        self._patience = patience
        self._loop = asyncio.get_running_loop()
        self._linking: asyncio.Task[KeeperLink] | None = None
        self._linked_at = -SOON_SECONDS
        self._recovery: asyncio.Task[None] | None = None
        self._retries: set[asyncio.TimerHandle] = set()
        self._trouble = ""  # the reason that was logged last, while there is no link
        self._failure = ""  # why the last link could not be made
        self.is_closed = False

    @property
    def open_link(self) -> KeeperLink | None:
        """The link, if requests can be sent over it now."""
        return self.link if self.link is not None and self.link.is_open else None

    def problem(self) -> str:
        """Why the keeper does not do what it is asked; empty if it does, as far as is known.

        Returns at once: it may ask the keeper a question, whose answer a later call takes into
        account.
        """
        if (link := self.open_link) is not None:
            return "the keeper of kernels does not answer" if link.is_silent() else ""
        if self._failure:
            self.recover_soon()  # if no request comes, nothing else makes another link
        return self._failure

    async def linked(self) -> KeeperLink:
        """The link, which is made if there is none."""
        if (link := self.open_link) is not None:
            return link
        if self.link is not None:
            # Several callers may wait here, and `close` may be called meanwhile. So what follows is
            # checked after the wait; the first caller makes the task, and the others find it.
            await self.link.close()  # it has ended, and `ended` was not called yet
        if self.is_closed:
            raise KeeperUnavailable("The server is shutting down")
        if self._linking is None:
            self._linking = self._loop.create_task(self._connect(), name="link to the keeper")
            self._linking.add_done_callback(self._on_linked)
        # All callers share the task: one that is cancelled does not end it for the others.
        return await asyncio.shield(self._linking)

    async def ask(self, ask: str, seconds: float | None = None, **fields: Any) -> tuple[Any, bytes]:
        """As `KeeperLink.ask`, for a request that does no harm if the keeper does it twice.

        If the keeper answers with an `OSError`, this raises `KeeperRefuses`, but for
        `ProcessLookupError`, which it raises as it is.
        """
        # `ATTEMPTS` times, and not for ever: if the request makes the keeper crash, it would crash
        # each next keeper, too. `_connect` waits, within its bound, until there is a keeper.
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

        Without a link they are not sent, and `recover_soon` begins to make one.
        """
        if (link := self.open_link) is not None:
            link.write(pieces)
            return True
        self.recover_soon()
        return False

    def tell(self, fields: Fields) -> None:
        """Call `KeeperLink.tell` if there is a link now; otherwise the request is dropped."""
        if (link := self.open_link) is not None:
            link.tell(fields)

    def cut_off(self, why: str) -> None:
        """End the link, as the keeper's answers make no sense; ``why`` is logged."""
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
        # Called before any waiting caller goes on: a task calls its callbacks in the order in which
        # they were added, and this one was added first.
        self._linking = None
        if not linking.cancelled():
            error = linking.exception()  # fetched here: all waiting callers may be cancelled
            self._failure = "" if error is None else str(error)

    async def _connect(self) -> KeeperLink:
        pause, patience = PAUSE_SECONDS, self._patience
        try:
            async with asyncio.timeout(patience):
                while True:
                    link = await self._owner.find()
                    if await self._greet(link):
                        return link
                    # With this pause the server does not spin if the keeper ends at each greeting.
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
        """Greet the keeper and use its link from now on; False if the link ends before that."""
        try:
            begin = await self._owner.greet(link)
            if link.is_open:
                # Nothing awaits from here to the end of `begin`: code that finds this link in use
                # finds the owner's kernels heard over it.
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
        # A link that ends while its keeper is greeted was never in use: `_greet` closes it. After
        # `close` no further link is to be made.
        if link is not self.link or self.is_closed:
            return False
        self.link = None
        return True

    def recover_soon(self) -> None:
        """Make a link as soon as can be, and try until there is one."""
        # One task at a time. If a link ends just after the task has found it open, and returns, its
        # `on_end` is called a turn of the loop later at the earliest: it finds the task done, and
        # begins another.
        if not self.is_closed and (self._recovery is None or self._recovery.done()):
            self._recovery = self._loop.create_task(self._recover(), name="new keeper")

    async def _recover(self) -> None:
        while True:
            try:
                # The pause is for a link that ends each time as soon as it is in use.
                await asyncio.sleep(self._linked_at + SOON_SECONDS - self._loop.time())
                link = await self.linked()
                if link.is_open:
                    return
                await asyncio.sleep(PAUSE_SECONDS)  # the link has ended already
            except KeeperGone:
                return
            except KeeperUnavailable as error:
                if error.message != self._trouble:
                    logger.error("kernels have no keeper: %s", error.message)
                    self.on_trouble(error.message)
                self._trouble = error.message
                await asyncio.sleep(RETRY_SECONDS)

    async def close(self) -> None:
        """Make no link any more. The link in use stays open: the owner is to close it."""
        self.is_closed = True
        for timer in self._retries:
            timer.cancel()
        # `is_closed` was set first: if the cancellations below end a caller's wait, and it asks
        # again, `linked` refuses.
        tasks = [task for task in (self._recovery, self._linking) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
