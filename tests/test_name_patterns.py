"""Names that match one of several patterns: what `fnmatch` says of each pattern by itself."""

from __future__ import annotations

from fnmatch import fnmatchcase

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.name_patterns import matcher

NAMES = st.text(alphabet="AaB_*?[]!-\n.", max_size=6)


@pytest.mark.parametrize(
    ("patterns", "name", "matches"),
    [
        ([], "", False),
        (["*"], "", True),
        (["LC_*"], "LC_ALL", True),
        (["LC_*"], "lc_all", False),
        (["PATH"], "PATHEXT", False),
        (["PATH"], "MYPATH", False),
        (["A", "B*"], "A\n", False),
        (["A", "B*"], "B\nC", True),
        (["R_[!H]*", "HOME"], "R_HOME", False),
        (["R_[!H]*", "HOME"], "R_LIBS", True),
    ],
)
def test_a_name_matches_as_a_whole_and_in_its_own_case(
    patterns: list[str], name: str, matches: bool
) -> None:
    assert matcher(patterns)(name) is matches


@given(st.lists(NAMES, max_size=4), NAMES)
def test_several_patterns_match_what_each_matches_by_itself(patterns: list[str], name: str) -> None:
    assert matcher(patterns)(name) is any(fnmatchcase(name, pattern) for pattern in patterns)
