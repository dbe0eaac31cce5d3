"""Kernels that outlive the server, and the next server that owns them.

These are the tests of `app.managers.handover.handover`, `app.managers.kernels.registration` and
`app.managers.kernels.take_over`.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from types import SimpleNamespace
from typing import Any, cast

import msgspec

from app.keeper.processes import start_time
from app.managers.handover.handover import HandedOver, Handover
from app.managers.handover.store import KernelRecord
from app.managers.kernels.services import KernelServices
from app.managers.kernels.take_over import LeftKernel, TakeOver
from tests.managers.scripted import ScriptedKernel
from tests.support.channels import JupyterChannels
from tests.support.drill import KEEP, Servers, drill
from tests.support.executions import Executions
from tests.support.home import Home
from tests.support.kernelspecs import (
    FAKE_KERNEL,
    Spec,
    write_broken_kernelspec,
    write_kernelspec,
)
from tests.support.lively import pid_of
from tests.support.metrics import scrape
from tests.support.processes import eventually, is_alive, keepers
from tests.support.registry import open_registry, row_of
from tests.support.rest import RestClient
from tests.support.server import ServerProcess, run_server


async def test_nothing_is_missed_when_the_server_is_killed(servers: Servers) -> None:
    await drill(servers, kernels=3, count=1500, rate=1000, after=0.5)


def command(home: Home, *arguments: str) -> str:
    """What ``kernelkeep kernels`` says."""
    done = run_server("kernels", *arguments, "--state-dir", str(home.state_dir), home=home)
    assert done.returncode == 0, done.stderr
    return done.stdout


async def test_one_that_says_nothing_is_as_it_was_and_an_unused_one_is_culled(
    servers: Servers, home: Home
) -> None:
    server = await asyncio.to_thread(servers.start)
    async with RestClient(server.url, server.token) as rest:
        names = ("fake", "fake", "fake-old", "fake")
        silent, busy, old, unused = [(await rest.start_kernel(name))["id"] for name in names]
        pids = {
            kernel_id: await pid_of(rest, kernel_id) for kernel_id in (silent, busy, old, unused)
        }
        runs = {}
        for kernel_id in (busy, old):  # the second answers nobody while it is
            run = runs[kernel_id] = await Executions(rest, kernel_id).begin("sleep 60")
            await Executions(rest, kernel_id).until(run, "started")
    servers.crash()
    os.kill(pids[silent], signal.SIGSTOP)
    with open_registry(home.state_dir) as connection:
        connection.execute("UPDATE kernel SET last_activity = 0 WHERE id = ?", (unused,))
    culling = ("--cull-idle-timeout", "3600", "--cull-interval", "1")
    servers.arguments = (*KEEP, "--kernel-info-timeout", "1", *culling)
    server = await asyncio.to_thread(servers.start)
    async with RestClient(server.url, server.token) as rest:
        assert (await rest.kernel(silent))["execution_state"] == "idle"
        for kernel_id, run in runs.items():
            assert (await rest.kernel(kernel_id))["execution_state"] == "busy"
            await rest.interrupt(kernel_id)
            assert (await Executions(rest, kernel_id).ended(run))["state"] == "error"
            assert await pid_of(rest, kernel_id) == pids[kernel_id]
        await eventually(lambda: not is_alive(pids[unused]))  # long idle, and so culled
        waiting = await Executions(rest, silent).begin("pid")
        os.kill(pids[silent], signal.SIGCONT)
        ended = await Executions(rest, silent).ended(waiting)
        assert ended["outputs"][0]["text"] == f"{pids[silent]}\n"
        model = await rest.wait_for_state(silent, "idle")
        assert "reason" not in model
        await asyncio.gather(*map(rest.delete, (silent, busy, old)))
    await asyncio.to_thread(server.stop)


async def test_what_one_has_said_while_it_starts_is_shown_to_nobody_by_the_next_server(
    servers: Servers, home: Home
) -> None:
    chatter = "a debugger warns"
    flags = ("--chatter", chatter, "--serve-at", "serve")
    write_kernelspec(home.jupyter_path, "chatty", Spec(flags=flags))

    async def logged(rest: RestClient) -> list[str]:
        """The ids of what is in the log and goes to nobody."""
        query = {"limit": 1000}
        response = await rest.request("GET", f"/api/kernels/{kernel_id}/messages", params=query)
        found = [m for m in response.json()["messages"] if chatter in str(m["content"])]
        assert {message["session"] for message in found} <= {""}
        return [message["header"]["msg_id"] for message in found]

    server = await asyncio.to_thread(servers.start)
    async with RestClient(server.url, server.token) as rest:
        kernel_id = (await rest.start_kernel("chatty"))["id"]
        await eventually(lambda: logged(rest))
        before = await logged(rest)
    servers.crash()
    server = await asyncio.to_thread(servers.start)
    async with RestClient(server.url, server.token) as rest:
        assert (await logged(rest))[: len(before)] == before
        (home.root_dir / "serve").touch()
        query = {"after": "0"}
        async with await JupyterChannels.connect(
            server.ws_url, kernel_id, server.token, query=query
        ) as channels:
            assert (await channels.execute("print a")).text == "a\n"
            assert chatter not in str([message.content for message in channels.log])
        found = await logged(rest)
        assert len(found) == len({*found})
        await rest.delete(kernel_id)
    await asyncio.to_thread(server.stop)


def is_stored_as_running(home: Home, execution_id: str) -> bool:
    """What was asked in the last moment before a crash only the keeper knows."""
    return b"running" in row_of(home.state_dir, execution_id)


def point_row_at(home: Home, kernel_id: str, pid: int) -> None:
    """Let the registry say that a kernel has this number, and the start time that it had."""
    with open_registry(home.state_dir) as connection:
        query = "SELECT provisioner FROM kernel WHERE id = ?"
        (found,) = connection.execute(query, (kernel_id,)).fetchone()
        info = {**msgspec.json.decode(found), "pid": pid}
        values = (msgspec.json.encode(info).decode(), pid, kernel_id)
        connection.execute("UPDATE kernel SET provisioner = ?, pid = ? WHERE id = ?", values)


async def test_a_server_that_is_told_to_stop_leaves_them(servers: Servers, home: Home) -> None:
    server = await asyncio.to_thread(servers.start)
    async with RestClient(server.url, server.token) as rest:
        killed, sleeping, stopped = [(await rest.start_kernel("fake"))["id"] for _ in range(3)]
        pids = [await pid_of(rest, kernel_id) for kernel_id in (killed, sleeping, stopped)]
        for kernel_id in (killed, sleeping):
            execution = Executions(rest, kernel_id)
            mine = await execution.begin("sleep 60")
            await execution.until(mine, "started")
        waiting = await Executions(rest, sleeping).begin("print held")

    where = ("--state-dir", str(home.state_dir), "--root-dir", str(home.root_dir), "--port", "0")
    second = run_server(*where, "--on-shutdown", "keep", home=home)
    assert second.returncode == 2
    assert f"in use by another server (process {server.pid})" in second.stderr
    assert len(second.stderr.splitlines()) == 1

    server.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(server.wait) in (0, -signal.SIGTERM)
    assert all(map(is_alive, pids))
    os.kill(pids[0], signal.SIGKILL)
    listed = json.loads(command(home, "list", "--json"))
    assert [(model["id"], model["pid"]) for model in listed] == [
        (killed, pids[0]),
        (sleeping, pids[1]),
        (stopped, pids[2]),
    ]
    command(home, "stop", stopped)
    assert not is_alive(pids[2])
    server = await asyncio.to_thread(servers.start)
    async with RestClient(server.url, server.token) as rest:
        found = {model["id"]: model for model in await rest.kernels()}
        assert found[killed]["execution_state"] == "dead"
        assert "SIGKILL" in found[killed]["reason"]
        (lost,) = [e for e in await Executions(rest, killed).listed() if e["state"] == "lost"]
        assert "SIGKILL" in lost["reason"]
        assert found[sleeping]["execution_state"] == "busy"
        await rest.interrupt(sleeping)
        runs = Executions(rest, sleeping)
        assert (await runs.ended(mine))["state"] == "error"
        assert (await runs.ended(waiting))["reason"].startswith("An execution before it failed")
        assert await pid_of(rest, sleeping) == pids[1]
        await rest.restart(killed)
        assert await pid_of(rest, killed) != pids[0]
        assert sleeping in await asyncio.to_thread(command, home, "list")
        await asyncio.to_thread(command, home, "stop", "--all")
        assert not await rest.kernels()
    await asyncio.to_thread(server.stop)


async def test_one_that_starts_or_restarts_goes_on_with_the_next_server(
    servers: Servers, home: Home
) -> None:
    server = await asyncio.to_thread(servers.start)
    async with RestClient(server.url, server.token) as rest:
        restarted = (await rest.start_kernel("fake-slow"))["id"]
        pid = await pid_of(rest, restarted)
        done = await Executions(rest, restarted).run("print before")
        started = (await rest.start_kernel("fake-slow"))["id"]
        assert (await rest.restart(restarted))["execution_state"] == "restarting"
    server.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(server.wait) in (0, -signal.SIGTERM)
    server = await asyncio.to_thread(servers.start)
    async with RestClient(server.url, server.token) as rest:
        assert [model["id"] for model in await rest.kernels()] == [restarted, started]
        assert await pid_of(rest, restarted) != pid
        assert (await Executions(rest, restarted).get(done["id"]))["state"] == "ok"
        assert (await Executions(rest, started).run("print up"))["state"] == "ok"
        await asyncio.gather(*map(rest.delete, (restarted, started)))
    await asyncio.to_thread(server.stop)


async def test_one_that_has_died_and_waits_for_its_turn_is_restarted_by_the_next_server(
    servers: Servers, home: Home
) -> None:
    servers.arguments = (*KEEP, "--max-concurrent-starts", "1")
    server = await asyncio.to_thread(servers.start)
    async with RestClient(server.url, server.token) as rest:
        kernel_id = (await rest.start_kernel("fake"))["id"]
        pid = await pid_of(rest, kernel_id)
        silent = (await rest.start_kernel("fake-silent"))["id"]
        os.kill(pid, signal.SIGKILL)
        await rest.wait_for_state(kernel_id, "restarting")
    server.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(server.wait) in (0, -signal.SIGTERM)
    assert states(home) == {kernel_id: "restarting", silent: "starting"}
    servers.arguments = KEEP
    server = await asyncio.to_thread(servers.start)
    async with RestClient(server.url, server.token) as rest:
        assert await pid_of(rest, kernel_id) != pid
        await asyncio.gather(*map(rest.delete, (kernel_id, silent)))
    await asyncio.to_thread(server.stop)


async def test_a_restart_or_a_deletion_that_a_crash_has_cut_short_is_finished(
    servers: Servers, home: Home
) -> None:
    server = await asyncio.to_thread(servers.start)
    async with RestClient(server.url, server.token) as rest:
        names = ("fake-no-shutdown",) * 3
        ids = [(await rest.start_kernel(name))["id"] for name in names]
        restarted, asked, deleted = ids
        pid, heedless, unwanted = [await pid_of(rest, kernel_id) for kernel_id in ids]
        requests = [
            asyncio.create_task(rest.restart(restarted)),
            asyncio.create_task(rest.restart(asked)),
            asyncio.create_task(rest.delete(deleted)),
        ]
        await rest.wait_for_state(restarted, "restarting")
        await rest.wait_for_state(asked, "restarting")
        await rest.wait_for_state(deleted, "terminating")
        await eventually(lambda: states(home) == {restarted: "restarting", asked: "restarting"})
        servers.crash()
        assert all(await asyncio.gather(*requests, return_exceptions=True))
    os.kill(pid, signal.SIGKILL)
    await eventually(lambda: not is_alive(pid))
    server = await asyncio.to_thread(servers.start)
    async with RestClient(server.url, server.token) as rest:
        assert [model["id"] for model in await rest.kernels()] == [restarted, asked]
        assert not is_alive(unwanted)
        assert not is_alive(heedless)  # it may have been asked to end already
        assert await pid_of(rest, asked) != heedless
        assert await pid_of(rest, restarted) != pid
        assert "reason" not in await rest.kernel(restarted)
        await asyncio.gather(rest.delete(restarted), rest.delete(asked))
    await asyncio.to_thread(server.stop)


async def test_where_a_session_has_moved_is_known_to_the_next_server(
    servers: Servers, home: Home
) -> None:
    server = await asyncio.to_thread(servers.start)
    for name in ("before", "after"):
        (home.root_dir / name).mkdir()
    async with RestClient(server.url, server.token) as rest:
        body = {"path": "before/a", "type": "notebook", "kernel": {"name": "fake"}}
        session = (await rest.request("POST", "/api/sessions", 201, json=body)).json()
        kernel_id = session["kernel"]["id"]
        await rest.wait_for_state(kernel_id, "idle")
        await rest.request("PATCH", f"/api/sessions/{session['id']}", json={"path": "after/a"})
    servers.crash()
    server = await asyncio.to_thread(servers.start)
    async with RestClient(server.url, server.token) as rest:
        executions = Executions(rest, kernel_id)
        cwd = (await executions.run("cwd"))["outputs"][0]["text"]
        assert cwd == f"{home.root_dir / 'before'}\n"
        await rest.restart(kernel_id)
        known = await executions.run("cwd\nenv JPY_SESSION_NAME")
        assert known["outputs"][0]["text"] == f"{home.root_dir / 'after'}\nafter/a\n"
        await rest.delete(kernel_id)
    await asyncio.to_thread(server.stop)


async def test_the_deaths_of_before_are_still_told_as_past(servers: Servers) -> None:
    server = servers.start()
    async with RestClient(server.url, server.token) as rest:
        kernel_id = (await rest.start_kernel("fake"))["id"]
        await rest.wait_for_state(kernel_id, "idle")
        os.kill(await pid_of(rest, kernel_id), signal.SIGKILL)

        async def came_back() -> bool:
            model = await rest.kernel(kernel_id)
            return "restarts" in model and model["execution_state"] == "idle"

        await eventually(came_back, 30)
        restarts = (await rest.kernel(kernel_id))["restarts"]
        assert (restarts["count"], "SIGKILL" in restarts["reason"]) == (1, True)
        assert (await rest.kernel(kernel_id))["generation"] == 2
    servers.crash()
    server = await asyncio.to_thread(servers.start)
    async with RestClient(server.url, server.token) as rest:
        model = await rest.kernel(kernel_id)
        assert model["restarts"] == restarts
        assert model["generation"] == 2
        assert "reason" not in model
        await rest.delete(kernel_id)
    await asyncio.to_thread(server.stop)


async def test_a_kernel_whose_kernelspec_was_broken_meanwhile_goes_on(
    servers: Servers, home: Home
) -> None:
    write_kernelspec(home.jupyter_path, "breaking", Spec())
    server = servers.start()
    async with RestClient(server.url, server.token) as rest:
        kernel_id = (await rest.start_kernel("breaking"))["id"]
        await rest.wait_for_state(kernel_id, "idle")
        pid = await pid_of(rest, kernel_id)
    servers.crash()
    write_broken_kernelspec(home.jupyter_path, "breaking", '{"argv": 7}')
    server = await asyncio.to_thread(servers.start)
    async with RestClient(server.url, server.token) as rest:
        assert await pid_of(rest, kernel_id) == pid
        await rest.delete(kernel_id)
    await asyncio.to_thread(server.stop)


async def test_what_was_nobodys_ends_although_the_keeper_was_killed_as_well(
    servers: Servers, home: Home
) -> None:
    servers.arguments = (*KEEP, "--warm-kernels", "fake=1")
    server = await asyncio.to_thread(servers.start)
    async with RestClient(server.url, server.token) as rest:

        async def parked() -> bool:
            return (await scrape(rest))("kernelkeep_warm_kernels", type="fake") == 1

        await eventually(parked)
    (warm,) = [p for p in home.processes() if str(FAKE_KERNEL) in p.cmdline()]
    (keeper,) = keepers(home.processes())
    servers.crash()
    keeper.kill()
    await eventually(lambda: not is_alive(keeper.pid))
    assert is_alive(warm.pid)
    server = await asyncio.to_thread(servers.start)
    assert not is_alive(warm.pid)
    await asyncio.to_thread(server.stop)


def states(home: Home) -> dict[str, str]:
    """What the registry says that kernels do."""
    with open_registry(home.state_dir) as connection:
        found = dict(connection.execute("SELECT id, execution_state FROM kernel"))
    return found


async def test_without_the_keeper_they_are_found_and_what_is_lost_is_told(
    servers: Servers, home: Home
) -> None:
    server = await asyncio.to_thread(servers.start)
    async with RestClient(server.url, server.token) as rest:
        kernel_id, reused = [(await rest.start_kernel("fake"))["id"] for _ in range(2)]
        gone = await pid_of(rest, reused)
        runs = Executions(rest, kernel_id)
        done = await runs.run("print 1")
        running = await runs.begin("flood 1000 20 1000")
        await runs.until(running, "stream")
        await eventually(lambda: is_stored_as_running(home, running))  # that it was asked for
    servers.crash()
    (keeper,) = [p for p in home.processes() if "app.keeper" in p.cmdline()]
    keeper.kill()
    await eventually(lambda: not is_alive(keeper.pid))
    os.kill(gone, signal.SIGKILL)
    # Another process gets its number: all that differs is when it was started, which some
    # platforms tell by the second.
    await asyncio.sleep(1)
    stranger = await asyncio.create_subprocess_exec("sleep", "60", start_new_session=True)
    point_row_at(home, reused, stranger.pid)
    server = await asyncio.to_thread(servers.start)
    async with RestClient(server.url, server.token) as rest:
        model = await rest.kernel(reused)
        assert model["execution_state"] == "dead"
        assert "ended while no server was there" in model["reason"]
        runs = Executions(rest, kernel_id)
        assert (await runs.ended(done["id"]))["state"] == "ok"
        ended = await runs.ended(running)
        # Whoever hears the kernel next may come in time for its end.
        assert ended["state"] in ("ok", "lost")
        assert ended["state"] == "ok" or "nobody heard" in ended["reason"]
        channels = await JupyterChannels.connect(
            server.ws_url, kernel_id, server.token, query={"after": "0"}
        )
        told = await channels.seen(lambda m: m.content.get("name") == "stderr")
        assert "nobody has heard" in told.content["text"]
        again = await channels.execute("print again")
        assert again.text == "again\n"
        await channels.close()
        await asyncio.gather(rest.delete(kernel_id), rest.delete(reused))
    await asyncio.to_thread(server.stop)
    assert stranger.returncode is None
    stranger.kill()
    await stranger.wait()


MUCH = "flood 600 20"
"""More than is gone through again of what is not known to have begun."""


async def begin_much(
    server: ServerProcess, rest: RestClient, home: Home, kernel_id: str, code: str
) -> tuple[JupyterChannels, str]:
    """Have a client execute code that says much first; the client, and the execution's id."""
    channels = await JupyterChannels.connect(server.ws_url, kernel_id, server.token)
    msg_id = await channels.send_execute(f"{MUCH}\nprint enough\n{code}")
    await channels.seen(lambda m: m.content.get("text") == "enough\n")
    await eventually(lambda: is_stored_as_running(home, msg_id))
    return channels, msg_id


