"""Identity providers: each tells who shows a token. They are asked in order.

An application may be given a provider of its own (``create_app(identity_provider=…)``). A provider
may raise and be slow: the chain bounds each question, and a request whose token no provider could
be asked about is refused with 503, rather than taken for one with a wrong token.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import Iterable
from typing import Final, Protocol

from ..managers.errors import IdentityUnavailable
from ..managers.owners.names import InvalidName
from ..managers.owners.principal import Identity, Principal
from ..managers.owners.scopes import EVERYTHING
from ..plugins import load_object

__all__ = ["IdentityProvider", "IdentityProviders", "ServerToken", "load_provider"]

logger = logging.getLogger(__name__)

IDENTIFY_SECONDS: Final = 10.0
"""How long one provider may take to tell whose a token is; it may have to ask another service."""

CLOSE_SECONDS: Final = 5.0
"""How long a provider may take to close."""

SERVER_TOKEN: Final = "server"
"""How the logs name the credential of whoever shows the server's own token."""


class IdentityProvider(Protocol):
    """Tells who shows a token.

    `known` and `identify` return the same `Principal` for as long as a credential is valid. When it
    has expired or was revoked, the provider calls `Principal.end`, which closes the principal's
    open requests and connections. The provider may go on returning the ended principal: by that an
    old token is told from a guessed one.
    """

    def known(self, token: str) -> Principal | None:
        """Who shows this token, from memory and without waiting; None if that is not known."""

    async def identify(self, token: str) -> Principal | None:
        """Who shows this token; None if this provider does not know it, or it is no longer valid.

        The method may read a disk or ask another service, within bounds of its own. If that fails,
        it raises: `IdentityUnavailable` if it has logged why, or any other exception.
        """

    async def close(self) -> None:
        """Release connections, files and tasks: the server stops."""


class ServerToken:
    """The provider of the server's own token, whose caller may do everything."""

    def __init__(self, token: str) -> None:
        self._token = token.encode()
        self.principal = Principal(Identity(), EVERYTHING, credential=SERVER_TOKEN)

    def known(self, token: str) -> Principal | None:
        """The one principal, if the token is the server's; the comparison takes constant time."""
        same = hmac.compare_digest(token.encode("utf-8", "replace"), self._token)
        return self.principal if same and self._token else None

    async def identify(self, token: str) -> Principal | None:
        """The principal of this token, as `known` returns it without asking anybody."""
        return self.known(token)

    async def close(self) -> None:
        """Nothing is open, so nothing is released."""


class IdentityProviders:
    """The providers of one server, in the order in which they are asked."""

    def __init__(self, own: ServerToken, others: Iterable[IdentityProvider] = ()) -> None:
        self.own = own
        self._others = tuple(others)

    def known(self, token: str) -> Principal | None:
        """Who shows this token, if a provider knows from memory; `Principal.over` may be true."""
        found = self.own.known(token)
        if found is not None or not token:
            return found
        for provider in self._others:
            try:
                found = provider.known(token)
            except Exception:  # a provider may be anybody's; `identify` asks it again
                logger.exception("%s failed to look a token up", _name(provider))
                continue
            if found is not None:
                return found
        return None

    async def identify(self, token: str) -> Principal | None:
        """Who shows this token, after asking each provider in turn; None if no provider knows it.

        `Principal.over` may be true. Raises `IdentityUnavailable` if no provider has known the
        token, and one could not be asked.
        """
        failed: IdentityUnavailable | None = None
        for provider in self._others if token else ():
            # A provider that hangs costs the request `IDENTIFY_SECONDS`. The next one is asked all
            # the same: it may know the token.
            try:
                async with asyncio.timeout(IDENTIFY_SECONDS):
                    found = await provider.identify(token)
            except IdentityUnavailable as error:  # the provider has logged why
                failed = failed or error
                continue
            except InvalidName as error:
                logger.warning("%s names an owner that cannot be one: %s", _name(provider), error)
                return None
            except Exception as error:
                failed = failed or IdentityUnavailable()
                # The exception is not logged as it is: its text may have the token in it.
                logger.error("%s could not be asked: %s", _name(provider), type(error).__name__)
                continue
            if found is not None:
                return found
        if failed is not None:
            raise failed
        return None

    async def close(self) -> None:
        """Close every provider, each within `CLOSE_SECONDS`."""
        for provider in self._others:
            try:
                async with asyncio.timeout(CLOSE_SECONDS):
                    await provider.close()
            except Exception:
                logger.exception("%s could not be closed", _name(provider))


def load_provider(name: str) -> IdentityProvider | None:
    """A provider of the class ``module:Class``; None for no name. Raises `CannotLoad`."""
    if not name:
        return None
    methods = ("known", "identify", "close")
    provider: IdentityProvider = load_object("identity_provider_class", name, *methods)
    return provider


def _name(provider: IdentityProvider) -> str:
    return f"the identity provider {type(provider).__name__}"
