"""Ownership: whose a thing is, with whom it is shared, and the one decision about access to it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set
from typing import Final, Literal

import msgspec

from .principal import ANONYMOUS, Principal

__all__ = ["MAX_SHARES", "NOBODYS", "Grantee", "Ownership", "Share", "access", "may_share"]

MAX_SHARES: Final = 100
"""How many shares one kernel may have; a group counts as one."""

Kind = Literal["name", "group"]
SharedAction = Literal["read", "execute"]

Grantee = tuple[Kind, str]
"""With whom something is shared: an owner by name, or a group."""


class Share(msgspec.Struct, frozen=True):
    """A share: its grantee may read a kernel, or both read it and execute code in it."""

    kind: Kind
    name: str
    access: SharedAction

    @property
    def grantee(self) -> Grantee:
        """With whom the kernel is shared."""
        return self.kind, self.name

    def includes(self, action: str) -> bool:
        """Whether the share permits ``action``."""
        return action in ("read", self.access)


class Ownership:
    """Whose one thing is: the owner, the owner's groups when it was made, and its shares."""

    __slots__ = ("_shares", "groups", "owner")

    def __init__(
        self,
        owner: str = ANONYMOUS,
        groups: Iterable[str] = (),
        shares: Iterable[Share] = (),
    ) -> None:
        # The groups at that time: the server learns an owner's groups only from its requests.
        self.owner = owner
        self.groups = frozenset(groups)
        self._shares = {share.grantee: share for share in shares}

    @classmethod
    def of(cls, principal: Principal) -> Ownership:
        """The ownership of what a principal makes."""
        return cls(principal.owner, principal.groups)

    def __iter__(self) -> Iterator[Share]:
        """The shares, the oldest first."""
        return iter(tuple(self._shares.values()))

    @property
    def count(self) -> int:
        """The number of shares."""
        return len(self._shares)

    def __contains__(self, grantee: Grantee) -> bool:
        """Whether there is a share for this grantee."""
        return grantee in self._shares

    def grant(self, share: Share) -> None:
        """Add a share; it replaces the one that the same grantee has."""
        self._shares[share.grantee] = share

    def revoke(self, grantee: Grantee) -> Share | None:
        """Remove a grantee's share; returns it, or None if there was none."""
        return self._shares.pop(grantee, None)

    def shared_for(self, action: str, name: str, groups: Set[str]) -> bool:
        """Whether a share lets this name, or a member of these groups, do ``action``."""
        if not self._shares:  # the fast way, for lists of thousands of kernels: few are shared
            return False
        grantees: list[Grantee] = [("name", name), *(("group", group) for group in groups)]
        return any(
            (share := self._shares.get(grantee)) is not None and share.includes(action)
            for grantee in grantees
        )


NOBODYS: Final = Ownership()
"""The ownership of what no principal has made: it is the server's own."""


def access(principal: Principal, action: str, resource: str, ownership: Ownership) -> bool:
    """Whether a principal may do ``action`` with a thing of the kind ``resource``.

    It may if it owns the thing or has a share of it, and its scopes permit the action on its own
    things; or if its scopes reach the things of the owner.
    """
    scopes = principal.scopes
    if scopes.everything:
        return True
    # A share permits no more than the grantee's scopes permit on its own things: a token that may
    # only read cannot execute, whatever is shared with its owner.
    owns = ownership.owner == principal.owner or ownership.shared_for(
        action, principal.owner, principal.groups
    )
    if owns and scopes.allow_own(action, resource):
        return True
    return scopes.reach(action, resource, ownership.owner, ownership.groups)


def may_share(principal: Principal, action: str, ownership: Ownership) -> bool:
    """Whether a principal may look at a kernel's shares (``read``), or change them (``write``).

    Only the owner and administrators may; a share never includes it.
    """
    scopes = principal.scopes
    if ownership.owner == principal.owner and scopes.allow_own(action, "kernels"):
        return True
    return scopes.reach("admin", "kernels", ownership.owner, ownership.groups)
