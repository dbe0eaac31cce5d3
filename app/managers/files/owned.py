"""The files of each owner among several: a root of its own, and the rights of its kernels."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from ..errors import InvalidRequest, IsolationUnavailable, NotAuthorized
from ..owners.names import InvalidName, owner_name
from ..owners.ownership import Ownership, access
from ..owners.principal import Principal
from ..processes.isolation.file_rights import with_rights
from ..processes.isolation.isolation import Isolation, OwnersFiles
from ..processes.isolation.names import directory_name
from . import service
from .contents import Contents
from .errors import ContentsNotFound, ContentsUnavailable
from .notebooks import Notebooks, load
from .service import ContentsService, Workers

__all__ = ["CallersContents", "OneOwnersContents", "OwnersContents"]

T = TypeVar("T")

THREADS: Final = 16
"""How many requests of all owners work on files at a time."""

THREADS_OF_ONE: Final = 4
"""How many of these requests may be one owner's: files that hang hold up no other owner."""

NOTARIES: Final = "notaries"
"""The directory in the state directory that has the signatures of each owner's notebooks: what one
owner trusts, no other does."""


class _Turns:
    """The threads for one owner's files: some of all ``workers``."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._free = asyncio.Semaphore(THREADS_OF_ONE)

    async def begin(self, work: Callable[[], T]) -> Future[T]:
        """Have work done when the owner has a thread left. Raises what `Workers.begin` does."""
        await self._free.acquire()
        loop = asyncio.get_running_loop()
        try:
            done = self._workers.begin(work)
        except BaseException:
            self._free.release()
            raise

        # The thread counts as long as it works, even if the request has given up its result.
        def ended(_: object) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the server has ended
                loop.call_soon_threadsafe(self._free.release)

        done.add_done_callback(ended)
        return done


class OneOwnersContents(ContentsService):
    """The contents manager of one owner, whose work has the rights to that owner's files alone."""

    def __init__(self, owner: str, files: OwnersFiles, contents: Contents, turns: _Turns) -> None:
        self.whose = {"owner": owner}
        self.files = files
        self.contents = contents
        self._turns = turns

    async def _begin(self, work: Callable[[], T]) -> Future[T]:
        return await self._turns.begin(partial(with_rights, self.files.rights, work))

    async def close(self) -> None:
        """Nothing: `OwnersContents.close` is for all owners."""


class OwnersContents:
    """The contents managers of all owners. ``isolation`` knows where the files of each are.

    ``hidden`` is never shown, nor is ``state_dir``. Make this inside a running event loop.
    """

    def __init__(self, isolation: Isolation, state_dir: Path, hidden: Iterable[Path] = ()) -> None:
        self._isolation = isolation
        self._state_dir = state_dir
        self._hidden = tuple(hidden)
        self._workers = Workers(THREADS)
        self._services: dict[str, OneOwnersContents] = {}
        self._turns: dict[str, _Turns] = {}

    async def of(self, owner: str, *, make: bool = True) -> OneOwnersContents:
        """The contents manager of an owner, whose directory is made if need be.

        If it is not to be made and is not there, this raises `ContentsNotFound`. Raises
        `ContentsUnavailable`, too.
        """
        turns = self._turns.setdefault(owner, _Turns(self._workers))
        try:
            async with asyncio.timeout(service.WORK_SECONDS):
                looking = await turns.begin(partial(self._look, owner, make=make))
                files = await asyncio.wrap_future(looking)
        except TimeoutError:
            raise ContentsUnavailable(
                f"The file system did not answer within {service.WORK_SECONDS:g} s"
            ) from None
        # From here on nothing is awaited: of two requests at the same time, the later one finds the
        # manager that the earlier one has made, so that one manager has all of an owner's uploads.
        found = self._services.get(owner)
        if found is None or found.files != files:  # the owner may have another account by now
            if found is not None:
                self._workers.begin(found.contents.close)
            found = self._services[owner] = self._made(owner, files, turns)
        return found

    def _look(self, owner: str, *, make: bool) -> OwnersFiles:
        load()  # no module is imported, and no table read, with an owner's rights
        try:
            if not make and not self._isolation.has_files(owner):
                raise ContentsNotFound("", what="The owner has no files")
            files = self._isolation.files(owner)
            notary = self._notary(owner)
            notary.mkdir(mode=0o700, parents=True, exist_ok=True)
        except IsolationUnavailable as error:
            raise ContentsUnavailable(f"The owner's files cannot be served: {error.why}") from error
        except OSError as error:
            raise ContentsUnavailable(
                f"The owner's files cannot be served: {error.strerror}"
            ) from error
        return files._replace(rights=files.rights.also(notary))

    def _notary(self, owner: str) -> Path:
        return self._state_dir / NOTARIES / directory_name(owner)

    def _made(self, owner: str, files: OwnersFiles, turns: _Turns) -> OneOwnersContents:
        notebooks = Notebooks(self._notary(owner), files.rights.lifted)
        contents = Contents(files.root, self._state_dir, self._hidden, notebooks)
        return OneOwnersContents(owner, files, contents, turns)

    async def close(self) -> None:
        """As `ContentsService.close`, for all owners."""
        await self._workers.close(self._drop_uploads)

    def _drop_uploads(self) -> None:
        for one in [*self._services.values()]:
            one.contents.close()


class CallersContents:
    """The files that one principal may read or write: the common ones, or those of each owner."""

    def __init__(self, files: ContentsService | OwnersContents, principal: Principal) -> None:
        self._files = files
        self._principal = principal

    async def of(self, action: str, owner: str | None = None) -> ContentsService:
        """The contents manager for an action, ``read`` or ``write``, with an owner's files.

        Without an ``owner`` they are the caller's files. Raises `NotAuthorized` if the caller may
        not read or write them, whether or not there is such an owner; `InvalidRequest`; and what
        `OwnersContents.of` raises.
        """
        if not isinstance(self._files, OwnersContents):
            if owner is not None:
                raise InvalidRequest("owner: the files of this server have no owners")
            return self._files
        own = self._principal.owner
        try:
            name = own if owner is None else owner_name(owner)
        except InvalidName as error:
            raise InvalidRequest(f"owner: {error}") from None
        ownership = Ownership.of(self._principal) if name == own else Ownership(name)
        if not access(self._principal, action, "contents", ownership):
            raise NotAuthorized(action, "contents")
        return await self._files.of(name, make=name == own or action == "write")
