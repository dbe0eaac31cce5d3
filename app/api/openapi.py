"""What the OpenAPI document says beyond the routes: errors, access, WebSockets."""

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
    InvalidJSON,
    InvalidRequest,
    KernelkeepError,
    NotAuthorized,
    RequestTooLarge,
    Unauthorized,
)
from ..protocol.v1 import SUBPROTOCOL
from .access import declared_access
from .execution_models import ExecutionResultModel, LogEventModel
from .models import ContentsModel, ErrorModel
from .websocket_models import ChannelsMessageModel, ServerEventModel

__all__ = ["BODY", "ERRORS", "FILE", "complete", "errors", "json_errors", "links", "stream_of"]

BODY: Final = (InvalidRequest, InvalidJSON, RequestTooLarge)
"""What a route that takes a body may answer."""

_BYTES: Final = {"schema": {"type": "string", "format": "binary"}}

# One of the two by name: generators of clients know that one as bytes.
FILE: Final = {"application/octet-stream": _BYTES, "*/*": _BYTES}
"""The content of a response that is of any media type."""

_EVERYWHERE: Final = (Unauthorized, NotAuthorized, AuthorizerFailed)
# What no route raises, but what is found out before or behind it.
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
        "description": "The same where no header can be set, as on a browser's WebSocket.",
    },
}
_EITHER: Final[list[dict[str, list[str]]]] = [{name: []} for name in _SECURITY_SCHEMES]

# Of the schemas that no route returns as a body of its own.
_MODELS: Final = (LogEventModel, ChannelsMessageModel, ServerEventModel, ContentsModel)
_REFERENCE: Final = "#/components/schemas/{model}"

_WEBSOCKETS: Final[dict[str, dict[str, Any]]] = {
    "kernels_channels": {
        "subprotocols": [SUBPROTOCOL],
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
        "messages": {"$ref": _REFERENCE.format(model="ServerEventModel")},
        "closeCodes": {
            "1012": "The server stops: come back.",
            "1013": "Too slow: what came after this was dropped.",
        },
    },
}


def errors(*kinds: type[KernelkeepError]) -> dict[int | str, dict[str, Any]]:
    """The error responses of a route that may raise these, for its OpenAPI operation."""
    said: dict[int, list[str]] = {status: [] for status in _AROUND}
    every: tuple[type[KernelkeepError], ...] = (*_EVERYWHERE, *kinds)
    for kind in every:
        said.setdefault(kind.status, []).append(f"`{kind.code}`: {_sentence(kind)}")
    for status, sentence in _AROUND.items():
        said[status].append(sentence)
    return {
        **{
            status: {
                "model": ErrorModel,
                "description": "\n\n".join(said[status]),
                **({"headers": _RETRY_AFTER} if status in (429, 503) else {}),
            }
            for status in sorted(said)
        },
        # Without it FastAPI documents a 422 of its own, which is never sent.
        "default": {"model": ErrorModel, "description": "Any other error."},
    }


def _sentence(kind: type[KernelkeepError]) -> str:
    return " ".join((kind.__doc__ or "").split("\n\n")[0].split())


def json_errors(*kinds: type[KernelkeepError]) -> dict[int | str, dict[str, Any]]:
    """The same, for a route whose own answers are not JSON: FastAPI would say that of errors too.

    The model must be in the document already, by way of some other route.
    """
    schema = {"$ref": _REFERENCE.format(model=ErrorModel.__name__)}
    return {
        status: {
            "description": response["description"],
            "content": {"application/json": {"schema": schema}},
        }
        for status, response in errors(*kinds).items()
    }


def stream_of(model: str) -> dict[str, Any]:
    """The content of a response that is a stream of such events.

    OpenAPI 3.1 has no word for that: the body is text, and an extension tells of what.
    """
    reference = {"$ref": _REFERENCE.format(model=model)}
    return {"schema": {"type": "string", "x-event-schema": reference}}


def links(parameters: dict[str, str], *operations: str) -> dict[str, Any]:
    """What can be done next with what a response tells: operations, by their ids.

    ``parameters`` are where theirs come from, in OpenAPI's runtime expressions.
    """
    return {name: {"operationId": name, "parameters": parameters} for name in operations}


ERRORS: Final = errors()
"""What every route may answer."""


def complete(app: FastAPI, routers: Iterable[APIRouter], root_path: str) -> None:
    """Let the document of ``app`` say what FastAPI cannot know of the routes of ``routers``.

    Clients find them below ``root_path``.
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
    # As FastAPI writes the others: without `default: null`.
    schemas = {**jsonable_encoder(found["$defs"], exclude_none=True), **components["schemas"]}
    # FastAPI takes what is null out of examples, too.
    for model in (ErrorModel, ExecutionResultModel, ContentsModel):
        schemas[model.__name__]["examples"] = model.model_json_schema()["examples"]
    components["schemas"] = {name: schemas[name] for name in sorted(schemas)}
    components["securitySchemes"] = _SECURITY_SCHEMES


def _add_security(document: dict[str, Any], routes: Iterable[object]) -> None:
    document["security"] = _EITHER
    for route in routes:
        if isinstance(route, APIRoute) and route.include_in_schema:
            access = declared_access(route)
            for method in route.methods or ():
                # Said of each operation: not every generator reads what holds for all.
                operation = document["paths"][route.path_format][method.lower()]
                operation["security"] = [] if access is not None and access.public else _EITHER


def _simplify_parameters(document: dict[str, Any]) -> None:
    """Whatever may be left out may be null to FastAPI; but no query and no header can say null."""
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
