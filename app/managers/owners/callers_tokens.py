"""The tokens that one principal finds: its owner's, and those of others that its scopes reach."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

import msgspec

from ..errors import NotAuthorized
from .errors import InvalidToken, ScopeNotGiven, TokenNotFound
from .giving import not_to_give
from .names import InvalidName, owner_name
from .ownership import Ownership, access
from .principal import Principal
from .scopes import InvalidScope, Scopes
from .token_list import TokenList
from .token_table import NewToken, TokenRecord

__all__ = ["CallersTokens"]


class CallersTokens:
    """The tokens that a principal may see, make and revoke."""

    def __init__(self, tokens: TokenList, principal: Principal) -> None:
        self._tokens = tokens
        self._principal = principal

    def _may(self, action: str, owner: str, groups: Iterable[str] = ()) -> bool:
        return access(self._principal, action, "tokens", Ownership(owner, groups))

    def listed(self, owner: str | None = None) -> Sequence[TokenRecord]:
        """The tokens in force, oldest first; those of one owner only if that is given."""
        return [
            record
            for record in self._tokens.records()
            if owner in (None, record.owner) and self._may("read", record.owner, record.groups)
        ]

    def get(self, token_id: str) -> TokenRecord:
        """A token in force. Raises `TokenNotFound`."""
        # Both errors look the same to the caller; only the audit log is told that a token is there.
        record = self._tokens.record(token_id)
        if record is None:
            raise TokenNotFound(token_id)
        if not self._may("read", record.owner, record.groups):
            hidden = {"token": record.id, "token_owner": record.owner}
            raise TokenNotFound(token_id).hiding(hidden)
        return record

    def last_used(self, record: TokenRecord) -> float | None:
        """When a token was last used, in seconds since the epoch."""
        return self._tokens.last_used(record)

    async def create(
        self,
        name: str,
        scopes: Iterable[str],
        *,
        owner: str | None = None,
        groups: Iterable[str] | None = None,
        seconds: float | None = None,
    ) -> tuple[TokenRecord, str]:
        """Make a token that may do no more than the principal; its record, and the token itself.

        It is the principal's own unless another ``owner`` is named. It lasts for so many
        ``seconds``, but no longer than the token that it is made with. Raises `InvalidToken`,
        `NotAuthorized`, `ScopeNotGiven`, and what `TokenList.create` raises.
        """
        maker = self._principal
        try:
            wanted = NewToken(
                name=owner_name(name),
                owner=maker.owner if owner is None else owner_name(owner),
                scopes=tuple(Scopes.parse(scopes)),
                made_with=maker.credential,
            )
            own = wanted.owner == maker.owner
            default = maker.groups if own else ()
            named = {owner_name(group) for group in (default if groups is None else groups)}
        except (InvalidName, InvalidScope) as error:
            raise InvalidToken(str(error)) from None
        if not self._may("write", wanted.owner):
            raise NotAuthorized("write", "tokens")
        # This checks the maker as it is now. Should its token end before the new one is stored,
        # `TokenTable.add` refuses: it looks for that in the transaction that makes the new one.
        if refused := not_to_give(maker, wanted.owner, named, Scopes.parse(wanted.scopes)):
            raise ScopeNotGiven(refused)
        groups, expires = tuple(sorted(named)), self._expires(seconds)
        wanted = msgspec.structs.replace(wanted, groups=groups, expires=expires)
        return await self._tokens.create(wanted, named_by_hand=not own)

    def _expires(self, seconds: float | None) -> float | None:
        # None for a principal of another identity provider: tokens may outlast such a login.
        made_with = self._tokens.record(self._principal.credential)
        ends = [] if seconds is None else [time.time() + seconds]
        if made_with is not None and made_with.expires is not None:
            ends.append(made_with.expires)
        return min(ends, default=None)

    async def revoke(self, token_id: str) -> list[TokenRecord]:
        """Revoke a token, with those that were made with it; returns them all.

        Raises `TokenNotFound`, or `NotAuthorized` for one that the principal may only see.
        """
        record = self.get(token_id)
        if not self._may("write", record.owner, record.groups):
            raise NotAuthorized("write", "tokens")
        return await self._tokens.revoke([record.id])
