"""The provider for an OpenID Connect issuer's tokens, and an issuer that is slow, down or lying.

What is a real issuer's is in `test_real_issuer`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from app.identity_providers.oidc import OpenIDConnect
from app.identity_providers.oidc_keys import FETCH_PAUSE, RETRY_PAUSE
from app.managers.errors import IdentityUnavailable
from app.settings import Settings
from tests.support.jwts import AUDIENCE, Signer, claims_of, jwks, rsa_key, signed
from tests.support.processes import eventually
from tests.support.services import LoginAttempt, Service, answer

DISCOVERY = "/.well-known/openid-configuration"
JWKS = "/jwks"


class Clock:
    """What the provider takes for the monotonic time."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def settings(service: Service, **more: Any) -> Settings:
    return Settings(
        oidc_issuer=service.url, oidc_audience=[AUDIENCE], **{"identity_timeout": 2, **more}
    )


def show(service: Service, *keys: Signer) -> None:
    """Let the issuer show these keys."""
    discovery = {"issuer": service.url, "jwks_uri": f"{service.url}{JWKS}"}
    service.answers = {DISCOVERY: answer(discovery), JWKS: answer(jwks(keys))}


@pytest.fixture
async def oidc(service: Service, clock: Clock) -> AsyncIterator[OpenIDConnect]:
    show(service, rsa_key())
    oidc = OpenIDConnect(settings(service), clock)
    yield oidc
    await oidc.close()


def token(service: Service, kid: str = "first", **more: Any) -> str:
    return signed(claims_of(service.url, **more), rsa_key(kid))


def fetches(service: Service) -> int:
    return sum(asked.path == JWKS for asked in service.asked)


async def owner(oidc: OpenIDConnect, shown: str) -> str | None:
    found = await oidc.identify(shown)
    return None if found is None or found.over else found.owner


async def test_a_token(service: Service, oidc: OpenIDConnect) -> None:
    shown = token(service)
    assert oidc.known(shown) is None
    found = await oidc.identify(shown)
    assert found is not None
    assert found.owner == "anna"
    assert found.credential.startswith("oidc:")
    assert found.credential[5:] not in shown
    assert oidc.known(shown) is found
    assert await oidc.identify(shown) is found
    assert await owner(oidc, token(service, owner="ben")) == "ben"
    assert fetches(service) == 1
    assert all("authorization" not in asked.headers for asked in service.asked)


async def test_many_requests_at_once_are_one_fetch_and_one_principal(
    service: Service, oidc: OpenIDConnect
) -> None:
    shown = token(service)
    found = await asyncio.gather(*(oidc.identify(shown) for _ in range(50)))
    assert len({*map(id, found)}) == 1
    assert found[0] is not None
    assert fetches(service) == 1


async def test_what_is_not_the_issuer_s_asks_nobody(service: Service, oidc: OpenIDConnect) -> None:
    other = signed(claims_of("https://elsewhere.example.org"), rsa_key())
    for shown in ("", "kk_secret", other, "x" * 2**20, "\ud800"):
        assert oidc.known(shown) is None
        assert await oidc.identify(shown) is None
    assert service.asked == []


async def test_a_wrong_token_is_refused_and_not_logged(
    service: Service, oidc: OpenIDConnect, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "app")
    for wrong in (token(service, aud="other"), token(service)[:-4], token(service, sub="../x")):
        assert await oidc.identify(wrong) is None
        assert not any(part in caplog.text for part in wrong.split(".")[1:])
    assert "claims do not hold" in caplog.text


