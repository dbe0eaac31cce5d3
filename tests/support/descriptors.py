"""Runs code that writes to file descriptors: none of its output may be missing from the result.

``python -m tests.support.descriptors [RUNS]`` is `scripts/descriptors`.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from typing import Final

from tests.support.drill import Servers
from tests.support.executions import Executions, Json
from tests.support.home import Home
from tests.support.processes import eventually, kill_all
from tests.support.rest import RestClient

CODE: Final = {
    "os.system": "os.system('echo tag {number} .'); None",
    "subprocess.run": "subprocess.run(['echo', 'tag {number} .']); None",
    "os.write": "os.write(1, b'tag {number} .'); None",
}
INDIRECT: Final = "by a function"
"""Nothing shows that such code writes to a descriptor. ipykernel may take what comes late for
output of the code that runs next."""
PREPARE: Final = "import os, subprocess\ndef say(text):\n    os.write(1, text)"


def _has(number: int, found: Json) -> bool:
    text = "".join(output.get("text", "") for output in found["outputs"])
    return f"tag {number} ." in text


async def runs(executions: Executions, count: int) -> dict[str, Json]:
    """Runs each kind of code so often: how often its output was late, or is missing."""
    told: dict[str, Json] = {}
    await executions.run(PREPARE)
    for name, code in {**CODE, INDIRECT: "say(b'tag {number} .')"}.items():
        began = time.monotonic()
        late = []
        for number in range(count):
            ended = await executions.run(code.format(number=number))
            if not _has(number, ended):
                late.append((number, ended["id"]))
        seconds = (time.monotonic() - began) / count
        missing = 0
        for number, execution_id in late:

            async def has_come(number: int = number, execution_id: str = execution_id) -> bool:
                found = await executions.get(execution_id)
                return _has(number, found) and found["late_outputs"] == 1

            try:
                await eventually(has_come, 5)
            except AssertionError:
                missing += 1
        told[name] = {"late": len(late), "missing": missing, "ms": round(1000 * seconds, 1)}
    return told


async def _main(servers: Servers, count: int) -> dict[str, Json]:
    server = await asyncio.to_thread(servers.start)
    async with RestClient(server.url, server.token) as rest:
        kernel = await rest.start_kernel("python3")
        try:
            return await runs(Executions(rest, kernel["id"]), count)
        finally:
            await rest.delete(kernel["id"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=int, nargs="?", default=500)
    home = Home()
    try:
        told = asyncio.run(_main(Servers(home), parser.parse_args().runs))
    finally:
        kill_all(home.processes())
        home.remove()
    for name, numbers in told.items():
        print(name, numbers)  # noqa: T201
    sys.exit(any(told[name]["missing"] for name in CODE))


if __name__ == "__main__":
    main()
