"""The subprotocol that carries a token."""

from __future__ import annotations

import pytest

from app.protocol.subprotocols import TOKEN, accepted, token_in
from app.protocol.v1 import SUBPROTOCOL


@pytest.mark.parametrize(
    ("offered", "token"),
    [
        ([], ""),
        ([SUBPROTOCOL], ""),
        ([TOKEN], ""),
        ([f"{TOKEN}."], ""),
        ([TOKEN, f"{TOKEN}.sesame"], "sesame"),
        ([f"{TOKEN}.a%20b%2C%C3%A9", SUBPROTOCOL], "a b,é"),
        ([f"{TOKEN}.first", f"{TOKEN}.second"], "first"),
        ([f"{TOKEN.upper()}.sesame"], ""),
        ([f"{TOKEN}x.sesame"], ""),
    ],
)
def test_the_token_among_what_is_offered(offered: list[str], token: str) -> None:
    assert token_in(offered) == token


@pytest.mark.parametrize(
    ("offered", "spoken", "answer"),
    [
        ([], None, None),
        ([], SUBPROTOCOL, None),
        ([SUBPROTOCOL, f"{TOKEN}.sesame"], SUBPROTOCOL, SUBPROTOCOL),
        ([TOKEN, f"{TOKEN}.sesame", SUBPROTOCOL], SUBPROTOCOL, SUBPROTOCOL),
        ([TOKEN, f"{TOKEN}.sesame", SUBPROTOCOL], None, TOKEN),
        ([TOKEN, f"{TOKEN}.sesame"], SUBPROTOCOL, TOKEN),
        ([f"{TOKEN}.sesame"], None, None),
        ([TOKEN], None, None),
        (["other.example"], None, None),
    ],
)
def test_the_subprotocol_of_the_answer(
    offered: list[str], spoken: str | None, answer: str | None
) -> None:
    assert accepted(offered, spoken) == answer
