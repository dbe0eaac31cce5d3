"""People who log in with a browser: OAuth 2's authorization code flow (RFC 6749, section 4.1).

The browser is sent to the service that knows the person, and comes back with a code, for which this
server gets a token of the person there. The web page takes that token once, and shows it from then
on, as any client shows its own. The server has no sessions.

A login that has begun takes no memory here. The browser has a secret in a cookie. The state, which
has to come back with the code, and the verifier of PKCE (RFC 7636) are derived from that secret and
a key of this process. So a login must end at the process and in the browser in which it has begun,
and nobody can have another person's browser log in as themselves.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from ..managers.errors import KernelkeepError, NotFound
from ..managers.owners.principal import Principal
from .errors import LoginNotBegun, LoginRefused

__all__ = ["LoginAttempt", "LoginWay", "Logins"]

TAKE_SECONDS: Final = 60.0
"""How long a token waits for the page that takes it."""

MAX_WAITING: Final = 1000
"""How many tokens wait at a time; the oldest are forgotten first."""

_SECRET_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class LoginAttempt:
    """The parameters of one login: those that the browser takes to the service, and brings back."""

    redirect_uri: str
    state: str
    verifier: str

    @property
    def challenge(self) -> str:
        """The challenge, made of PKCE's verifier, which the service gets first (RFC 7636, S256)."""
        return _text(hashlib.sha256(self.verifier.encode()).digest())


class LoginWay(Protocol):
    """A service with which people can log in."""

    name: str
    """The name that people know the service by."""

    def redirect_uri(self, url: str) -> str:
        """The address to come back to, as the service wants it; ``url`` is the whole one."""

    async def address(self, asked: LoginAttempt) -> str:
        """Where the browser is sent. Raises `IdentityUnavailable`."""

    async def tokens(self, code: str, asked: LoginAttempt) -> Sequence[str]:
        """The tokens that the service gives for a code, the better one first.

        Raises `IdentityUnavailable`, or `LoginRefused` if the service does not take the code.
        """

    async def close(self) -> None:
        """Ask nothing more."""


class Logins:
    """The ways to log in to one server, by the word that stands for each in addresses.

    ``identify`` tells who shows a token, as the identity providers say.
    """

    def __init__(
        self,
        ways: Mapping[str, LoginWay],
        identify: Callable[[str], Awaitable[Principal | None]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.ways = dict(ways)
        self._identify = identify
        self._clock = clock
        self._key = secrets.token_bytes(_SECRET_BYTES)
        # The outcomes of logins (a token or an error) that wait for the page, and until when, by
        # the digest of the browser's secret.
        self._waiting: OrderedDict[bytes, tuple[float, str | KernelkeepError]] = OrderedDict()

    async def begin(self, word: str, url: str) -> tuple[str, str]:
        """Begin to log a person in; ``url`` is the address to come back to.

        Returns the value of the browser's cookie, and the address that the browser is to go to.
        Raises `NotFound` if there is no such way, and `IdentityUnavailable`.
        """
        way = self.ways.get(word)
        if way is None:
            raise NotFound("There is no such way to log in")
        cookie = f"{word}.{secrets.token_urlsafe(_SECRET_BYTES)}"
        return cookie, await way.address(self._asked(way, cookie, url))

    async def come_back(self, cookie: str, state: str, code: str, url: str) -> None:
        """A browser comes back from the service: get a token, which waits to be taken.

        An error waits in place of the token, for the page to show. Raises
        `LoginNotBegun` for a browser that has not begun a login here.
        """
        way = self.ways.get(cookie.partition(".")[0])
        if way is None:
            raise LoginNotBegun
        # A page of another site cannot have a browser come back with a state of its own making: it
        # knows neither the browser's cookie nor this server's key, from which states are derived.
        asked = self._asked(way, cookie, url)
        if not hmac.compare_digest(state.encode("utf-8", "replace"), asked.state.encode()):
            raise LoginNotBegun
        outcome: str | KernelkeepError
        try:
            outcome = await self._token(way, code, asked)
        except KernelkeepError as error:
            outcome = error
        # The race: a browser may come back twice at once. The service takes a code once, so one of
        # the two exchanges is refused. The outcome that comes last is the one that waits, and it
        # may be the refusal: the person then logs in again.
        self._waiting[_digest(cookie)] = self._clock() + TAKE_SECONDS, outcome
        if len(self._waiting) > MAX_WAITING:
            self._waiting.popitem(last=False)

    def take(self, cookie: str) -> str:
        """The token of the browser with this cookie, which nobody gets a second time.

        Raises `LoginNotBegun` if there is none, or the error in which the login has ended.
        """
        # The outcome is taken out, be it a token or an error: an error, too, is raised only once.
        until, outcome = self._waiting.pop(_digest(cookie), (0.0, ""))
        if not outcome or self._clock() > until:
            raise LoginNotBegun
        if isinstance(outcome, KernelkeepError):
            raise outcome
        return outcome

    async def close(self) -> None:
        """Close all ways to log in, and forget the tokens and errors that wait."""
        self._waiting.clear()
        for way in self.ways.values():
            await way.close()

    async def _token(self, way: LoginWay, code: str, asked: LoginAttempt) -> str:
        if not code:
            raise LoginRefused(f"{way.name} has let nobody in")
        for token in await way.tokens(code, asked):
            principal = await self._identify(token)
            if principal is not None and not principal.over:
                return token
        raise LoginRefused(f"Who has logged in with {way.name} may not come in here")

    def _asked(self, way: LoginWay, cookie: str, url: str) -> LoginAttempt:
        return LoginAttempt(
            way.redirect_uri(url), self._derived("state", cookie), self._derived("PKCE", cookie)
        )

    def _derived(self, purpose: str, cookie: str) -> str:
        message = f"{purpose}.{cookie}".encode("utf-8", "replace")
        return _text(hmac.digest(self._key, message, "sha256"))


def _text(digest: bytes) -> str:
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def _digest(cookie: str) -> bytes:
    """The digest by which a cookie is looked up: the time of that tells nothing of the cookie."""
    return hashlib.sha256(cookie.encode("utf-8", "replace")).digest()
