"""The provider for a JupyterHub's tokens, and a Hub that is slow, down, lying, or changes its mind.

What is a real Hub's is in `test_real_hub`.

These are the tests of `app.identity_providers.remembered` and
`app.identity_providers.sweeping`, too.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest

from app.identity_providers import jupyterhub as module
from app.identity_providers.jupyterhub import JupyterHub
from app.managers.errors import IdentityUnavailable
from app.managers.owners.principal import Principal
from app.settings import Settings
from tests.identity_providers.test_hub_model import model
from tests.support.processes import eventually
from tests.support.services import LoginAttempt, Service, answer

TOKEN = "0123456789abcdef"
PATH = "/hub/api/user"


def settings(service: Service, **more: Any) -> Settings:
    return Settings(
        jupyterhub_tokens=True,
        jupyterhub_api_url=f"{service.url}/hub/api",
        jupyterhub_service="kk",
        **{"identity_timeout": 2, "jupyterhub_cache_seconds": 60, **more},
    )


class Clock:
    """What the provider takes for the time."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def hub(service: Service, clock: Clock) -> AsyncIterator[JupyterHub]:
    hub = JupyterHub(settings(service), clock)
    yield hub
    await hub.close()


async def owner(hub: JupyterHub, token: str = TOKEN) -> str | None:
    found = await hub.identify(token)
    return None if found is None or found.over else found.owner


async def test_the_hub_is_asked_once_in_a_while(service: Service, hub: JupyterHub) -> None:
    service.answers[PATH] = answer(model())
    assert hub.known(TOKEN) is None
    found = await hub.identify(TOKEN)
    assert found is not None
    assert found.owner == "anna"
    assert hub.known(TOKEN) is found
    assert await hub.identify(TOKEN) is found
    assert len(service.asked) == 1
    assert service.asked[0].headers["authorization"] == f"token {TOKEN}"


async def test_many_requests_at_once_are_one_question(service: Service, hub: JupyterHub) -> None:
    service.answers[PATH] = answer(model())
    found = await asyncio.gather(*(hub.identify(TOKEN) for _ in range(50)))
    assert len({*map(id, found)}) == 1
    assert len(service.asked) == 1


async def test_a_request_that_is_given_up_takes_no_answer_from_others(
    service: Service, hub: JupyterHub
) -> None:
    asked, go = asyncio.Event(), asyncio.Event()

    async def slow(_asked: LoginAttempt) -> bytes:
        asked.set()
        await go.wait()
        return answer(model())

    service.answers[PATH] = slow
    first = asyncio.create_task(hub.identify(TOKEN))
    await asked.wait()
    second = asyncio.create_task(owner(hub))
    await asyncio.sleep(0)
    first.cancel()
    go.set()
    assert await second == "anna"
    assert len(service.asked) == 1


@pytest.mark.parametrize("status", [401, 403])
async def test_a_wrong_token_is_remembered_as_wrong(
    service: Service, hub: JupyterHub, status: int
) -> None:
    service.answers[PATH] = answer({"message": "no"}, status)
    assert await owner(hub) is None
    assert await owner(hub) is None
    assert len(service.asked) == 1


