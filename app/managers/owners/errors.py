"""The errors of the list of tokens (see `app.managers.errors`).

KernelkeepError
├── InvalidToken 400
├── ScopeNotGiven 403
├── TokenNotFound 404
├── TokenNameTaken 409
├── TooManyTokens 429
└── TokensUnavailable 503
"""

from __future__ import annotations

from ..errors import MAX_NAME, InvalidRequest, KernelkeepError, NotFound

__all__ = [
    "InvalidToken",
    "ScopeNotGiven",
    "TokenNameTaken",
    "TokenNotFound",
    "TokensUnavailable",
    "TooManyTokens",
]


class InvalidToken(InvalidRequest):
    """A token cannot have such a name, owner, group, scope or end."""

    code = "invalid_token"


class ScopeNotGiven(KernelkeepError):
    """The token would be allowed more than the caller who makes it."""

    status = 403
    code = "scope_not_given"

    def __init__(self, scope: str) -> None:
        super().__init__(f"Who may not do this cannot let a token do it: {scope[:MAX_NAME]}")


class TokenNotFound(NotFound):
    """There is no token with this id among those that the caller may see."""

    code = "token_not_found"

    def __init__(self, token_id: str) -> None:
        super().__init__(f"There is no token {token_id[:MAX_NAME]}")


class TokenNameTaken(KernelkeepError):
    """The name is that of another token of the same owner, or would be taken for it."""

    status = 409
    code = "token_name_taken"


class TooManyTokens(KernelkeepError):
    """There are as many tokens as may be in force at a time."""

    status = 429
    code = "too_many_tokens"


class TokensUnavailable(KernelkeepError):
    """The list of tokens cannot be read or written."""

    status = 503
    code = "tokens_unavailable"
