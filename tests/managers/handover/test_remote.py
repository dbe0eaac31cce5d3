"""Kernels that live elsewhere, by a provisioner of somebody else's, and the next server."""

from __future__ import annotations

import asyncio
import os
import signal

from tests.support.channels import JupyterChannels
from tests.support.drill import Servers
from tests.support.executions import Executions
from tests.support.far import SPEC, expect, install_far
from tests.support.home import Home
from tests.support.kernelspecs import write_kernelspec
from tests.support.processes import eventually, is_alive
from tests.support.rest import RestClient


async def test_they_are_found_again_side_by_side(servers: Servers, home: Home) -> None:
    directory = home.path / "far"
    servers.env = install_far(directory)
    write_kernelspec(home.jupyter_path, "far", SPEC)
    server = await asyncio.to_thread(servers.start)
    async with RestClient(server.url, server.token) as rest:
        models = await asyncio.gather(*(rest.start_kernel("far") for _ in range(4)))
        ids = [model["id"] for model in models]
        pids = {}
        for kernel_id in ids:
            run = await Executions(rest, kernel_id).run("pid")
            pids[kernel_id] = int(run["outputs"][0]["text"])
        kernel, running, killed, lost = ids
        assert (await Executions(rest, kernel).run("print before"))["state"] == "ok"
        sleeping = await Executions(rest, running).begin("print begun\nsleep 60")
        await Executions(rest, running).until(sleeping, "stream")
    servers.crash()
    os.kill(pids[killed], signal.SIGKILL)
    # Each blocks its thread until all are being looked for: in one thread none would be found.
    expect(directory, len(ids), lost, late=running)
    server = await asyncio.to_thread(servers.start)
    async with RestClient(server.url, server.token) as rest:
        found = {model["id"]: model for model in await rest.kernels()}
        states = [found[kernel_id]["execution_state"] for kernel_id in ids]
        assert states == ["idle", "busy", "dead", "unknown"]
        assert "exited with code 1" in found[killed]["reason"]
        assert "LookupError: nobody there knows it" in found[lost]["reason"]

        await rest.interrupt(running)
        assert (await Executions(rest, running).ended(sleeping))["state"] == "error"
        assert (await Executions(rest, kernel).run("pid"))["outputs"][0]["text"] == (
            f"{pids[kernel]}\n"
        )
        channels = await JupyterChannels.connect(
            server.ws_url, kernel, server.token, query={"after": "0"}
        )
        # The keeper has heard all that was said meanwhile.
        await channels.seen(lambda m: m.content.get("text") == "before\n")
        texts = [m.content["text"] for m in channels.log if m.msg_type == "stream"]
        assert texts[:2] == [f"{pids[kernel]}\n", "before\n"]
        assert not [m for m in channels.log if m.content.get("name") == "stderr"]
        await channels.close()

        await rest.restart(kernel)
        run = await Executions(rest, kernel).run("pid")
        assert int(run["outputs"][0]["text"]) != pids[kernel]
        assert not is_alive(pids[kernel])
        expect(directory, 0)
        await rest.wait_for_state(lost, "idle", timeout=30)
        run = await Executions(rest, lost).run("pid")
        assert int(run["outputs"][0]["text"]) == pids[lost]
        await asyncio.gather(*map(rest.delete, ids))
        await eventually(lambda: not any(map(is_alive, pids.values())), 30)
    await asyncio.to_thread(server.stop)
