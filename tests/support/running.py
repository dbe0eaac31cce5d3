"""Kernels of a real server, each with a client that is connected to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from tests.support.channels import REPLY_TIMEOUT, Connector, JupyterChannels
from tests.support.processes import eventually
from tests.support.rest import KernelModel, RestClient, RestError
from tests.support.server import ServerProcess


class RunningKernel:
    """A kernel, its first client (``channels``) and the means to look at it."""

    def __init__(
        self, kernel_id: str, rest: RestClient, connector: Connector, channels: JupyterChannels
    ) -> None:
        self.id = kernel_id
        self.rest = rest
        self.channels = channels
        self._connector = connector

    async def connect(self, **options: Any) -> JupyterChannels:
        """One more client; ``options`` are those of `JupyterChannels.connect`."""
        return await self._connector(self.id, **options)

    async def model(self) -> KernelModel:
        return await self.rest.kernel(self.id)

    async def becomes(self, *states: str, timeout: float = REPLY_TIMEOUT) -> KernelModel:
        """The model, once REST tells one of these execution states."""
        return await self.rest.wait_for_state(self.id, *states, timeout=timeout)

    async def has_connections(self, count: int) -> None:
        """Returns when REST counts so many: one that was closed counts for a moment longer."""

        async def counted() -> bool:
            return (await self.model())["connections"] == count

        await eventually(counted, REPLY_TIMEOUT)

    async def pid(self) -> int:
        """The process id of a fake kernel that is idle."""
        return int((await self.channels.execute("pid")).text)

    async def busy(self, code: str, **content: Any) -> str:
        """Sends an execution; returns its id when the kernel has begun with it."""
        msg_id = await self.channels.send_execute(code, **content)
        await self.channels.seen(
            lambda m: m.parent_id == msg_id and m.msg_type == "execute_input",
        )
        return msg_id

    async def begins(self, code: str) -> str:
        """Sends an execution; returns its id when it has printed something.

        ipykernel sends no reply to what is interrupted between `busy` and the code's own begin.
        """
        msg_id = await self.busy(code)
        await self.channels.seen(lambda m: m.parent_id == msg_id and m.msg_type == "stream")
        return msg_id

    async def told(
        self, state: str, timeout: float = REPLY_TIMEOUT, channels: JupyterChannels | None = None
    ) -> list[Any]:
        """What the client gets up to the next status that tells ``state`` of no request."""
        return await (channels or self.channels).collect_until(
            lambda m: m.state == state and not m.parent_header, timeout
        )


async def start_shared(server: ServerProcess, name: str) -> str:
    """Starts a kernel that lives as long as the server, and waits until it is idle; its id."""
    async with RestClient(server.url, server.token) as rest:
        kernel_id = (await rest.start_kernel(name))["id"]
        await rest.wait_for_state(kernel_id, "idle", timeout=60)
        return kernel_id


class KernelStarter:
    """``await start(name, **body)``: a kernel and a client that is connected to it."""

    def __init__(self, rest: RestClient, connector: Connector) -> None:
        self.rest = rest
        self.connector = connector
        self.started: list[str] = []

    async def __call__(
        self, name: str = "fake", *, ready: bool = True, **body: Any
    ) -> RunningKernel:
        """``body`` is the POST's; ``ready=False`` does not wait until the kernel is idle."""
        kernel_id = (await self.rest.start_kernel(name, **body))["id"]
        self.started.append(kernel_id)
        channels = await self.connector(kernel_id)
        if ready:
            await channels.seen(lambda m: m.state == "idle" and not m.parent_header)
        return RunningKernel(kernel_id, self.rest, self.connector, channels)


@asynccontextmanager
async def kernels_of(server: ServerProcess) -> AsyncIterator[KernelStarter]:
    """Starts kernels of a server; those that are left are deleted at the end."""
    async with RestClient(server.url, server.token) as rest, AsyncExitStack() as stack:
        starter = KernelStarter(rest, Connector(server.ws_url, server.token, stack))
        try:
            yield starter
        finally:
            await asyncio.gather(*(_delete(rest, kernel_id) for kernel_id in starter.started))


async def _delete(rest: RestClient, kernel_id: str) -> None:
    try:
        await rest.delete(kernel_id)
    except RestError as error:
        if error.status != 404:
            raise


async def not_ready(server: ServerProcess) -> None:
    """Returns when the server says that it is not ready, as it does while it stops."""
    async with RestClient(server.url, None) as stranger:

        async def refuses() -> bool:
            return (await stranger.http.get("/readyz")).status_code == 503

        await eventually(refuses)
