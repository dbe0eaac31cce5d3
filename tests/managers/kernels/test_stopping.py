"""Kernels are stopped: what their clients are told, and that nothing of them stays."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from tests.support.framing import FramingName
from tests.support.kernelspecs import Spec, write_kernelspec
from tests.support.processes import children, eventually, is_alive
from tests.support.rest import RestClient, RestError
from tests.support.running import KernelStarter
from tests.support.server import ServerProcess

UNKNOWN = "11111111-2222-3333-4444-555555555555"


async def test_a_kernel_that_is_deleted_is_gone_when_the_answer_comes(
    server: ServerProcess, start: KernelStarter
) -> None:
    kernel = await start()
    pid = await kernel.pid()
    await kernel.rest.delete(kernel.id)
    assert not is_alive(pid)
    assert children(server.pid) == []
    assert server.home.leftovers() == []
    assert await kernel.rest.kernels() == []
    with pytest.raises(RestError) as raised:
        await kernel.model()
    assert raised.value.status == 404


async def test_an_unknown_kernel_is_not_found(rest: RestClient) -> None:
    with pytest.raises(RestError) as raised:
        await rest.delete(UNKNOWN)
    assert raised.value.status == 404
    assert raised.value.error["message"] == f"Kernel does not exist: {UNKNOWN}"


async def test_clients_get_the_ends_of_their_requests_then_dead_then_the_close(
    start: KernelStarter, framing: FramingName
) -> None:
    kernel = await start()
    channels = await kernel.connect(framing=framing)
    running = await kernel.busy("hang")
    waiting = await channels.send_execute("print never")
    await channels.request("kernel_info_request")
    deletion = asyncio.create_task(kernel.rest.delete(kernel.id))
    for client, request in ((kernel.channels, running), (channels, waiting)):
        exchange = await client.exchange(request)
        assert exchange.reply["status"] == "aborted"
        assert exchange.states[-1] == "idle"
        close = await client.closed()
        assert (close.code, bool(close.reason)) == (4404, True)
        assert client.log[-1].state == "dead"
    await deletion


async def test_what_is_sent_while_it_stops_ends(start: KernelStarter) -> None:
    kernel = await start("fake-no-shutdown")
    deletion = asyncio.create_task(kernel.rest.delete(kernel.id))
    await kernel.becomes("terminating")
    exchange = await kernel.channels.execute("print never", timeout=5)
    assert exchange.reply["status"] == "aborted"
    with pytest.raises(RestError) as raised:
        await kernel.rest.interrupt(kernel.id)
    assert raised.value.status == 409
    await deletion


async def test_deletions_at_once_all_come_to_an_end(start: KernelStarter) -> None:
    kernel = await start()
    outcomes = await asyncio.gather(
        *(kernel.rest.delete(kernel.id) for _ in range(4)), return_exceptions=True
    )
    refused = [outcome for outcome in outcomes if outcome is not None]
    assert len(refused) < len(outcomes)
    assert all(isinstance(error, RestError) and error.status == 404 for error in refused)


async def test_one_that_is_deleted_between_its_death_and_its_restart_stays_gone(
    server: ServerProcess, start: KernelStarter
) -> None:
    kernel = await start()
    os.kill(await kernel.pid(), signal.SIGKILL)
    await kernel.told("idle")
    os.kill(await kernel.pid(), signal.SIGKILL)
    await kernel.told("restarting")  # which the second time of a row is half a second later
    await kernel.rest.delete(kernel.id)
    assert (await kernel.channels.closed()).code == 4404
    assert children(server.pid) == []


async def test_its_child_processes_go_with_it(server: ServerProcess, start: KernelStarter) -> None:
    kernel = await start("fake-children")
    family = [process.pid for process in children(server.pid)]
    assert len(family) == 3
    await kernel.rest.delete(kernel.id)
    # They are orphans by then, and have another parent.
    await eventually(lambda: not any(map(is_alive, family)))
    assert not children(server.pid)


async def test_what_a_cell_started_in_the_background_goes_with_the_kernel(
    server: ServerProcess, start: KernelStarter
) -> None:
    kernel = await start("python3")
    code = "import subprocess; print(subprocess.Popen(['sleep', '600']).pid)"
    child = int((await kernel.channels.execute(code)).text)
    assert is_alive(child)
    await kernel.rest.delete(kernel.id)
    await eventually(lambda: not is_alive(child))


async def test_one_id_can_be_used_again_after_the_deletion(start: KernelStarter) -> None:
    first = await start()
    await first.channels.execute("print here")
    await first.rest.delete(first.id)
    second = await start(kernel_id=first.id)
    assert second.id == first.id
    assert (await second.channels.execute("print here")).reply["execution_count"] == 1


async def test_fifty_start_and_stop_at_once(server: ServerProcess, start: KernelStarter) -> None:
    flags = ("--slow-start", "0")
    write_kernelspec(server.home.jupyter_path, "many", Spec(flags=flags))
    models = await asyncio.gather(*(start.rest.start_kernel("many") for _ in range(50)))
    kernel_ids = [model["id"] for model in models]
    assert len(set(kernel_ids)) == 50
    assert {model["id"] for model in await start.rest.kernels()} == {*kernel_ids}
    for kernel_id in kernel_ids:
        await start.rest.wait_for_state(kernel_id, "idle", timeout=90)
    assert len(children(server.pid)) == 50
    await asyncio.gather(*(start.rest.delete(kernel_id) for kernel_id in kernel_ids))
    assert await start.rest.kernels() == []
    assert children(server.pid) == []
    assert server.home.leftovers() == []