async def test_a_new_key_is_fetched_when_a_token_names_it(
    service: Service, oidc: OpenIDConnect, clock: Clock
) -> None:
    old = token(service)
    found = await oidc.identify(old)
    show(service, rsa_key(), rsa_key("second"))
    # Soon after a fetch it cannot be told whether the issuer has such a key: that is no 403.
    with pytest.raises(IdentityUnavailable) as caught:
        await oidc.identify(token(service, "second"))
    assert caught.value.retry_after == FETCH_PAUSE
    clock.now += FETCH_PAUSE
    assert await owner(oidc, token(service, "second")) == "anna"
    assert found is not None
    assert not found.ended
    # The old key is no longer shown: what was opened with it is closed.
    show(service, rsa_key("second"))
    clock.now += FETCH_PAUSE
    assert await oidc.identify(token(service, "third")) is None
    assert found.ended
    # It is known that the issuer has neither key: those tokens are wrong, and ask for no fetch.
    assert await oidc.identify(token(service, "third")) is None
    assert await oidc.identify(token(service, owner="ben")) is None
    assert await oidc.identify(old) is found  # so it is no guess, but it is over
    assert fetches(service) == 3
    # The issuer shows the old key again.
    show(service, rsa_key(), rsa_key("second"))
    clock.now += FETCH_PAUSE
    assert await owner(oidc, old) == "anna"


async def test_made_up_keys_cannot_make_it_fetch_all_the_time(
    service: Service, oidc: OpenIDConnect, clock: Clock
) -> None:
    for number in range(40):
        wrong = signed(
            claims_of(service.url), rsa_key("second"), header={"kid": f"made-up-{number}"}
        )
        try:
            assert await oidc.identify(wrong) is None
        except IdentityUnavailable:
            pass
        clock.now += 1
        assert await owner(oidc, token(service)) == "anna"  # others do not notice
    assert fetches(service) <= 5


LIES = {
    "no discovery": {DISCOVERY: answer(b"", 404)},
    "no JSON": {DISCOVERY: answer(b"<html>")},
    "a list": {DISCOVERY: answer([])},
    "another issuer": {DISCOVERY: answer({"issuer": "https://x.org", "jwks_uri": "SELF/jwks"})},
    "no issuer": {DISCOVERY: answer({"jwks_uri": "https://x.org/jwks"})},
    "keys that are no JSON": {JWKS: answer(b"keys")},
    "keys of 10 MB": {JWKS: answer(b'{"keys": [' + b" " * 10_000_000 + b"]}")},
    "no keys": {JWKS: answer({"keys": []})},
    "null": {JWKS: answer(None)},
    "symmetric keys": {JWKS: answer({"keys": [{"kty": "oct", "kid": "first", "k": "c2VjcmV0"}]})},
    "keys elsewhere": {JWKS: answer(b"", 302, Location="/elsewhere")},
    "an error": {JWKS: answer(b"", 500)},
    "nothing": {JWKS: b""},
}


