"""The errors of owners and their limits (see `app.managers.errors`).

KernelkeepError
├── BeyondLimit 403
├── OwnerNotFound 404
└── LimitReached 429
    ├── KernelsLimit
    ├── StartsLimit
    ├── ExecutionsLimit
    ├── ContentsLimit
    ├── RequestsLimit
    └── WebSocketsLimit
"""

from __future__ import annotations

import math
from typing import ClassVar, Final

from ..errors import MAX_NAME, KernelkeepError, NotFound

__all__ = [
    "LIMIT_ERRORS",
    "BeyondLimit",
    "ContentsLimit",
    "ExecutionsLimit",
    "KernelsLimit",
    "LimitReached",
    "OwnerNotFound",
    "RequestsLimit",
    "StartsLimit",
    "WebSocketsLimit",
]

RETRY_FREED: Final = 10  # in seconds, after which something may have come free


class OwnerNotFound(NotFound):
    """The caller may not see an owner of this name, or no owner can have it."""

    code = "owner_not_found"

    def __init__(self, name: str) -> None:
        super().__init__(f"Owner does not exist: {name[:MAX_NAME]}")


class LimitReached(KernelkeepError):
    """The owner uses as much as it may; ``limit`` names the limit.

    ``seconds`` is after how long there is room again, if that is known.
    """

    status = 429
    code = "limit_reached"
    limit: ClassVar[str] = ""
    advice: ClassVar[str] = "try again later"

    def __init__(self, value: float, usage: float, seconds: float | None = None) -> None:
        value, usage = _plain(value), _plain(usage)
        super().__init__(
            f"The owner's limit {self.limit} is {value}, and {usage} are used: {self.advice}"
        )
        self.retry_after = RETRY_FREED if seconds is None else max(1, math.ceil(seconds))
        self.details = {"limit": self.limit, "value": value, "usage": usage}


class KernelsLimit(LimitReached):
    """The owner has as many kernels as it may, or will when those that start are there."""

    code = "kernels_limit"
    limit = "kernels"
    advice = "shut one down first"


class StartsLimit(LimitReached):
    """The owner has started and restarted as many kernels lately as it may."""

    code = "starts_limit"
    limit = "starts_per_minute"


class ExecutionsLimit(LimitReached):
    """As many executions wait at the owner's kernels as may wait there."""

    code = "executions_limit"
    limit = "queued_executions"


class ContentsLimit(LimitReached):
    """The owner has written as much to files lately as it may."""

    code = "contents_limit"
    limit = "contents_bytes_per_day"


class RequestsLimit(LimitReached):
    """The owner has made as many requests lately as it may."""

    code = "requests_limit"
    limit = "requests_per_second"


class WebSocketsLimit(LimitReached):
    """The owner has as many WebSockets open as it may."""

    code = "websockets_limit"
    limit = "websockets"
    advice = "close one first"


LIMIT_ERRORS: Final = (
    *(KernelsLimit, StartsLimit, ExecutionsLimit, ContentsLimit, RequestsLimit, WebSocketsLimit),
)


class BeyondLimit(KernelkeepError):
    """The request alone takes more than the owner may ever use; `limit` names the limit."""

    status = 403
    code = "beyond_limit"

    def __init__(self, limit: str, value: float, asked: float) -> None:
        value, asked = _plain(value), _plain(asked)
        super().__init__(f"The owner's limit {limit} is {value}, and this takes {asked}")
        self.details = {"limit": limit, "value": value, "usage": asked}


def _plain(number: float) -> int | float:
    """A number as people write it: whole, if it is."""
    rounded = round(number, 3)
    return int(rounded) if rounded == int(rounded) else rounded
