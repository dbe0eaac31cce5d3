"""The caller's views of kernels, sessions, files and events: routes see nothing else of these.

The lifespan's state has those of all owners, and no route sees that state as it is.
`AccessMiddleware` puts the caller's views in their place, and nothing for a caller without a token.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Any, Final

from ..managers.files.owned import CallersContents, OwnersContents
from ..managers.files.service import ContentsService
from ..managers.kernels.callers import CallersKernels
from ..managers.kernels.multikernel import MultiKernelManager
from ..managers.kernels.owners import CallersOwners
from ..managers.limits.shares import CallersShare, Shares
from ..managers.owners.callers_tokens import CallersTokens
from ..managers.owners.ownership import Ownership, access
from ..managers.owners.principal import Principal
from ..managers.owners.token_list import TokenList
from ..managers.sessions.book import SessionBook
from ..managers.sessions.sessions import SessionManager
from ..managers.telemetry.events import About, Events, Subscription
from .idempotency import IdempotencyKeys

__all__ = ["CallersEvents", "Views", "show_views"]

_OWNED: Final = ("contents", "kernels", "sessions", "events", "idempotency", "shares")
"""The keys of the state whose values have something of every owner."""


class CallersEvents:
    """The events that one principal gets, and those that it posts."""

    def __init__(self, events: Events, principal: Principal) -> None:
        self._events = events
        self._principal = principal
        self._all = principal.scopes.of_all("execute", "events")

    def sees(self, about: About) -> bool:
        """Whether the principal gets an event with this subject."""
        return access(self._principal, "read", about.resource, about.ownership)

    def subscription(self) -> AbstractAsyncContextManager[Subscription]:
        """A subscription to the events that the principal may see (`Events.subscription`)."""
        return self._events.subscription(None if self._all else self.sees)

    async def post(
        self, schema_id: str, version: str, data: dict[str, Any], timestamp: datetime | None = None
    ) -> None:
        """Emit an event (`Events.post`): to all, or to the principal's own subscribers."""
        everybody = self._principal.scopes.of_all("write", "events")
        about = None if everybody else About("events", Ownership.of(self._principal))
        await self._events.post(schema_id, version, data, timestamp, about=about)


class Views:
    """The views of each principal, made once for each."""

    def __init__(
        self,
        kernels: MultiKernelManager,
        sessions: SessionBook,
        events: Events,
        idempotency: IdempotencyKeys,
        tokens: TokenList,
        shares: Shares,
        contents: ContentsService | OwnersContents,
    ) -> None:
        self._kernels = kernels
        self._sessions = sessions
        self._events = events
        self._idempotency = idempotency
        self._tokens = tokens
        self._shares = shares
        self._contents = contents

    def of(self, principal: Principal) -> Mapping[str, Any]:
        """The principal's views, by their keys in the state."""
        if principal.views is None or principal.views[0] is not self:
            kernels = CallersKernels(self._kernels, principal)
            made = {
                "kernels": kernels,
                "sessions": SessionManager(kernels, self._sessions),
                "events": CallersEvents(self._events, principal),
                "idempotency": self._idempotency.of(principal.owner),
                "tokens": CallersTokens(self._tokens, principal),
                "contents": CallersContents(self._contents, principal),
                "share": CallersShare(self._shares, principal),
                "owners": CallersOwners(
                    self._kernels.shares, self._shares, self._kernels.usage, principal
                ),
            }
            principal.views = self, made
        return principal.views[1]


def show_views(scope: MutableMapping[str, Any], principal: Principal | None) -> None:
    """Put a caller's views into a request's state; without a principal, nothing that has owners."""
    state: Mapping[str, Any] = scope.get("state") or {}
    if principal is not None and "views" in state:
        views: Views = state["views"]
        scope["state"] = {**state, **views.of(principal)}
    else:
        scope["state"] = {name: value for name, value in state.items() if name not in _OWNED}
