"""Whoever shows wrong tokens again and again has to wait; whoever has a good one never has."""

from __future__ import annotations

import pytest

from app.api.wrong_tokens import ALLOWED, MAX_ADDRESSES, WINDOW_SECONDS, WrongTokens
from tests.api.errors import error_of
from tests.conftest import MakeServer
from tests.support.rest import RestClient


async def test_guesses_are_slowed_by_address(make_server: MakeServer) -> None:
    server = make_server("--trusted-proxies", "127.0.0.1")
    async with RestClient(server.url, server.token) as rest, RestClient(server.url, None) as guest:

        async def guess(number: int, address: str) -> int:
            headers = {"Authorization": f"token x{number}", "X-Forwarded-For": address}
            response = await guest.http.get("/api/kernels", headers=headers)
            if response.status_code == 429:
                assert 1 <= int(response.headers["Retry-After"]) <= WINDOW_SECONDS
                error_of(response, 429, "too_many_wrong_tokens")
            return response.status_code

        found = [await guess(number, f"2001:db8::{number + 1:x}") for number in range(ALLOWED + 5)]
        assert found == [403] * ALLOWED + [429] * 5
        assert await guess(0, "2001:db8:0:1::1") == 403
        # The same address with the token, with none, and where none is needed.
        here = {"X-Forwarded-For": "2001:db8::1"}
        await rest.request("GET", "/api/kernels", headers=here)
        await guest.request("GET", "/api/kernels", 403, headers=here)
        await guest.request("GET", "/api", params={"token": "wrong"}, headers=here)
        metrics = (await rest.request("GET", "/metrics")).text
    assert f'kernelkeep_wrong_tokens_total{{outcome="refused"}} {ALLOWED + 1}.0' in metrics
    assert 'kernelkeep_wrong_tokens_total{outcome="slowed"} 5.0' in metrics


def test_a_window_ends() -> None:
    wrong = WrongTokens()
    assert [wrong.shown("192.0.2.1", 0.0) for _ in range(ALLOWED)] == [0] * ALLOWED
    assert wrong.shown("192.0.2.1", 20.5) == 40
    assert wrong.shown("::ffff:192.0.2.1", 59.9) == 1
    assert wrong.shown("192.0.2.2", 59.9) == 0
    assert wrong.shown("192.0.2.1", 60.0) == 0


@pytest.mark.parametrize("address", ["", "nonsense", "fe80::1%eth0", "1" * 5000])
def test_any_text_is_an_address(address: str) -> None:
    assert WrongTokens().shown(address, 0.0) == 0


def test_addresses_have_a_bound() -> None:
    wrong = WrongTokens()
    for number in range(2 * MAX_ADDRESSES):
        wrong.shown(f"2001:db8:{number:x}::1", 0.0)
    assert len(wrong) == MAX_ADDRESSES
