"""The route of the metrics, for Prometheus."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import PlainTextResponse

from .access import PUBLIC, Access
from .openapi import errors
from .prometheus import Metrics

__all__ = ["metrics_router"]


def metrics_router(*, public: bool) -> APIRouter:
    """The route of the metrics; if ``public``, it needs no token."""
    # As in Jupyter servers it needs no permission of the authorizer. Prometheus asks all the time,
    # so its requests do not count as use of the API.
    # The figures are those of the whole server, so a token among others needs a scope for them.
    access = (
        PUBLIC if public else Depends(Access("", None, activity=False, scope=("read", "metrics")))
    )
    router = APIRouter(tags=["server"], dependencies=[access])

    @router.get(
        "/metrics",
        operation_id="metrics_get",
        response_class=PlainTextResponse,
        responses=errors(),
    )
    async def get_metrics(request: Request) -> Response:
        """What the server does and has done, in Prometheus's text format."""
        metrics: Metrics = request.state.metrics
        await metrics.refresh()
        return Response(metrics.exposition(), media_type=CONTENT_TYPE_LATEST)

    return router
