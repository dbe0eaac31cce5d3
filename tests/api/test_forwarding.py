"""Which requests are about one kernel, so that its replica answers them."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any, NoReturn, cast

import pytest
from starlette.types import Message

from app.api.forwarding import (
    ForwardingMiddleware,
    asked_kernel,
    kernel_of,
    named_kernel,
    named_session,
)
from app.api.relay import RELAYED, Broken

ID = "3d1f5a2e-8c0b-4a57-9a53-6a0c0d5a7e11"
KERNEL = "7c9e6679-7425-40de-944b-e07fc1f90ae7"


@pytest.mark.parametrize(
    ("path", "kernel_id"),
    [
        (f"/api/kernels/{ID}", ID),
        (f"/api/kernels/{ID.upper()}/restart", ID),
        (f"/api/kernels/{ID}/executions/x/events", ID),
        (f"/api/metrics/v1/kernel_usage/get_usage/{ID}", ID),
        (f"/files/api/kernels/{ID}", None),  # a file, which any replica has
        (f"/api/kernels/{ID}\n/x", None),
        (f"/api/kernels/{ID}/a\nb", ID),
        (f"/api/kernels/{ID}x", None),
        ("/api/kernels", None),
        ("/api/kernels/none", None),
        (f"/api/sessions/{ID}", None),
    ],
)
def test_the_kernel_of_a_path(path: str, kernel_id: str | None) -> None:
    assert named_kernel(path) == kernel_id


def test_the_session_that_a_request_changes() -> None:
    path = f"/api/sessions/{ID}"
    assert named_session("DELETE", path) == ID
    assert named_session("PATCH", path) == ID
    assert named_session("GET", path) is None
    assert named_session("DELETE", f"{path}/more") is None


@pytest.mark.parametrize(
    ("query", "kernel_id"),
    [
        (f"path=/x.py&kernel={ID}", ID),
        (f"kernel={ID.upper()}", ID),
        ("path=/x.py", None),
        ("kernel=none", None),
        ("kernel=", None),
        (f"kernel={ID}x", None),
        ("%ff=%ff", None),
    ],
)
def test_the_kernel_that_resolves_a_path(query: str, kernel_id: str | None) -> None:
    assert asked_kernel(query.encode()) == kernel_id


class Group:
    """The one session that a group of replicas knows is of another kernel."""

    def kernel_of_session(self, session_id: str) -> str | None:
        return KERNEL if session_id == ID else None


@pytest.mark.parametrize(
    ("prefix", "path", "kernel_id"),
    [
        ("", f"/api/kernels/{ID}", ID),
        ("/lab", f"/api/kernels/{ID}", ID),
        ("/lab", f"/lab/api/kernels/{ID}", ID),
        ("/lab", f"/labs/api/kernels/{ID}", None),
        ("/lab", f"/lab/api/sessions/{ID}", KERNEL),
        ("/lab", f"/lab/files/api/kernels/{ID}", None),
    ],
)
def test_the_kernel_of_a_request(prefix: str, path: str, kernel_id: str | None) -> None:
    scope = {"path": path, "method": "DELETE"}
    assert kernel_of(scope, prefix, cast("Any", Group())) == kernel_id


async def answered(links: Any, **scope: Any) -> dict[str, Any]:
    """The error that a request gets for a kernel of another replica, which cannot be waited for."""

    async def find(_: str) -> Any:
        return SimpleNamespace(replica="other", is_reachable=True)

    async def app(*_: Any) -> NoReturn:
        raise AssertionError

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    group = SimpleNamespace(
        id="this",
        patience=0.0,
        is_here=lambda _: False,
        find=find,
        way_to=lambda replica: SimpleNamespace(replica=replica),
    )
    given = {
        "type": "http",
        "method": "POST",
        "path": f"/api/kernels/{ID}/executions",
        "state": {"group": group, "links": links},
        **scope,
    }
    await ForwardingMiddleware(app, "")(given, cast("Any", None), send)
    answer: dict[str, Any] = json.loads(sent[1]["body"])
    assert (sent[0]["status"], answer["code"]) == (503, "replica_unreachable")
    return answer


@pytest.mark.parametrize("begun", [True, False])
async def test_whether_a_request_may_have_been_done_is_told(begun: bool) -> None:
    """Its replica has ended with it."""

    async def ends(*_: Any) -> NoReturn:
        raise Broken(begun=begun)

    answer = await answered(SimpleNamespace(run=ends, is_lost=lambda *_: True))
    assert ("may have been done" in answer["message"]) is begun


@pytest.mark.parametrize("is_relayed", [True, False])
async def test_a_request_that_another_replica_has_sent_on_is_not_sent_on(is_relayed: bool) -> None:
    """Each of two replicas believes that the other one has the kernel."""
    sent_on: list[Any] = []

    async def run(way: Any, *_: Any) -> bool:
        sent_on.append(way.replica)
        return False

    links = SimpleNamespace(run=run, is_lost=lambda *_: False)
    await answered(links, **({RELAYED: True} if is_relayed else {}))
    assert sent_on == ([] if is_relayed else ["other"])
