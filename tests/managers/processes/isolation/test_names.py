"""Names of owners' directories: safe, and never the same for two owners."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.managers.owners.names import InvalidName, owner_name
from app.managers.processes.isolation.names import directory_name


@pytest.mark.parametrize("name", ["anna", "a", "ben-2", "_x", "j.doe", "x" * 32])
def test_a_plain_name_is_kept(name: str) -> None:
    assert directory_name(name) == name


@pytest.mark.parametrize(
    ("name", "shown"),
    [("Anna", "anna"), ("Amélie", "am_lie"), ("..", "owner"), (".run", "run"), ("李", "owner")],
)
def test_any_other_begins_with_what_people_can_read(name: str, shown: str) -> None:
    assert re.fullmatch(rf"{shown}~[0-9a-f]{{32}}", directory_name(name))


@given(st.text(min_size=1), st.text(min_size=1))
def test_two_owners_have_two_directories_on_any_file_system(one: str, other: str) -> None:
    try:
        one, other = owner_name(one), owner_name(other)
    except InvalidName:
        return
    name = directory_name(one)
    assert re.fullmatch(r"[a-z0-9_][a-z0-9_.~-]{0,63}", name)
    assert (one == other) == (name.lower() == directory_name(other).lower())


def test_no_owner_is_called_like_the_directory_of_another() -> None:
    assert directory_name(directory_name("Anna")) != directory_name("Anna")
