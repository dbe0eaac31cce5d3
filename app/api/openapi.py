"""The parts of the OpenAPI document that FastAPI does not make: errors, access, WebSockets."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any, Final

from fastapi import APIRouter, FastAPI
from fastapi.encoders import jsonable_encoder
from fastapi.routing import APIRoute, APIWebSocketRoute
from pydantic.json_schema import models_json_schema

from ..managers.errors import (
    AuthorizerFailed,
    IdentityUnavailable,
    InvalidJSON,
    InvalidKernelId,
    InvalidRequest,
    KernelkeepError,
    KernelNotFound,
    NotAuthorized,
    RequestTooLarge,
    SessionNotFound,
    Unauthorized,
)
from ..managers.executions.results import ExecutionResultModel
from ..managers.files.models import ContentsModel
from ..managers.kernels.overview import GoneEvent, KernelEvent, WholeEvent
from ..managers.limits.errors import RequestsLimit, WebSocketsLimit
from ..managers.replicas.errors import (
    KernelElsewhereError,
    RegistryUnavailable,
    ReplicaUnreachable,
    RequestUnderway,
)
from ..protocol.subprotocols import TOKEN
from ..protocol.v1 import SUBPROTOCOL
from .access import declared_access
from .log_pages import LogEventModel
from .responses import ErrorModel
from .schemas import schema_of, union_of
from .websocket_models import ChannelsMessageModel, ServerEventModel

__all__ = ["BODY", "ERRORS", "FILE", "complete", "errors", "links", "stream_of"]

BODY: Final = (InvalidRequest, InvalidJSON, RequestTooLarge)
"""The errors of every route that takes a body."""

_BYTES: Final = {"schema": {"type": "string", "format": "binary"}}

# `*/*` says it all. The other is there for generators of clients: they make bytes of that one.
FILE: Final = {"application/octet-stream": _BYTES, "*/*": _BYTES}
"""The content of a response that is of any media type."""

_EVERYWHERE: Final = (
    *(Unauthorized, NotAuthorized, AuthorizerFailed, IdentityUnavailable, RequestsLimit),
)
# Errors that no route raises: middleware and handlers answer with them.
_AROUND: Final = {
    403: "`forbidden_host`: The `Host` is none that this server answers to.",
    404: "`forbidden_origin`: A web page elsewhere has sent it, without the token.",
    429: "`too_many_wrong_tokens`: This address has shown too many wrong tokens.",
    500: "`internal_error`: It failed; the server's log has the details.",
}

_RETRY_AFTER: Final = {
    "Retry-After": {
        "description": "In how many seconds to try again, if that is known.",
        "schema": {"type": "integer"},
    }
}

_DESCRIPTION: Final = """\
Kernels by Jupyter's own contract, and executions for clients that want to run code with no
WebSocket and no knowledge of the Jupyter protocol.

Every error has the body `ErrorModel`; its `code` does not change. Responses that come in one piece
have an `ETag`, and a GET with `If-None-Match` is answered 304 when nothing has changed. Fields,
events and error codes may be added: clients ignore those that they do not know.

