"""The application in this process, called without a network.

What is counted is the thread's own time, so other programs on the machine matter little.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any, Final

from starlette.types import ASGIApp, Message

from app.main import create_app
from app.managers.owners import token_table as store_module
from app.managers.owners.scopes import Scopes
from app.managers.owners.token_table import NewToken
from app.managers.owners.tokens import TokenStore
from app.settings import Settings

__all__ = ["Application", "application", "fill", "show", "take_turns"]

TOKENS_OF_AN_OWNER: Final = 10


def fill(state_dir: Path, count: int) -> list[str]:
    """Make a list of so many tokens, ten of each owner; returns the last one of each owner."""
    last, now = {}, time.time()
    scopes = tuple(Scopes.parse(["user"]))
    # The checks of names and room are made for a command that makes one token, and are left out.
    TokenStore._check_room = lambda *_: None  # type: ignore[method-assign]
    store_module.REMEMBERED_SECONDS = 10**9  # type: ignore[misc]
    with closing(TokenStore(state_dir, create=True)) as store:
        store._connection.execute("PRAGMA synchronous = OFF")
        for number in range(count):
            owner = number // TOKENS_OF_AN_OWNER
            wanted = NewToken(f"{number}", f"owner-{owner}", scopes, expires=now + 10**6)
            _, last[owner] = store.add(wanted, now)
    return [*last.values()]


class Application:
    """A running application; ``state`` is what its lifespan has built."""

    def __init__(self, app: ASGIApp, state: Mapping[str, Any]) -> None:
        self._app = app
        self.state = state

    async def request(
        self, token: str, method: str, path: str, body: Any = None, *, query: str = ""
    ) -> Any:
        """The decoded body of the answer. Raises `RuntimeError` for a status of 400 or more."""
        sent = [b"" if body is None else json.dumps(body).encode()]

        async def receive() -> Message:
            if sent:
                return {"type": "http.request", "body": sent.pop(), "more_body": False}
            await asyncio.Event().wait()  # the client stays; the task is cancelled at the end
            raise AssertionError

        status, answer = 0, b""

        async def send(message: Message) -> None:
            nonlocal status, answer
            if message["type"] == "http.response.start":
                status = message["status"]
            else:
                answer += message.get("body", b"")

        scope = {
            **{"type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}},
            **{"http_version": "1.1", "method": method, "scheme": "http"},
            **{"query_string": query.encode(), "path": path, "raw_path": path.encode()},
            **{"root_path": "", "server": ("127.0.0.1", 8888), "client": ("127.0.0.1", 5000)},
            "headers": [
                (b"host", b"127.0.0.1:8888"),
                (b"authorization", f"token {token}".encode()),
            ],
            "state": dict(self.state),
        }
        await self._app(scope, receive, send)
        if not 200 <= status < 300:
            raise RuntimeError(f"{method} {path}: {status} {answer[:200]!r}")
        return json.loads(answer) if answer else None


@asynccontextmanager
async def application(state_dir: Path, **options: Any) -> AsyncIterator[Application]:
    """The application with a state directory; its kernels end with it."""
    app = create_app(Settings(state_dir=state_dir, on_shutdown="stop", **options))
    async with app.router.lifespan_context(app) as state:
        yield Application(app, dict(state or {}))


async def take_turns(
    kinds: Mapping[str, Callable[[], Awaitable[object]]],
    times: int,
    rounds: int,
    tidy: Callable[[], Awaitable[object]] | None = None,
) -> dict[str, list[float]]:
    """Microseconds of the thread's time that each kind takes, once for each round.

    A round does each kind so many ``times``, and then calls ``tidy``, which is not measured.
    """
    measured: dict[str, list[float]] = {name: [] for name in kinds}
    for number in range(rounds):
        # Whichever comes first in a round finds the processor's caches in another state.
        names = [*kinds] if number % 2 else [*kinds][::-1]
        for name in names:
            began = time.thread_time()
            for _ in range(times):
                await kinds[name]()
            measured[name].append((time.thread_time() - began) / times * 1e6)
            await asyncio.sleep(0)
        if tidy is not None:
            await tidy()
    return measured


def show(name: str, figures: Sequence[float]) -> None:
    """Print the lowest decile, the median and the quartiles of some microseconds."""
    lowest, quartiles = statistics.quantiles(figures, n=10)[0], statistics.quantiles(figures)
    print(f"{name:45} {lowest:8.1f} µs at best, median {statistics.median(figures):8.1f}", end="")
    print(f"  ({quartiles[0]:.1f} to {quartiles[2]:.1f})")
