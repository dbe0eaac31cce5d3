"""``python -m benchmarks.tokens``: what the list of tokens costs a request, by how long it is, and
what owners' limits cost.

The kinds of requests take turns.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from pydantic import SecretStr

from benchmarks.in_process import Application, application, fill, show, take_turns

OWN = "the-server's-own-token-0123456789"
REQUESTS = 300
ROUNDS = 15


@asynccontextmanager
async def _listing(count: int, **limits: int) -> AsyncIterator[tuple[Application, str]]:
    """An application with so many tokens in the list, and one of these; owners have ``limits``."""
    with tempfile.TemporaryDirectory() as directory:
        state_dir = Path(directory)
        token = fill(state_dir, count)[-1]
        began = time.perf_counter()
        async with application(state_dir, token=SecretStr(OWN), owner_limits=limits) as app:
            print(f"{count} tokens: started in {time.perf_counter() - began:.2f} s")
            yield app, token


async def main(many: int = 10_000) -> None:
    limits = {"kernels": 10, "websockets": 20, "requests_per_second": 10**9}
    async with (
        _listing(1) as (one, its),
        _listing(many) as (full, of_many),
        _listing(many, **limits) as (limited, of_limited),
    ):
        asked = {
            "the server's own token, 1 in the list": (one, OWN),
            f"the server's own token, {many:,} in the list": (full, OWN),
            "the one token of the list": (one, its),
            f"one of {many:,} tokens of the list": (full, of_many),
            f"the same with limits of {many // 10:,} owners": (limited, of_limited),
        }
        kinds = {
            name: partial(app.request, token, "GET", "/api/kernels")
            for name, (app, token) in asked.items()
        }
        measured = await take_turns(kinds, REQUESTS, ROUNDS)
    for name, figures in measured.items():
        show(name, figures)


if __name__ == "__main__":
    asyncio.run(main(*map(int, sys.argv[1:2])))
