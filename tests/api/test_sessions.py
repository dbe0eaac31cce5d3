"""The sessions resource: make, list, look at and end sessions.

These are the tests of `app.managers.sessions.sessions`.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import pytest

from tests.api.errors import error_of
from tests.support.channels import Connector
from tests.support.processes import eventually
from tests.support.rest import RestClient
from tests.support.server import ServerProcess
from tests.support.sessions import Sessions, sessions_of

UNKNOWN = "01234567-89ab-cdef-0123-456789abcdef"
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@pytest.fixture
async def sessions(rest: RestClient) -> AsyncIterator[Sessions]:
    async with sessions_of(rest) as sessions:
        yield sessions


# Making


async def test_a_session_is_made_with_a_kernel(sessions: Sessions) -> None:
    response = await sessions.post(
        path="a/b.ipynb", name="b.ipynb", type="notebook", kernel={"name": "fake"}
    )
    model = response.json()
    kernel = await sessions.rest.kernel(model["kernel"]["id"])
    assert response.status_code == 201
    assert response.headers["Location"] == f"/api/sessions/{model['id']}"
    assert response.headers["Content-Type"] == "application/json"
    assert list(model) == ["id", "path", "name", "type", "kernel", "notebook"]
    assert UUID.fullmatch(model["id"])
    assert (model["path"], model["name"], model["type"]) == ("a/b.ipynb", "b.ipynb", "notebook")
    assert model["notebook"] == {"path": "a/b.ipynb", "name": "b.ipynb"}
    assert list(model["kernel"]) == list(kernel)
    assert model["kernel"]["name"] == "fake"
    assert model["kernel"]["execution_state"] == "starting"


async def test_the_kernel_of_a_session_is_told_as_it_is_now(sessions: Sessions) -> None:
    session = await sessions.create("a")
    await sessions.rest.wait_for_state(session["kernel"]["id"], "idle")
    assert (await sessions.get(session["id"]))["kernel"]["execution_state"] == "idle"
    assert (await sessions.list())[0]["kernel"]["execution_state"] == "idle"


@pytest.mark.parametrize("type", ["console", "file", "anything"])
async def test_only_a_notebook_has_the_older_form_too(sessions: Sessions, type: str) -> None:
    session = await sessions.create("a", type)
    assert list(session) == ["id", "path", "name", "type", "kernel"]
    assert session["type"] == type


@pytest.mark.parametrize("body", [{}, {"name": None}, {"name": ""}])
async def test_a_session_without_a_name_has_an_empty_one(
    sessions: Sessions, body: dict[str, Any]
) -> None:
    # JupyterLab takes no list of sessions in which a name is null.
    session = await sessions.create("a", **body)
    assert session["name"] == ""
    assert session["notebook"] == {"path": "a", "name": ""}


@pytest.mark.parametrize(
    "body", [{}, {"kernel": {}}, {"kernel": {"name": None, "id": None}}, {"kernel": {"name": ""}}]
)
async def test_without_a_kernel_s_name_it_gets_the_default(
    sessions: Sessions, body: dict[str, object]
) -> None:
    response = await sessions.post(path="a", type="console", **body)
    assert response.status_code == 201
    assert response.json()["kernel"]["name"] == "fake"


async def test_further_keys_are_ignored(sessions: Sessions) -> None:
    session = await sessions.create("a", "console", id=UNKNOWN, shoes="red")
    assert session["id"] != UNKNOWN
    assert "shoes" not in session


async def test_the_body_is_json_whatever_its_type_says(sessions: Sessions) -> None:
    response = await sessions.rest.http.post(
        "/api/sessions",
        content=b'{"path": "a", "type": "console"}',
        headers={"Content-Type": "text/plain"},
    )
    assert response.status_code == 201


async def test_sessions_are_listed_in_the_order_in_which_they_were_made(
    sessions: Sessions,
) -> None:
    made = [await sessions.create(path) for path in "cab"]
    listed = await sessions.list()
    assert [session["id"] for session in listed] == [session["id"] for session in made]
    assert [session["path"] for session in listed] == ["c", "a", "b"]


async def test_there_is_one_session_for_a_path(sessions: Sessions) -> None:
    first = await sessions.create("a", name="first")
    again = await sessions.create("a", "console", kernel="no such kernel", name="again")
    assert (again["id"], again["kernel"]["id"]) == (first["id"], first["kernel"]["id"])
    assert (again["type"], again["name"]) == ("notebook", "first")
    assert len(await sessions.rest.kernels()) == 1


async def test_one_made_many_times_at_once_is_one_session_with_one_kernel(
    sessions: Sessions,
) -> None:
    made = await asyncio.gather(*(sessions.create("a") for _ in range(8)))
    assert len({session["id"] for session in made}) == 1
    assert len(await sessions.rest.kernels()) == 1


async def test_many_made_at_once_are_many(sessions: Sessions) -> None:
    made = await asyncio.gather(*(sessions.create(path) for path in "abcd"))
    assert len({session["id"] for session in made}) == 4
    assert len({session["kernel"]["id"] for session in made}) == 4


async def test_a_session_can_be_attached_to_a_kernel_that_runs(sessions: Sessions) -> None:
    kernel = await sessions.rest.start_kernel("fake")
    session = await sessions.create("a", kernel={"id": kernel["id"], "name": "ignored"})
    assert session["kernel"]["id"] == kernel["id"]
    assert len(await sessions.rest.kernels()) == 1


async def test_an_unknown_kernel_id_is_given_to_a_new_kernel(
    sessions: Sessions, connect: Connector
) -> None:
    kernel_id = str(uuid4())
    session = await sessions.create("a", kernel={"id": kernel_id, "name": "fake"})
    assert session["kernel"]["id"] == kernel_id
    channels = await connect(kernel_id)
    assert (await channels.execute("print hello")).text == "hello\n"


async def test_two_sessions_for_one_new_kernel_id_at_once_share_the_kernel(
    sessions: Sessions,
) -> None:
    kernel = {"id": str(uuid4()), "name": "fake"}
    made = await asyncio.gather(*(sessions.create(path, kernel=kernel) for path in "ab"))
    assert {session["kernel"]["id"] for session in made} == {kernel["id"]}
    assert len({session["id"] for session in made}) == 2


@pytest.mark.parametrize(
    ("notebook", "path"),
    [
        ({"path": "a"}, "a"),
        ({"path": "a", "name": "b"}, "b"),
        ({"name": "b"}, "b"),
        ({}, "given"),
    ],
)
async def test_the_older_form_of_a_body_works(
    sessions: Sessions, notebook: dict[str, str], path: str
) -> None:
    session = await sessions.create("given", "ignored", notebook=notebook)
    assert (session["path"], session["type"]) == (path, "notebook")
    assert session["notebook"]["path"] == path


async def test_in_the_older_form_a_kernel_id_that_is_none_is_ignored(sessions: Sessions) -> None:
    response = await sessions.post(notebook={"path": "a"}, kernel={"name": "python", "id": "foo"})
    assert response.status_code == 201
    assert UUID.fullmatch(response.json()["kernel"]["id"])


async def test_in_the_older_form_a_kernel_id_works(sessions: Sessions) -> None:
    kernel = await sessions.rest.start_kernel("fake")
    response = await sessions.post(notebook={"path": "a"}, kernel={"id": kernel["id"]})
    assert response.json()["kernel"]["id"] == kernel["id"]


# What cannot be made


async def test_an_unknown_kernelspec_is_501_with_two_messages(sessions: Sessions) -> None:
    response = await sessions.post(path="a", type="notebook", kernel={"name": "nope"})
    assert response.status_code == 501
    assert response.json() == {
        "message": "The 'nope' kernel is not available. Please pick another suitable kernel "
        "instead, or install that kernel.",
        "reason": None,
        "code": "kernel_unavailable",
        "short_message": "nope not found",
    }
    assert await sessions.list() == []


async def test_after_a_failure_the_path_is_free(sessions: Sessions) -> None:
    failed = await sessions.post(path="a", type="notebook", kernel={"name": "nope"})
    session = await sessions.create("a")
    assert failed.status_code == 501
    assert session["path"] == "a"


async def test_a_kernel_that_cannot_be_launched_is_500_with_the_reason(
    sessions: Sessions,
) -> None:
    response = await sessions.post(path="a", type="notebook", kernel={"name": "fake-missing"})
    message = error_of(response, 500, "kernel_start_failed")
    assert "[Errno 2] No such file or directory" in message
    assert "/nonexistent/kernel" in message
    assert await sessions.list() == []


@pytest.mark.parametrize(
    ("content", "code", "message"),
    [
        (b"", "invalid_request", "No JSON data provided"),
        (b"null", "invalid_request", "No JSON data provided"),
        (b"{", "invalid_json", "Invalid JSON in body of request"),
        (b"{}", "missing_field", "Missing field in JSON data: path"),
        (b'{"type": "notebook"}', "missing_field", "Missing field in JSON data: path"),
        (b'{"path": "a"}', "missing_field", "Missing field in JSON data: type"),
        (b'{"notebook": {}}', "missing_field", "Missing field in JSON data: path"),
        (b"[]", "invalid_request", "body: "),
        (b'"a"', "invalid_request", "body: "),
        (b"5", "invalid_request", "body: "),
        (b'{"path": null, "type": "a"}', "invalid_request", "path: "),
        (b'{"path": 5, "type": "a"}', "invalid_request", "path: "),
        (b'{"path": "a", "type": []}', "invalid_request", "type: "),
        (b'{"path": "a", "type": null}', "invalid_request", "type: "),
        (b'{"path": "a", "type": "\\u0000"}', "invalid_request", "type: holds a NUL character"),
        (b'{"path": "a", "type": "b", "name": 5}', "invalid_request", "name: "),
        (b'{"path": "a", "type": "b", "kernel": null}', "invalid_request", "kernel: "),
        (b'{"path": "a", "type": "b", "kernel": "fake"}', "invalid_request", "kernel: "),
        (b'{"path": "a", "type": "b", "kernel": {"id": 5}}', "invalid_request", "kernel.id: "),
        (b'{"path": "a", "type": "b", "kernel": {"name": []}}', "invalid_request", "kernel.name"),
        (b'{"path": "a", "notebook": "b"}', "invalid_request", "notebook: "),
        (b'{"notebook": {"path": 5}}', "invalid_request", "path: "),
        (b'{"path": "a", "type": "b", "kernel": {"id": "x"}}', "invalid_kernel_id", "kernel.id: "),
        (b'{"path": "../a", "type": "b"}', "invalid_path", "path: "),
        (b'{"path": "a/../../b", "type": "b"}', "invalid_path", "path: "),
        (b'{"path": "a\\u0000b", "type": "b"}', "invalid_path", "path: "),
        (b'{"path": "a", "type": "b", "name": "\\u0000"}', "invalid_request", "name: "),
        (b'{"path": "a\\ud800", "type": "b"}', "invalid_request", "path: "),
        (b'{"path": "a", "type": "\\udfff"}', "invalid_request", "type: "),
        (b'{"path": "a", "type": "b", "name": "\\ud800"}', "invalid_request", "name: "),
        (
            b'{"path": "a", "type": "b", "kernel": {"name": "\\ud800"}}',
            "invalid_request",
            "kernel.",
        ),
    ],
)
async def test_a_body_that_makes_no_sense_is_400_naming_the_field(
    sessions: Sessions, content: bytes, code: str, message: str
) -> None:
    response = await sessions.rest.http.post("/api/sessions", content=content)
    assert error_of(response, 400, code).startswith(message)
    assert await sessions.list() == []
    assert await sessions.rest.kernels() == []


async def test_a_path_through_a_link_out_of_the_root_is_refused(
    sessions: Sessions, server: ServerProcess
) -> None:
    link = server.home.root_dir / "link"
    link.symlink_to(server.home.state_dir)
    response = await sessions.post(path="link/a.ipynb", type="notebook")
    link.unlink()
    assert error_of(response, 400, "invalid_path").startswith("path: ")


# Looking, and the end


@pytest.mark.parametrize("session_id", [UNKNOWN, "zzz", "111-111-111-111-111"])
@pytest.mark.parametrize("method", ["GET", "DELETE", "PATCH"])
async def test_an_unknown_session_is_404(sessions: Sessions, method: str, session_id: str) -> None:
    body: object = {} if method == "PATCH" else None
    response = await sessions.rest.http.request(method, f"/api/sessions/{session_id}", json=body)
    message = error_of(response, 404, "session_not_found")
    assert message == f"Session not found: session_id='{session_id}'"


@pytest.mark.parametrize("method", ["PUT", "POST", "HEAD"])
async def test_other_methods_are_405(sessions: Sessions, method: str) -> None:
    response = await sessions.rest.http.request(method, f"/api/sessions/{UNKNOWN}")
    assert response.status_code == 405


async def test_deleting_a_session_shuts_its_kernel_down(
    sessions: Sessions, connect: Connector
) -> None:
    session = await sessions.create("a")
    channels = await connect(session["kernel"]["id"])
    await channels.execute("print hello")
    response = await sessions.rest.http.delete(f"/api/sessions/{session['id']}")
    assert response.status_code == 204
    assert response.content == b""
    assert "Content-Type" not in response.headers
    assert await sessions.rest.kernels() == []
    assert await sessions.list() == []
    await sessions.rest.request("GET", f"/api/sessions/{session['id']}", 404)


async def test_a_path_can_be_opened_again_while_its_old_kernel_still_ends(
    sessions: Sessions,
) -> None:
    old = await sessions.create("a", kernel="fake-no-shutdown")
    await sessions.rest.wait_for_state(old["kernel"]["id"], "idle")
    deletion = asyncio.create_task(sessions.delete(old["id"]))

    async def ending() -> bool:
        kernel = await sessions.rest.kernel(old["kernel"]["id"])
        return kernel["execution_state"] == "terminating"

    await eventually(ending)
    new = await sessions.create("a")
    assert not deletion.done()
    assert new["id"] != old["id"]
    assert new["kernel"]["id"] != old["kernel"]["id"]
    await deletion
    assert [session["id"] for session in await sessions.list()] == [new["id"]]


async def test_deleting_one_twice_at_once_is_one_success(sessions: Sessions) -> None:
    session = await sessions.create("a")
    path = f"/api/sessions/{session['id']}"
    responses = await asyncio.gather(*(sessions.rest.http.delete(path) for _ in range(4)))
    assert sorted(response.status_code for response in responses) == [204, 404, 404, 404]


def _farewell(session_id: str, kernel_id: str) -> str:
    return (
        f"Session not found: \"Kernel '{kernel_id}' appears to have been culled or died "
        f"unexpectedly, invalidating session '{session_id}'. The session has been removed.\""
    )


@pytest.mark.parametrize("method", ["GET", "DELETE", "PATCH"])
async def test_the_first_to_ask_for_one_whose_kernel_is_gone_learns_of_it(
    sessions: Sessions, method: str
) -> None:
    session = await sessions.create("a")
    await sessions.rest.delete(session["kernel"]["id"])
    body = {"name": "b"} if method == "PATCH" else None
    path = f"/api/sessions/{session['id']}"
    first, second = [await sessions.rest.http.request(method, path, json=body) for _ in range(2)]
    farewell = _farewell(session["id"], session["kernel"]["id"])
    assert error_of(first, 404, "session_not_found") == farewell
    short = f"Session not found: session_id='{session['id']}'"
    assert error_of(second, 404, "session_not_found") == short


async def test_a_list_leaves_those_out_whose_kernel_is_gone_and_forgets_them(
    sessions: Sessions,
) -> None:
    gone, stays = await sessions.create("a"), await sessions.create("b")
    await sessions.rest.delete(gone["kernel"]["id"])
    assert [session["id"] for session in await sessions.list()] == [stays["id"]]
    response = await sessions.rest.http.get(f"/api/sessions/{gone['id']}")
    short = f"Session not found: session_id='{gone['id']}'"
    assert error_of(response, 404, "session_not_found") == short


async def test_a_path_whose_kernel_is_gone_gets_a_new_session(sessions: Sessions) -> None:
    gone = await sessions.create("a")
    await sessions.rest.delete(gone["kernel"]["id"])
    new = await sessions.create("a")
    assert new["id"] != gone["id"]
    assert new["kernel"]["id"] != gone["kernel"]["id"]


async def test_a_kernel_that_sessions_share_ends_with_the_first_of_them(
    sessions: Sessions,
) -> None:
    first = await sessions.create("a")
    second = await sessions.create("b", kernel={"id": first["kernel"]["id"]})
    await sessions.delete(first["id"])
    assert await sessions.rest.kernels() == []
    response = await sessions.rest.http.get(f"/api/sessions/{second['id']}")
    farewell = _farewell(second["id"], first["kernel"]["id"])
    assert error_of(response, 404, "session_not_found") == farewell


async def test_a_session_whose_kernel_has_died_keeps_it_with_the_reason(
    sessions: Sessions,
) -> None:
    session = await sessions.create("a", kernel="fake-exit")
    await sessions.rest.wait_for_state(session["kernel"]["id"], "dead")
    kernel = (await sessions.get(session["id"]))["kernel"]
    assert kernel["execution_state"] == "dead"
    assert "exited with code 7" in kernel["reason"]
