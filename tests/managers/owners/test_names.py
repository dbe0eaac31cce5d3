"""Names of owners and groups."""

from __future__ import annotations

import pytest

from app.managers.owners.names import MAX_NAME_BYTES, InvalidName, confusable, owner_name


@pytest.mark.parametrize(
    "name", ["anna", "Anna", "anna@example.org", "名前", "a b", "..a", "a!b=c", "x" * 255]
)
def test_a_name_is_taken_as_it_is(name: str) -> None:
    assert owner_name(name) == name


def test_canonically_equivalent_names_are_the_same() -> None:
    assert owner_name("Ame\u0301lie") == owner_name("Am\u00e9lie") == "Am\u00e9lie"


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", " anna", "anna\n", "a/b", "a\\b", ".", "..", "a\0b", "a\x1b[0mb", "a\u202eb"),
        *("a\u200bb", "a\u2028b", "\ud800", "x" * 256, "é" * 128, "x" * 1024),
    ],
)
def test_what_is_no_name_is_refused_without_being_repeated(text: str) -> None:
    with pytest.raises(InvalidName) as caught:
        owner_name(text)
    assert len(str(caught.value)) < 100
    assert str(caught.value).isprintable()


def test_the_longest_name_has_the_bytes_that_are_said() -> None:
    assert len(owner_name("é" * (MAX_NAME_BYTES // 2)).encode()) == MAX_NAME_BYTES - 1


@pytest.mark.parametrize(
    ("one", "other"), [("anna", "ANNA"), ("ﬁn", "fin"), ("ａnna", "anna"), ("straße", "STRASSE")]
)
def test_names_that_a_person_takes_for_the_same_are_confusable(one: str, other: str) -> None:
    assert confusable(one) == confusable(other)
    assert owner_name(one) != owner_name(other)


def test_other_names_are_not_confusable() -> None:
    assert confusable("anna") != confusable("hanna")
