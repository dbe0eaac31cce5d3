"""Errors as responses: ``{"message", "reason", "code"}`` with the right status, everywhere."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.responses import RedirectResponse, Response
from starlette.websockets import WebSocket

from app.managers.errors import KernelkeepError

__all__ = ["add_error_handlers", "error_response"]

_encode = msgspec.json.Encoder().encode


def error_response(
    status: int, message: str, code: str, headers: dict[str, str] | None = None, **more: Any
) -> Response:
    """The error body of a Jupyter server, with a stable machine-readable ``code``."""
    body = {"message": message, "reason": None, "code": code, **more}
    return Response(_encode(body), status, headers, "application/json")


def add_error_handlers(app: FastAPI) -> None:
    """Turn every exception into a response; the only place that does."""
    app.add_exception_handler(KernelkeepError, _on_kernelkeep_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(Exception, _on_exception)


async def _respond(connection: HTTPConnection, response: Response) -> Response:
    if isinstance(connection, WebSocket):
        await connection.send_denial_response(response)
    return response


async def _on_kernelkeep_error(connection: HTTPConnection, error: Exception) -> Response:
    assert isinstance(error, KernelkeepError)
    return await _respond(connection, error_response(error.status, error.message, error.code))


async def _on_validation_error(connection: HTTPConnection, error: Exception) -> Response:
    """Name the field that is wrong, without echoing its value."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        message, code = "Invalid JSON in body of request", "invalid_json"
    else:
        where = ".".join(str(part) for part in first["loc"] if part != "body")
        message, code = f"{where or 'body'}: {first['msg']}", "invalid_request"
    return await _respond(connection, error_response(400, message, code))


async def _on_http_exception(connection: HTTPConnection, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 404 and connection.scope.get("method") == "GET":
        path = connection.url.path
        if path.endswith("/") and path != "/":
            return RedirectResponse(str(connection.url.replace(path=path.rstrip("/"))), 302)
    phrase = HTTPStatus(error.status_code).phrase
    message = str(error.detail) or phrase
    code = phrase.lower().replace(" ", "_")
    headers = dict(error.headers) if error.headers else None
    return await _respond(connection, error_response(error.status_code, message, code, headers))


async def _on_exception(connection: HTTPConnection, _error: Exception) -> Response:
    """Starlette logs the traceback; the client learns nothing of it."""
    response = error_response(500, "Unhandled error", "internal_error", traceback="")
    return await _respond(connection, response)
