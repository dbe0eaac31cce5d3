"""The headers of a request: the first of a name counts, and every Host header."""

from __future__ import annotations

from app.api.heads import Head, first


def test_the_first_of_several_counts() -> None:
    head = Head([(b"a", b"1"), (b"b", b"2"), (b"a", b"3")])
    assert (head.raw(b"a"), head.raw(b"b")) == (b"1", b"2")
    assert first([(b"a", b"1"), (b"a", b"3")], b"a") == b"1"


def test_a_header_that_is_empty_is_there() -> None:
    head = Head([(b"origin", b"")])
    assert head.get(b"origin") == ""
    assert head.get(b"host") is None
    assert head.raw(b"host") == first([(b"origin", b"")], b"host") == b""


def test_bytes_beyond_ascii_are_latin_1() -> None:
    assert Head([(b"origin", b"\xe4")]).get(b"origin") == "ä"


def test_host_headers_are_counted_whatever_else_is_there_twice() -> None:
    host, other = (b"host", b"a"), (b"accept", b"b")
    for headers in ([], [other], [other, other]):
        assert Head(headers).hosts == 0
    for headers in ([host], [other, host, other]):
        assert Head(headers).hosts == 1
    assert Head([host, other, host, other, host]).hosts == 3
