"""The Hub's model of a user or service, taken for a principal."""

from __future__ import annotations

from typing import Any

import pytest

from app.identity_providers.hub_model import HubRules, HubUser, NoModel, principal_of
from app.identity_providers.naming import Refused
from app.managers.owners.scopes import Scopes

RULES = HubRules("kk", Scopes.parse(["kernels:read"]))
ACCESS = "access:services!service=kk"


def model(name: Any = "anna", *scopes: str, **more: Any) -> dict[str, Any]:
    usual = {"kind": "user", "name": name, "scopes": [ACCESS, *scopes], "groups": ["physics"]}
    return {**usual, "admin": True, "token_id": "a17", "session_id": None, **more}


def told(*scopes: str, **more: Any) -> HubUser:
    return principal_of(model("anna", *scopes, **more), RULES)


def test_a_user() -> None:
    user = told("custom:kernelkeep:kernels:execute", "read:users:name!user=anna")
    assert user.owner == "anna"
    assert user.identity.display_name == "anna"
    assert user.groups == {"physics"}
    assert list(user.scopes) == ["kernels:execute"]
    assert user.credential == "jupyterhub:a17"
    assert user.expires is None


def test_a_user_without_scopes_of_this_server_has_the_default_ones() -> None:
    assert told().scopes == RULES.default_scopes
    assert told("custom:other:kernels:execute", "admin:users").scopes == RULES.default_scopes


@pytest.mark.parametrize(
    ("scope", "means"),
    [
        ("kernels:admin", ["kernels:admin"]),
        ("*", ["*"]),
        ("kernels:read!user=anna", ["kernels:read"]),
        ("kernels:read!service=kk", ["kernels:read"]),
        ("kernels:read!user=ben", ["kernels:read!owner=ben"]),
        ("kernels:read!group=physics", ["kernels:read!group=physics"]),
        # Restrictions that mean nothing here give nothing.
        ("kernels:read!service=other", []),
        ("kernels:read!server=anna/lab", []),
        ("kernels:read!user", []),
        ("kernels:read!user=", []),
        ("kernels:read!user=a/b", []),
        ("*!user=ben", []),
        ("kernels", []),
        ("", []),
    ],
)
def test_custom_scopes(scope: str, means: list[str]) -> None:
    assert list(told(f"custom:kernelkeep:{scope}").scopes) == means


@pytest.mark.parametrize(
    "scopes",
    [
        [],
        ["access:services!service=other"],
        ["access:services!service=kk2"],
        ["access:servers"],
        ["access:services!service="],
        ["admin:users", "custom:kernelkeep:*"],
    ],
)
def test_whoever_may_not_use_the_service(scopes: list[str]) -> None:
    with pytest.raises(Refused, match="access:services"):
        principal_of(model(scopes=scopes), RULES)


def test_access_to_all_services() -> None:
    assert principal_of(model(scopes=["access:services"]), RULES).owner == "anna"
    nameless = RULES._replace(service="")
    assert principal_of(model(scopes=["access:services"]), nameless).owner == "anna"
    with pytest.raises(Refused):
        principal_of(model(), nameless)


def test_a_service_is_not_the_user_of_its_name() -> None:
    service = told(kind="service")
    assert service.owner == service.identity.username == "service:anna"
    with pytest.raises(Refused):
        principal_of(model("service:anna"), RULES)


@pytest.mark.parametrize(
    "name", ["", " ", "..", "a/b", "a\\b", "a\nb", "a\x1b[31m", "x" * 1024, "e\u0301va"]
)
def test_names_that_no_owner_can_have(name: str) -> None:
    with pytest.raises(Refused, match="name"):
        principal_of(model(name), RULES)


@pytest.mark.parametrize(
    "lie",
    [
        None,
        [],
        "anna",
        {},
        model(None),
        model(5),
        model(["anna"]),
        model(kind=None),
        model(kind="group"),
        model(kind=["user"]),
        model(scopes=None),
        model(scopes=ACCESS),
        model(scopes=[ACCESS, 5]),
        model(scopes={ACCESS: True}),
    ],
    ids=repr,
)
def test_what_is_no_model(lie: Any) -> None:
    with pytest.raises(NoModel):
        principal_of(lie, RULES)


@pytest.mark.parametrize("token_id", [None, 5, "", "a b", "x" * 65, "a\n"])
def test_a_token_without_an_id(token_id: Any) -> None:
    assert told(token_id=token_id).credential == "jupyterhub"


def test_what_has_changed() -> None:
    before = told()
    assert before.says_the_same(told(token_id="a18", session_id="x"))
    assert not before.says_the_same(told(groups=[]))
    assert not before.says_the_same(told("custom:kernelkeep:*"))
    assert not before.says_the_same(principal_of(model("ben"), RULES))
