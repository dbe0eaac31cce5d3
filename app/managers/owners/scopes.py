"""Scopes: what a caller may do, as a list of ``resource:action`` texts.

``kernels:read`` is about what the caller owns and what has been shared with it.
``kernels:read!owner=anna`` is about what Anna owns, and ``kernels:read!group=physics`` about what
the members of that group own. ``kernels:admin`` is every action on everybody's kernels. An action
includes ``read``: who may write to a kernel, or execute code in it, may look at it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set
from itertools import product
from typing import Final, NamedTuple

from .names import InvalidName, owner_name

__all__ = ["ACTIONS", "EVERYTHING", "PRESETS", "RESOURCES", "InvalidScope", "Scope", "Scopes"]

RESOURCES: Final = (
    *("kernels", "kernelspecs", "sessions", "contents", "events", "metrics"),
    *("tokens", "owners", "api"),
)

ACTIONS: Final = ("read", "write", "execute", "admin")

ALL: Final = "*"
"""The text of a scope that is every action on every resource of everybody."""

PRESETS: Final = {
    "user": (
        *("kernels:write", "kernels:execute"),
        *("sessions:write", "sessions:execute", "events:write", "events:execute"),
        *("tokens:write", "kernelspecs:read", "owners:read", "api:write"),
    ),
    "admin": (ALL,),
}
"""Names for lists of scopes: all that a user does with its own, and everything with everybody's.

The files below the root directory are no owner's own, unless an option gives each owner a part of
them. So ``user`` has no scope of ``contents``.
"""

_MAX_SHOWN: Final = 64

_QUESTIONS: Final = frozenset(product(ACTIONS, RESOURCES))
"""The questions whose answers are remembered. Others, with made-up words, would have no bound."""


class InvalidScope(ValueError):
    """The text is no scope; the exception's text names it."""


class Scope(NamedTuple):
    """One permission. Without ``owner`` and ``group`` it is about the caller's own."""

    resource: str
    action: str
    owner: str | None = None
    group: str | None = None

    @classmethod
    def parse(cls, text: str) -> Scope:
        """The scope that a text means. Raises `InvalidScope`."""
        permission, found, restriction = text.partition("!")
        resource, _, action = permission.partition(":")
        kind, _, name = restriction.partition("=")
        known = resource in RESOURCES and action in ACTIONS
        if not known or (found and kind not in ("owner", "group")):
            raise InvalidScope(f"not a scope: {text[:_MAX_SHOWN]!a} (a scope is resource:action)")
        try:
            named = owner_name(name) if found else None
        except InvalidName as error:
            raise InvalidScope(f"{permission}!{kind}: {error}") from None
        owner, group = (named, None) if kind == "owner" else (None, named)
        return cls(resource, action, owner, group)

    def __str__(self) -> str:
        restriction = f"!owner={self.owner}" if self.owner is not None else ""
        restriction = f"!group={self.group}" if self.group is not None else restriction
        return f"{self.resource}:{self.action}{restriction}"

    def includes(self, action: str) -> bool:
        """Whether this scope's action includes ``action``."""
        return action in (self.action, "read") or self.action == "admin"


class Scopes:
    """All that a caller may do. Answers are remembered by question, so that they cost little."""

    def __init__(self, scopes: Iterable[Scope], *, everything: bool = False) -> None:
        self._scopes = frozenset(scopes)
        self.everything = everything
        """Whether the caller may do everything with what anybody owns."""
        self._any: dict[tuple[str, str], bool] = {}
        self._own: dict[tuple[str, str], bool] = {}

    @classmethod
    def parse(cls, texts: Iterable[str]) -> Scopes:
        """The scopes of a list of texts; ``*`` is all of them. Raises `InvalidScope`.

        A name of `PRESETS` stands for the scopes of that preset.
        """
        given = [part for text in texts for part in PRESETS.get(text, (text,))]
        scopes = [Scope.parse(text) for text in given if text != ALL]
        return cls(scopes, everything=ALL in given)

    def __iter__(self) -> Iterator[str]:
        """The texts, sorted."""
        return iter([ALL] if self.everything else sorted(map(str, self._scopes)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Scopes) and list(self) == list(other)

    def __hash__(self) -> int:
        return hash((self._scopes, self.everything))

    @property
    def each(self) -> frozenset[Scope]:
        """The scopes; with ``everything`` there may be none."""
        return self._scopes

    def allow(self, action: str, resource: str) -> bool:
        """Whether the caller may do this at all, with its own or with anybody's.

        Routes ask this before they look for the object, whose owner is asked about afterwards.
        """
        if self.everything:
            return True
        question = action, resource
        found = self._any.get(question)  # `Scopes` never change, so an answer stays right
        if found is None:
            found = any(
                scope.resource == resource and scope.includes(action) for scope in self._scopes
            )
            if question in _QUESTIONS:
                self._any[question] = found
        return found

    def restrictions(self, resource: str) -> tuple[frozenset[str], frozenset[str]]:
        """The owners and the groups of owners that scopes about ``resource`` name."""
        about = [scope for scope in self._scopes if scope.resource == resource]
        return (
            frozenset(scope.owner for scope in about if scope.owner is not None),
            frozenset(scope.group for scope in about if scope.group is not None),
        )

    def of_all(self, action: str, resource: str) -> bool:
        """Whether the caller may do this with what anybody owns."""
        return self.everything or any(
            scope.resource == resource
            and scope.action == "admin"
            and scope.includes(action)
            and scope.owner is None
            and scope.group is None
            for scope in self._scopes
        )

    def allow_own(self, action: str, resource: str) -> bool:
        """Whether the caller may do this with what it owns, and with what is shared with it."""
        if self.everything:
            return True
        question = action, resource
        found = self._own.get(question)
        if found is None:
            found = any(
                scope.resource == resource
                and scope.includes(action)
                and scope.owner is None
                and scope.group is None
                for scope in self._scopes
            )
            if question in _QUESTIONS:
                self._own[question] = found
        return found

    def reach(self, action: str, resource: str, owner: str, groups: Set[str]) -> bool:
        """Whether the caller may do this with the things of an owner who is in these groups."""
        return self.everything or any(
            scope.resource == resource
            and scope.includes(action)
            and (
                scope.owner == owner
                or (scope.group is not None and scope.group in groups)
                or (scope.action == "admin" and scope.owner is None and scope.group is None)
            )
            for scope in self._scopes
        )


EVERYTHING: Final = Scopes((), everything=True)
"""The scopes of the one token of a server that has one owner."""
