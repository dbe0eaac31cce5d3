"""The trace of a request as its kernel gets it; the examples are those of W3C Trace Context."""

from __future__ import annotations

from typing import get_args

import pytest
from starlette.requests import Request

from app.api.traces import TraceDep, trace_environment
from tests.support.asgi import scope

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.mark.parametrize(
    ("sent", "passed"),
    [
        ([TRACE], TRACE),
        ([f"cc{TRACE[2:]}"], f"cc{TRACE[2:]}"),
        ([f"cc{TRACE[2:]}-what-the-future-will-be-like"], f"cc{TRACE[2:]}"),
    ],
)
def test_a_valid_trace_is_passed_on(sent: list[str], passed: str) -> None:
    assert trace_environment(sent) == {"TRACEPARENT": passed}


@pytest.mark.parametrize(
    "sent",
    [
        [],
        [TRACE, TRACE],
        [""],
        [TRACE.upper()],
        [f"{TRACE}-more"],  # version 00 has no more
        [f"ff{TRACE[2:]}"],
        [f"00-{'0' * 32}-00f067aa0ba902b7-01"],
        [f"00-4bf92f3577b34da6a3ce929d0e0e4736-{'0' * 16}-01"],
        [f" {TRACE}"],
    ],
)
def test_any_other_is_not(sent: list[str]) -> None:
    assert trace_environment(sent) == {}


async def test_a_route_gets_it_from_the_headers_of_its_request() -> None:
    _, dependency = get_args(TraceDep)
    request = Request(scope(headers=[("traceparent", TRACE)]))
    assert await dependency.dependency(request) == {"TRACEPARENT": TRACE}
