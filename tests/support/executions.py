"""Running code over HTTP, and reading streams of events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any

import httpx

from tests.support.processes import eventually
from tests.support.rest import RestClient

Json = dict[str, Any]

SSE = "text/event-stream"
NDJSON = "application/x-ndjson"
STREAM_TIMEOUT = 30  # seconds between two events, keepalives included


class Executions:
    """The executions of one kernel."""

    def __init__(self, rest: RestClient, kernel_id: str) -> None:
        self.rest = rest
        self.kernel_id = kernel_id
        self.path = f"/api/kernels/{kernel_id}/executions"

    async def post(
        self,
        code: str,
        *,
        headers: Mapping[str, str | bytes] | None = None,
        query: Json | None = None,
        **body: Any,
    ) -> httpx.Response:
        """The response to asking for an execution, whatever it is."""
        asked = {"code": code, **body}
        sent: Any = headers  # httpx takes a value as bytes, and does not say so
        return await self.rest.http.post(self.path, json=asked, headers=sent, params=query)

    async def run(self, code: str, **body: Any) -> Json:
        """Executes code and waits for its end."""
        response = await self.post(code, query={"wait": 30}, **body)
        assert response.status_code == 200, response.text
        return _json(response)

    async def begin(self, code: str, **body: Any) -> str:
        """Asks for an execution; its id."""
        response = await self.post(code, **body)
        assert response.status_code in (200, 202), response.text
        return str(response.json()["id"])

    async def get(self, execution_id: str, **query: Any) -> Json:
        return _json(await self.rest.request("GET", f"{self.path}/{execution_id}", params=query))

    async def known(self, execution_id: str) -> None:
        """Return when the server knows it, which a client has sent."""

        async def is_known() -> bool:
            found = await self.rest.http.get(f"{self.path}/{execution_id}")
            return found.status_code == 200

        await eventually(is_known)

    async def ended(self, execution_id: str) -> Json:
        """The execution, once it has ended."""
        found = await self.get(execution_id, wait=30)
        assert found["ended"], found
        return found

    async def listed(self, **query: Any) -> list[Json]:
        response = await self.rest.request("GET", self.path, params=query)
        found: list[Json] = response.json()
        return found

    async def cancel(self, execution_id: str, **body: Any) -> Json:
        path = f"{self.path}/{execution_id}/cancel"
        return _json(await self.rest.request("POST", path, json=body or None))

    def events(self, execution_id: str, accept: str = SSE, **more: Any) -> AsyncIterator[Json]:
        """Its events; ``more`` is that of `stream`."""
        return stream(self.rest, f"{self.path}/{execution_id}/events", accept, **more)

    async def all_events(self, execution_id: str, accept: str = SSE, **more: Any) -> list[Json]:
        """Every event up to the end of the stream."""
        return [event async for event in self.events(execution_id, accept, **more)]

    async def until(self, execution_id: str, event_type: str, accept: str = SSE) -> Json:
        """The first event of this type."""
        async with aclosing(self.events(execution_id, accept)) as events:  # type: ignore[type-var]
            async for event in events:
                if event["type"] == event_type:
                    return event
        raise AssertionError(f"the stream ended without {event_type}")


def _json(response: httpx.Response) -> Json:
    found: Json = response.json()
    return found


async def stream(
    rest: RestClient, path: str, accept: str = SSE, **more: Any
) -> AsyncIterator[Json]:
    """The events of a stream as they come. In those of SSE ``id`` is the id that was sent.

    Silence, blank lines included, ends it after `STREAM_TIMEOUT` with an error.
    """
    headers = {"Accept": accept, **more.pop("headers", {})}
    async with rest.http.stream("GET", path, headers=headers, **more) as response:
        assert response.status_code == 200, await response.aread()
        assert response.headers["content-type"].partition(";")[0] == accept
        lines = response.aiter_lines()
        parse = _parse_sse if accept == SSE else _parse_lines
        async for event in parse(lines):
            yield event


async def _line(lines: AsyncIterator[str]) -> str | None:
    async with asyncio.timeout(STREAM_TIMEOUT):
        return await anext(lines, None)


async def _parse_sse(lines: AsyncIterator[str]) -> AsyncIterator[Json]:
    event_id: str | None = None
    data: str | None = None
    while (line := await _line(lines)) is not None:
        name, _, value = line.partition(": ")
        if name == "id":
            event_id = value
        elif name == "data":
            assert data is None, "an event has one line of data"
            data = value
        elif line == "" and data is not None:
            yield {**json.loads(data), "id": event_id}
            event_id = data = None
        else:
            assert line in ("", ":"), f"not a line that is sent: {line!r}"


async def _parse_lines(lines: AsyncIterator[str]) -> AsyncIterator[Json]:
    while (line := await _line(lines)) is not None:
        if line:
            yield json.loads(line)
