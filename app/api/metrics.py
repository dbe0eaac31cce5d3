"""The metrics, for Prometheus."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import PlainTextResponse

from .access import PUBLIC, Access
from .openapi import json_errors
from .prometheus import Metrics

__all__ = ["metrics_router"]


def metrics_router(*, public: bool) -> APIRouter:
    """The route of the metrics; a ``public`` one needs no token."""
    # Nobody's permission, as in Jupyter servers. Scrapers come all the time: no activity.
    access = PUBLIC if public else Depends(Access("", None, activity=False))
    router = APIRouter(tags=["server"], dependencies=[access])

    @router.get(
        "/metrics",
        operation_id="metrics_get",
        response_class=PlainTextResponse,
        responses=json_errors(),
    )
    async def get_metrics(request: Request) -> Response:
        """What the server does and has done, in Prometheus's text format."""
        metrics: Metrics = request.state.metrics
        return Response(metrics.exposition(), media_type=CONTENT_TYPE_LATEST)

    return router