What OpenAPI has no words for, the WebSockets, is under `x-websockets`, with the schemas of their
messages among the components.
"""

_TAGS: Final = {
    "kernels": "Start, look at, interrupt, restart and shut down kernels.",
    "executions": "Run code, follow it, fetch its outputs, cancel it.",
    "messages": "What a kernel has said, from its log.",
    "kernelspecs": "The kinds of kernels that can be started.",
    "sessions": "Which document or console works with which kernel.",
    "contents": "Files, notebooks and directories below the root directory.",
    "events": "Events of this server, for all who listen.",
    "user": "Who the user is.",
    "owners": "What each owner may use, and uses.",
    "server": "The server itself.",
}

_SECURITY_SCHEMES: Final = {
    "token": {
        "type": "http",
        "scheme": "bearer",
        "description": "The server's token. `Authorization: token …` is the same.",
    },
    "tokenInQuery": {
        "type": "apiKey",
        "in": "query",
        "name": "token",
        "description": "The same where no header can be set. A WebSocket may be opened with the "
        "subprotocols `v1.token.websocket.jupyter.org` and, behind that and a dot, the token "
        "(percent-encoded) in place of this.",
    },
}
_EITHER: Final[list[dict[str, list[str]]]] = [{name: []} for name in _SECURITY_SCHEMES]

# Models that no route returns as its whole body: FastAPI does not put them into the document.
_OVERVIEW_EVENT: Final = union_of(
    KernelEvent | GoneEvent | WholeEvent,
    "OverviewEventModel",
    "Something that a stream of the overview consists of.",
)

_MODELS: Final = (
    *(LogEventModel, ChannelsMessageModel, ServerEventModel),
    *(_OVERVIEW_EVENT, schema_of(ContentsModel), ErrorModel),
)
_REFERENCE: Final = "#/components/schemas/{model}"

# Named by its place in the document: for a `model` FastAPI makes a schema of each error response of
# each route, some 400, which would be a tenth of the server's start.
_ERROR: Final = {
    "application/json": {"schema": {"$ref": _REFERENCE.format(model=ErrorModel.__name__)}}
}

_WEBSOCKETS: Final[dict[str, dict[str, Any]]] = {
    "kernels_channels": {
        "subprotocols": [SUBPROTOCOL, TOKEN],
        "messages": {"$ref": _REFERENCE.format(model="ChannelsMessageModel")},
        "closeCodes": {
            "1000": "A newer connection has this session: do not come back.",
            "1003": "A text frame where only binary ones are spoken.",
            "1007": "A frame that is no message.",
            "1011": "The server failed.",
            "1012": "The server stops: come back.",
            "4404": "The kernel was shut down.",
        },
    },
    "events_subscribe": {
        "subprotocols": [TOKEN],
        "messages": {"$ref": _REFERENCE.format(model="ServerEventModel")},
        "closeCodes": {
            "1012": "The server stops: come back.",
            "1013": "Too slow: what came after this was dropped.",
        },
    },
}


def errors(*kinds: type[KernelkeepError]) -> dict[int | str, dict[str, Any]]:
    """The error responses of an operation whose route may raise these errors."""
    said: dict[int, list[str]] = {status: [] for status in _AROUND}
    every: tuple[type[KernelkeepError], ...] = (*_EVERYWHERE, *kinds)
    if not {KernelNotFound, SessionNotFound}.isdisjoint(kinds):
        every += (ReplicaUnreachable,)
    if InvalidKernelId in kinds:  # a kernel is started
        every += (RegistryUnavailable, RequestUnderway, KernelElsewhereError)
    for kind in dict.fromkeys(every):
        said.setdefault(kind.status, []).append(_said_of(kind))
    for status, sentence in _AROUND.items():
        said[status].append(sentence)
    return {
        **{
            status: {
                "description": "\n\n".join(said[status]),
                **({"headers": _RETRY_AFTER} if status in (429, 503) else {}),
                "content": _ERROR,
            }
            for status in sorted(said)
        },
        # Without it FastAPI documents a 422 of its own, which is never sent.
        "default": {"description": "Any other error.", "content": _ERROR},
    }


def _said_of(*kinds: type[KernelkeepError]) -> str:
    """The codes of errors, each with the first paragraph of what its class says."""
    return "\n\n".join(
        f"`{kind.code}`: {' '.join((kind.__doc__ or '').split(chr(10) * 2)[0].split())}"
        for kind in kinds
    )


def stream_of(model: str) -> dict[str, Any]:
    """The content of a response that is a stream of events of a model.

    OpenAPI 3.1 cannot describe that: the body is a text, and an extension names the model.
    """
    reference = {"$ref": _REFERENCE.format(model=model)}
    return {"schema": {"type": "string", "x-event-schema": reference}}


def links(parameters: dict[str, str], *operations: str) -> dict[str, Any]:
    """The links of a response to operations (by their ids) that a client can call next.

    ``parameters`` gives a runtime expression of OpenAPI for each parameter of those operations.
    """
    return {name: {"operationId": name, "parameters": parameters} for name in operations}


ERRORS: Final = errors()
"""The error responses of every operation."""


def complete(app: FastAPI, routers: Iterable[APIRouter], root_path: str) -> None:
    """Have ``app`` complete its OpenAPI document with what FastAPI does not know of the routes.

    ``root_path`` is the prefix below which clients find the routes.
    """
    plain: Callable[[], dict[str, Any]] = app.openapi
    routes = [route for router in routers for route in router.routes]

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = plain()
            document["info"]["description"] = _DESCRIPTION
            document["tags"] = [{"name": name, "description": _TAGS[name]} for name in _TAGS]
            _add_components(document)
            _add_security(document, routes)
            _simplify_parameters(document)
            if root_path:
                document["servers"] = [{"url": root_path}]
            document["x-websockets"] = _websockets(routes)
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _add_components(document: dict[str, Any]) -> None:
    components = document["components"]
    _, found = models_json_schema(
        [(model, "serialization") for model in _MODELS], ref_template=_REFERENCE
    )
    # FastAPI writes its schemas without `default: null`, and so are these.
    schemas = {**jsonable_encoder(found["$defs"], exclude_none=True), **components["schemas"]}
    # FastAPI removes null from examples, too; these are put back whole.
    for model in (ErrorModel, schema_of(ExecutionResultModel), schema_of(ContentsModel)):
        schemas[model.__name__]["examples"] = model.model_json_schema()["examples"]
    components["schemas"] = {name: schemas[name] for name in sorted(schemas)}
    components["securitySchemes"] = _SECURITY_SCHEMES


def _add_security(document: dict[str, Any], routes: Iterable[object]) -> None:
    document["security"] = _EITHER
    for route in routes:
        if isinstance(route, APIRoute) and route.include_in_schema:
            access = declared_access(route)
            for method in route.methods or ():
                # Each operation has it: not every generator reads the document's own `security`.
                operation = document["paths"][route.path_format][method.lower()]
                operation["security"] = [] if access is not None and access.public else _EITHER


def _simplify_parameters(document: dict[str, Any]) -> None:
    """Remove null from the types of parameters: no query or header can have it.

    FastAPI adds it to every parameter that may be left out.
    """
    for operations in document["paths"].values():
        for operation in operations.values():
            for parameter in operation.get("parameters", ()):
                schema = parameter["schema"]
                kinds = [kind for kind in schema.pop("anyOf", ()) if kind != {"type": "null"}]
                if kinds:
                    (kind,) = kinds
                    parameter["schema"] = {**kind, **schema}


def _websockets(routes: Iterable[object]) -> dict[str, Any]:
    return {
        route.path_format: {
            "operationId": route.name,
            "description": inspect.getdoc(route.endpoint),
            "parameters": _parameters(route),
            "refusals": {"429": _said_of(RequestsLimit, WebSocketsLimit)},
            **_WEBSOCKETS[route.name],
        }
        for route in routes
        if isinstance(route, APIWebSocketRoute) and route.name in _WEBSOCKETS
    }


def _parameters(route: APIWebSocketRoute) -> list[dict[str, str]]:
    dependant = route.dependant
    return [
        {
            "name": parameter.alias,
            "in": place,
            "description": parameter.field_info.description or "",
        }
        for place, parameters in (
            ("path", dependant.path_params),
            ("query", dependant.query_params),
        )
        for parameter in parameters
    ]