@pytest.mark.parametrize("lie", LIES)
async def test_an_issuer_that_lies_has_no_keys(
    service: Service,
    oidc: OpenIDConnect,
    clock: Clock,
    caplog: pytest.LogCaptureFixture,
    lie: str,
) -> None:
    service.answers |= LIES[lie]
    for _ in range(2):
        with pytest.raises(IdentityUnavailable) as caught:
            await oidc.identify(token(service))
        assert caught.value.retry_after == RETRY_PAUSE
        clock.now += RETRY_PAUSE
    (line,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert service.url in line.getMessage()
    show(service, rsa_key())
    assert await owner(oidc, token(service)) == "anna"


@pytest.mark.parametrize(
    "url", ["", 5, None, "file:///etc/passwd", "/jwks", "ftp://x.org/", "http://[/"]
)
async def test_an_unusable_place_of_the_keys(
    service: Service, oidc: OpenIDConnect, url: Any
) -> None:
    service.answers[DISCOVERY] = answer({"issuer": service.url, "jwks_uri": url})
    with pytest.raises(IdentityUnavailable):
        await oidc.identify(token(service))
    assert fetches(service) == 0


async def test_a_failure_makes_no_second_request_for_a_moment(
    service: Service, oidc: OpenIDConnect, clock: Clock
) -> None:
    await service.stop()
    for _ in range(20):
        with pytest.raises(IdentityUnavailable):
            await oidc.identify(token(service))
    await service.start()
    with pytest.raises(IdentityUnavailable):
        await oidc.identify(token(service))
    assert service.asked == []
    clock.now += RETRY_PAUSE
    assert await owner(oidc, token(service)) == "anna"


async def test_keys_are_used_for_a_stated_time_without_the_issuer(
    service: Service, oidc: OpenIDConnect, clock: Clock
) -> None:
    shown = token(service)
    found = await oidc.identify(shown)
    assert found is not None
    await service.stop()
    clock.now += 3599
    assert await owner(oidc, token(service, owner="ben")) == "ben"
    clock.now += 2
    # Nor is anybody let in any more whose token was verified before.
    assert oidc.known(shown) is None
    for refused in (shown, token(service, owner="eve")):
        with pytest.raises(IdentityUnavailable):
            await oidc.identify(refused)
    await service.start()
    clock.now += RETRY_PAUSE
    assert await oidc.identify(shown) is found  # what is open has stayed open


async def test_withdrawn_keys_are_noticed_whoever_is_at_work(
    service: Service, oidc: OpenIDConnect, clock: Clock
) -> None:
    found = await oidc.identify(token(service))
    assert found is not None
    show(service, rsa_key("second"))
    clock.now += 1800  # no new token is shown
    await eventually(lambda: found.ended)


async def test_keys_are_fetched_again_before_they_are_too_old(
    service: Service, oidc: OpenIDConnect, clock: Clock
) -> None:
    found = await oidc.identify(token(service))
    assert found is not None
    show(service, rsa_key("second"))
    clock.now += 1800
    # Nobody waits for the fetch, so this token is the last with the old key.
    assert await owner(oidc, token(service, owner="ben")) == "ben"
    await eventually(lambda: fetches(service) == 2 and found.ended)
    assert await owner(oidc, token(service, "second")) == "anna"


async def test_an_issuer_that_hangs(service: Service, clock: Clock) -> None:
    async def never(_asked: LoginAttempt) -> bytes:
        await asyncio.Event().wait()
        raise AssertionError

    show(service, rsa_key())
    oidc = OpenIDConnect(settings(service, identity_timeout=0.2), clock)
    for path in (DISCOVERY, JWKS):
        show(service, rsa_key())
        service.answers[path] = never
        clock.now += 10
        started = time.monotonic()
        with pytest.raises(IdentityUnavailable):
            await oidc.identify(token(service))
        assert time.monotonic() - started < 2
    service.answers[DISCOVERY] = never
    clock.now += 10
    question = asyncio.create_task(oidc.identify(token(service)))
    await eventually(lambda: len(service.asked) >= 4)
    await oidc.close()
    with pytest.raises(asyncio.CancelledError):
        await question


async def test_an_expired_token_closes_what_is_open(service: Service, clock: Clock) -> None:
    show(service, rsa_key())
    oidc = OpenIDConnect(settings(service, oidc_clock_skew=0), clock)
    shown = token(service, exp=int(time.time()) + 2)
    found = await oidc.identify(shown)
    assert found is not None
    assert found.expires is not None
    await eventually(lambda: found.ended)
    assert 0 <= time.time() - found.expires < 1
    assert oidc.known(shown) is await oidc.identify(shown) is found  # who is over
    assert await oidc.identify(token(service, exp=int(found.expires), owner="ben")) is None
    await oidc.close()


async def test_memory_is_bounded_and_what_is_open_can_be_closed_all_the_same(
    service: Service, oidc: OpenIDConnect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oidc._remembered, "_limit", 3)
    shown = token(service)
    held = await oidc.identify(shown)
    assert held is not None
    held.opened(_close)
    for number in range(10):
        assert await owner(oidc, token(service, owner=f"user{number}")) == f"user{number}"
    assert len(oidc._remembered) == 4
    assert oidc.known(shown) is held
    held.closed(_close)
    await eventually(lambda: len(oidc._remembered) == 3)
    assert oidc.known(shown) is None


def _close() -> None:
    """Closes nothing."""