async def check_told(
    server: ServerProcess, channels: JupyterChannels, kernel_id: str, msg_id: str
) -> None:
    """A client that comes back gets a reply to what it has asked, and the idle status."""
    await channels.closed()
    async with await JupyterChannels.connect(
        server.ws_url, kernel_id, server.token, session_id=channels.session
    ) as again:
        exchange = await again.exchange(msg_id)
        assert (exchange.reply["status"], exchange.states[-1]) == ("aborted", "idle")


async def test_a_client_is_told_the_end_that_nobody_heard_of_what_had_said_much(
    servers: Servers, home: Home
) -> None:
    server = await asyncio.to_thread(servers.start)
    async with RestClient(server.url, server.token) as rest:
        kernel_id = (await rest.start_kernel("fake"))["id"]
        code = "until open\nappend done yes"
        channels, msg_id = await begin_much(server, rest, home, kernel_id, code)
    servers.crash()
    await asyncio.to_thread(servers.kill_keeper)
    (home.root_dir / "open").touch()
    await eventually((home.root_dir / "done").exists)
    server = await asyncio.to_thread(servers.start)
    async with RestClient(server.url, server.token) as rest:
        ended = await Executions(rest, kernel_id).ended(msg_id)
        assert (ended["state"], "nobody heard" in ended["reason"]) == ("lost", True)
        await check_told(server, channels, kernel_id, msg_id)
        await rest.delete(kernel_id)
    await asyncio.to_thread(server.stop)


