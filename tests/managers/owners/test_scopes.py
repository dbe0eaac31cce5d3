"""Scopes: their texts, and what they allow."""

from __future__ import annotations

import itertools

import pytest

from app.managers.owners.scopes import (
    ACTIONS,
    EVERYTHING,
    PRESETS,
    RESOURCES,
    InvalidScope,
    Scope,
    Scopes,
)

QUESTIONS = list(itertools.product(ACTIONS, RESOURCES))


@pytest.mark.parametrize(
    "text",
    [
        *(f"{resource}:{action}" for action, resource in QUESTIONS),
        *("kernels:read!owner=anna", "kernels:execute!group=physics", "kernels:read!owner=a!b=c"),
    ],
)
def test_a_scope_is_written_as_it_is_read(text: str) -> None:
    assert str(Scope.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        *("", "kernels", "kernels:", ":read", "kernel:read", "kernels:delete"),
        "kernels:read:write",
        *("kernels:read!", "kernels:read!anna", "kernels:read!user=anna", "kernels:read!owner="),
        *("kernels:read!owner=a/b", "Kernels:read", " kernels:read", "x" * 10_000, "\x1b[2J"),
    ],
)
def test_what_is_no_scope_is_refused_in_one_short_line(text: str) -> None:
    with pytest.raises(InvalidScope) as caught:
        Scopes.parse([text])
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(("action", "resource"), QUESTIONS)
def test_an_action_includes_reading_and_admin_includes_all(action: str, resource: str) -> None:
    scopes = Scopes.parse([f"{resource}:{action}"])
    for asked, of in QUESTIONS:
        wanted = of == resource and (asked in (action, "read") or action == "admin")
        assert scopes.allow(asked, of) is wanted
        assert scopes.allow_own(asked, of) is wanted
        wanted = wanted and action == "admin"
        assert scopes.reach(asked, of, "anna", frozenset()) is wanted


def test_a_scope_of_an_owner_reaches_that_owner_only() -> None:
    scopes = Scopes.parse(["kernels:execute!owner=anna"])
    assert scopes.allow("execute", "kernels")
    assert not scopes.allow_own("read", "kernels")
    assert scopes.reach("execute", "kernels", "anna", frozenset())
    assert scopes.reach("read", "kernels", "anna", frozenset())
    assert not scopes.reach("write", "kernels", "anna", frozenset())
    assert not scopes.reach("read", "kernels", "Anna", frozenset())
    assert not scopes.reach("read", "kernels", "ben", frozenset({"anna"}))


def test_a_scope_of_a_group_reaches_its_members_only() -> None:
    scopes = Scopes.parse(["kernels:admin!group=physics"])
    assert scopes.reach("write", "kernels", "anna", frozenset({"physics"}))
    assert not scopes.reach("read", "kernels", "anna", frozenset({"chemistry"}))
    assert not scopes.reach("read", "kernels", "physics", frozenset())
    assert not scopes.reach("read", "sessions", "anna", frozenset({"physics"}))


def test_questions_that_a_caller_makes_up_take_no_memory() -> None:
    scopes = Scopes.parse(["kernels:admin"])
    for number in range(100):
        for question in ((f"a{number}", "kernels"), ("read", f"r{number}")):
            known = question[1] == "kernels"
            assert scopes.allow(*question) is scopes.allow_own(*question) is known
    assert scopes.allow("read", "kernels")
    assert scopes.allow_own("read", "kernels")
    assert [*scopes._any] == [*scopes._own] == [("read", "kernels")]


def test_everything_is_everything_of_everybody() -> None:
    for action, resource in QUESTIONS:
        assert EVERYTHING.allow(action, resource)
        assert EVERYTHING.allow_own(action, resource)
        assert EVERYTHING.reach(action, resource, "anna", frozenset())
    assert Scopes.parse(["*", "kernels:read"]) == EVERYTHING
    assert list(EVERYTHING) == ["*"]


def test_no_scopes_allow_nothing() -> None:
    assert not any(Scopes(()).allow(*question) for question in QUESTIONS)
    assert not any(
        Scopes(()).reach(*question, "anna", frozenset({"physics"})) for question in QUESTIONS
    )


def test_scopes_are_listed_in_order_and_once() -> None:
    scopes = Scopes.parse(["sessions:read", "kernels:read", "kernels:read"])
    assert list(scopes) == ["kernels:read", "sessions:read"]


def test_the_preset_of_users_gives_what_is_their_own_and_no_files() -> None:
    scopes = Scopes.parse(["user"])
    assert not any(scopes.allow(action, "contents") for action in ACTIONS)
    for resource in ("kernels", "sessions", "events"):
        assert scopes.allow_own("write", resource)
        assert scopes.allow_own("execute", resource)
    for resource in ("kernelspecs", "tokens", "owners", "api"):
        assert scopes.allow_own("read", resource)
    assert not any(
        scopes.reach(*question, "anna", frozenset({"physics"})) for question in QUESTIONS
    )
    assert Scopes.parse(["user", "contents:write"]).allow("write", "contents")
    assert set(PRESETS) == {"user", "admin"}
