"""The scopes that a principal may give to a token which it makes: never more than it has itself."""

from __future__ import annotations

from collections.abc import Set

from .principal import Principal
from .scopes import Scope, Scopes

__all__ = ["not_to_give"]


def not_to_give(maker: Principal, owner: str, groups: Set[str], scopes: Scopes) -> str:
    """The first scope or group that ``maker`` cannot give to a token of ``owner``; empty for none.

    A scope about the owner's own things can be given only by a maker who may do the same with the
    things of that owner. The groups of another owner do not help here, as the maker names them.
    """
    # "Everything" is no scope among others: it is compared first, in both directions.
    held = maker.scopes
    if held.everything:
        return ""
    if scopes.everything:
        return "*"
    for scope in sorted(scopes.each, key=str):
        own = scope.owner is None and scope.group is None and scope.action != "admin"
        if not own:
            fine = any(_covers(has, scope) for has in held.each)
        elif owner == maker.owner:
            fine = held.allow_own(scope.action, scope.resource)
        else:
            fine = held.reach(scope.action, scope.resource, owner, frozenset())
        if not fine:
            return str(scope)
    return min((f"group {group}" for group in groups - maker.groups), default="")


def _covers(held: Scope, asked: Scope) -> bool:
    """Whether a scope permits all that ``asked`` does, which is about other owners' things."""
    everybody = held.action == "admin" and held.owner is None and held.group is None
    same = (held.owner, held.group) == (asked.owner, asked.group)
    return held.resource == asked.resource and (everybody or (same and held.includes(asked.action)))
