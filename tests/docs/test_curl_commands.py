"""The commands of docs/executions.md, run as they stand."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from pathlib import Path
from typing import Any

from tests.support.cutting_proxy import CuttingProxy
from tests.support.kernelspecs import PIXEL
from tests.support.rest import RestClient
from tests.support.server import REPOSITORY, ServerProcess

STEPS = 8  # seconds of what takes ten minutes in the document
CUT_SECONDS = 2.0
SCRIPT_TIMEOUT = 100  # seconds


def commands() -> str:
    document = (REPOSITORY / "docs" / "executions.md").read_text()
    return "\n".join(re.findall(r"```sh\n(.*?)```", document, re.DOTALL))


async def run(script: str, folder: Path, env: dict[str, str]) -> None:
    for tool in ("sh", "curl"):
        assert shutil.which(tool), f"{tool} is missing (on Debian: apt-get install {tool})"
    process = await asyncio.create_subprocess_exec(
        *("sh", "-eu", "-c", script),
        cwd=folder,
        env={"PATH": "/usr/local/bin:/usr/bin:/bin", **env},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), SCRIPT_TIMEOUT)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, output.decode()


def read(folder: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / name).read_text())
    return found


def text_of(execution: dict[str, Any]) -> str:
    return "".join(output.get("text", "") for output in execution["outputs"])


async def test_the_commands_do_what_the_document_says(
    server: ServerProcess, rest: RestClient, tmp_path: Path
) -> None:
    async with CuttingProxy(server.port, "/events", CUT_SECONDS).serving() as proxy:
        url = f"http://127.0.0.1:{proxy.port}"
        env = {"KERNELKEEP": url, "TOKEN": server.token, "STEPS": str(STEPS)}
        await run(commands(), tmp_path, env)
    answer = read(tmp_path, "answer.json")
    assert (answer["state"], text_of(answer)) == ("ok", "working\n")
    assert answer["outputs"][1]["data"] == {"text/plain": "42"}
    assert proxy.cuts >= 2
    assert followed(tmp_path / "events.txt") == [f"{step}\n" for step in range(STEPS)]
    assert (tmp_path / "image.png").read_bytes() == PIXEL
    hello = read(tmp_path, "hello.json")
    assert (hello["state"], text_of(hello).endswith("Hello Ada\n")) == ("ok", True)
    assert "python3" in read(tmp_path, "kernelspecs.json")["kernelspecs"]
    (kernel,) = json.loads((tmp_path / "kernels.json").read_text())
    assert read(tmp_path, "restarted.json")["id"] == kernel["id"]
    assert "working\n" in [
        message["content"].get("text") for message in read(tmp_path, "messages.json")["messages"]
    ]
    assert read(tmp_path, "refused.json")["code"] == "generation_mismatch"
    assert read(tmp_path, "error.json")["code"] == "kernel_not_found"
    assert read(tmp_path, "cancelled.json")["state"] == "cancelled"
    assert await rest.kernels() == []


def followed(path: Path) -> list[str]:
    """The lines that were printed, without what came twice."""
    events = {}
    for line in path.read_text().splitlines():
        if line.startswith("data: ") and line.endswith("}"):
            event = json.loads(line.removeprefix("data: "))
            if event["type"] == "stream":
                events[event["seq"]] = event["text"]
    text = "".join(events[seq] for seq in sorted(events))
    return text.splitlines(keepends=True)


def test_the_document_has_commands() -> None:
    assert commands().count("curl ") >= 12
