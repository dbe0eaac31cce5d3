"""The one form that every error response has."""

from __future__ import annotations

import httpx

STANDARD_POLICY = "frame-ancestors 'self'; report-uri /api/security/csp-report; default-src 'none'"


def error_of(response: httpx.Response, status: int, code: str) -> str:
    """The message of an error response, which is checked for everything else."""
    assert response.status_code == status, response.text
    assert response.headers["Content-Type"] == "application/json"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Content-Security-Policy"] == STANDARD_POLICY
    body = response.json()
    assert list(body) == ["message", "reason", "code"]
    assert body["reason"] is None
    assert body["code"] == code
    return str(body["message"])
