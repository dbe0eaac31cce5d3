"""Which requests are about one kernel, so that its replica answers them."""

from __future__ import annotations

import pytest

from app.api.forwarding import named_kernel, named_session

ID = "3d1f5a2e-8c0b-4a57-9a53-6a0c0d5a7e11"


@pytest.mark.parametrize(
    ("path", "kernel_id"),
    [
        (f"/api/kernels/{ID}", ID),
        (f"/api/kernels/{ID.upper()}/restart", ID),
        (f"/prefix/api/kernels/{ID}/executions/x/events", ID),
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
    path = f"/prefix/api/sessions/{ID}"
    assert named_session("DELETE", path) == ID
    assert named_session("PATCH", path) == ID
    assert named_session("GET", path) is None
    assert named_session("DELETE", f"{path}/more") is None
