"""Logins with a JupyterHub, whose OAuth this server uses as any service of the Hub does."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urlencode, urlsplit

from ..settings import Settings
from .code_exchange import exchange
from .fetching import Fetcher
from .logins import LoginAttempt

__all__ = ["HubLogin"]


class HubLogin:
    """The `LoginWay` of a JupyterHub, which has made an OAuth client for each of its services."""

    name = "JupyterHub"

    def __init__(self, settings: Settings) -> None:
        self._url = settings.jupyterhub_url.rstrip("/")
        self._client = {
            "client_id": settings.jupyterhub_client_id or f"service-{settings.jupyterhub_service}",
            "client_secret": settings.jupyterhub_client_secret.get_secret_value(),
        }
        self._api_url = settings.jupyterhub_api_url.rstrip("/")
        self._fetcher = Fetcher(settings.identity_timeout)

    def redirect_uri(self, url: str) -> str:
        """The path alone if the Hub is at the same address: so the Hub registers its services."""
        return url if urlsplit(self._url).netloc else urlsplit(url).path

    async def address(self, asked: LoginAttempt) -> str:
        """The Hub's page, at which the person logs in and agrees."""
        query = {
            "client_id": self._client["client_id"],
            "redirect_uri": asked.redirect_uri,
            "response_type": "code",
            "state": asked.state,
        }
        return f"{self._url}/api/oauth2/authorize?{urlencode(query)}"

    async def tokens(self, code: str, asked: LoginAttempt) -> Sequence[str]:
        """A token of the person's, with the Hub's scopes for this service."""
        url = f"{self._api_url}/oauth2/token"
        return await exchange(self._fetcher, url, code, asked, client=self._client)

    async def close(self) -> None:
        """Close the HTTP client."""
        await self._fetcher.close()
