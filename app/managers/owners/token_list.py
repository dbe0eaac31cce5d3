"""The identity provider of the list of tokens, which a server has in memory.

The list is in a file, or in the registry that replicas share; "the file" stands for either here.

A request costs one hash and one look into a dictionary. Changes that other processes make in the
file are seen within a second: a thread looks at the file twice a second while a token is in force,
and when an unknown token is shown. So a token works as soon as the command has printed it, and a
server without tokens does not look at the file.

The thread has the file to itself (``_store``, ``_file``, ``_elsewhere``, ``_version``, ``_ids``),
and the event loop has the rest. Two are shared: ``_asked`` (see `TokenList._ask`), and
``_has_dropped``.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import time
from collections.abc import Callable, Hashable, Iterable, Set
from functools import partial
from typing import Any, Final, NamedTuple, TypeVar

from ..threads import DaemonThreads
from . import credentials
from .errors import TokensUnavailable
from .names import InvalidName
from .principal import ANONYMOUS, Identity, Principal
from .scopes import InvalidScope, Scopes
from .token_table import NewToken, TokenPlace, TokenRecord, TokenTable, UnusableTokens

__all__ = ["TokenList"]

logger = logging.getLogger(__name__)

LOOK_SECONDS: Final = 0.4
"""Seconds between two looks at the file."""

USES_SECONDS: Final = 60.0
"""Seconds between two writes of when tokens were last used."""

WAIT_SECONDS: Final = 5.0
"""How long a request waits for the disk."""

TRUSTED_SECONDS: Final = 60.0
"""How long tokens are believed while their file cannot be read: one may have been revoked there."""

NEVER: Final = float("inf")

T = TypeVar("T")


class _Seen(NamedTuple):
    """The result of a look at the file: all tokens, or those that have changed."""

    records: list[TokenRecord]
    all: bool = False
    gone: frozenset[str] = frozenset()
    trouble: str = ""


class _Asked:
    """A look at the file that was asked for, and has not begun."""

    seen: asyncio.Future[_Seen]


class _Token:
    """A token of the list, as the server has it."""

    __slots__ = ("deadline", "principal", "record")

    def __init__(self, record: TokenRecord, principal: Principal, deadline: float) -> None:
        self.record = record
        self.principal = principal
        self.deadline = deadline
        """When the token expires by the loop's clock, which cannot be set back."""


