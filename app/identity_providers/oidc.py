"""The identity provider for bearer tokens of an OpenID Connect issuer: signed JWTs.

The issuer is never asked about a token. It is asked for its keys (OpenID Connect Discovery, then
the JWKS), from time to time and when a token names a key that is not known.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Callable
from typing import Any, Final

from ..managers.errors import IdentityUnavailable
from ..managers.owners.principal import Principal
from ..managers.owners.scopes import Scopes
from ..settings import Settings
from .discovery import discover, endpoint
from .fetching import Fetcher, Unavailable
from .naming import Refused
from .oidc_keys import Key, KeyRing, UnusableKeys, parse_keys
from .oidc_tokens import ClaimRules, Issued, Rules, principal_of, read_token, verify
from .remembered import Remembered, digest_of
from .sweeping import Sweeper

__all__ = ["OpenIDConnect"]

logger = logging.getLogger(__name__)

_NO_SUCH_KEY: Final = "the token names a key that the issuer does not have"


class OpenIDConnect:
    """The `IdentityProvider` for the tokens of one OpenID Connect issuer."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._rules = Rules(
            settings.oidc_issuer,
            tuple(settings.oidc_audience),
            frozenset(settings.oidc_algorithms),
            settings.oidc_clock_skew,
        )
        self._claims = ClaimRules(
            settings.oidc_name_claim,
            settings.oidc_groups_claim,
            settings.oidc_scopes_claim,
            settings.oidc_scope_prefix,
            Scopes.parse(settings.identity_default_scopes),
        )
        self._seconds = settings.identity_timeout
        self._fetcher = Fetcher(self._seconds)
        self._ring = KeyRing(settings.oidc_keys_max_age)
        self._fetch: asyncio.Task[None] | None = None
        self._failure = ""
        self._remembered: Remembered[Issued] = Remembered()
        self._sweeper = Sweeper(self._sweep)

    def known(self, token: str) -> Principal | None:
        """Who shows this token, if it was verified before; it may have expired since."""
        return self._known(digest_of(token))

    def _known(self, digest: bytes) -> Issued | None:
        found = self._remembered.get(digest)
        if found is None or _has_expired(found):
            return found
        # A principal that was ended because its key was withdrawn is verified again: the issuer may
        # publish the key again. And nobody is known from memory while the keys are too old, for
        # they may have been withdrawn.
        return found if self._ring.usable(self._clock()) and not found.ended else None

    async def identify(self, token: str) -> Principal | None:
        """Who shows this token; None if it is not the issuer's, or wrong in any way.

        A token that was good once still has a principal, whose `over` is true. Raises
        `IdentityUnavailable` if the issuer's keys are needed and cannot be fetched.
        """
        digest = digest_of(token)
        try:
            read = read_token(token, self._rules)
            if read is None:
                return None
            if (found := self._known(digest)) is not None:
                return found
            keys = await self._keys(read.kid)
            key = verify(read, keys, self._rules, time.time())
            principal = principal_of(
                read.claims,
                self._claims,
                skew=self._rules.skew,
                key=key,
                credential=f"oidc:{digest.hex()[:8]}",
            )
        except Refused as refused:
            logger.info("a token of %s is refused: %s", self._rules.issuer, refused)
            return self._remembered.over(digest)
        # The race: while the keys were awaited, another request may have verified the same token.
        # Both requests get the same principal.
        if (found := self._known(digest)) is not None:
            return found
        self._remembered.put(digest, principal)
        self._sweeper.start()
        return principal

    async def close(self) -> None:
        """Cancel the fetch of keys, and close the HTTP client."""
        await self._sweeper.close()
        if self._fetch is not None:
            self._fetch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._fetch
        await self._fetcher.close()

    async def _keys(self, kid: str) -> list[Key]:
        """The issuer's keys with this id. Raises `Refused` if there is none."""
        now = self._clock()
        keys = self._ring.find(kid, now)
        if keys:
            if self._ring.ageing(now):
                self._begin_fetch()  # nobody waits for it: the keys are good for a while
            return keys
        if self._fetch is None or self._fetch.done():
            pause = self._ring.pause(now)
            if pause and self._ring.lacks(kid) and self._ring.usable(now):
                raise Refused(_NO_SUCH_KEY)
            if pause:
                raise _unavailable(pause)
            self._begin_fetch()
        assert self._fetch is not None
        # One fetch serves all requests that need a key, and a request that is cancelled does not
        # end it. A fetch that fails raises nothing here: the ring and `_failure` are looked at
        # behind the await.
        await asyncio.shield(self._fetch)
        now = self._clock()
        if not self._ring.usable(now) or self._failure:
            raise _unavailable(self._ring.pause(now))
        keys = self._ring.find(kid, now)
        if not keys:
            self._ring.miss(kid)
            raise Refused(_NO_SUCH_KEY)
        return keys

    def _begin_fetch(self) -> None:
        if self._fetch is None or self._fetch.done():
            self._fetch = asyncio.create_task(self._fetch_keys(), name="keys of the OpenID issuer")

    async def _fetch_keys(self) -> None:
        """Fetch the keys. A failure is logged unless the last fetch has failed in the same way."""
        try:
            async with asyncio.timeout(self._seconds):
                keys = parse_keys(await self._jwks(), self._rules.algorithms)
        except (Unavailable, UnusableKeys, TimeoutError) as error:
            self._ring.failed(self._clock())
            failure = str(error) or f"no answers within {self._seconds:g} s"
            if failure != self._failure:
                self._failure = failure
                logger.warning("no keys of %s: %s", self._rules.issuer, failure)
            return
        if self._failure:
            logger.info("the keys of %s are there again", self._rules.issuer)
        self._failure = ""
        self._ring.fetched(keys, self._clock())
        # Principals whose tokens were verified by a key that is withdrawn are ended. None slips
        # through: in `identify` nothing awaits between the look for a token's key and
        # `Remembered.put`, so each principal by an old key is among these.
        for digest, principal in self._remembered.items():
            if not (principal.ended or self._ring.has(principal.key)):
                self._remembered.end(digest)

    async def _jwks(self) -> Any:
        """The issuer's JWKS, from where its discovery document says. Raises `Unavailable`."""
        document = await discover(self._fetcher, self._rules.issuer)
        url = endpoint(document, "jwks_uri", self._rules.issuer)
        status, keys = await self._fetcher.get(url)
        if keys is None:
            raise Unavailable(f"an answer with status {status}")
        return keys

    def _sweep(self) -> None:
        """End principals that have expired, and fetch the keys again before they are too old."""
        if self._ring.ageing(self._clock()):
            self._begin_fetch()
        self._remembered.forget_closed()
        for digest, principal in self._remembered.items():
            if principal.over and not principal.ended:
                self._remembered.end(digest)


def _has_expired(principal: Issued) -> bool:
    return principal.expires is not None and principal.expires <= time.time()


def _unavailable(pause: float) -> IdentityUnavailable:
    return IdentityUnavailable(max(1, math.ceil(pause)))
