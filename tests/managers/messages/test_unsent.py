"""Requests that had not reached their kernel when the server was killed: the next sends them.

These are the tests of `app.managers.messages.outbox` and `app.managers.messages.reading`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection

from tests.support.channels import JupyterChannels
from tests.support.drill import KEEP, Servers, drill_waiting
from tests.support.executions import Executions
from tests.support.home import Home
from tests.support.kernelspecs import shell_spec, write_kernelspec
from tests.support.processes import eventually, is_alive, keepers
from tests.support.registry import open_registry, row_of
from tests.support.rest import RestClient

GATE = "until [ -e open ]; do sleep 0.05; done; exec $FAKE"
"""A kernel that binds nothing before there is a file ``open`` where it works."""


async def noted(home: Home, execution_id: str, code: str) -> bytes:
    """The row of an execution, once it has the request."""
    await eventually(lambda: code.encode() in row_of(home.state_dir, execution_id), 10)
    return row_of(home.state_dir, execution_id)


async def known(home: Home, execution_ids: Collection[str]) -> None:
    """Return when the next server will know these executions, too."""
    await eventually(lambda: all(row_of(home.state_dir, each) for each in execution_ids), 10)


def lines(home: Home) -> list[str]:
    """What cells have appended."""
    file = home.root_dir / "cells"
    return file.read_text().split() if file.exists() else []


async def test_nothing_that_waits_is_lost_or_run_twice_when_the_server_is_killed(
    servers: Servers,
) -> None:
    await drill_waiting(servers, kernels=4, count=12, after=0.5)


async def test_cells_for_a_kernel_that_starts_run_once_and_their_session_gets_the_replies(
    servers: Servers, home: Home
) -> None:
    write_kernelspec(home.jupyter_path, "gated", shell_spec(GATE))
    server = await asyncio.to_thread(servers.start)
    async with RestClient(server.url, server.token) as rest:
        kernel_id = (await rest.start_kernel("gated"))["id"]
        channels = await JupyterChannels.connect(server.ws_url, kernel_id, server.token)
        sent = [await channels.send_execute(f"append cells {n}\nprint {n}") for n in range(3)]
        queued = await Executions(rest, kernel_id).begin("append cells 3")
        await noted(home, sent[-1], "append cells 2")
    servers.crash()
    await channels.close()
    server = await asyncio.to_thread(servers.start)
    async with RestClient(server.url, server.token) as rest:
        again = await JupyterChannels.connect(
            server.ws_url, kernel_id, server.token, session_id=channels.session
        )
        (home.root_dir / "open").touch()
        for number, msg_id in enumerate(sent):
            exchange = await again.exchange(msg_id)
            assert (exchange.reply["status"], exchange.text) == ("ok", f"{number}\n")
        runs = Executions(rest, kernel_id)
        assert (await runs.ended(queued))["state"] == "ok"
        assert [each["state"] for each in await runs.listed()] == ["ok"] * 4
        assert lines(home) == ["0", "1", "2", "3"]
        await again.close()
        await rest.delete(kernel_id)
    await asyncio.to_thread(server.stop)


async def test_what_waits_for_its_turn_is_known_when_that_is_answered_and_runs_once(
    servers: Servers, home: Home
) -> None:
    server = await asyncio.to_thread(servers.start)
    async with RestClient(server.url, server.token) as rest:
        kernel_id = (await rest.start_kernel("fake"))["id"]
        runs = Executions(rest, kernel_id)
        first = await runs.begin("until open")
        await runs.until(first, "started")
        queued = [await runs.begin(f"append cells {number}") for number in range(3)]
        servers.crash()
    server = await asyncio.to_thread(servers.start)
    async with RestClient(server.url, server.token) as rest:
        runs = Executions(rest, kernel_id)
        (home.root_dir / "open").touch()
        for execution_id in (first, *queued):
            ended = await runs.ended(execution_id)
            assert ended["state"] == "ok", ended
        assert lines(home) == ["0", "1", "2"]
        await rest.delete(kernel_id)
    await asyncio.to_thread(server.stop)


async def test_what_waits_behind_one_that_failed_meanwhile_does_not_run(
    servers: Servers, home: Home
) -> None:
    server = await asyncio.to_thread(servers.start)
    async with RestClient(server.url, server.token) as rest:
        kernel_id = (await rest.start_kernel("fake"))["id"]
        runs = Executions(rest, kernel_id)
        first = await runs.begin("until open\nappend failed yes\nerror E v")
        await runs.until(first, "started")
        queued = await runs.begin("append cells 0")
        servers.crash()
    (home.root_dir / "open").touch()
    await eventually((home.root_dir / "failed").exists, 10)
    server = await asyncio.to_thread(servers.start)
    async with RestClient(server.url, server.token) as rest:
        runs = Executions(rest, kernel_id)
        assert (await runs.ended(first))["state"] == "error"
        ended = await runs.ended(queued)
        assert ended["state"] == "aborted"
        assert ended["reason"].startswith("An execution before it failed")
        assert not lines(home)
        await rest.delete(kernel_id)
    await asyncio.to_thread(server.stop)


async def test_cells_of_a_restart_that_is_cut_short_run_once_in_the_next_process(
    servers: Servers, home: Home
) -> None:
    servers.arguments = (*KEEP, "--shutdown-wait-time", "120")
    server = await asyncio.to_thread(servers.start)
    async with RestClient(server.url, server.token) as rest:
        kernel_id = (await rest.start_kernel("fake-stubborn"))["id"]
        run = await Executions(rest, kernel_id).run("pid")
        pid = int(run["outputs"][0]["text"])
        channels = await JupyterChannels.connect(server.ws_url, kernel_id, server.token)
        restart = asyncio.create_task(rest.restart(kernel_id))
        await rest.wait_for_state(kernel_id, "restarting")
        sent = await channels.send_execute("append cells 0\npid")
        await noted(home, sent, "append cells 0")
        cancelled = await channels.send_execute("append cells 1")
        await noted(home, cancelled, "append cells 1")
        await Executions(rest, kernel_id).cancel(cancelled)
        servers.crash()
        await asyncio.gather(restart, return_exceptions=True)
    await channels.close()
    assert is_alive(pid)
    servers.arguments = KEEP
    server = await asyncio.to_thread(servers.start)
    async with RestClient(server.url, server.token) as rest:
        await eventually(lambda: not is_alive(pid))
        again = await JupyterChannels.connect(
            server.ws_url, kernel_id, server.token, session_id=channels.session
        )
        exchange = await again.exchange(sent)
        assert exchange.reply["status"] == "ok"
        assert int(exchange.text) != pid
        assert (await Executions(rest, kernel_id).get(cancelled))["state"] == "cancelled"
        assert lines(home) == ["0"]
        await again.close()
        await rest.delete(kernel_id)
    await asyncio.to_thread(server.stop)


async def test_a_process_that_was_launched_and_not_noted_any_more_gives_way_to_another(
    servers: Servers, home: Home
) -> None:
    write_kernelspec(home.jupyter_path, "gated", shell_spec(GATE))
    (home.root_dir / "open").touch()
    server = await asyncio.to_thread(servers.start)
    process = "SELECT pid, start_time, provisioner FROM kernel"
    async with RestClient(server.url, server.token) as rest:
        kernel_id = (await rest.start_kernel("gated"))["id"]
        await rest.wait_for_state(kernel_id, "idle")
        (home.root_dir / "open").unlink()
        with open_registry(home.state_dir) as connection:
            before = connection.execute(process).fetchone()
        await rest.restart(kernel_id)
        channels = await JupyterChannels.connect(server.ws_url, kernel_id, server.token)
        sent = await channels.send_execute("append cells 0")
        await noted(home, sent, "append cells 0")
    servers.crash()
    await channels.close()
    # As if the server had been killed between the launch and its note.
    with open_registry(home.state_dir) as connection:
        (unnoted,) = connection.execute("SELECT pid FROM kernel").fetchone()
        connection.execute("UPDATE kernel SET pid = ?, start_time = ?, provisioner = ?", before)
    (home.root_dir / "open").touch()
    server = await asyncio.to_thread(servers.start)
    async with RestClient(server.url, server.token) as rest:
        assert (await Executions(rest, kernel_id).ended(sent))["state"] == "ok"
        assert not is_alive(unnoted)
        assert lines(home) == ["0"]
        await rest.delete(kernel_id)
    await asyncio.to_thread(server.stop)


async def test_what_was_sent_just_before_the_kill_is_not_sent_again(
    servers: Servers, home: Home
) -> None:
    write_kernelspec(home.jupyter_path, "gated", shell_spec(GATE))
    server = await asyncio.to_thread(servers.start)
    async with RestClient(server.url, server.token) as rest:
        kernel_id = (await rest.start_kernel("gated"))["id"]
        channels = await JupyterChannels.connect(server.ws_url, kernel_id, server.token)
        sent = await channels.send_execute("append cells 0")
        queued = await Executions(rest, kernel_id).begin("append cells 1")
        rows = {each: await noted(home, each, "append cells") for each in (sent, queued)}
        (home.root_dir / "open").touch()
        await Executions(rest, kernel_id).ended(queued)
    servers.crash()
    await channels.close()
    # As if the registry had not been told any more.
    with open_registry(home.state_dir) as connection:
        query = "UPDATE execution SET data = ? WHERE id = ?"
        connection.executemany(query, [(data, each) for each, data in rows.items()])
    server = await asyncio.to_thread(servers.start)
    async with RestClient(server.url, server.token) as rest:
        runs = Executions(rest, kernel_id)
        assert (await runs.run("append cells 2"))["state"] == "ok"
        for execution_id in (sent, queued):
            assert (await runs.ended(execution_id))["state"] == "ok"
        assert lines(home) == ["0", "1", "2"]
        await rest.delete(kernel_id)
    await asyncio.to_thread(server.stop)


async def test_what_the_keeper_had_not_read_when_the_server_was_killed_runs_once_in_its_order(
    servers: Servers, home: Home
) -> None:
    server = await asyncio.to_thread(servers.start)
    async with RestClient(server.url, server.token) as rest:
        kernel_id = (await rest.start_kernel("fake"))["id"]
        await rest.wait_for_state(kernel_id, "idle")
        channels = await JupyterChannels.connect(server.ws_url, kernel_id, server.token)
        (keeper,) = keepers(home.processes())
        keeper.suspend()
        runs = Executions(rest, kernel_id)
        sent = [await channels.send_execute(f"append cells {n}") for n in range(3)]
        await known(home, sent)
        queued = await runs.begin("append cells 3")
    servers.crash()
    keeper.resume()
    await channels.close()
    server = await asyncio.to_thread(servers.start)
    async with RestClient(server.url, server.token) as rest:
        runs = Executions(rest, kernel_id)
        for each in (*sent, queued):
            assert (await runs.ended(each))["state"] == "ok"
        assert lines(home) == ["0", "1", "2", "3"]
        await rest.delete(kernel_id)
    await asyncio.to_thread(server.stop)


async def test_what_went_with_the_server_that_was_killed_has_an_end_too(
    servers: Servers, home: Home
) -> None:
    """More than fits between the server and a keeper that does not read."""
    server = await asyncio.to_thread(servers.start)
    async with RestClient(server.url, server.token) as rest:
        kernel_id = (await rest.start_kernel("fake"))["id"]
        await rest.wait_for_state(kernel_id, "idle")
        channels = await JupyterChannels.connect(server.ws_url, kernel_id, server.token)
        (keeper,) = keepers(home.processes())
        keeper.suspend()
        filler = "x" * 100_000
        sent = [
            await channels.send_execute(f"append cells {n}\nappend rest {filler}")
            for n in range(20)
        ]
        await known(home, sent)
    servers.crash()
    keeper.resume()
    await channels.close()
    server = await asyncio.to_thread(servers.start)
    async with RestClient(server.url, server.token) as rest:
        runs = Executions(rest, kernel_id)
        states = [(await runs.ended(each))["state"] for each in sent]
        arrived = states.count("ok")
        assert 0 < arrived < len(sent)
        assert states == ["ok"] * arrived + ["aborted"] * (len(sent) - arrived)
        assert lines(home) == [str(number) for number in range(arrived)]
        assert (await runs.run("append cells last"))["state"] == "ok"
        await rest.delete(kernel_id)
    await asyncio.to_thread(server.stop)
