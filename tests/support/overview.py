"""The overview of all one's kernels as a client follows it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from tests.support.rest import RestClient

__all__ = ["HUNG", "PATH", "Overview", "followed"]

PATH = "/api/overview"
HUNG = 60  # seconds

Row = dict[str, Any]


class Overview:
    """The overview as a stream, read as far as a test wants."""

    def __init__(self, lines: AsyncIterator[str]) -> None:
        self._lines = lines
        self.rows: dict[str, Row] = {}
        self.gone: list[str] = []
        self.ended: dict[str, Row] = {}
        self.whole = False

    async def next(self) -> Row:
        """The next event, which `rows`, `gone`, `ended` and `whole` take note of."""
        async for line in self._lines:
            if not line:
                continue
            event: Row = json.loads(line)
            if event["type"] == "kernel":
                self.rows[event["kernel"]["id"]] = event
            elif event["type"] == "gone":
                self.rows.pop(event["kernel_id"], None)  # or it ended before
                self.gone.append(event["kernel_id"])
                if event["at"] is not None:
                    self.ended[event["kernel_id"]] = event
            else:
                assert event == {"type": "whole", "kernels": len(self.rows)}
                self.whole = True
            return event
        raise EOFError

    async def until(self, wanted: Callable[[Row], Any]) -> Row:
        """The first event of which ``wanted`` is true."""
        async with asyncio.timeout(HUNG):
            while True:
                event = await self.next()
                if wanted(event):
                    return event

    async def holds(self, wanted: Callable[[dict[str, Row]], Any]) -> None:
        """Read until ``wanted`` is true of the rows."""
        async with asyncio.timeout(HUNG):
            while not wanted(self.rows):
                await self.next()


@asynccontextmanager
async def followed(rest: RestClient, **query: str) -> AsyncIterator[Overview]:
    """The overview that this client follows."""
    headers = {"Accept": "application/x-ndjson"}
    async with rest.http.stream(
        "GET", PATH, headers=headers, params=query, timeout=HUNG
    ) as response:
        assert response.status_code == 200
        assert response.headers["Content-Type"].startswith("application/x-ndjson")
        yield Overview(response.aiter_lines())
