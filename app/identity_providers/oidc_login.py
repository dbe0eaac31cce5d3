"""Logins with an OpenID Connect provider, with a secret of this server's or as a public client."""

from __future__ import annotations

import base64
import logging
import time
from collections.abc import Callable, Sequence
from typing import Final
from urllib.parse import quote, urlencode, urlsplit

from ..managers.errors import IdentityUnavailable
from ..settings import Settings
from .code_exchange import exchange
from .discovery import discover, endpoint
from .fetching import Fetcher, Unavailable
from .logins import LoginAttempt

__all__ = ["OpenIDLogin"]

logger = logging.getLogger(__name__)

REMEMBER_SECONDS: Final = 3600.0
"""How long the issuer's endpoints are used before they are asked for again."""

PAUSE_SECONDS: Final = 5.0
"""Seconds after a failure in which the issuer is not asked again. Anybody can begin a login, so
there may be many requests for one."""


class OpenIDLogin:
    """The `LoginWay` of an OpenID Connect provider.

    It uses PKCE (RFC 7636), which every provider supports or ignores.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._issuer = settings.oidc_issuer
        self.name = urlsplit(self._issuer).hostname or self._issuer
        self._client_id = settings.oidc_client_id
        self._secret = settings.oidc_client_secret.get_secret_value()
        self._scopes = " ".join(dict.fromkeys(["openid", *settings.oidc_login_scopes]))
        self._fetcher = Fetcher(settings.identity_timeout)
        self._endpoints = ("", "")
        self._until = 0.0

    def redirect_uri(self, url: str) -> str:
        """The whole address, which has to be registered at the provider."""
        return url

    async def address(self, asked: LoginAttempt) -> str:
        """The provider's page, as its discovery document says."""
        authorize, _ = await self._places()
        query = {
            "client_id": self._client_id,
            "redirect_uri": asked.redirect_uri,
            "response_type": "code",
            "scope": self._scopes,
            "state": asked.state,
            "code_challenge": asked.challenge,
            "code_challenge_method": "S256",
        }
        return f"{authorize}{'&' if urlsplit(authorize).query else '?'}{urlencode(query)}"

    async def tokens(self, code: str, asked: LoginAttempt) -> Sequence[str]:
        """The access token, which is for this server if it is a JWT; and the ID token."""
        _, url = await self._places()
        headers = {"Authorization": f"Basic {self._credentials()}"} if self._secret else {}
        return await exchange(
            self._fetcher,
            url,
            code,
            asked,
            client={"client_id": self._client_id, "code_verifier": asked.verifier},
            headers=headers,
            fields=("access_token", "id_token"),
        )

    async def close(self) -> None:
        """Close the HTTP client."""
        await self._fetcher.close()

    async def _places(self) -> tuple[str, str]:
        """The endpoints for authorization and tokens. Raises `IdentityUnavailable`."""
        # Several logins that begin at once may each ask the issuer: the turns of the `Fetcher`
        # bound that, and the last answer is remembered.
        if self._clock() < self._until:
            if not self._endpoints[0]:
                raise IdentityUnavailable
            return self._endpoints
        try:
            document = await discover(self._fetcher, self._issuer)
            names = ("authorization_endpoint", "token_endpoint")
            authorize, token = (endpoint(document, name, self._issuer) for name in names)
        except Unavailable as error:
            self._endpoints, self._until = ("", ""), self._clock() + PAUSE_SECONDS
            logger.warning("nobody can log in with %s: %s", self._issuer, error)
            raise IdentityUnavailable from None
        self._endpoints, self._until = (authorize, token), self._clock() + REMEMBER_SECONDS
        return self._endpoints

    def _credentials(self) -> str:
        """The client's name and secret, as RFC 6749, section 2.3.1, has them in a header."""
        pair = f"{quote(self._client_id, '')}:{quote(self._secret, '')}"
        return base64.b64encode(pair.encode()).decode()
