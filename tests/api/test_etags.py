"""Conditional GET, of applications that answer in one piece and in several."""

from __future__ import annotations

import pytest

from app.api.etags import MAX_REMEMBERED_BYTES, ETagMiddleware
from tests.support.asgi import Answer, ask, scope


@pytest.mark.parametrize("size", [5, MAX_REMEMBERED_BYTES + 1])
async def test_a_body_that_the_client_has_is_not_sent_again(size: int) -> None:
    app = ETagMiddleware(Answer(b"x" * size, headers={"Content-Length": str(size)}))
    status, headers, body = await ask(app, scope())
    assert (status, len(body)) == (200, size)
    for known in (headers["etag"], f'"other", W/{headers["etag"]}'):
        status, again, body = await ask(app, scope(headers=[("if-none-match", known)]))
        assert (status, body) == (304, b"")
        assert again["etag"] == headers["etag"]
        assert "content-length" not in again


async def test_another_body_has_another_tag_and_is_sent() -> None:
    _, first, _ = await ask(ETagMiddleware(Answer(b"one")), scope())
    known = [("if-none-match", first["etag"])]
    status, second, body = await ask(ETagMiddleware(Answer(b"two")), scope(headers=known))
    assert (status, body) == (200, b"two")
    assert second["etag"] != first["etag"]


async def test_the_tag_of_the_application_is_left() -> None:
    app = ETagMiddleware(Answer(b"file", headers={"ETag": '"its-own"'}))
    assert (await ask(app, scope()))[1]["etag"] == '"its-own"'
    status, _, _ = await ask(app, scope(headers=[("if-none-match", '"its-own"')]))
    assert status == 304


@pytest.mark.parametrize(
    ("app", "asked"),
    [
        (Answer(b"one", b"two"), scope()),
        (Answer(b"gone", status=404), scope()),
        (Answer(b"made"), scope(method="POST")),
    ],
    ids=["in pieces", "an error", "no GET"],
)
async def test_other_responses_pass_unchanged(app: Answer, asked: dict[str, object]) -> None:
    assert await ask(ETagMiddleware(app), asked) == await ask(app, asked)
