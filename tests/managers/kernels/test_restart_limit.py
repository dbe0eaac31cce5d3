"""How often a kernel that dies is restarted, how soon, and what a dead one still does."""

from __future__ import annotations

import os
import signal
import time

import pytest

from tests.conftest import MakeServer
from tests.support.kernelspecs import Spec, write_kernelspec
from tests.support.processes import children
from tests.support.rest import RestError
from tests.support.running import RunningKernel, kernels_of


async def kill(kernel: RunningKernel) -> None:
    os.kill(await kernel.pid(), signal.SIGKILL)


async def ends_at_once(kernel: RunningKernel) -> None:
    """Requests of every kind are answered though there is nobody to answer them."""
    channels = kernel.channels
    for request in ("execute_request", "complete_request", "inspect_request"):
        exchange = await channels.request(request, {"code": "print never"}, timeout=5)
        assert exchange.reply == {"status": "aborted"}
        assert exchange.states == ["idle"]
    exchange = await channels.request("debug_request", {}, "control", timeout=5)
    assert exchange.replies[0].channel == "control"


async def test_one_that_dies_too_often_stays_dead_until_it_is_restarted(
    make_server: MakeServer,
) -> None:
    server = make_server("--restart-limit", "2")
    async with kernels_of(server) as start:
        kernel = await start()
        pauses = []
        for _ in range(2):
            await kill(kernel)
            died = time.monotonic()
            await kernel.told("restarting")
            await kernel.told("idle")
            pauses.append(time.monotonic() - died)
        assert pauses[1] >= 0.5  # the second of a row waits
        await kill(kernel)
        await kernel.told("dead")
        model = await kernel.model()
        assert model["execution_state"] == "dead"
        assert "SIGKILL" in model["reason"]
        assert children(server.pid) == []
        await ends_at_once(kernel)
        late = await kernel.connect()
        assert (await late.recv()).state == "dead"
        with pytest.raises(RestError) as raised:
            await kernel.rest.interrupt(kernel.id)
        assert raised.value.status == 409
        assert raised.value.error["code"] == "kernel_not_running"
        await kernel.rest.restart(kernel.id)
        await kernel.told("idle")
        # The count starts anew.
        await kill(kernel)
        await kernel.told("restarting")
        await kernel.told("idle")
        assert (await late.execute("print here")).text == "here\n"


@pytest.mark.parametrize("options", [("--no-autorestart",), ("--restart-limit", "0")])
async def test_without_automatic_restarts_the_first_death_is_final(
    make_server: MakeServer, options: tuple[str, ...]
) -> None:
    server = make_server(*options)
    async with kernels_of(server) as start:
        kernel = await start()
        exchange = await kernel.channels.execute("die 3")
        assert "exited with code 3" in exchange.error["evalue"]
        assert exchange.reply["status"] == "aborted"
        told = await kernel.told("dead")
        assert "restarting" not in [m.state for m in told]
        assert "exited with code 3" in (await kernel.model())["reason"]
        await ends_at_once(kernel)
        await kernel.rest.delete(kernel.id)
        assert (await kernel.channels.closed()).code == 4404


async def test_one_whose_program_is_gone_when_it_dies_is_dead_and_says_why(
    make_server: MakeServer,
) -> None:
    server = make_server()
    program = server.home.root_dir / "program"
    program.write_text('#!/bin/sh\nexec "$@"\n')
    program.chmod(0o700)
    argv = (str(program), *Spec().as_json("")["argv"])
    write_kernelspec(server.home.jupyter_path, "removable", Spec(argv=argv))
    async with kernels_of(server) as start:
        kernel = await start("removable")
        program.unlink()
        await kill(kernel)
        await kernel.told("restarting")
        await kernel.told("dead")
        assert str(program) in (await kernel.model())["reason"]
        await ends_at_once(kernel)
