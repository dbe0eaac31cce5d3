"""Ownership: the decision about access, held against a table and a second way to say it."""

from __future__ import annotations

import itertools

import pytest

from app.managers.owners.ownership import Ownership, Share, access, may_share
from app.managers.owners.scopes import ACTIONS
from tests.support.identities import principal


@pytest.mark.parametrize(
    ("scopes", "shares", "allowed"),
    [
        (["kernels:read"], [], ""),
        (["kernels:execute"], [("name", "ben", "read")], "read"),
        (["kernels:execute"], [("name", "ben", "execute")], "read execute"),
        (["kernels:read"], [("name", "ben", "execute")], "read"),
        (["kernels:execute"], [("group", "physics", "execute")], "read execute"),
        (["kernels:execute"], [("group", "art", "execute")], ""),
        (["kernels:execute"], [("name", "physics", "execute")], ""),
        (["kernels:execute"], [("group", "ben", "execute")], ""),
        (
            ["kernels:execute"],
            [("name", "ben", "read"), ("group", "physics", "execute")],
            "read execute",
        ),
        (["sessions:execute"], [("name", "ben", "execute")], ""),
        (["kernels:write"], [("name", "ben", "execute")], "read"),
        (["kernels:read!owner=anna"], [], "read"),
        (["kernels:write!owner=anna"], [], "read write"),
        (["kernels:read!owner=Anna"], [], ""),
        (["kernels:execute!group=staff"], [], "read execute"),
        (["kernels:execute!group=physics"], [], ""),
        (["kernels:admin"], [], "read write execute admin"),
        (["kernels:admin!owner=anna"], [], "read write execute admin"),
        (["sessions:admin"], [], ""),
        (["*"], [], "read write execute admin"),
    ],
)
def test_what_another_may_do(
    scopes: list[str], shares: list[tuple[str, str, str]], allowed: str
) -> None:
    ben = principal("ben", scopes, groups={"physics"})
    given = [Share(kind, name, to) for kind, name, to in shares]  # type: ignore[arg-type]
    annas = Ownership("anna", ["staff"], given)
    may = [action for action in ACTIONS if access(ben, action, "kernels", annas)]
    assert sorted(may) == sorted(allowed.split())


@pytest.mark.parametrize("action", ACTIONS)
def test_the_owner_may_do_what_its_scopes_allow_with_its_own(action: str) -> None:
    annas = Ownership("anna", ["staff"])
    for given in ACTIONS:
        anna = principal("anna", [f"kernels:{given}"], groups={"staff"})
        expected = given in ("admin", action) or action == "read"
        assert access(anna, action, "kernels", annas) is expected
        elsewhere = principal("anna", [f"kernels:{given}!owner=ben"])
        assert not access(elsewhere, action, "kernels", annas)


@pytest.mark.parametrize("name", ["Anna", "ANNA", "a\u0301nna", "ａnna"])
def test_a_name_that_is_like_an_owner_s_is_another(name: str) -> None:
    assert not access(principal(name, ["kernels:write"]), "read", "kernels", Ownership("anna"))


def test_shares_are_the_owner_s_and_the_administrator_s() -> None:
    annas = Ownership("anna", [], [Share("name", "ben", "execute")])
    for name, scopes, action, expected in [
        ("anna", ["kernels:write"], "write", True),
        ("anna", ["kernels:execute"], "write", False),
        ("anna", ["kernels:execute"], "read", True),
        ("ben", ["kernels:write"], "read", False),
        ("ben", ["kernels:write!owner=anna"], "write", False),
        ("ben", ["kernels:admin!owner=anna"], "write", True),
        ("ben", ["kernels:admin"], "write", True),
        ("ben", ["*"], "write", True),
    ]:
        assert may_share(principal(name, scopes), action, annas) is expected


def test_a_later_share_replaces_the_grantee_s_own() -> None:
    owned = Ownership("anna")
    for to in ("read", "execute", "read"):
        owned.grant(Share("name", "ben", to))
    assert [*owned] == [Share("name", "ben", "read")]
    assert owned.revoke(("group", "ben")) is None
    assert owned.revoke(("name", "ben")) == Share("name", "ben", "read")
    assert owned.count == 0


def test_no_share_gives_more_than_it_says() -> None:
    """Whatever a share says, the sharing owner's own actions are not in it."""
    for to, action in itertools.product(("read", "execute"), ACTIONS):
        ben = principal("ben", ["kernels:admin!owner=nobody", "kernels:write", "kernels:execute"])
        owned = Ownership("anna", [], [Share("name", "ben", to)])  # type: ignore[arg-type]
        expected = action == "read" or (action == "execute" and to == "execute")
        assert access(ben, action, "kernels", owned) is expected