async def test_wrong_tokens_take_no_more_memory_than_stated(
    service: Service, hub: JupyterHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_REMEMBERED", 3)
    service.answers[PATH] = answer(b"", 403)
    for number in range(5):
        assert await owner(hub, f"{TOKEN}{number}") is None
    assert await owner(hub, f"{TOKEN}0") is None  # forgotten, so the Hub is asked again
    assert await owner(hub, f"{TOKEN}4") is None
    assert len(service.asked) == 6


@pytest.mark.parametrize(
    "token",
    [
        *(
            "",
            "short",
            "x" * 513,
            "two words",
            "line\nfeed",
            "tokén-tokén",
            "x" * 2**20,
            "\ud800" * 9,
        ),
        "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJodHRwczovL2V4YW1wbGUub3JnIn0.c2ln",
        "kk_" + "0" * 64,
    ],
    ids=range(10),
)
async def test_what_cannot_be_a_token_of_the_hub_is_not_sent_there(
    service: Service, hub: JupyterHub, token: str
) -> None:
    service.answers[PATH] = answer(model())
    assert hub.known(token) is None
    assert await owner(hub, token) is None
    assert service.asked == []


LIES = [
    answer(b"<html>"),
    answer([]),
    answer({"name": "anna"}),
    answer(model(None)),
    answer(b"x" * 2**21),
    answer(model(), 201),
    answer(model(), 302, Location="/elsewhere"),
    answer(b"", 404),
    answer(b"", 429),
    answer(b"", 500),
    b"",
]


@pytest.mark.parametrize("number", range(len(LIES)))
async def test_a_hub_that_lies_cannot_be_asked(
    service: Service, hub: JupyterHub, number: int, caplog: pytest.LogCaptureFixture
) -> None:
    service.answers[PATH] = LIES[number]
    caplog.set_level(logging.DEBUG)
    for _ in range(2):
        with pytest.raises(IdentityUnavailable) as caught:
            await hub.identify(TOKEN)
    assert caught.value.retry_after
    assert len(service.asked) == 2  # nothing is remembered of that
    (line,) = [record for record in caplog.records if "cannot be asked" in record.message]
    assert line.levelno == logging.WARNING
    assert TOKEN not in caplog.text
    service.answers[PATH] = answer(model())
    assert await owner(hub) == "anna"
    assert "answers again" in caplog.text


async def test_a_hub_that_is_down(service: Service, hub: JupyterHub) -> None:
    service.answers[PATH] = answer(model())
    assert await owner(hub) == "anna"
    await service.stop()
    assert await owner(hub) == "anna"  # for as long as that is remembered
    with pytest.raises(IdentityUnavailable):
        await hub.identify(f"{TOKEN}2")
    await service.start()
    assert await owner(hub, f"{TOKEN}2") == "anna"


async def test_a_user_who_may_not_come_in(
    service: Service, hub: JupyterHub, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    service.answers[PATH] = answer(model(scopes=["access:servers"]))
    assert await owner(hub) is None
    assert "access:services" in caplog.text
    service.answers[PATH] = answer(model("../etc"))
    assert await owner(hub, f"{TOKEN}2") is None
    assert TOKEN not in caplog.text


async def test_what_the_hub_said_grows_old(service: Service, hub: JupyterHub, clock: Clock) -> None:
    service.answers[PATH] = answer(model())
    found = await hub.identify(TOKEN)
    clock.now += 59.9
    assert hub.known(TOKEN) is found
    clock.now += 0.1
    assert hub.known(TOKEN) is None
    await service.stop()
    with pytest.raises(IdentityUnavailable):  # it fails closed
        await hub.identify(TOKEN)
    await service.start()
    assert await hub.identify(TOKEN) is found  # the same: what is open stays open
    assert hub.known(TOKEN) is found
    service.answers[PATH] = answer(b"", 403)
    clock.now += 60
    assert found is not None
    assert await hub.identify(TOKEN) is found  # so it is no guess, but it is over
    assert found.ended
    assert hub.known(TOKEN) is None
    assert await hub.identify(TOKEN) is found
    assert len(service.asked) == 3
    # The same token may be good again, for another principal.
    service.answers[PATH] = answer(model())
    clock.now += 60
    again = await hub.identify(TOKEN)
    assert again is not None
    assert again is not found
    assert not again.over


async def test_a_wrong_token_may_become_right(
    service: Service, hub: JupyterHub, clock: Clock
) -> None:
    service.answers[PATH] = answer(b"", 403)
    assert await owner(hub) is None
    service.answers[PATH] = answer(model())
    clock.now += 60
    assert await owner(hub) == "anna"


async def test_other_permissions_are_another_principal(
    service: Service, hub: JupyterHub, clock: Clock
) -> None:
    service.answers[PATH] = answer(model("anna", "custom:kernelkeep:*"))
    before = await hub.identify(TOKEN)
    service.answers[PATH] = answer(model("anna", "custom:kernelkeep:kernels:read"))
    clock.now += 60
    after = await hub.identify(TOKEN)
    assert before is not None
    assert after is not None
    assert before.ended
    assert not after.ended
    assert list(after.scopes) == ["kernels:read"]


@pytest.fixture
async def hasty(service: Service) -> AsyncIterator[JupyterHub]:
    """A provider that asks about what is open after 0.2 s."""
    hub = JupyterHub(settings(service, jupyterhub_cache_seconds=0.2, jupyterhub_outage_seconds=1.5))
    yield hub
    await hub.close()


def _close() -> None:
    """Closes nothing."""


async def held(hub: JupyterHub) -> Principal:
    """A principal that has something open."""
    found = await hub.identify(TOKEN)
    assert found is not None
    found.opened(_close)
    return found


async def test_a_revoked_token_closes_what_is_open(service: Service, hasty: JupyterHub) -> None:
    service.answers[PATH] = answer(model())
    principal = await held(hasty)
    await eventually(lambda: len(service.asked) >= 3)
    assert not principal.ended
    service.answers[PATH] = answer(b"", 403)
    await eventually(lambda: principal.ended)
    assert hasty.known(TOKEN) is None


async def test_an_outage_closes_what_is_open_after_a_while(
    service: Service, hasty: JupyterHub
) -> None:
    service.answers[PATH] = answer(model())
    principal = await held(hasty)
    began = asyncio.get_running_loop().time()
    service.answers[PATH] = answer(b"", 500)
    await eventually(lambda: len(service.asked) >= 3)
    assert not principal.ended
    await eventually(lambda: principal.ended)
    assert asyncio.get_running_loop().time() - began >= 1.5


async def test_the_hub_is_not_asked_about_what_nobody_uses(
    service: Service, hasty: JupyterHub
) -> None:
    service.answers[PATH] = answer(model())
    assert await owner(hasty) == "anna"

    await eventually(lambda: len(hasty._remembered) == 0)
    assert len(service.asked) == 1


async def test_questions_are_bounded(
    service: Service, hub: JupyterHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_QUESTIONS", 5)
    service.answers[PATH] = answer(model())
    questions = [hub.identify(f"{TOKEN}{number}") for number in range(8)]
    results = await asyncio.gather(*questions, return_exceptions=True)
    assert [isinstance(result, IdentityUnavailable) for result in results] == [False] * 5 + [
        True
    ] * 3


async def test_it_closes_while_it_asks(service: Service, hub: JupyterHub) -> None:
    asked = asyncio.Event()

    async def never(_asked: LoginAttempt) -> bytes:
        asked.set()
        await asyncio.Event().wait()
        raise AssertionError

    service.answers[PATH] = never
    question = asyncio.create_task(hub.identify(TOKEN))
    await asked.wait()
    await hub.close()
    with pytest.raises(asyncio.CancelledError):
        await question
