"""A client of ``/api/sessions`` that cleans up after itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NotRequired, TypedDict, cast

import httpx

from tests.support.rest import KernelModel, RestClient


class SessionModel(TypedDict):
    id: str
    path: str
    name: str
    type: str
    kernel: KernelModel
    notebook: NotRequired[dict[str, str]]


class Sessions:
    """Sessions of one server; ``rest`` is the client that they are asked for with."""

    def __init__(self, rest: RestClient) -> None:
        self.rest = rest

    async def list(self) -> list[SessionModel]:
        return cast(list[SessionModel], (await self.rest.request("GET", "/api/sessions")).json())

    async def post(self, **body: Any) -> httpx.Response:
        """The response to any body, whatever it is."""
        return await self.rest.http.post("/api/sessions", json=body)

    async def create(
        self,
        path: str,
        type: str = "notebook",
        *,
        kernel: str | dict[str, str] = "fake",
        **body: Any,
    ) -> SessionModel:
        """``kernel`` is a kernelspec's name, or what the body says of it; ``body`` is the rest."""
        choice = {"name": kernel} if isinstance(kernel, str) else kernel
        sent = {"path": path, "type": type, "kernel": choice, **body}
        response = await self.rest.request("POST", "/api/sessions", 201, json=sent)
        model = cast(SessionModel, response.json())
        assert response.headers["Location"] == f"/api/sessions/{model['id']}"
        return model

    async def get(self, session_id: str) -> SessionModel:
        response = await self.rest.request("GET", f"/api/sessions/{session_id}")
        return cast(SessionModel, response.json())

    async def change(self, session_id: str, **body: Any) -> SessionModel:
        response = await self.rest.request("PATCH", f"/api/sessions/{session_id}", json=body)
        return cast(SessionModel, response.json())

    async def delete(self, session_id: str) -> None:
        await self.rest.request("DELETE", f"/api/sessions/{session_id}", 204)


@asynccontextmanager
async def sessions_of(rest: RestClient) -> AsyncIterator[Sessions]:
    """Sessions of a server; its kernels are deleted at the end, and so are its sessions."""
    sessions = Sessions(rest)
    try:
        yield sessions
    finally:
        kernels = await rest.kernels()
        await asyncio.gather(*(rest.http.delete(f"/api/kernels/{k['id']}") for k in kernels))
        assert await sessions.list() == []
