"""What a service says that is slow, down, or lying is no answer, and costs a bounded time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from app.identity_providers import fetching
from app.identity_providers.fetching import MAX_BYTES, Fetcher, Unavailable
from tests.support.services import LoginAttempt, Service, answer

TOKEN = "tok3n-tok3n"
HEADERS = {"Authorization": f"token {TOKEN}"}


@pytest.fixture
async def fetcher() -> AsyncIterator[Fetcher]:
    fetcher = Fetcher(5)
    yield fetcher
    await fetcher.close()


async def test_an_answer(service: Service, fetcher: Fetcher) -> None:
    service.answers["/a"] = answer({"name": "anna"})
    assert await fetcher.get(f"{service.url}/a", HEADERS) == (200, {"name": "anna"})
    (asked,) = service.asked
    assert asked.headers["authorization"] == f"token {TOKEN}"
    assert "accept-encoding" not in asked.headers


@pytest.mark.parametrize("status", [201, 204, 401, 403, 404, 429, 500, 503])
async def test_another_status(service: Service, fetcher: Fetcher, status: int) -> None:
    service.answers["/a"] = answer({"name": "anna"}, status)
    if status == 204:
        service.answers["/a"] = b"HTTP/1.1 204 Whatever\r\n\r\n"
    assert await fetcher.get(f"{service.url}/a", HEADERS) == (status, None)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed(service: Service, fetcher: Fetcher, status: int) -> None:
    service.answers["/a"] = answer(b"", status, Location=f"{service.url}/b")
    service.answers["/b"] = answer({"name": "anna"})
    assert await fetcher.get(f"{service.url}/a", HEADERS) == (status, None)
    assert [asked.path for asked in service.asked] == ["/a"]


LIES = [
    answer(b"<html>Log in</html>"),
    answer(b""),
    answer(b'{"name": "anna"'),
    answer(b'{"name": "\xff"}'),
    answer(b"[" * 200_000),
    answer(b"NaN"),
    answer(b"\x1f\x8b\x08\x00", Content_Encoding="gzip"),
    answer(b'"' + b"x" * MAX_BYTES + b'"'),
    answer(b"{}", length=10**15),
    answer(b"{}", length=-1),
    answer(b'{"name": "anna"}', length=100),
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    + b"100000\r\n"
    + b"x" * 2**20
    + b"\r\n"
    + b"100000\r\n"
    + b"x" * 2**20
    + b"\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffffff\r\n",
    b"HTTP/1.1 200 OK\r\n" + b"X: " + b"x" * 2**20 + b"\r\n\r\n{}",
    b"HTTP/1.1 999999 OK\r\n\r\n{}",
    b"\x16\x03\x01\x00\xa5\x01\x00\x00",
    b"200 OK\r\n\r\n{}",
    b"",
]


@pytest.mark.parametrize("number", range(len(LIES)))
async def test_lies(service: Service, fetcher: Fetcher, number: int) -> None:
    service.answers["/a"] = LIES[number]
    with pytest.raises(Unavailable) as caught:
        await fetcher.get(f"{service.url}/a", HEADERS)
    assert TOKEN not in str(caught.value)


async def test_a_service_that_is_down(service: Service, fetcher: Fetcher) -> None:
    await service.stop()
    with pytest.raises(Unavailable):
        await fetcher.get(f"{service.url}/a", HEADERS)
    await service.start()
    service.answers["/a"] = answer({})
    assert await fetcher.get(f"{service.url}/a") == (200, {})


async def _never(_asked: LoginAttempt) -> bytes:
    await asyncio.Event().wait()
    raise AssertionError


async def test_a_service_that_hangs(service: Service) -> None:
    fetcher = Fetcher(0.2)
    service.answers["/a"] = _never
    started = time.monotonic()
    with pytest.raises(Unavailable):
        await fetcher.get(f"{service.url}/a", HEADERS)
    assert time.monotonic() - started < 5
    await fetcher.close()


async def test_the_wait_for_a_turn_is_part_of_the_time(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "AT_ONCE", 2)
    fetcher = Fetcher(0.3)
    service.answers = {"/hangs": _never, "/a": answer({})}
    questions = [fetcher.get(f"{service.url}/hangs") for _ in range(20)]
    started = time.monotonic()
    results = await asyncio.gather(*questions, return_exceptions=True)
    assert all(isinstance(result, Unavailable) for result in results)
    assert time.monotonic() - started < 5
    assert len(service.asked) <= 4
    # Those that were given up hold nothing up.
    assert await fetcher.get(f"{service.url}/a") == (200, {})
    await fetcher.close()


async def test_it_can_be_closed_and_used_again(service: Service, fetcher: Fetcher) -> None:
    service.answers["/a"] = answer({})
    for _ in range(2):
        assert await fetcher.get(f"{service.url}/a") == (200, {})
        await fetcher.close()
