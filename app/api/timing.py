"""How long requests take until they are answered, by the route that they were for."""

from __future__ import annotations

import time
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..callers import caller
from .prometheus import Metrics

__all__ = ["TimingMiddleware"]

_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class TimingMiddleware:
    """Counts every HTTP response: its method, its route's template and its status.

    What a client can make up (a path, a method) is never a label: there would be no end of them.
    What counts is when a response begins, less what the client asked to wait: a stream that is
    followed for hours, or a long execution that is waited for, is no slow request.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        answered = False

        def observe(status: int) -> None:
            method = scope["method"] if scope["method"] in _METHODS else "other"
            route = getattr(scope.get("route"), "path_format", "none")
            metrics: Metrics | None = scope.get("state", {}).get("metrics")
            if metrics is not None:  # the lifespan has run
                made_for = caller()
                waited = made_for.waited if made_for is not None else 0.0
                seconds = max(0.0, time.perf_counter() - began - waited)
                metrics.counters.request_seconds[method, route, str(status)].observe(seconds)

        async def send_observed(message: Message) -> None:
            nonlocal answered
            if message["type"] == "http.response.start" and not answered:
                # Before it is sent: who has an answer finds it counted.
                answered = True
                observe(message["status"])
            await send(message)

        try:
            await self._app(scope, receive, send_observed)
        finally:
            if not answered:  # an exception that gets here
                observe(500)
