"""The grammar of hosts and origins: it never raises, and takes nothing with a second reading."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.origins import Authority, Origin, parse_authority, parse_origin

NEAR = st.text(alphabet="abz019.:-[]@/?#%\\ _\x00é", max_size=20)


@pytest.mark.parametrize(
    ("text", "authority"),
    [
        ("localhost", ("localhost", None)),
        ("LocalHost:8888", ("localhost", 8888)),
        ("lab.example.org.", ("lab.example.org", None)),
        ("127.0.0.1:1", ("127.0.0.1", 1)),
        ("[::1]", ("::1", None)),
        ("[0:0::1]:80", ("::1", 80)),
    ],
)
def test_hosts(text: str, authority: tuple[str, int | None]) -> None:
    assert parse_authority(text) == Authority(*authority)
    assert parse_origin(f"HTTP://{text}") == Origin("http", authority[0], authority[1] or 80)


@pytest.mark.parametrize(
    "text",
    [
        *("", "[::1]evil.com", "127.0.0.1:1/x?y=", "localhost:evil.com", "[::1", "::1", "[]"),
        *("[localhost]", "a@b", "a:", "a:65536", "a:-1", "a..b", "-a", "a b", "a\n", "[::1%lo]"),
        *("a\u0661", "a:\u0661", "\u212aernel", "x" * 400),
    ],
)
def test_what_is_no_host(text: str) -> None:
    assert parse_authority(text) is None
    assert parse_origin(f"http://{text}") is None


@pytest.mark.parametrize("text", ["null", "", "ftp://a", "file://", "http:/a", "//a", "http://a/"])
def test_what_is_no_origin(text: str) -> None:
    assert parse_origin(text) is None


def test_a_scheme_has_its_port() -> None:
    assert parse_origin("https://a") == parse_origin("https://a:443")
    assert parse_origin("https://a") != parse_origin("http://a")


@given(st.text() | NEAR)
def test_nothing_raises_and_what_is_taken_reads_the_same_elsewhere(text: str) -> None:
    found = parse_origin(f"http://{text}")
    assert (found is None) == (parse_authority(text) is None)
    if found is not None:
        parts = urlsplit(f"http://{text}")
        assert parts.path == parts.query == parts.fragment == ""
        assert parts.username is None
        assert (parts.port if parts.port is not None else 80) == found.port
        if ":" not in found.host:
            assert (parts.hostname or "").rstrip(".") == found.host
