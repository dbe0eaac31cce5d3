"""Asking an authorizer: whatever is not a clear yes is a no."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr
from starlette.types import Receive, Scope, Send

from app.api import authorization as module
from app.api.authorization import AllowAll, Authorization, Authorizer, load_authorizer
from app.api.identities import ServerToken
from app.api.identity import Identity, User, Users
from app.main import create_app
from app.managers.errors import AuthorizerFailed, NotAuthorized
from app.settings import Settings


class Answers:
    """An authorizer with one answer to everything, which remembers what it was asked."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.asked: list[tuple[Identity, str, str]] = []

    def is_authorized(
        self, identity: Identity, action: str, resource: str
    ) -> bool | Awaitable[bool]:
        self.asked.append((identity, action, resource))
        answer: bool | Awaitable[bool] = self.answer() if callable(self.answer) else self.answer
        return answer


def _of(answer: Any) -> Authorization:
    return Authorization(Answers(answer), _user())


def _user() -> User:
    return User(Users(), ServerToken("secret").principal)


@pytest.mark.parametrize("answer", [True, 1, "yes"])
async def test_a_true_answer_is_a_yes(answer: object) -> None:
    assert await _of(answer).allows("read", "kernels") is True


@pytest.mark.parametrize("answer", [False, None, 0, ""])
async def test_any_other_answer_is_a_no(answer: object) -> None:
    assert await _of(answer).allows("read", "kernels") is False
    with pytest.raises(NotAuthorized) as refused:
        await _of(answer).require("read", "kernels")
    assert refused.value.message == "User is not authorized to read on resource: kernels."


@pytest.mark.parametrize("answer", [True, False])
async def test_an_answer_may_be_awaited(answer: bool) -> None:
    async def decide() -> bool:
        await asyncio.sleep(0)
        return answer

    assert await _of(decide).allows("read", "kernels") is answer


def _raise() -> bool:
    raise KeyError("nothing to see")


async def _raise_later() -> bool:
    await asyncio.sleep(0)
    raise KeyError("nothing to see")


@pytest.mark.parametrize("answer", [_raise, _raise_later])
async def test_one_that_raises_is_no_yes_and_tells_nothing(answer: object) -> None:
    with pytest.raises(AuthorizerFailed) as failed:
        await _of(answer).require("read", "kernels")
    assert failed.value.message == "The authorizer could not decide"


async def test_one_that_never_answers_is_no_yes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DECISION_SECONDS", 0.01)

    async def never() -> bool:
        await asyncio.Event().wait()
        return True

    with pytest.raises(AuthorizerFailed):
        await _of(never).require("read", "kernels")


async def test_it_learns_who_the_user_is_now() -> None:
    user, authorizer = _user(), Answers(True)
    authorization = Authorization(authorizer, user)
    user.update({"name": "Ada"})
    await authorization.require("write", "sessions")
    assert authorizer.asked == [(user.identity, "write", "sessions")]
    assert user.identity.name == "Ada"


def test_the_default_allows_everything(tmp_path: Path) -> None:
    settings = Settings(token=SecretStr("secret"), root_dir=tmp_path, state_dir=tmp_path)
    authorizer = load_authorizer(settings.authorizer_class)
    assert isinstance(authorizer, AllowAll)
    assert authorizer.is_authorized(Identity(), "execute", "anything")


@asynccontextmanager
async def _client(tmp_path: Path, authorizer: Authorizer) -> AsyncIterator[httpx.AsyncClient]:
    settings = Settings(
        token=SecretStr("secret"),
        root_dir=tmp_path,
        state_dir=tmp_path / "state",
        authorizer_class="nowhere:Nobody",
    )
    app = create_app(settings, authorizer=authorizer)
    async with app.router.lifespan_context(app) as state:

        async def with_state(scope: Scope, receive: Receive, send: Send) -> None:
            await app({**scope, "state": dict(state or {})}, receive, send)

        headers = {"Authorization": "token secret"}
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(with_state),
            base_url="http://127.0.0.1",
            headers=headers,
        ) as client:
            yield client


@pytest.mark.parametrize(("answer", "status"), [(True, 200), (False, 403)])
async def test_an_application_can_be_given_one_in_place_of_the_option_s(
    tmp_path: Path, answer: bool, status: int
) -> None:
    authorizer = Answers(answer)
    async with _client(tmp_path, authorizer) as client:
        response = await client.get("/api/kernels")
    assert response.status_code == status
    assert authorizer.asked == [(Identity(), "read", "kernels")]
