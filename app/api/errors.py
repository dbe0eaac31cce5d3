"""Turns errors into responses: each has the body ``{"message", "reason", "code"}``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from http import HTTPStatus
from itertools import chain
from typing import Any, Final
from urllib.parse import quote

import msgspec
from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError, WebSocketRequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.responses import RedirectResponse, Response

from ..callers import caller
from ..managers.errors import InvalidJSON, KernelkeepError
from ..managers.telemetry.audit import MAX_TEXT, AuditLog

__all__ = [
    "STANDARD_HEADERS",
    "add_error_handlers",
    "code_of",
    "error_response",
    "note_refusal",
    "response_to",
]

STANDARD_HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": (
        "frame-ancestors 'self'; report-uri /api/security/csp-report; default-src 'none'"
    ),
}
"""The headers of every response of a Jupyter server; Jupyter's tests compare them to the letter."""

# Codes for the errors that the framework raises. Its phrases differ between versions of Python.
_CODES: Final = {
    400: "bad_request",
    404: "not_found",
    405: "method_not_allowed",
    426: "upgrade_required",
    500: "internal_error",
}

_MAX_WHERE: Final = 200  # characters of a field's name that an error repeats

_encode = msgspec.json.Encoder().encode


class ErrorResponse(Response):
    """The response to an error, whose ``code`` the server's own logs tell, too."""

    code = ""


def error_response(
    status: int, message: str, code: str, headers: dict[str, str] | None = None, **more: Any
) -> ErrorResponse:
    """An error with the body of a Jupyter server's, and a stable machine-readable ``code``."""
    # The message may repeat a name that the client has sent, with lone surrogates in it.
    text = message.encode("utf-8", "replace").decode()
    body = {"message": text, "reason": None, "code": code, **more}
    response = ErrorResponse(_encode(body), status, headers, "application/json")
    response.code = code
    return response


def response_to(error: KernelkeepError) -> ErrorResponse:
    """The response to an error, with its status, message, code and headers."""
    headers = None if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    return error_response(error.status, error.message, error.code, headers, **error.details)


def add_error_handlers(app: FastAPI, routers: Iterable[APIRouter]) -> None:
    """Have the application turn every exception into a response; no other place does that."""
    methods: dict[str, set[str]] = {}
    for route in chain.from_iterable(router.routes for router in routers):
        if isinstance(route, APIRoute):
            # Preflights are answered everywhere (`app.api.access`).
            methods.setdefault(route.path_format, {"OPTIONS"}).update(route.methods or ())
    app.state.methods = {path: ", ".join(sorted(found)) for path, found in methods.items()}
    app.add_exception_handler(KernelkeepError, _on_kernelkeep_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(WebSocketRequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(Exception, _on_exception)


# If a WebSocket is not accepted yet, Starlette sends these responses in place of its handshake.


async def _on_kernelkeep_error(connection: HTTPConnection, error: Exception) -> Response:
    assert isinstance(error, KernelkeepError)
    if error.status == 404 and (redirect := _without_slash(connection)):
        return redirect
    if (error.status == 403 and not error.noted) or error.hides:
        note_refusal(connection, error.code, error.hides)
    return response_to(error)


def note_refusal(connection: HTTPConnection, code: str, hidden: Mapping[str, str]) -> None:
    """Note in the audit log that a caller may not do what it has asked for.

    ``hidden`` is what the caller was told is not there (`KernelkeepError.hides`).
    """
    audit: AuditLog | None = connection.scope.get("state", {}).get("audit")
    if audit is not None:
        route = getattr(connection.scope.get("route"), "path_format", "")
        method = connection.scope.get("method", "WebSocket")
        found: Mapping[str, str] = connection.path_params
        about: dict[str, Any] = {
            name: found[name][:MAX_TEXT]
            for name in ("kernel_id", "session_id", "path")
            if name in found
        }
        audit.refuse(f"{method} {route}", code, known=True, **{**about, **hidden})


async def _on_validation_error(_connection: HTTPConnection, error: Exception) -> Response:
    """An error that names the wrong field, without repeating its value."""
    assert isinstance(error, RequestValidationError | WebSocketRequestValidationError)
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return _invalid_json()
    if first["loc"] == ("body",) and first["input"] is None:
        return error_response(400, "No JSON data provided", "invalid_request")
    if first["type"] == "missing" and first["loc"][0] == "query":
        return error_response(400, f"Missing argument {first['loc'][1]}", "invalid_request")
    where = ".".join(str(part) for part in first["loc"] if part not in ("body", "query"))
    what = "there is no such field" if first["type"] == "extra_forbidden" else first["msg"]
    what = what.removeprefix("Value error, ")  # pydantic's own words before a validator's
    message = f"{where[:_MAX_WHERE] or 'body'}: {what}"
    return error_response(400, message, "invalid_request")


def _invalid_json() -> Response:
    return error_response(400, "Invalid JSON in body of request", InvalidJSON.code)


async def _on_http_exception(connection: HTTPConnection, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 404 and (redirect := _without_slash(connection)):
        return redirect
    # FastAPI has other errors for a body that is not UTF-8 or is nested too deeply.
    if isinstance(error.__cause__, UnicodeDecodeError | RecursionError):
        return _invalid_json()
    status = error.status_code
    message = str(error.detail) or HTTPStatus(status).phrase
    headers = dict(error.headers) if error.headers else {}
    if status == 405:  # the framework names the methods of one route; a path may have several
        path = getattr(connection.scope.get("route"), "path_format", "")
        headers["Allow"] = connection.app.state.methods.get(path, headers.get("Allow", ""))
    return error_response(status, message, code_of(status), headers)


def code_of(status: int) -> str:
    """The code of an error that the framework raises with this status."""
    return _CODES.get(status, f"http_{status}")


def _without_slash(connection: HTTPConnection) -> Response | None:
    """A redirection for a path that ends in a slash, to that path without it and with the query."""
    path = connection.scope["path"].rstrip("/")
    if not path or path == connection.scope["path"]:
        return None
    if connection.scope.get("method") not in ("GET", "POST", "PUT"):
        return None
    # The target has one slash at its start: two would make a browser go to another server.
    target = quote("/" + path.lstrip("/"))
    query = connection.scope["query_string"].decode("latin-1")
    return RedirectResponse(f"{target}?{query}" if query else target, 302)


async def _on_exception(_connection: HTTPConnection, _error: Exception) -> Response:
    """The response to an exception that no handler knows. Starlette logs the traceback.

    Starlette sends this response outside of all other middleware, so the headers that those add are
    added here. The server then ends the connection.
    """
    headers = {**STANDARD_HEADERS, "Connection": "close"}
    if (failed := caller()) is not None:
        headers["X-Request-Id"] = failed.request_id
    return error_response(500, "Unhandled error", "internal_error", headers, traceback="")
