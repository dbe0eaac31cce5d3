"""The kernelspecs resource: the kinds of kernels that can be started."""

from __future__ import annotations

import msgspec
from fastapi import APIRouter, Response
from starlette.responses import FileResponse

from ..managers.errors import KernelSpecInvalid, KernelSpecNotFound, NotFound
from ..managers.processes.specs import KernelSpecModel, KernelSpecs
from .access import requires
from .dependencies import ManagerDep
from .openapi import ERRORS, FILE, errors
from .schemas import schema_of

router = APIRouter(tags=["kernelspecs"])

_encode = msgspec.json.Encoder().encode


@router.get(
    "/api/kernelspecs",
    operation_id="kernelspecs_list",
    response_model=schema_of(KernelSpecs),
    responses=ERRORS,
    dependencies=[requires("kernelspecs", "read")],
)
async def list_kernelspecs(manager: ManagerDep) -> Response:
    """List the kernelspecs. One that is broken, and so cannot be started, is left out."""
    specs = manager.specs
    body = KernelSpecs(specs.default_name, await specs.models())
    return Response(_encode(body), media_type="application/json")


@router.get(
    "/api/kernelspecs/{name}",
    operation_id="kernelspecs_get",
    response_model=schema_of(KernelSpecModel),
    responses=errors(KernelSpecNotFound, KernelSpecInvalid),
    dependencies=[requires("kernelspecs", "read")],
)
async def get_kernelspec(manager: ManagerDep, name: str) -> Response:
    """Look at one kernelspec; upper and lower case make no difference."""
    return Response(_encode(await manager.specs.model(name)), media_type="application/json")


@router.api_route(
    "/kernelspecs/{name}/{path:path}",
    methods=["GET"],
    operation_id="kernelspecs_resource",
    response_class=FileResponse,
    responses={
        200: {"content": FILE, "description": "The file, in its own media type."},
        **errors(KernelSpecNotFound, KernelSpecInvalid, NotFound),
    },
    dependencies=[requires("kernelspecs", "read")],
)
async def get_kernelspec_resource(manager: ManagerDep, name: str, path: str) -> Response:
    """Fetch a file of a kernelspec: a logo or a script."""
    file = await manager.specs.resource(name, path)
    headers = {"Cache-Control": "max-age=2592000"} if file.suffix.lower() == ".png" else None
    return FileResponse(file, headers=headers)


# HEAD is a route of its own, for an operation of the OpenAPI document has one method.
router.add_api_route(
    "/kernelspecs/{name}/{path:path}",
    get_kernelspec_resource,
    methods=["HEAD"],
    operation_id="kernelspecs_resource_head",
    include_in_schema=False,
    dependencies=[requires("kernelspecs", "read")],
)
