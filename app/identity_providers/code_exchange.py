"""The second half of OAuth 2's authorization code flow: a code is exchanged for tokens."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Final

from ..managers.errors import IdentityUnavailable
from .errors import LoginRefused
from .fetching import Fetcher, Unavailable
from .logins import LoginAttempt

__all__ = ["exchange"]

logger = logging.getLogger(__name__)

MAX_TOKEN: Final = 16384
"""Characters of the longest token that is taken."""

_REFUSED: Final = (HTTPStatus.BAD_REQUEST, HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)


async def exchange(
    fetcher: Fetcher,
    url: str,
    code: str,
    asked: LoginAttempt,
    *,
    client: Mapping[str, str],
    headers: Mapping[str, str] | None = None,
    fields: Sequence[str] = ("access_token",),
) -> list[str]:
    """The tokens that the endpoint gives for a code (RFC 6749, section 4.1.3), in order of fields.

    ``client`` is how this server names itself, in the form; ``headers`` may prove that. Raises
    `LoginRefused` if the code is not taken, and `IdentityUnavailable`.
    """
    form = {
        "grant_type": "authorization_code",
        "code": code,
        "redirect_uri": asked.redirect_uri,
        **client,
    }
    try:
        status, answer = await fetcher.post(url, form, headers)
        if status != HTTPStatus.OK and status not in _REFUSED:
            raise Unavailable(f"an answer with status {status}")
        if status == HTTPStatus.OK and not isinstance(answer, dict):
            raise Unavailable("an answer that is no JSON object")
    except Unavailable as error:
        logger.warning("a login cannot be finished: %s", error)
        raise IdentityUnavailable from None
    if status in _REFUSED:
        logger.warning("a login is refused with status %d: a code that is old, or a client", status)
        raise LoginRefused("The login was not taken by the service that you have logged in with")
    found = [answer.get(field) for field in fields]
    return [token for token in found if isinstance(token, str) and 0 < len(token) <= MAX_TOKEN]
