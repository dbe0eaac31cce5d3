"""Kernels that have said something, for the page to show."""

from __future__ import annotations

import json
from typing import Any

from tests.support.executions import Executions
from tests.support.running import KernelStarter

__all__ = ["printed", "published", "ran", "shown"]


async def ran(start: KernelStarter, code: str, name: str = "fake") -> str:
    """The id of a kernel that has run this, however that ended."""
    kernel = await start(name)
    executions = Executions(kernel.rest, kernel.id)
    execution = await executions.begin(code)
    # A flood takes its time on a machine that others use, too.
    while not (await executions.get(execution, wait=30))["ended"]:
        pass
    return kernel.id


def published(msg_type: str, count: int = 1, **content: Any) -> str:
    """A line for the fake kernel: it says this so many times."""
    return f"publish {count} {msg_type} {json.dumps(content)}"


def printed(text: str, name: str = "stdout") -> str:
    """A line for the fake kernel: it writes this text, whatever is in it."""
    return published("stream", name=name, text=text)


async def shown(start: KernelStarter, *outputs: dict[str, str]) -> str:
    """The id of a kernel that has displayed these, each in the media types that it has."""
    lines = [published("display_data", data=one, metadata={}) for one in outputs]
    return await ran(start, "\n".join(lines))
