"""Which requests are about one kernel, so that its replica answers them."""

from __future__ import annotations

from typing import Any, cast

import pytest

from app.api.forwarding import asked_kernel, kernel_of, named_kernel, named_session

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
