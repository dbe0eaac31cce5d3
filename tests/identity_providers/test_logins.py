"""A login ends in the browser in which it has begun, once, and soon."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from app.identity_providers import logins as module
from app.identity_providers.errors import LoginNotBegun, LoginRefused
from app.identity_providers.logins import LoginAttempt, Logins
from app.managers.errors import IdentityUnavailable, NotFound
from app.managers.owners.principal import Identity, Principal
from app.managers.owners.scopes import EVERYTHING

URL = "http://127.0.0.1/oauth_callback"


class Way:
    """A service whose codes are its tokens, with a comma between them."""

    name = "The Lab"
    failure: Exception | None = None

    def redirect_uri(self, url: str) -> str:
        return url

    async def address(self, asked: LoginAttempt) -> str:
        return f"{asked.state} {asked.challenge} {asked.redirect_uri}"

    async def tokens(self, code: str, asked: LoginAttempt) -> Sequence[str]:
        if self.failure is not None:
            raise self.failure
        return code.split(",")

    async def close(self) -> None:
        pass


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


async def identify(token: str) -> Principal | None:
    principal = Principal(Identity(username=token), EVERYTHING, credential="x")
    if token == "ended":
        principal.end()
    return None if token == "unknown" else principal


@pytest.fixture
def way() -> Way:
    return Way()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def logins(way: Way, clock: Clock) -> Logins:
    return Logins({"lab": way}, identify, clock)


async def begin(logins: Logins) -> tuple[str, str]:
    cookie, address = await logins.begin("lab", URL)
    return cookie, address.split()[0]


async def test_a_token_is_taken_once(logins: Logins) -> None:
    cookie, state = await begin(logins)
    await logins.come_back(cookie, state, "t", URL)
    assert logins.take(cookie) == "t"
    with pytest.raises(LoginNotBegun):
        logins.take(cookie)


async def test_two_browsers_have_nothing_in_common(logins: Logins) -> None:
    first, state = await begin(logins)
    second, other = await begin(logins)
    assert state != other
    for cookie, wrong in ((first, other), (second, state), ("", state), ("lab.", state)):
        with pytest.raises(LoginNotBegun):
            await logins.come_back(cookie, wrong, "t", URL)
    with pytest.raises(LoginNotBegun):
        logins.take(first)


async def test_another_process_does_not_know_the_login(logins: Logins, way: Way) -> None:
    cookie, state = await begin(logins)
    with pytest.raises(LoginNotBegun):
        await Logins({"lab": way}, identify).come_back(cookie, state, "t", URL)


async def test_a_state_and_a_cookie_that_are_no_ascii(logins: Logins) -> None:
    for cookie, state in (("lab.\udc80", "\udc80"), ("lab.ü", "ü"), ("\udc80", "")):
        with pytest.raises(LoginNotBegun):
            await logins.come_back(cookie, state, "t", URL)
        with pytest.raises(LoginNotBegun):
            logins.take(cookie)


async def test_an_unknown_way(logins: Logins) -> None:
    with pytest.raises(NotFound):
        await logins.begin("elsewhere", URL)


async def test_the_first_token_that_the_server_accepts(logins: Logins) -> None:
    cookie, state = await begin(logins)
    await logins.come_back(cookie, state, "unknown,ended,good,better", URL)
    assert logins.take(cookie) == "good"


@pytest.mark.parametrize("code", ["unknown", "ended", "unknown,ended", ""])
async def test_nobody_who_may_come_in(logins: Logins, code: str) -> None:
    cookie, state = await begin(logins)
    await logins.come_back(cookie, state, code, URL)
    with pytest.raises(LoginRefused, match="The Lab"):
        logins.take(cookie)
    with pytest.raises(LoginNotBegun):
        logins.take(cookie)


@pytest.mark.parametrize("failure", [IdentityUnavailable(), LoginRefused("no")])
async def test_what_goes_wrong_is_told_to_who_takes_the_token(
    logins: Logins, way: Way, failure: Exception
) -> None:
    way.failure = failure
    cookie, state = await begin(logins)
    await logins.come_back(cookie, state, "t", URL)
    with pytest.raises(type(failure)):
        logins.take(cookie)


async def test_a_fault_of_this_server_is_not_kept_for_the_page(logins: Logins, way: Way) -> None:
    way.failure = RuntimeError("?")
    cookie, state = await begin(logins)
    with pytest.raises(RuntimeError):  # it is logged as any other request's
        await logins.come_back(cookie, state, "t", URL)
    with pytest.raises(LoginNotBegun):
        logins.take(cookie)


async def test_a_token_that_nobody_takes_is_forgotten(
    logins: Logins, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    cookie, state = await begin(logins)
    await logins.come_back(cookie, state, "t", URL)
    clock.now += module.TAKE_SECONDS + 1
    with pytest.raises(LoginNotBegun):
        logins.take(cookie)
    monkeypatch.setattr(module, "MAX_WAITING", 2)
    cookies = []
    for number in range(3):
        cookie, state = await begin(logins)
        await logins.come_back(cookie, state, str(number), URL)
        cookies.append(cookie)
    with pytest.raises(LoginNotBegun):
        logins.take(cookies[0])
    assert [logins.take(cookie) for cookie in cookies[1:]] == ["1", "2"]
    await logins.close()


def test_the_challenge_is_that_of_the_standard() -> None:
    # RFC 7636, appendix B.
    asked = LoginAttempt(URL, "", "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk")
    assert asked.challenge == "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"
