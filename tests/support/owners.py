"""Clients of many owners of one server, and the shares of their kernels."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Any, Final

from tests.support.channels import JupyterChannels
from tests.support.identities import token
from tests.support.rest import RestClient
from tests.support.server import ServerProcess

__all__ = ["MANY", "USER", "Owners", "end_share", "kernel_of", "share"]

MANY: Final = ("--identity-provider-class", "tests.support.identities:Telling")
"""The options of a server that knows many owners."""

USER: Final = [
    *("kernels:write", "kernels:execute", "sessions:write", "events:execute", "api:read"),
    "contents:read",
]
"""The scopes of somebody who works with kernels."""

Json = dict[str, Any]


class Owners:
    """Clients of one server for owners by name."""

    def __init__(self, server: ServerProcess, stack: AsyncExitStack) -> None:
        self.server = server
        self._stack = stack
        self._clients: dict[str, RestClient] = {}

    async def client(self, name: str, *groups: str, scopes: list[str] | None = None) -> RestClient:
        shown = token(name, USER if scopes is None else scopes, groups=groups)
        if shown not in self._clients:
            client = RestClient(self.server.url, shown)
            self._clients[shown] = await self._stack.enter_async_context(client)
        return self._clients[shown]

    async def connect(self, name: str, kernel_id: str, **options: Any) -> JupyterChannels:
        channels = await JupyterChannels.connect(
            self.server.ws_url, kernel_id, token(name, USER), **options
        )
        return await self._stack.enter_async_context(channels)


async def kernel_of(rest: RestClient) -> str:
    """The id of a new kernel of the client's, which is idle."""
    kernel_id = (await rest.start_kernel("fake"))["id"]
    await rest.wait_for_state(kernel_id, "idle")
    return kernel_id


async def share(rest: RestClient, kernel_id: str, status: int = 201, **body: Any) -> Json:
    """Share a kernel; the share as it is told."""
    response = await rest.request("POST", f"/api/kernels/{kernel_id}/shares", status, json=body)
    told: Json = response.json()
    return told


async def end_share(rest: RestClient, kernel_id: str, status: int = 204, **grantee: str) -> None:
    """End the share of a name or a group."""
    await rest.request("DELETE", f"/api/kernels/{kernel_id}/shares", status, params=grantee)
