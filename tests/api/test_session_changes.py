"""Changing a session: its path, name and type, and its kernel."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.api.errors import error_of
from tests.support.rest import RestClient
from tests.support.sessions import Sessions, sessions_of

UNKNOWN = "01234567-89ab-cdef-0123-456789abcdef"


@pytest.fixture
async def sessions(rest: RestClient) -> AsyncIterator[Sessions]:
    async with sessions_of(rest) as sessions:
        yield sessions


async def test_a_session_is_renamed(sessions: Sessions) -> None:
    session = await sessions.create("a", name="a")
    changed = await sessions.change(session["id"], path="b/c", name="c")
    found = await sessions.get(session["id"])
    assert changed | {"kernel": None} == found | {"kernel": None}  # the kernel starts meanwhile
    assert (changed["id"], changed["path"], changed["name"]) == (session["id"], "b/c", "c")
    assert changed["notebook"] == {"path": "b/c", "name": "c"}
    assert changed["kernel"]["id"] == session["kernel"]["id"]


async def test_the_type_is_changed(sessions: Sessions) -> None:
    session = await sessions.create("a", name="a")
    changed = await sessions.change(session["id"], type="console")
    assert (changed["path"], changed["name"], changed["type"]) == ("a", "a", "console")
    assert "notebook" not in changed


@pytest.mark.parametrize("body", [{}, {"kernel": {}}, {"shoes": "red"}, {"id": UNKNOWN}])
async def test_what_is_left_out_stays_as_it_is(sessions: Sessions, body: dict[str, Any]) -> None:
    session = await sessions.create("a", name="a")
    changed = await sessions.change(session["id"], **body)
    for key in ("id", "path", "name", "type"):
        assert changed[key] == session[key]
    assert changed["kernel"]["id"] == session["kernel"]["id"]


async def test_a_name_can_be_taken_away(sessions: Sessions) -> None:
    session = await sessions.create("a", name="a")
    assert (await sessions.change(session["id"], name=None))["name"] == ""


async def test_a_new_path_is_taken_and_the_old_one_is_free(sessions: Sessions) -> None:
    session = await sessions.create("a")
    await sessions.change(session["id"], path="b")
    assert (await sessions.create("b"))["id"] == session["id"]
    assert (await sessions.create("a"))["id"] != session["id"]


async def test_the_older_form_of_a_body_works(sessions: Sessions) -> None:
    session = await sessions.create("a", "console")
    changed = await sessions.change(session["id"], notebook={"path": "b", "name": "ignored"})
    assert (changed["path"], changed["type"]) == ("b", "notebook")
    assert changed["name"] == session["name"]


async def test_another_kernelspec_gives_a_new_kernel_for_the_old_one(sessions: Sessions) -> None:
    session = await sessions.create("a")
    changed = await sessions.change(session["id"], kernel={"name": "fake-message"})
    assert changed["kernel"]["id"] != session["kernel"]["id"]
    assert changed["kernel"]["name"] == "fake-message"
    # The old one was gone before the answer came.
    kernels = await sessions.rest.kernels()
    assert [kernel["id"] for kernel in kernels] == [changed["kernel"]["id"]]


async def test_a_kernel_s_id_counts_more_than_a_name(sessions: Sessions) -> None:
    session = await sessions.create("a")
    kernel = await sessions.rest.start_kernel("fake")
    changed = await sessions.change(session["id"], kernel={"id": kernel["id"], "name": "nope"})
    assert changed["kernel"]["id"] == kernel["id"]
    kernels = await sessions.rest.kernels()
    assert [kernel["id"] for kernel in kernels] == [kernel["id"]]


async def test_its_own_kernel_s_id_changes_nothing(sessions: Sessions) -> None:
    session = await sessions.create("a")
    kernel_id = session["kernel"]["id"]
    changed = await sessions.change(session["id"], kernel={"id": kernel_id})
    assert changed["kernel"]["id"] == kernel_id
    assert len(await sessions.rest.kernels()) == 1


async def test_new_kernels_asked_for_at_once_leave_one(sessions: Sessions) -> None:
    session = await sessions.create("a")
    changes = [sessions.change(session["id"], kernel={"name": "fake"}) for _ in range(4)]
    changed = await asyncio.gather(*changes)
    assert len({model["kernel"]["id"] for model in changed}) == 4
    (kernel,) = await sessions.rest.kernels()
    assert (await sessions.get(session["id"]))["kernel"]["id"] == kernel["id"]


async def test_a_change_and_the_end_at_once_leave_nothing(sessions: Sessions) -> None:
    session = await sessions.create("a")
    path = f"/api/sessions/{session['id']}"
    change = {"kernel": {"name": "fake"}}
    changed, deleted = await asyncio.gather(
        sessions.rest.http.patch(path, json=change), sessions.rest.http.delete(path)
    )
    assert changed.status_code in (200, 404)
    assert deleted.status_code == 204
    assert await sessions.list() == []
    assert await sessions.rest.kernels() == []


# What is refused, and then changes nothing


async def test_an_unknown_kernel_id_is_400(sessions: Sessions) -> None:
    session = await sessions.create("a")
    response = await sessions.rest.http.patch(
        f"/api/sessions/{session['id']}", json={"path": "b", "kernel": {"id": UNKNOWN}}
    )
    assert error_of(response, 400, "no_such_kernel") == f"No such kernel: {UNKNOWN}"
    assert (await sessions.get(session["id"]))["path"] == "a"


@pytest.mark.parametrize(
    ("name", "reason"),
    [("nope", "Kernel spec nope not found"), ("fake-missing", "[Errno 2] No such file")],
)
async def test_a_kernel_that_cannot_be_started_is_501_with_two_messages(
    sessions: Sessions, name: str, reason: str
) -> None:
    session = await sessions.create("a")
    response = await sessions.rest.http.patch(
        f"/api/sessions/{session['id']}", json={"path": "b", "kernel": {"name": name}}
    )
    body = response.json()
    assert response.status_code == 501
    assert list(body) == ["message", "reason", "code", "short_message"]
    assert body["message"].startswith(f"The '{name}' kernel could not be started: ")
    assert reason in body["message"]
    assert body["short_message"] == f"Error starting kernel {name}"
    assert body["code"] == "kernel_unavailable"
    unchanged = await sessions.get(session["id"])
    assert (unchanged["path"], unchanged["kernel"]["id"]) == ("a", session["kernel"]["id"])
    assert len(await sessions.rest.kernels()) == 1


@pytest.mark.parametrize(
    ("content", "code", "message"),
    [
        (b"", "invalid_request", "No JSON data provided"),
        (b"null", "invalid_request", "No JSON data provided"),
        (b"{", "invalid_json", "Invalid JSON in body of request"),
        (b"[]", "invalid_request", "body: "),
        (b'{"path": null}', "invalid_request", "path: "),
        (b'{"path": {}}', "invalid_request", "path: "),
        (b'{"type": null}', "invalid_request", "type: "),
        (b'{"name": 5}', "invalid_request", "name: "),
        (b'{"kernel": null}', "invalid_request", "kernel: "),
        (b'{"kernel": "fake"}', "invalid_request", "kernel: "),
        (b'{"kernel": {"id": 5}}', "invalid_request", "kernel.id: "),
        (b'{"kernel": {"id": "zzz"}}', "no_such_kernel", "No such kernel: zzz"),
        (b'{"notebook": "b"}', "invalid_request", "notebook: "),
        (b'{"path": "../b"}', "invalid_path", "path: "),
        (b'{"path": "\\u0000"}', "invalid_path", "path: "),
        (b'{"name": "\\u0000"}', "invalid_request", "name: "),
        (b'{"type": "\\ud800"}', "invalid_request", "type: "),
    ],
)
async def test_a_body_that_makes_no_sense_is_400_naming_the_field(
    sessions: Sessions, content: bytes, code: str, message: str
) -> None:
    session = await sessions.create("a", name="a")
    response = await sessions.rest.http.patch(f"/api/sessions/{session['id']}", content=content)
    assert error_of(response, 400, code).startswith(message)
    unchanged = await sessions.get(session["id"])
    assert (unchanged["path"], unchanged["name"], unchanged["type"]) == ("a", "a", "notebook")