async def test_a_client_is_told_the_end_of_what_had_said_much_and_died_without_a_server(
    servers: Servers, home: Home
) -> None:
    server = await asyncio.to_thread(servers.start)
    async with RestClient(server.url, server.token) as rest:
        kernel_id = (await rest.start_kernel("fake"))["id"]
        pid = await pid_of(rest, kernel_id)
        channels, msg_id = await begin_much(server, rest, home, kernel_id, "until open\ndie 7")
    servers.crash()
    (home.root_dir / "open").touch()
    await eventually(lambda: not is_alive(pid))
    server = await asyncio.to_thread(servers.start)
    async with RestClient(server.url, server.token) as rest:
        ended = await Executions(rest, kernel_id).ended(msg_id)
        assert (ended["state"], "code 7" in ended["reason"]) == ("lost", True)
        await check_told(server, channels, kernel_id, msg_id)
        await rest.delete(kernel_id)
    await asyncio.to_thread(server.stop)


async def test_a_registry_of_no_use_is_kept_aside_and_its_kernels_run_on(
    servers: Servers, home: Home
) -> None:
    server = await asyncio.to_thread(servers.start)
    async with RestClient(server.url, server.token) as rest:
        pid = await pid_of(rest, (await rest.start_kernel("fake"))["id"])
    servers.crash()
    for file in home.state_dir.glob("registry.sqlite*"):
        file.write_bytes(b"not a database" * 1000)
    server = await asyncio.to_thread(servers.start)
    async with RestClient(server.url, server.token) as rest:
        assert not await rest.kernels()
    assert "is damaged" in server.output()
    assert "runs, unknown to this server" in server.output()
    assert is_alive(pid)
    assert start_time(pid)


