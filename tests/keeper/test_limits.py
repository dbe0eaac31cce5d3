"""What a launch says about limits."""

from __future__ import annotations

import msgspec
import pytest

from app.keeper.limits import NO_LIMITS, ProcessLimits, limits_from, owner_key


def test_limits_travel_as_an_object_of_what_is_set() -> None:
    limits = ProcessLimits(owner="anna-1", memory=2**30, cpu=0.5)
    assert msgspec.to_builtins(limits) == {"owner": "anna-1", "memory": 2**30, "cpu": 0.5}
    assert limits_from(msgspec.to_builtins(limits)) == limits
    assert limits.limited == {"memory", "cpu"}


def test_a_request_without_limits_has_none() -> None:
    assert limits_from(None) == limits_from({}) == NO_LIMITS
    assert not NO_LIMITS.limited


def test_what_a_later_server_says_more_is_no_error() -> None:
    assert limits_from({"memory": 5, "of_another_kind": 7}) == ProcessLimits(memory=5)


@pytest.mark.parametrize(
    "fields",
    [
        {"owner": ".."},
        {"owner": "a/b"},
        {"owner": ".hidden"},
        {"owner": "a\nb"},
        {"owner": "a" * 81},
        {"memory": 0},
        {"memory": -1},
        {"memory": "1"},
        {"cpu": 0.0},
        {"cpu": float("nan")},
        {"processes": 0},
        {"open_files": -5},
        {"open_files": 1.5},
    ],
)
def test_nonsense_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"directory|process run|Expected"):
        limits_from(fields)


@pytest.mark.parametrize("name", ["anna", "..", "/", "Amélie", "a" * 255, "\udcff", "日本", ""])
def test_the_key_of_any_owner_is_a_name_of_a_directory(name: str) -> None:
    key = owner_key(name)
    assert limits_from({"owner": key}).owner == key == owner_key(name)


def test_owners_that_look_alike_have_keys_of_their_own() -> None:
    names = ["anna", "Anna", "anna/", "anna_", "anna-", "ann\u0061\u0301", "ann\u00e1"]
    assert len({owner_key(name) for name in names}) == len(names)
