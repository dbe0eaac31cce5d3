"""OpenID Connect Discovery: where the endpoints of an issuer are, as it says itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from .fetching import Fetcher, Unavailable

__all__ = ["discover", "endpoint"]

_DOCUMENT: Final = "/.well-known/openid-configuration"


async def discover(fetcher: Fetcher, issuer: str) -> dict[str, Any]:
    """The discovery document of an issuer. Raises `Unavailable`."""
    status, document = await fetcher.get(issuer.rstrip("/") + _DOCUMENT)
    if document is None:
        raise Unavailable(f"an answer with status {status}")
    if not isinstance(document, dict) or document.get("issuer") != issuer:
        raise Unavailable("the discovery document is of another issuer")
    return document


def endpoint(document: Mapping[str, Any], name: str, issuer: str) -> str:
    """The URL that a discovery document has under ``name``. Raises `Unavailable` if it is unusable.

    The URL must have TLS if the issuer's own URL has it: keys and codes must not travel less safely
    than the discovery document itself.
    """
    url = document.get(name)
    try:
        parts = urlsplit(url if isinstance(url, str) else "")
    except ValueError:
        parts = urlsplit("")
    allowed = ("https", "http") if urlsplit(issuer).scheme == "http" else ("https",)
    if not isinstance(url, str) or not parts.netloc or parts.scheme not in allowed:
        raise Unavailable(f"the discovery document has no usable {name}")
    return url