async def test_a_cancel_that_is_to_kill_in_the_end_does_so_under_the_next_server(
    servers: Servers, home: Home
) -> None:
    write_kernelspec(home.jupyter_path, "deaf", Spec(flags=("--ignore-sigint",)))
    server = await asyncio.to_thread(servers.start)
    async with RestClient(server.url, server.token) as rest:
        kernel_id = (await rest.start_kernel("deaf"))["id"]
        runs = Executions(rest, kernel_id)
        execution = await runs.begin("sleep 600")
        await runs.until(execution, "started")
        await runs.cancel(execution, kill_after=5)
    server.send_signal(signal.SIGTERM)
    await asyncio.to_thread(server.wait)
    server = await asyncio.to_thread(servers.start)
    async with RestClient(server.url, server.token) as rest:
        ended = await Executions(rest, kernel_id).ended(execution)
        assert ended["state"] == "cancelled"
        assert [step["step"] for step in ended["steps"]][-1] == "kill"
        await rest.delete(kernel_id)
    await asyncio.to_thread(server.stop)


async def test_one_that_could_not_be_taken_over_is_read_on_in_its_next_process() -> None:
    kernel = ScriptedKernel()

    class Failing(Handover):
        async def recover(self, kernel: HandedOver, *_: Any) -> Any:
            await kernel.traffic.meet(None, kernel.traffic.log.end)
            raise OSError("the registry cannot be read")

    services = cast(KernelServices, SimpleNamespace(handover=Failing()))
    left = cast(LeftKernel, SimpleNamespace(id="kernel", traffic=kernel.traffic))
    other: Any = None
    taking = TakeOver(left, other, other, other, other, services)
    assert await taking.recover(cast(KernelRecord, None), {}) is None
    kernel.launch()
    kernel.be_ready()
    execution = kernel.execution(kernel.send())
    kernel.finishes(execution)
    assert execution.ended
