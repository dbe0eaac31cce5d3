"""The user: who it is, what it may do, and how it wants to be called.

These are the tests of `app.api.identity`.
"""

from __future__ import annotations

import json

import pytest

from tests.api.errors import error_of
from tests.conftest import MakeServer
from tests.support.rest import RestClient

FIELDS = ["username", "name", "display_name", "initials", "avatar_url", "color"]
UPDATABLE = FIELDS[1:]


async def test_there_is_one_user(rest: RestClient) -> None:
    response = await rest.request("GET", "/api/me")
    body = response.json()
    assert response.headers["Content-Type"] == "application/json"
    assert list(body) == ["identity", "permissions"]
    assert list(body["identity"]) == FIELDS
    assert body["permissions"] == {"updatable_fields": UPDATABLE}
    for name in ("username", "name", "display_name"):
        assert isinstance(body["identity"][name], str)
        assert body["identity"][name]
    assert (await rest.request("GET", "/api/me")).json() == body


@pytest.mark.parametrize(
    "permissions",
    [{}, {"kernels": []}, {"kernels": ["read", "write"], "sessions": ["execute"]}, {"": [""]}],
)
async def test_the_user_may_do_everything_by_default(
    rest: RestClient, permissions: dict[str, list[str]]
) -> None:
    asked = {"permissions": json.dumps(permissions)}
    body = (await rest.request("GET", "/api/me", params=asked)).json()
    assert body["permissions"] == {**permissions, "updatable_fields": UPDATABLE}


async def test_what_can_be_changed_is_told_whatever_is_asked(rest: RestClient) -> None:
    asked = {"permissions": '{"updatable_fields": ["read"]}'}
    body = (await rest.request("GET", "/api/me", params=asked)).json()
    assert body["permissions"] == {"updatable_fields": UPDATABLE}


@pytest.mark.parametrize(
    "permissions",
    ["{", "[]", '"abc"', "null", "5", '{"a": "read"}', '{"a": [5]}', '{"a": {}}', '{"a": null}'],
)
async def test_permissions_that_make_no_sense_are_400(rest: RestClient, permissions: str) -> None:
    response = await rest.http.get("/api/me", params={"permissions": permissions})
    message = error_of(response, 400, "invalid_request")
    assert message.startswith("permissions should be a JSON dict of")


async def test_the_user_can_be_called_otherwise(make_server: MakeServer) -> None:
    server = make_server()
    changes = {
        "name": "Ada Lovelace",
        "display_name": "Ada",
        "initials": "AL",
        "avatar_url": "https://example.org/ada.png",
        "color": "#ff0000",
    }
    async with RestClient(server.url, server.token) as rest:
        before = (await rest.request("GET", "/api/me")).json()["identity"]
        one = await rest.request("PATCH", "/api/me", json={"color": "#00ff00"})
        assert one.json() == {"status": "success", "identity": {**before, "color": "#00ff00"}}
        every = (await rest.request("PATCH", "/api/me", json=changes)).json()["identity"]
        assert every == {"username": before["username"], **changes}
        assert (await rest.request("GET", "/api/me")).json()["identity"] == every
        less = await rest.request("PATCH", "/api/me", json={"color": None})
        assert less.json()["identity"] == {**every, "color": None}


@pytest.mark.parametrize(
    ("content", "code", "message"),
    [
        (b"", "invalid_request", "No JSON data provided"),
        (b"{}", "invalid_request", "Invalid or missing JSON body"),
        (b"{", "invalid_json", "Invalid JSON in body of request"),
        (b"[]", "invalid_request", "body: "),
        (b'{"username": "root"}', "field_not_updatable", "Field username is not updatable"),
        (b'{"name": "a", "shoes": "b"}', "field_not_updatable", "Field shoes is not updatable"),
        (b'{"name": null}', "invalid_request", "name: "),
        (b'{"color": 5}', "invalid_request", "color: "),
        (b'{"color": "\\ud800"}', "invalid_request", "color: "),
        (b'{"\\ud800": "a"}', "field_not_updatable", "Field ? is not updatable"),
    ],
)
async def test_a_change_that_makes_no_sense_is_400_and_changes_nothing(
    rest: RestClient, content: bytes, code: str, message: str
) -> None:
    before = (await rest.request("GET", "/api/me")).json()
    response = await rest.http.patch("/api/me", content=content)
    assert error_of(response, 400, code).startswith(message)
    assert (await rest.request("GET", "/api/me")).json() == before


@pytest.mark.parametrize("method", ["GET", "PATCH"])
async def test_who_has_no_token_is_nobody(rest: RestClient, method: str) -> None:
    async with RestClient(str(rest.http.base_url), None) as stranger:
        error_of(await stranger.http.request(method, "/api/me"), 403, "unauthorized")
