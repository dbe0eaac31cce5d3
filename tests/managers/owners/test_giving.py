"""What a token may be given: never more than its maker may do."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as some

from app.managers.owners.giving import not_to_give
from app.managers.owners.principal import Identity, Principal
from app.managers.owners.scopes import ACTIONS, PRESETS, RESOURCES, Scopes

OWNERS = ("anna", "ben")
GROUPS = ("physics", "maths")
RESTRICTIONS = ("", "!owner=anna", "!owner=ben", "!group=physics", "!group=maths")

A_SCOPE = some.builds(
    "{}:{}{}".format,
    some.sampled_from(RESOURCES[:3]),
    some.sampled_from(ACTIONS),
    some.sampled_from(RESTRICTIONS),
)
SOME_SCOPES = some.one_of(some.just(["*"]), some.lists(A_SCOPE, max_size=4))


def maker(*scopes: str, groups: tuple[str, ...] = ()) -> Principal:
    return Principal(Identity("anna"), Scopes.parse(scopes), groups=frozenset(groups))


def refused(
    held: Principal, *scopes: str, owner: str = "anna", groups: tuple[str, ...] = ()
) -> str:
    return not_to_give(held, owner, frozenset(groups), Scopes.parse(scopes))


@pytest.mark.parametrize("preset", PRESETS)
def test_everybody_may_give_what_it_has(preset: str) -> None:
    assert refused(maker(preset), preset) == ""


@pytest.mark.parametrize(
    ("held", "asked"),
    [
        ("kernels:write", "kernels:read"),
        ("kernels:admin", "kernels:execute"),
        ("kernels:admin", "kernels:admin"),
        ("kernels:admin", "kernels:write!owner=ben"),
        ("kernels:execute!owner=ben", "kernels:read!owner=ben"),
        ("*", "*"),
    ],
)
def test_what_is_less_may_be_given(held: str, asked: str) -> None:
    assert refused(maker(held), asked) == ""


@pytest.mark.parametrize(
    ("held", "asked"),
    [
        ("kernels:read", "kernels:write"),
        ("kernels:write", "kernels:execute"),
        ("kernels:write", "sessions:read"),
        ("kernels:write", "kernels:read!owner=ben"),
        ("kernels:read!owner=ben", "kernels:read"),
        ("kernels:read!owner=ben", "kernels:read!group=ben"),
        ("kernels:admin!owner=ben", "kernels:admin"),
        ("kernels:admin", "*"),
        ("user", "admin"),
    ],
)
def test_what_is_more_may_not(held: str, asked: str) -> None:
    assert refused(maker(held), asked) == str(next(iter(Scopes.parse([asked]))))


def test_a_token_of_another_owner_takes_what_reaches_that_owner() -> None:
    assert refused(maker("kernels:execute"), "kernels:execute", owner="ben") != ""
    assert refused(maker("kernels:execute!owner=ben"), "kernels:execute", owner="ben") == ""
    assert refused(maker("kernels:admin"), "kernels:execute", owner="ben") == ""
    # Who names the groups could name any.
    within = maker("kernels:execute!group=physics")
    assert refused(within, "kernels:execute", owner="ben", groups=("physics",)) != ""


def test_groups_are_those_of_the_maker() -> None:
    assert refused(maker("kernels:read", groups=("physics",)), groups=("physics",)) == ""
    assert refused(maker("kernels:read"), groups=("physics",)) == "group physics"
    assert refused(maker("*"), groups=("physics",)) == ""


@given(SOME_SCOPES, SOME_SCOPES, some.sampled_from(OWNERS), some.sampled_from(OWNERS))
def test_no_token_reaches_what_its_maker_does_not(
    held: list[str], asked: list[str], owner: str, other: str
) -> None:
    made_by = maker(*held)
    scopes = Scopes.parse(asked)
    if not_to_give(made_by, owner, frozenset(), scopes):
        return
    token = Principal(Identity(owner), scopes)

    def may(who: Principal, action: str, resource: str, whose: str, groups: frozenset[str]) -> bool:
        own = whose == who.owner and who.scopes.allow_own(action, resource)
        return own or who.scopes.reach(action, resource, whose, groups)

    for action, resource, group in itertools.product(ACTIONS, RESOURCES[:3], [(), *GROUPS]):
        groups = frozenset([group] if isinstance(group, str) else group)
        if may(token, action, resource, other, groups):
            assert may(made_by, action, resource, other, groups)
