"""Ids of requests: which are taken from clients, and what the logs know while a request lasts."""

from __future__ import annotations

import re
from typing import Any

import pytest

from app.api.request_ids import RequestIdMiddleware
from app.callers import Caller, caller
from tests.support.asgi import Answer, ask, scope


async def id_of(*sent: str) -> str:
    """The id in the response to a request with these headers."""
    asked = scope(headers=[("x-request-id", value) for value in sent])
    _, headers, _ = await ask(RequestIdMiddleware(Answer()), asked)
    return headers["x-request-id"]


@pytest.mark.parametrize("sent", ["a", "from-the.client:1/+=@~_", "x" * 128])
async def test_a_well_formed_id_is_the_clients(sent: str) -> None:
    assert await id_of(sent) == sent


@pytest.mark.parametrize(
    "sent", [(), ("",), ("x" * 129,), ("a b",), ("a\nb",), ("\u00e4",), ("one", "two")]
)
async def test_any_other_gets_a_new_one(sent: tuple[str, ...]) -> None:
    first, second = await id_of(*sent), await id_of(*sent)
    assert re.fullmatch("[0-9a-f]{32}", first)
    assert first != second


@pytest.mark.parametrize(
    ("client", "address"),
    [(("10.0.0.1", 1), "10.0.0.1"), (("::1", 1), "::1"), (("unix:", 0), ""), (None, "")],
)
async def test_the_application_finds_its_caller_until_the_end(client: Any, address: str) -> None:
    found: list[Caller | None] = []

    class App(Answer):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            found.append(caller())
            await super().__call__(scope, receive, send)

    asked = scope(client=client, path_params={"kernel_id": "k", "execution_id": "e"})
    await ask(RequestIdMiddleware(App()), asked)
    (during,) = found
    assert during is not None
    assert (during.address, during.kernel_id, during.execution_id) == (address, "k", "e")
    assert during.over
    assert caller() is None


async def test_a_caller_stays_while_its_error_is_logged() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await ask(RequestIdMiddleware(app), scope(headers=[("x-request-id", "mine")]))
    made_for = caller()
    assert made_for is not None
    assert made_for.request_id == "mine"
    made_for.over = True


async def test_a_lifespan_has_no_id() -> None:
    app = Answer()
    await ask(RequestIdMiddleware(app), {"type": "lifespan"})
    assert app.scopes == [{"type": "lifespan"}]
    assert caller() is None
