"""Tokens of the list: their form, and what is kept of them."""

from __future__ import annotations

import pytest

from app.managers.owners.credentials import digest, is_token, new_token, shown


def test_no_two_are_the_same_and_each_is_known_for_one() -> None:
    tokens = {new_token() for _ in range(1000)}
    assert len(tokens) == 1000
    assert all(is_token(token) for token in tokens)
    assert len({digest(token) for token in tokens}) == 1000


def test_what_is_shown_and_what_is_kept_of_one_is_not_it() -> None:
    token = new_token()
    assert token.startswith(shown(token))
    assert not is_token(shown(token))
    assert token[3:].encode() not in digest(token)
    assert len(digest(token)) == 32


@pytest.mark.parametrize(
    "text",
    [
        *("", "kk_", "kk_" + "a" * 63, "kk_" + "a" * 65, "kk_" + "A" * 64, "kk-" + "a" * 64),
        *("kk_" + "a" * 63 + "\n", "kk_" + "a" * 63 + "\0", "kk_" + "٣" * 64, "a" * 2**20),
        *("kk_" + "\ud800" * 64, " kk_" + "a" * 63),
    ],
)
def test_anything_else_is_none(text: str) -> None:
    assert not is_token(text)
