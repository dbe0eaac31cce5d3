"""The identity provider for tokens of a JupyterHub: the Hub is asked whose a token is.

An answer is used for ``jupyterhub_cache_seconds``. Then the Hub is asked again: when the token is
shown again, or at once if a request or a connection of its user is open. While the Hub does not
answer, nobody is let in by an older answer, and connections that are open are closed after
``jupyterhub_outage_seconds``.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from ..managers.errors import IdentityUnavailable
from ..managers.owners.principal import Principal
from ..managers.owners.scopes import Scopes
from ..settings import Settings
from .fetching import Fetcher, Unavailable
from .hub_model import HubRules, HubUser, NoModel, principal_of
from .naming import Refused
from .remembered import MAX_REMEMBERED, Remembered, digest_of
from .sweeping import SWEEP_SECONDS, Sweeper

__all__ = ["JupyterHub"]

logger = logging.getLogger(__name__)

MAX_QUESTIONS: Final = 1000
"""How many tokens the Hub is asked about or waits to be asked about, at a time."""

RETRY_SECONDS: Final = 5.0
"""Seconds between two questions about a token with open connections, while the Hub is silent."""

# A Hub's own tokens are hexadecimal, and those of a configuration have at least eight characters.
_TOKEN: Final = re.compile(r"[!-~]{8,512}")

# JWTs and tokens of this server's own list: secrets that are not sent to the Hub.
_OF_OTHERS: Final = re.compile(
    r"eyJ[A-Za-z0-9_-]*\.[A-Za-z0-9_-]*\.[A-Za-z0-9_.-]*|kk_[0-9a-f]{64}"
)

_NOBODYS: Final = (401, 403)


class JupyterHub:
    """The `IdentityProvider` for the tokens of one JupyterHub."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._url = settings.jupyterhub_api_url.rstrip("/") + "/user"
        self._rules = HubRules(
            settings.jupyterhub_service, Scopes.parse(settings.identity_default_scopes)
        )
        self._cache_seconds = settings.jupyterhub_cache_seconds
        self._outage_seconds = settings.jupyterhub_outage_seconds
        self._fetcher = Fetcher(settings.identity_timeout)
        self._remembered: Remembered[HubUser] = Remembered()
        # The digests of tokens that the Hub does not know, and until when (by the clock) the Hub is
        # not asked about them again.
        self._wrong: OrderedDict[bytes, float] = OrderedDict()
        self._questions: dict[bytes, asyncio.Task[HubUser | None]] = {}
        self._sweeper = Sweeper(self._sweep)
        self._failure = ""

    def known(self, token: str) -> Principal | None:
        """Who shows this token, if the Hub has said so a short while ago."""
        return self._fresh(digest_of(token))

    async def identify(self, token: str) -> Principal | None:
        """Who shows this token; None if the Hub knows no such token, or its user may not come in.

        A token that was good until a while ago still has a principal, whose `over` is true. Raises
        `IdentityUnavailable` if the Hub cannot be asked, or its answer makes no sense.
        """
        if not _TOKEN.fullmatch(token) or _OF_OTHERS.fullmatch(token):
            return None
        digest = digest_of(token)
        if self._is_wrong(digest):
            return self._remembered.over(digest)
        found = self._fresh(digest)
        if found is not None:
            return found
        # If this request is cancelled, the question to the Hub goes on: other requests may wait for
        # its answer.
        return await asyncio.shield(self._question(token, digest))

    async def close(self) -> None:
        """Cancel the questions to the Hub, and close the HTTP client."""
        await self._sweeper.close()  # first: it asks questions
        questions = [*self._questions.values()]
        for question in questions:
            question.cancel()
        await asyncio.gather(*questions, return_exceptions=True)
        await self._fetcher.close()

    def _fresh(self, digest: bytes) -> HubUser | None:
        found = self._remembered.get(digest)
        if found is None or found.ended or self._clock() - found.confirmed >= self._cache_seconds:
            return None
        return found

    def _is_wrong(self, digest: bytes) -> bool:
        until = self._wrong.get(digest)
        return until is not None and self._clock() < until

    def _question(self, token: str, digest: bytes) -> asyncio.Task[HubUser | None]:
        """The question that is being asked about a token; a new one if there is none.

        Raises `IdentityUnavailable` if too many others are being asked.
        """
        # One question about a token at a time: so no answer is replaced by that to an earlier
        # question. A task that has just ended is still here until `_answered` is called, in a later
        # turn of the loop: its answer is fresh, and may be used.
        task = self._questions.get(digest)
        if task is None:
            if len(self._questions) >= MAX_QUESTIONS:
                raise IdentityUnavailable
            task = asyncio.create_task(self._ask(token, digest), name="asking the JupyterHub")
            self._questions[digest] = task
            task.add_done_callback(lambda done: self._answered(digest, done))
        return task

    def _answered(self, digest: bytes, task: asyncio.Task[HubUser | None]) -> None:
        del self._questions[digest]
        if not task.cancelled():
            task.exception()  # retrieved, or asyncio would log it: a sweep does not await the task

    async def _ask(self, token: str, digest: bytes) -> HubUser | None:
        """Ask the Hub. Raises `IdentityUnavailable`."""
        asked = self._clock()
        if (before := self._remembered.get(digest)) is not None:
            before.asked = asked
        try:
            status, model = await self._fetcher.get(self._url, {"Authorization": f"token {token}"})
            if status in _NOBODYS:
                return self._found_wrong(digest)
            if status != 200:
                raise Unavailable(f"an answer with status {status}")
            told = principal_of(model, self._rules)
        except Refused as refused:
            logger.info("a token of the JupyterHub is refused: %s", refused)
            return self._found_wrong(digest)
        except NoModel:
            raise self._failed("an answer that is no model of a user") from None
        except Unavailable as error:
            raise self._failed(str(error)) from None
        if self._failure:
            self._failure = ""
            logger.info("the JupyterHub answers again")
        return self._found(told, token, digest, asked)

    def _failed(self, failure: str) -> IdentityUnavailable:
        if failure != self._failure:
            self._failure = failure
            logger.warning("the JupyterHub cannot be asked whose a token is: %s", failure)
        return IdentityUnavailable()

    def _found(self, told: HubUser, token: str, digest: bytes, asked: float) -> HubUser:
        """Remember what the Hub has told; the time counts from the question."""
        # The race: a sweep may have ended the principal while the Hub was asked. So the principal
        # is looked up now, behind the await. An ended one stays ended: its connections are being
        # closed, and the token gets another principal.
        before = self._remembered.get(digest)
        if before is not None and not before.ended and before.says_the_same(told):
            told = before
        elif before is not None:
            # The owner, groups or scopes are others now than when the token's connections were
            # opened. So those are closed.
            self._remembered.end(digest)
        told.token, told.confirmed, told.asked = token, asked, asked
        self._remembered.put(digest, told)
        self._wrong.pop(digest, None)
        self._sweeper.start()
        return told

    def _found_wrong(self, digest: bytes) -> HubUser | None:
        """Remember that a token is wrong. If it was right before, returns its principal, ended."""
        self._remembered.end(digest)
        self._wrong[digest] = self._clock() + self._cache_seconds
        self._wrong.move_to_end(digest)
        if len(self._wrong) > MAX_REMEMBERED:
            self._wrong.popitem(last=False)
        return self._remembered.over(digest)

    def _sweep(self) -> None:
        """Forget old answers; ask again about tokens with open connections, or end them."""
        now = self._clock()
        self._remembered.forget_closed()
        for digest, user in self._remembered.items():
            age = now - user.confirmed
            if user.ended or age < self._cache_seconds:
                continue
            if not user.is_open:
                self._remembered.release(digest)
            elif age >= max(self._outage_seconds, self._cache_seconds + SWEEP_SECONDS):
                self._remembered.end(digest)
            elif now - user.asked >= min(RETRY_SECONDS, self._cache_seconds):
                self._ask_again(user, digest)

    def _ask_again(self, user: HubUser, digest: bytes) -> None:
        try:
            self._question(user.token, digest)
        except IdentityUnavailable:
            return  # the next sweep tries again
