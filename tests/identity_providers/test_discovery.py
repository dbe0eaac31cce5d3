"""Where an issuer's endpoints are, and a discovery document that must not be believed."""

from __future__ import annotations

import pytest

from app.identity_providers.discovery import discover, endpoint
from app.identity_providers.fetching import Fetcher, Unavailable
from tests.support.services import Service, answer

PATH = "/realms/lab/.well-known/openid-configuration"


async def test_the_document(service: Service) -> None:
    issuer = f"{service.url}/realms/lab"
    service.answers[PATH] = answer({"issuer": issuer, "jwks_uri": f"{issuer}/keys"})
    fetcher = Fetcher(5)
    document = await discover(fetcher, issuer)
    assert endpoint(document, "jwks_uri", issuer) == f"{issuer}/keys"
    await fetcher.close()


@pytest.mark.parametrize(
    "answered",
    [
        answer(status=404),
        answer({"issuer": "http://127.0.0.1:1"}),
        answer(["issuer"]),
        answer(b"{"),
    ],
    ids=["missing", "another issuer", "a list", "no JSON"],
)
async def test_a_document_that_is_not_the_issuers(service: Service, answered: bytes) -> None:
    service.answers[PATH] = answered
    fetcher = Fetcher(5)
    with pytest.raises(Unavailable):
        await discover(fetcher, f"{service.url}/realms/lab")
    await fetcher.close()


@pytest.mark.parametrize(
    "url",
    [None, "", 7, "ftp://login.example.org/", "http://login.example.org/", "https://", "//[x"],
)
def test_an_endpoint_that_is_not_as_safe_as_the_issuer(url: object) -> None:
    with pytest.raises(Unavailable, match="token_endpoint"):
        endpoint({"token_endpoint": url}, "token_endpoint", "https://login.example.org")


def test_without_tls_where_the_issuer_has_none() -> None:
    found = endpoint({"token_endpoint": "http://127.0.0.1/t"}, "token_endpoint", "http://127.0.0.1")
    assert found == "http://127.0.0.1/t"
