"""Writes app/managers/fork_server.order anew: the functions that a kernel runs while it starts.

    python -m tests.support.fork_order

A fork server puts their code side by side. Record them again when ipykernel or IPython has changed:
a test tells when too few of them are there.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from tests.support import fork_recorder
from tests.support.executions import Executions
from tests.support.home import Home
from tests.support.kernelspecs import Spec, write_kernelspec
from tests.support.processes import eventually_sync
from tests.support.rest import RestClient
from tests.support.server import REPOSITORY, ServerProcess

ORDER = REPOSITORY / "app" / "managers" / "fork_server.order"
OURS = ("tests.", "__main__:")


async def record(server: ServerProcess) -> None:
    """Start a kernel, have it run something, and end it."""
    async with RestClient(server.url, server.token) as rest:
        kernel = await rest.start_kernel("recorded")
        response = await Executions(rest, kernel["id"]).post("1 + 1", query={"wait": 60})
        assert response.json()["state"] == "ok", response.text
        await rest.delete(kernel["id"])


def main() -> None:
    home = Home()
    calls = Path(home.path, "calls")
    preload = {"preload": [fork_recorder.__name__]}
    spec = Spec(
        argv=(sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"),
        env={fork_recorder.RECORD: str(calls)},
        metadata={"kernel_provisioner": {"provisioner_name": "kernelkeep-fork", "config": preload}},
        fields={"language": "python"},
    )
    write_kernelspec(home.jupyter_path, "recorded", spec)
    server = ServerProcess(
        "--fork-kernels", "recorded", env={"PYTHONPATH": str(REPOSITORY)}, home=home
    )
    server.start()
    try:
        eventually_sync(lambda: "is ready" in server.output().partition("fork server")[2], 60)
        asyncio.run(record(server))
    finally:
        server.stop()
    names = [line for line in calls.read_text("utf-8").splitlines() if not line.startswith(OURS)]
    ORDER.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    sys.stdout.write(f"{len(names)} functions\n")


if __name__ == "__main__":
    main()