class TokenList:
    """The tokens of a place. `open` and `close` them in one running event loop."""

    def __init__(self, place: TokenPlace) -> None:
        self._place = place
        self._changed: Callable[[str, TokenRecord], None] | None = None
        self._context = contextvars.Context()  # empty: changes of the file have no caller
        self._tokens: dict[str, _Token] = {}
        self._by_digest: dict[bytes, Principal] = {}
        self._scopes: dict[tuple[str, ...], Scopes] = {}
        self._used: dict[str, float] = {}
        self._next_expiry = (NEVER, NEVER)  # by the wall clock, by the loop's
        self._trusted_until = NEVER  # by the loop's clock
        self._troubled = False  # whether it was logged that the file cannot be read
        self._has_read = False
        self._watch: asyncio.Task[None] | None = None
        self._thread: DaemonThreads | None = None
        self._asked: _Asked | None = None
        self._has_dropped = False  # whether tokens were dropped that the thread takes for known
        # These belong to the thread:
        self._store: TokenTable | None = None
        self._file: Hashable | None = None
        self._elsewhere: Hashable = None
        self._version = 0
        self._ids: set[str] = set()

    async def open(self, changed: Callable[[str, TokenRecord], None] | None = None) -> None:
        """Read the tokens. A file that cannot be used is logged, and is tried again.

        ``changed`` is called for each change that another process makes from now on: with
        ``token_created`` or ``token_revoked``, and the record.
        """
        self._changed = changed
        self._thread = DaemonThreads(1, "tokens")
        await asyncio.wait({self._ask()}, timeout=WAIT_SECONDS)

    async def close(self) -> None:
        """Write when tokens were last used, and close the file."""
        if self._thread is None:
            return
        # First the watch: it writes uses, too, and begins looks that this would have to wait for.
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.wait({self._watch})
        writing = self._submit(self._write_uses, self._take_uses())
        await asyncio.wait({writing}, timeout=WAIT_SECONDS)
        self._submit(self._forget_file)
        self._thread.shutdown()
        self._thread = None

    # An identity provider's

    def known(self, token: str) -> Principal | None:
        """The principal of a token, even of one that has ended; None for an unknown token."""
        if not credentials.is_token(token):
            return None
        # By its digest: how long the look takes tells nothing about tokens other than the one that
        # was shown. A token ends at once when it expires: the watch sees that a little later.
        principal = self._by_digest.get(credentials.digest(token))
        if principal is not None and not principal.ended:
            if principal.over:
                principal.end()
            else:
                self._used[principal.credential] = time.time()
        return principal

    async def identify(self, token: str) -> Principal | None:
        """As `known`, but looks at the file for a token that is new.

        Raises `TokensUnavailable` if the file cannot be read.
        """
        found = self.known(token)
        if found is None and credentials.is_token(token):
            # All requests with unknown tokens share one look: guessing costs the disk no more. The
            # callback of `_ask` was added before that of `wait`: by now `_take` has taken the look.
            done, _ = await asyncio.wait({self._ask()}, timeout=WAIT_SECONDS)
            found = self.known(token)
            if found is None and (not done or self._trusted_until != NEVER):
                raise TokensUnavailable("The list of tokens cannot be read now")
        return found

    # For the API

    def records(self) -> list[TokenRecord]:
        """The tokens that are in force, oldest first."""
        return [token.record for token in self._tokens.values() if not token.principal.over]

    def record(self, token_id: str) -> TokenRecord | None:
        """The token with this id, if it is in force."""
        found = self._tokens.get(token_id)
        return None if found is None or found.principal.over else found.record

    def last_used(self, record: TokenRecord) -> float | None:
        """When a token was last used, which may not be written yet."""
        return self._used.get(record.id, record.last_used)

    async def create(
        self, wanted: NewToken, *, named_by_hand: bool = False
    ) -> tuple[TokenRecord, str]:
        """As `TokenTable.add`. Raises `TokensUnavailable`, too."""
        made, token = await self._change(
            lambda store: store.add(wanted, time.time(), named_by_hand=named_by_hand)
        )
        return made, token

    async def revoke(self, ids: Iterable[str]) -> list[TokenRecord]:
        """As `TokenTable.revoke`. Raises `TokensUnavailable`."""
        revoked = [*ids]
        return await self._change(lambda store: store.revoke(revoked, time.time()))

    async def _change(self, work: Callable[[TokenTable], T]) -> T:
        """Change the file and have the change in memory when this returns."""
        # The thread makes the change even if its caller does not wait. `_take` has to take the look
        # behind the change in any case: here, or in a callback if the caller has given up.
        changing: asyncio.Future[tuple[T, _Seen]] = self._submit(self._change_file, work)
        try:
            done, _ = await asyncio.wait({changing}, timeout=WAIT_SECONDS)
        except asyncio.CancelledError:
            changing.add_done_callback(self._take_late, context=self._context)
            raise
        if not done:
            changing.add_done_callback(self._take_late, context=self._context)
            raise TokensUnavailable("The list of tokens cannot be written now")
        try:
            result, seen = changing.result()
        except UnusableTokens as error:
            logger.error("a token could not be made or revoked: %s", error)
            raise TokensUnavailable("The list of tokens cannot be written now") from None
        self._context.run(self._take, seen, told=False)
        return result

    def _take_late(self, changing: asyncio.Future[tuple[Any, _Seen]]) -> None:
        """Take the look behind a change whose caller has given up: no later look sees it again."""
        if not changing.cancelled() and changing.exception() is None:
            self._take(changing.result()[1])

    # Looking at the file

    def _submit(self, work: Callable[..., T], *arguments: object) -> asyncio.Future[T]:
        assert self._thread is not None, "the list was not opened"
        return asyncio.wrap_future(self._thread.submit(partial(work, *arguments)))

    def _ask(self) -> asyncio.Future[_Seen]:
        """A look at the file that begins after this call, shared by all calls before it begins.

        When the future is done, `_take` has taken the look. The thread clears ``_asked`` before it
        looks: a call that still finds the future there has come before the look.
        """
        asked = self._asked
        if asked is None:
            asked = self._asked = _Asked()
            asked.seen = self._submit(self._look_for, asked)
            asked.seen.add_done_callback(
                lambda seen: self._take(seen.result()), context=self._context
            )
        return asked.seen

    def _look_for(self, asked: _Asked) -> _Seen:
        if self._asked is asked:
            self._asked = None
        return self._look()

    def _look(self) -> _Seen:
        try:
            return self._read()
        except UnusableTokens as error:
            self._forget_file()
            return _Seen([], trouble=str(error))
        except Exception as error:  # the watch must go on, whatever this is
            logger.exception("the list of tokens cannot be read")
            self._forget_file()
            return _Seen([], trouble=type(error).__name__)

    def _read(self) -> _Seen:
        """Look at the file: the changes since the last look."""
        # Another file may have been moved to this place, with versions of its own: all of it is
        # read then.
        found = self._place.key()
        if found != self._file or self._has_dropped:
            self._has_dropped = False
            self._forget_file()
        if found is None:
            return _Seen([], all=True)
        if self._store is None:
            self._store, self._file = self._place.open(), found
            self._elsewhere, self._version = None, 0
        # A change that is committed between these statements is seen again by the next look.
        elsewhere = self._store.changes_elsewhere()
        if elsewhere == self._elsewhere:
            return _Seen([])
        count, version = self._store.state()
        records = self._store.records(self._version)
        ids, gone = self._ids | {record.id for record in records}, frozenset[str]()
        if len(ids) != count:  # some that ended long ago were forgotten
            gone = frozenset(ids - self._store.ids())
            ids -= gone
        # All is read at first, and if an older file was copied into this one.
        everything = not self._version or version < self._version or len(ids) != count
        if everything:
            records, gone = self._store.records(), frozenset()
            ids = {record.id for record in records}
        self._elsewhere, self._version, self._ids = elsewhere, version, ids
        return _Seen(records, all=everything, gone=gone)

    def _forget_file(self) -> None:
        if self._store is not None:
            self._store.close()
        self._store = self._file = None
        self._ids = set()

    def _change_file(self, work: Callable[[TokenTable], T]) -> tuple[T, _Seen]:
        # By a connection of its own, so that `changes_elsewhere` of the other one sees the change.
        store = self._place.open(create=True)
        with contextlib.closing(store):
            result = work(store)
        return result, self._look()

    def _write_uses(self, uses: list[tuple[str, float]]) -> None:
        if uses and self._store is not None:
            try:
                self._store.used(uses)
            except UnusableTokens as error:
                logger.warning("when tokens were last used is not written: %s", error)

    # Taking what a look has found

    def _take(self, seen: _Seen, *, told: bool = True) -> None:
        # The look behind a change is taken a turn later than others, by the task that has made the
        # change: a request that revokes its own token is not closed by that (`app.api.endings`). So
        # an older look may be taken after a newer one; a token that has ended stays ended then.
        loop = asyncio.get_running_loop()
        if self._thread is None:
            return  # closed meanwhile
        if seen.trouble:
            self._trusted_until = min(self._trusted_until, loop.time() + TRUSTED_SECONDS)
            if not self._troubled:
                self._troubled = True
                logger.error(
                    "%s; what is known of the list of tokens counts for %d s more",
                    seen.trouble,
                    TRUSTED_SECONDS,
                )
            return
        self._trusted_until = NEVER
        if self._troubled:
            self._troubled = False
            logger.warning("the list of tokens can be read again")
        if seen.all:
            self._drop(self._tokens.keys() - {record.id for record in seen.records})
        self._drop(seen.gone)
        for record in seen.records:
            self._put(record, loop, told=told and self._has_read)
        self._has_read = True
        if seen.records or seen.all:
            self._note_expiries()
        if self._watch is None and self._in_force:
            self._watch = loop.create_task(self._watch_file(), name="watch tokens")

    def _drop(self, ids: Set[str]) -> None:
        for token_id in ids:
            token = self._tokens.pop(token_id, None)
            if token is not None:
                self._by_digest.pop(token.record.digest, None)
                token.principal.end()

    def _put(self, record: TokenRecord, loop: asyncio.AbstractEventLoop, *, told: bool) -> None:
        # If the token still permits the same, its principal stays, and so do the connections that
        # are open with it. Else the principal ends, and its connections: other scopes permitted
        # them.
        old = self._tokens.get(record.id)
        if old is not None and _same(old.record, record):
            principal, deadline = old.principal, old.deadline
        else:
            if old is not None:
                self._drop({record.id})
            principal = self._principal(record)
            left = NEVER if record.expires is None else record.expires - time.time()
            deadline = loop.time() + left
        was_in_force = old is not None and not principal.ended
        self._tokens[record.id] = _Token(record, principal, deadline)
        self._by_digest[record.digest] = principal
        if not record.in_force(time.time()):
            principal.end()
        if told and self._changed is not None:
            if old is None and not principal.ended:
                self._changed("token_created", record)
            elif was_in_force and record.revoked is not None:
                self._changed("token_revoked", record)

    def _principal(self, record: TokenRecord) -> Principal:
        scopes = self._scopes.get(record.scopes)
        if scopes is None:
            try:
                scopes = Scopes.parse(record.scopes)
            except InvalidScope as error:  # a newer version, which knows more scopes, has made it
                logger.error("token %s may do nothing: %s", record.id, error)
                scopes = Scopes(())
            self._scopes[record.scopes] = scopes
        identity = Identity(record.owner, record.owner, record.owner)
        try:
            return Principal(
                Identity() if record.owner == ANONYMOUS else identity,
                scopes,
                groups=frozenset(record.groups),
                credential=record.id,
                expires=record.expires,
            )
        except InvalidName as error:  # another program has written it
            logger.error("token %s may do nothing: %s", record.id, error)
            return Principal(Identity(), Scopes(()), credential=record.id, expires=record.expires)

    # While tokens are in force

    @property
    def _in_force(self) -> bool:
        return any(not token.principal.ended for token in self._tokens.values())

    async def _watch_file(self) -> None:
        """Look at the file, end what expires, and write uses, until no token is in force."""
        loop = asyncio.get_running_loop()
        uses_at = loop.time() + USES_SECONDS
        while self._in_force:
            # A disk that does not answer must not keep tokens from expiring.
            asked = self._ask()
            await asyncio.sleep(LOOK_SECONDS)
            if not asked.done():
                self._trusted_until = min(self._trusted_until, loop.time() + TRUSTED_SECONDS)
            try:
                self._expire()
                if loop.time() >= self._trusted_until:
                    self._distrust()
            except Exception:
                logger.exception("the end of a token has failed")
            if loop.time() >= uses_at and asked.done():
                uses_at = loop.time() + USES_SECONDS
                self._submit(self._write_uses, self._take_uses())
        # Nothing is awaited since the last look at what is in force: `_take` begins another watch.
        self._watch = None
        self._submit(self._write_uses, self._take_uses())

    def _expire(self) -> None:
        """End what has expired by either clock.

        The wall clock may be set back, and the loop's stands still while the machine sleeps.
        """
        now, instant = time.time(), asyncio.get_running_loop().time()
        if now < self._next_expiry[0] and instant < self._next_expiry[1]:
            return
        for token in self._tokens.values():
            if token.principal.over or token.deadline <= instant:
                token.principal.end()
        self._note_expiries()

    def _note_expiries(self) -> None:
        left = [token for token in self._tokens.values() if not token.principal.ended]
        self._next_expiry = (
            min((each.record.expires or NEVER for each in left), default=NEVER),
            min((each.deadline for each in left), default=NEVER),
        )

    def _distrust(self) -> None:
        """Accept no token any more: the file cannot be read, and any may have been revoked."""
        # Connections that are open end, too. A look that hangs may succeed after all, and find no
        # change: `_has_dropped` has the look behind it read everything again. Tokens that come back
        # by that were not created by another process, and `changed` is not called (`_has_read`).
        if self._tokens:
            logger.error("the list of tokens cannot be read: no token of it is taken until it can")
            self._drop(set(self._tokens))
            self._has_read, self._has_dropped = False, True

    def _take_uses(self) -> list[tuple[str, float]]:
        # Called in the loop's thread: the writing thread gets a list of its own.
        uses, self._used = [*self._used.items()], {}
        return uses


def _same(old: TokenRecord, new: TokenRecord) -> bool:
    """Whether a token is allowed what it was allowed before; it may have ended meanwhile."""
    return (old.digest, old.owner, old.groups, old.scopes, old.expires) == (
        *(new.digest, new.owner, new.groups, new.scopes, new.expires),
    )
