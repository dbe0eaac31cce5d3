"""The contents manager for the event loop: it works in threads of its own, within a bound."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar

from ..threads import DaemonThreads
from .contents import Contents
from .errors import ContentsUnavailable

__all__ = ["ContentsService", "Workers"]

P = ParamSpec("P")
T = TypeVar("T")

THREADS: Final = 4
"""If a disk hangs, this many requests are stuck at most; other work has other threads."""

WORK_SECONDS: Final = 60.0
"""How long a file system may take for one request, waiting for a free thread included."""

LAST_SECONDS: Final = 10.0
"""How long the end of the server waits for work that has begun, so that none is left half done."""

CLOSE_SECONDS: Final = 2.0
"""How long the end of the server waits until incomplete uploads are dropped."""


class ContentsService:
    """Runs the methods of ``contents`` without blocking the event loop."""

    def __init__(self, root: Path, state_dir: Path, hidden: Iterable[Path] = ()) -> None:
        self.contents = Contents(root, state_dir, hidden)
        self.whose: dict[str, str] = {}
        """Whose files these are, in the fields of the audit log."""
        self._workers = Workers(THREADS)

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run ``work`` in a thread; returns its result.

        Raises what it raises, and `ContentsUnavailable` after `WORK_SECONDS`. Work that has begun
        cannot be stopped: it may still be done afterwards.
        """
        # The timeout cancels work that waits for a thread. Work that has begun has its thread until
        # it ends. Its result or error is then dropped, as the future is cancelled by then.
        try:
            async with asyncio.timeout(WORK_SECONDS):
                return await asyncio.wrap_future(await self._begin(partial(work, *args, **kwargs)))
        except TimeoutError:
            raise ContentsUnavailable(
                f"The file system did not answer within {WORK_SECONDS:g} s"
            ) from None

    async def _begin(self, work: Callable[[], T]) -> Future[T]:
        return self._workers.begin(work)

    async def close(self) -> None:
        """Drop the work that waits, let work that has begun end, and drop the uploads.

        Within bounds, `LAST_SECONDS` and `CLOSE_SECONDS`: a disk that hangs must not hold up the
        end of the server.
        """
        await self._workers.close(lambda: self.contents.close())


class Workers:
    """At most ``number`` threads for the work on files."""

    def __init__(self, number: int) -> None:
        self._threads = DaemonThreads(number, "contents")
        self._work: set[Future[Any]] = set()

    def begin(self, work: Callable[[], T]) -> Future[T]:
        """Have work done when a thread is free. Raises `RuntimeError` after `close`."""
        done = self._threads.submit(work)
        self._work.add(done)
        done.add_done_callback(self._work.discard)
        return done

    async def close(self, last: Callable[[], object]) -> None:
        """Drop the work that waits, let work that has begun end, and do ``last``; with bounds."""
        # A copy: threads remove their finished work from the set meanwhile.
        begun = {asyncio.wrap_future(done) for done in [*self._work] if not done.cancel()}
        self._threads.shutdown()
        if begun:
            await asyncio.wait(begun, timeout=LAST_SECONDS)
        # By a thread of its own, as the others may all hang.
        closing = DaemonThreads(1, "end of the contents")
        dropping = asyncio.wrap_future(closing.submit(last))
        closing.shutdown()
        await asyncio.wait({dropping}, timeout=CLOSE_SECONDS)
