"""Kernels that have said something, for the page to show."""

from __future__ import annotations

import json

from tests.support.executions import Executions
from tests.support.running import KernelStarter

__all__ = ["ran", "shown"]


async def ran(start: KernelStarter, code: str, name: str = "python3") -> str:
    """The id of a kernel that has run this, however that ended."""
    kernel = await start(name)
    executions = Executions(kernel.rest, kernel.id)
    execution = await executions.begin(code)
    # A flood takes its time on a machine that others use, too.
    while not (await executions.get(execution, wait=30))["ended"]:
        pass
    return kernel.id


async def shown(start: KernelStarter, *outputs: dict[str, str]) -> str:
    """The id of a kernel that has displayed these, each in the media types that it has."""
    displays = "\n".join(f"display({json.dumps(one)}, raw=True)" for one in outputs)
    return await ran(start, displays)
