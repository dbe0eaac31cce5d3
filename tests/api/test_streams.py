"""Events as lines: which kind of stream a client gets, and where it goes on."""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec
import pytest
from starlette.requests import Request

from app.api.streams import (
    NDJSON,
    SSE,
    EventStream,
    JSONLines,
    resume_after,
    wants,
    while_permitted,
)
from app.managers.errors import InvalidRequest
from tests.support.asgi import ask, scope


class Event(msgspec.Struct, omit_defaults=True):
    text: str
    seq: int | None = None
    resumable: bool = True


async def events() -> AsyncIterator[Event | None]:
    for event in (Event("a", 7), None, Event("b", 8, resumable=False), Event("c")):
        yield event


@pytest.mark.parametrize(
    ("stream", "media_type", "body"),
    [
        (
            EventStream,
            SSE,
            b'data: {"text":"a","seq":7}\nid: 7\n\n'
            b":\n\n"
            b'data: {"text":"b","seq":8,"resumable":false}\n\n'
            b'data: {"text":"c"}\n\n',
        ),
        (
            JSONLines,
            NDJSON,
            b'{"text":"a","seq":7}\n\n{"text":"b","seq":8,"resumable":false}\n{"text":"c"}\n',
        ),
    ],
)
async def test_an_event_is_a_line_and_silence_a_blank_one(
    stream: type[EventStream], media_type: str, body: bytes
) -> None:
    status, headers, sent = await ask(stream(events()), scope())
    assert (status, sent) == (200, body)
    assert headers["content-type"].startswith(media_type)
    assert "no-transform" in headers["cache-control"]


@pytest.mark.parametrize(
    ("accepted", "kind"),
    [
        ([], None),
        (["application/json, */*"], None),
        ([SSE], SSE),
        (["application/json, TEXT/event-stream;q=0.9"], SSE),
        ([f"{NDJSON},{SSE}"], NDJSON),
        (["*/*", SSE], SSE),
    ],
)
def test_the_first_kind_that_is_named_is_sent(accepted: list[str], kind: str | None) -> None:
    asked = scope(headers=[("accept", value) for value in accepted])
    assert wants(Request(asked)) == kind


def test_what_a_browser_has_seen_is_stronger_than_the_query() -> None:
    assert resume_after(3, "5") == 5
    assert resume_after(3, None) == resume_after(3, "") == 3
    assert resume_after(None, None) is None


@pytest.mark.parametrize("last", ["x", "-1", "1.5", "\u0663", "1" * 20])
def test_what_is_no_number_is_refused(last: str) -> None:
    with pytest.raises(InvalidRequest, match="Last-Event-ID"):
        resume_after(None, last)


@pytest.mark.parametrize("allowed", [0, 1, 3, 4])
async def test_events_come_as_long_as_the_client_may_get_them(allowed: int) -> None:
    answers = iter([True] * allowed + [False])
    permitted = while_permitted(events(), lambda: next(answers))
    assert len([event async for event in permitted]) == allowed
