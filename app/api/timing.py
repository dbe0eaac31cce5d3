"""Measures how long requests wait for their responses, by route."""

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

    A path or method that a client can make up is never a label: there would be no end of labels.
    The time is that until the response begins, less the time that the client asked to wait. So a
    stream that lasts for hours, or a request that waits for a long execution, is no slow request.
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
            if metrics is not None:  # None if the ASGI server does not run the lifespan
                made_for = caller()
                waited = made_for.waited if made_for is not None else 0.0
                seconds = max(0.0, time.perf_counter() - began - waited)
                metrics.counters.request_seconds[method, route, str(status)].observe(seconds)

        async def send_observed(message: Message) -> None:
            nonlocal answered
            if message["type"] == "http.response.start" and not answered:
                # Counted before it is sent: a client that has its response finds it in the metrics.
                answered = True
                observe(message["status"])
            await send(message)

        try:
            await self._app(scope, receive, send_observed)
        finally:
            if not answered:  # the application raised, and Starlette will answer with 500
                observe(500)
