"""The overview: all kernels of the caller with what each does and takes, once or as it changes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Annotated, Final

import msgspec
from fastapi import APIRouter, Query, Request, Response

from ..managers.kernels.overview import (
    GoneEvent,
    KernelEvent,
    OfOwner,
    Overview,
    OverviewEvent,
    WholeEvent,
)
from .access import requires
from .dependencies import ManagerDep
from .openapi import ERRORS, stream_of
from .parts import others_of
from .schemas import schema_of
from .streams import NDJSON, SSE, EventStream, JSONLines, wants

__all__ = ["router"]

router = APIRouter(prefix="/api/overview", tags=["kernels"])


@router.get(
    "",
    operation_id="overview_list",
    response_model=schema_of(list[KernelEvent]),
    responses={
        200: {
            "description": "All kernels, or what the `Accept` header asks for: a stream. Each "
            "`data` field, or line, is an `OverviewEventModel`.",
            "content": {
                SSE: stream_of("OverviewEventModel"),
                NDJSON: stream_of("OverviewEventModel"),
            },
        },
        **ERRORS,
    },
    dependencies=[requires("kernels", "read", activity=False)],
)
async def list_overview(
    request: Request,
    manager: ManagerDep,
    owner: Annotated[str | None, Query(description="Only the kernels of this owner.")] = None,
) -> Response:
    """Look at all one's kernels at once: the state of each and since when, what it runs, its log,
    and what it uses of the machine.

    With `Accept: text/event-stream` or `application/x-ndjson` it goes on with what changes, within
    a second. A stream tells every kernel first. While there is a stream, kernels are measured.
    Asking is not activity.
    """
    told: _Told = {}
    # The other replicas are asked the same, and tell of this owner's alone.
    listing = manager.listing
    kernels = listing if owner is None else OfOwner(listing, owner)
    overview = Overview(kernels, manager.measuring, told)
    kind = wants(request)
    if kind is None:
        if (others := others_of(request)) is not None:
            told |= await others.ask(request, _by_id)
        await listing.refresh()
        rows = [row for _, row in overview.rows()]
        return Response(msgspec.json.encode(rows), media_type="application/json")
    events = _followed(request, overview, told, manager.settings.stream_keepalive)
    return EventStream(events) if kind == SSE else JSONLines(events)


_Told = dict[str, dict[str, KernelEvent]]


async def _followed(
    request: Request, overview: Overview, told: _Told, keepalive: float
) -> AsyncIterator[OverviewEvent | None]:
    """The overview as it changes. ``told`` gets the rows that other replicas tell meanwhile."""

    # The tasks that follow the other replicas call this at any time, also while the client takes an
    # event that was yielded. That is safe: `Overview.follow` makes a list of the rows at the
    # beginning of each turn, and goes through that.
    def take(replica: str, line: bytes) -> bool:
        event = _event(line)
        rows = told.setdefault(replica, {})
        if isinstance(event, KernelEvent):
            rows[_id_of(event)] = event
        elif isinstance(event, _Gone):
            rows.pop(event.kernel_id, None)
            kernel = None if bytes(event.kernel) == b"null" else event.kernel
            overview.ended(GoneEvent(event.kernel_id, event.at, kernel, event.host))
        return isinstance(event, WholeEvent)

    def ended(replica: str) -> None:
        told.pop(replica, None)

    # The other replicas are followed before the first event: the stream first tells every kernel,
    # those of other replicas, too.
    async with AsyncExitStack() as stack:
        if (others := others_of(request)) is not None:
            await stack.enter_async_context(others.lines(request.scope, take, ended))
        async for event in overview.follow(keepalive):
            yield event


class _Identified(msgspec.Struct):
    id: str


class _Gone(msgspec.Struct, tag_field="type", tag="gone"):
    """A `GoneEvent` as it is decoded: msgspec cannot decode its field of type ``Raw | None``."""

    kernel_id: str
    at: str | None = None
    kernel: msgspec.Raw = msgspec.Raw(b"null")
    host: str | None = None


_rows: Final = msgspec.json.Decoder(list[KernelEvent]).decode
_event: Final = msgspec.json.Decoder(KernelEvent | _Gone | WholeEvent).decode
_identified: Final = msgspec.json.Decoder(_Identified).decode


def _by_id(answer: bytes) -> dict[str, KernelEvent]:
    return {_id_of(row): row for row in _rows(answer)}


def _id_of(row: KernelEvent) -> str:
    return _identified(row.kernel).id
