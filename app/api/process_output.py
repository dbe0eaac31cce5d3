"""What the process of a kernel has written itself, beside the messages of the kernel."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Response

from ..managers.errors import KernelNotFound
from ..managers.kernels.process_output import end_of
from .access import requires
from .dependencies import KernelIdDep, ManagerDep
from .executions import INERT
from .openapi import errors

router = APIRouter(tags=["kernels"])


@router.get(
    "/api/kernels/{kernel_id}/process_output",
    operation_id="process_output_get",
    response_class=Response,
    responses={
        200: {
            "description": "The text; empty if there is none.",
            "content": {"text/plain": {"schema": {"type": "string"}}},
        },
        **errors(KernelNotFound),
    },
    dependencies=[requires("kernels", "read")],
)
async def get_process_output(manager: ManagerDep, kernel_id: KernelIdDep) -> Response:
    """Read what a kernel's processes have written to stdout and stderr, and not as messages.

    It is the end, 64 KiB at the most: warnings of the interpreter, stacks of a crash, what C code
    has printed. That of a kernel on another host stays there.
    """
    file = manager.locating.output_file(kernel_id)
    text = await asyncio.to_thread(end_of, file)
    return Response(text, media_type="text/plain", headers=INERT)
