"""Which limits hold for an owner, without a server."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.limit_options import LIMITS
from app.managers.limits import limits as module
from app.managers.limits.limits import NO_LIMITS, LimitPolicy, Limits, Table, merged
from app.plugins import CannotLoad
from app.settings import Settings

values = st.none() | st.integers(1, 5)
tables = st.dictionaries(st.sampled_from(["kernels", "websockets", "memory"]), values)


def test_each_limit_that_can_be_written_is_a_field() -> None:
    assert set(Limits.__struct_fields__) == {*LIMITS}
    assert msgspec.to_builtins(NO_LIMITS) == {}


def test_a_name_beats_groups_and_these_beat_everybody() -> None:
    policy = LimitPolicy(
        {"kernels": 1, "websockets": 1, "cpu": 0.5},
        {"a": {"kernels": 2, "websockets": 7}, "b": {"kernels": 3}, "c": {"kernels": None}},
        {"anna": {"kernels": 4}, "eve": {"kernels": None}},
    )

    def kernels(owner: str, *groups: str) -> int | None:
        return policy.limits(owner, frozenset(groups)).kernels

    assert kernels("ben") == 1
    assert kernels("ben", "a") == 2
    assert kernels("ben", "a", "b", "unknown") == 3  # the most generous
    assert kernels("ben", "a", "c") is None
    assert kernels("anna", "a", "c") == 4
    assert kernels("eve") is None
    assert policy.limits("anna", frozenset("a")).websockets == 7
    assert policy.limits("anna", frozenset("a")).cpu == 0.5
    assert policy.limits("ben", frozenset({"a", "x"})) is policy.limits("carl", frozenset("a"))


@given(tables, st.lists(tables), tables)
def test_each_limit_is_decided_by_itself(
    everybodys: Table, groups: list[Table], by_name: Table
) -> None:
    found = merged(everybodys, groups, by_name)
    for name in ("kernels", "websockets", "memory"):
        said: list[Any] = [table[name] for table in groups if name in table]
        expected = everybodys.get(name)
        if said:
            expected = None if None in said else max(said)
        if name in by_name:
            expected = by_name[name]
        assert getattr(found, name) == expected


def test_without_options_nobody_has_a_limit() -> None:
    policy = LimitPolicy()
    assert not policy.named
    assert policy.limits("anna", frozenset("a")) is NO_LIMITS
    assert policy.least("lifetime") is None


def test_the_least_value_of_a_limit_is_known() -> None:
    policy = LimitPolicy({"lifetime": 9, "kernels": None}, {"a": {"idle_timeout": 3}}, {})
    assert policy.named == {"lifetime", "idle_timeout"}
    assert policy.least("lifetime", "idle_timeout") == 3
    assert policy.least("kernels") is None


def test_what_is_remembered_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_REMEMBERED", 3)
    policy = LimitPolicy({}, {}, {f"{number}": {"kernels": number} for number in range(10)})
    for number in (*range(10), *range(10)):
        assert policy.limits(f"{number}").kernels == number
    assert len(policy._known) <= 3


def _settings(**tables: Any) -> Settings:
    return Settings.model_construct(
        owner_limits={}, **{"group_limits": {}, "limits_by_name": {}, **tables}
    )


def test_names_are_taken_in_their_one_form() -> None:
    composed, decomposed = "Am\u00e9lie", "Ame\u0301lie"
    policy = LimitPolicy.of(_settings(limits_by_name={decomposed: {"kernels": 3}}))
    assert policy.limits(composed).kernels == 3
    with pytest.raises(CannotLoad, match=r"--limits-by-name: .*given twice") as raised:
        LimitPolicy.of(
            _settings(limits_by_name={composed: {"kernels": 1}, decomposed: {"kernels": 1}})
        )
    assert str(raised.value).isascii()


@pytest.mark.parametrize("name", ["", " anna", "an/na", "..", "a" * 256, "an\u200bna", "a\nb"])
def test_a_name_that_is_no_owner_s_is_refused(name: str) -> None:
    for option, flag in (("group_limits", "group"), ("limits_by_name", "limits-by-name")):
        with pytest.raises(CannotLoad, match=f"--{flag}.*a name") as raised:
            LimitPolicy.of(_settings(**{option: {name: {"kernels": 1}}}))
        assert "\n" not in str(raised.value)
