"""The OpenAPI document, and a page that shows it without loading anything from the internet."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from importlib.resources import files
from typing import Any, Final

import yaml
from fastapi import APIRouter, Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, RedirectResponse, Response

from ..managers.errors import NotFound
from .access import PUBLIC, requires

__all__ = ["docs_router"]

# Swagger UI's files, as fastapi-offline ships them.
_ASSETS: Final = {
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
}

# The token is in the query of the page's address. The page adds it to all that it loads.
_SCRIPT: Final = """
const query = location.search;
const token = new URLSearchParams(query).get("token");
const base = location.pathname.replace(/\\/$/, "");
const style = document.createElement("link");
style.rel = "stylesheet";
style.href = base + "/swagger-ui.css" + query;
document.head.append(style);
const script = document.createElement("script");
script.src = base + "/swagger-ui-bundle.js" + query;
script.onload = () => SwaggerUIBundle({
  url: base.replace(/docs$/, "openapi.json"),
  dom_id: "#swagger-ui",
  deepLinking: true,
  validatorUrl: null,
  requestInterceptor: (request) => {
    if (token && !request.headers.Authorization) request.headers.Authorization = "token " + token;
    return request;
  },
});
document.head.append(script);
"""
_SCRIPT_HASH: Final = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
_PAGE: Final = f"""<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>kernelkeep</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer"></head>
<body><div id="swagger-ui"></div><script>{_SCRIPT}</script></body>
</html>
"""
_POLICY: Final = (
    f"default-src 'none'; script-src 'self' 'sha256-{_SCRIPT_HASH}'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)


def docs_router(*, public: bool, home: bool) -> APIRouter:
    """The routes of the OpenAPI document and its page; if ``public``, they need no token.

    With ``home``, the address that the server prints leads to them, as there is nothing else there.
    """
    access = PUBLIC if public else requires("api", "read", activity=False)
    router = APIRouter(include_in_schema=False, dependencies=[access])
    written: bytes | None = None

    async def to_docs(request: Request) -> Response:
        # A relative address: an absolute one would come from the Host header, so it could lead to
        # another server, with the token in its query.
        query = request.scope["query_string"].decode("latin-1")
        return RedirectResponse(f"docs?{query}" if query else "docs", 302)

    if home:
        router.add_api_route("/", to_docs, name="home")

    @router.get("/openapi.json", name="openapi")
    async def openapi(request: Request) -> Response:
        return JSONResponse(request.app.openapi())

    @router.get("/api/spec.yaml", name="spec")
    async def spec(request: Request) -> Response:
        # To write the YAML takes tenths of a second, so a thread does it, and once. The race: two
        # first requests may each have it written; both texts are the same.
        nonlocal written
        if written is None:
            written = await asyncio.to_thread(_as_yaml, request.app.openapi())
        return Response(written, media_type="text/x-yaml")

    @router.get("/docs", name="docs")
    async def docs() -> Response:
        headers = {"Content-Security-Policy": _POLICY, "Referrer-Policy": "no-referrer"}
        return HTMLResponse(_PAGE, headers=headers)

    # Each file has a route, so that the paths that need no token can be listed exactly.
    for name, media_type in _ASSETS.items():
        router.add_api_route(f"/docs/{name}", _asset(name, media_type), name=name)
    return router


def _as_yaml(document: dict[str, Any]) -> bytes:
    # The copy has no object twice, which would become an alias: not every reader of YAML knows it.
    plain = json.loads(json.dumps(document))
    text: str = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
    return text.encode()


def _asset(name: str, media_type: str) -> Any:
    async def asset() -> Response:
        file = files("fastapi_offline").joinpath("static", name)
        if not file.is_file():
            raise NotFound("The documentation's assets are not installed")
        headers = {"Cache-Control": "max-age=86400"}
        return FileResponse(str(file), media_type=media_type, headers=headers)

    return asset
