"""``python -m benchmarks.tokens``: what the list of tokens costs a request, by how long it is, and
what owners' limits cost.

The application is called in this process, without a network, and what is counted is the thread's
own time: so other programs on the machine matter little. The kinds of requests take turns.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

from pydantic import SecretStr
from starlette.types import ASGIApp, Message

from app.main import create_app
from app.managers.owners import tokens as store_module
from app.managers.owners.scopes import Scopes
from app.managers.owners.tokens import NewToken, TokenStore
from app.settings import Settings

OWN = "the-server's-own-token-0123456789"
REQUESTS = 300
ROUNDS = 15


def _fill(state_dir: Path, count: int) -> str:
    """A list of so many tokens, ten of each owner; returns one of them."""
    token, now = "", time.time()
    scopes = tuple(Scopes.parse(["user"]))
    # The checks of names and room are made for a command that makes one token, and are left out.
    TokenStore._check_room = lambda *_: None  # type: ignore[method-assign]
    store_module.REMEMBERED_SECONDS = 10**9  # type: ignore[misc]
    with closing(TokenStore(state_dir, create=True)) as store:
        store._connection.execute("PRAGMA synchronous = OFF")
        for number in range(count):
            wanted = NewToken(f"{number}", f"owner-{number // 10}", scopes, expires=now + 10**6)
            _, token = store.add(wanted, now)
    return token


@asynccontextmanager
async def _application(
    count: int, **limits: int
) -> AsyncIterator[tuple[ASGIApp, str, dict[str, Any]]]:
    with tempfile.TemporaryDirectory() as directory:
        state_dir = Path(directory)
        token = _fill(state_dir, count)
        settings = Settings(
            state_dir=state_dir, on_shutdown="stop", token=SecretStr(OWN), owner_limits=limits
        )
        app = create_app(settings)
        began = time.perf_counter()
        async with app.router.lifespan_context(app) as state:
            print(f"{count} tokens: started in {time.perf_counter() - began:.2f} s")
            yield app, token, dict(state or {})


async def _measure(app: ASGIApp, token: str, state: dict[str, Any]) -> float:
    """Microseconds of a request, as the median of none but these."""

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    statuses = []

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    began = time.thread_time()
    for _ in range(REQUESTS):
        scope = {
            **{"type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}},
            **{"http_version": "1.1", "method": "GET", "scheme": "http", "query_string": b""},
            **{"path": "/api/kernels", "raw_path": b"/api/kernels", "root_path": ""},
            **{"server": ("127.0.0.1", 8888), "client": ("127.0.0.1", 5000)},
            "headers": [
                (b"host", b"127.0.0.1:8888"),
                (b"authorization", f"token {token}".encode()),
            ],
            "state": dict(state),
        }
        await app(scope, receive, send)
    assert statuses == [200] * REQUESTS, statuses[-1]
    return (time.thread_time() - began) / REQUESTS * 1e6


async def main(many: int = 10_000) -> None:
    limits = {"kernels": 10, "websockets": 20, "requests_per_second": 10**9}
    async with (
        _application(1) as one,
        _application(many) as full,
        _application(many, **limits) as limited,
    ):
        kinds = {
            "the server's own token, 1 in the list": (one[0], OWN, one[2]),
            f"the server's own token, {many:,} in the list": (full[0], OWN, full[2]),
            "the one token of the list": one,
            f"one of {many:,} tokens of the list": full,
            f"the same with limits of {many // 10:,} owners": limited,
        }
        measured: dict[str, list[float]] = {name: [] for name in kinds}
        for _ in range(ROUNDS):
            for name, kind in kinds.items():
                measured[name].append(await _measure(*kind))
                await asyncio.sleep(0)
    for name, figures in measured.items():
        quartiles = statistics.quantiles(figures)
        print(f"{name:45} {statistics.median(figures):7.1f} µs", end="")
        print(f"  ({quartiles[0]:.1f} to {quartiles[2]:.1f})")


if __name__ == "__main__":
    asyncio.run(main(*map(int, sys.argv[1:2])))
