"""Serves the bytes of files, whole or in a range that the client asks for."""

from __future__ import annotations

import logging
import mimetypes
import os
import re
from email.utils import formatdate
from typing import Annotated, BinaryIO, Final, NamedTuple
from urllib.parse import quote

from fastapi import APIRouter, Query, Request, Response
from starlette.types import Receive, Scope, Send

from ..managers.errors import InvalidRequest
from ..managers.files.errors import (
    ContentsForbidden,
    ContentsNotFound,
    ContentsUnavailable,
    InvalidContents,
    RangeNotSatisfiable,
)
from ..managers.files.models import version_of
from ..managers.files.service import ContentsService
from .access import requires
from .contents import PathDep, ReadableDep
from .errors import STANDARD_HEADERS
from .openapi import FILE, errors

logger = logging.getLogger(__name__)

router = APIRouter(prefix="/files", tags=["contents"])

READ_TOGETHER: Final = 2**18  # bytes that are read and sent at a time

_RANGE: Final = re.compile(r"bytes=(\d*)-(\d*)")


class Span(NamedTuple):
    """A range of a file's bytes: from ``start`` up to ``end``, which is excluded."""

    start: int
    end: int


def requested_span(header: str | None, size: int) -> Span | None:
    """The range that a ``Range`` header asks for; None for the whole file [RFC 9110, 14.2].

    A header that makes no sense, or asks for several ranges, is ignored. Raises
    `RangeNotSatisfiable` if the file of ``size`` bytes has none of the range.
    """
    match = _RANGE.fullmatch((header or "").strip())
    if match is None or match.group(0) == "bytes=-":
        return None
    first, last = match.groups()
    if len(first) > 18 or len(last) > 18:
        raise RangeNotSatisfiable(f"The file has {size} bytes")
    if first:
        start, end = int(first), min(int(last) + 1, size) if last else size
        if last and int(last) < int(first):
            return None
    else:
        start, end = max(0, size - int(last)), size
    if start >= end:
        raise RangeNotSatisfiable(f"The file has {size} bytes")
    return Span(start, end)


@router.get(
    "/{path:path}",
    operation_id="contents_download",
    response_class=Response,
    responses={
        200: {"content": FILE, "description": "The file, in its own media type."},
        206: {"content": FILE, "description": "The bytes that `Range` asks for."},
        **errors(
            ContentsNotFound,
            ContentsForbidden,
            InvalidContents,
            InvalidRequest,
            RangeNotSatisfiable,
            ContentsUnavailable,
        ),
    },
    dependencies=[requires("contents", "read")],
)
async def get_file(
    request: Request,
    service: ReadableDep,
    path: PathDep,
    download: Annotated[bool, Query(description="Have a browser save it.")] = False,
) -> Response:
    """Fetch a file as it is, or a range of its bytes."""
    file = await service.run(service.contents.open, path)
    try:
        status = os.fstat(file.fileno())
        etag, known = version_of(status), request.headers
        headers = {
            "ETag": etag,
            "Last-Modified": formatdate(status.st_mtime, usegmt=True),
            "Accept-Ranges": "bytes",
            "Content-Type": _media_type(path),
            # The sandbox keeps a file that is a web page from acting as a page of this server.
            "Content-Security-Policy": STANDARD_HEADERS["Content-Security-Policy"] + "; sandbox",
        }
        if download:
            name = quote(path.rstrip("/").rpartition("/")[2], safe="")
            headers["Content-Disposition"] = f"attachment; filename*=UTF-8''{name}"
        if etag in (tag.strip() for tag in known.get("if-none-match", "").split(",")):
            file.close()
            return Response(status_code=304, headers=headers)
        asked = known.get("range") if known.get("if-range", etag) == etag else None
        span = requested_span(asked, status.st_size)
        if span is not None:
            headers["Content-Range"] = f"bytes {span.start}-{span.end - 1}/{status.st_size}"
        whole = Span(0, status.st_size)
        return FileStream(service, file, span or whole, headers, 200 if span is None else 206)
    except BaseException:
        file.close()
        raise


# HEAD is a route of its own, for an operation of the OpenAPI document has one method.
router.add_api_route(
    "/{path:path}",
    get_file,
    methods=["HEAD"],
    operation_id="contents_download_head",
    include_in_schema=False,
    dependencies=[requires("contents", "read")],
)


class FileStream(Response):
    """Sends a span of an open file's bytes, and closes the file.

    The file may be replaced, grow or shrink meanwhile. A replacement has another inode, so the open
    file stays as it was; of a file that grows only the announced bytes are sent.
    """

    def __init__(
        self,
        service: ContentsService,
        file: BinaryIO,
        span: Span,
        headers: dict[str, str],
        status: int,
    ) -> None:
        super().__init__(None, status, headers | {"Content-Length": str(span.end - span.start)})
        self._service = service
        self._file = file
        self._span = span

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send(
                {
                    "type": "http.response.start",
                    "status": self.status_code,
                    "headers": self.raw_headers,
                }
            )
            if scope["method"] == "HEAD":
                await send({"type": "http.response.body"})
            else:
                await self._send_bytes(Request(scope, receive), send)
        finally:
            self._file.close()

    async def _send_bytes(self, request: Request, send: Send) -> None:
        position, end = self._span
        descriptor = self._file.fileno()
        while position < end:
            size = min(READ_TOGETHER, end - position)
            # The race: if this is cancelled, or takes too long, the file is closed while the thread
            # may not have read yet. Its read then fails, or reads another file whose descriptor has
            # the same number by now. It does no harm: the result is thrown away.
            data = await self._service.run(os.pread, descriptor, size, position)
            if not data:
                # The file has shrunk. The response stays incomplete, so the client sees that it
                # does not have the whole file.
                logger.warning("a file was cut short while it was read")
                return
            if await request.is_disconnected():
                return
            position += len(data)
            await send({"type": "http.response.body", "body": data, "more_body": position < end})
        if self._span.start == end:
            await send({"type": "http.response.body"})


def _media_type(path: str) -> str:
    if path.endswith(".ipynb"):
        return "application/x-ipynb+json"
    kind, encoding = mimetypes.guess_type(path)
    if kind is None or encoding is not None:
        return "application/octet-stream"
    return f"{kind}; charset=utf-8" if kind.startswith("text/") else kind
