"""Over which sockets a kernel is reached, what is tried when it does not come up, and what of that
is remembered."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import MakeServer
from tests.support.home import Home
from tests.support.kernelspecs import Spec, shell_spec, write_kernelspec
from tests.support.processes import eventually
from tests.support.running import KernelStarter, RunningKernel, kernels_of
from tests.support.server import ServerProcess

# Notes down, in its working directory, the transport of each process that is started.
NOTES_TRANSPORT = 'grep -o \'"transport": *"[a-z]*"\' "$CONNECTION" | grep -o "[a-z]*.$" >> tried\n'


@pytest.fixture(scope="module")
def server(own_server: ServerProcess) -> ServerProcess:
    """It remembers what works for a kernelspec."""
    return own_server


def connection(server: ServerProcess, kernel_id: str) -> dict[str, Any]:
    (file,) = server.home.run_dir.glob(f"runtime/*{kernel_id}*")
    info: dict[str, Any] = json.loads(file.read_text())
    return info


def transport(server: ServerProcess, kernel: RunningKernel) -> str:
    return str(connection(server, kernel.id)["transport"])


def tried(server: ServerProcess) -> list[str]:
    """The transports noted down since this was last asked."""
    notes = server.home.root_dir / "tried"
    words = [line.strip('"') for line in notes.read_text().split()]
    notes.unlink()
    return words


async def test_a_kernel_is_reached_over_ipc_where_it_can_be(
    server: ServerProcess, start: KernelStarter
) -> None:
    kernel = await start()
    info = connection(server, kernel.id)
    assert info["transport"] == "ipc"
    assert Path(info["ip"]).parent == server.home.run_dir / "ipc"
    assert (await kernel.channels.execute("print here")).text == "here\n"


async def test_one_that_refuses_ipc_comes_up_over_tcp_and_the_next_starts_there(
    server: ServerProcess, start: KernelStarter
) -> None:
    script = NOTES_TRANSPORT + "exec $FAKE --no-ipc exit"
    write_kernelspec(server.home.jupyter_path, "noted", shell_spec(script))
    first = await start("noted")
    assert transport(server, first) == "tcp"
    assert tried(server) == ["ipc", "tcp"]
    assert (await first.model())["generation"] == 1  # the one that never came up does not count
    second = await start("noted")
    assert transport(server, second) == "tcp"
    assert tried(server) == ["tcp"]
    await first.rest.restart(first.id)
    await first.becomes("idle")
    assert (await first.channels.execute("print here")).text == "here\n"
    assert tried(server) == ["tcp"]


async def test_what_was_sent_before_waits_for_the_kernel_to_come_up_over_tcp(
    server: ServerProcess, start: KernelStarter
) -> None:
    script = "while [ ! -e go ]; do sleep 0.02; done; exec $FAKE --no-ipc exit"
    write_kernelspec(server.home.jupyter_path, "gated", shell_spec(script))
    folder = server.home.root_dir / "waits"
    folder.mkdir()
    kernel = await start("gated", ready=False, path="waits")
    requests = [await kernel.channels.send_execute(f"print {number}") for number in range(3)]
    info = await kernel.channels.send("kernel_info_request")
    (folder / "go").touch()
    for number, request in enumerate(requests):
        exchange = await kernel.channels.exchange(request)
        assert exchange.reply["status"] == "ok"
        assert exchange.text == f"{number}\n"
        assert exchange.states == ["busy", "idle"]
    assert (await kernel.channels.exchange(info)).reply["status"] == "ok"
    assert transport(server, kernel) == "tcp"


async def test_one_that_hangs_on_ipc_comes_up_over_tcp_and_this_outlives_the_server(
    make_server: MakeServer, home: Home
) -> None:
    specs = {"noted": shell_spec(NOTES_TRANSPORT + "exec $FAKE --no-ipc hang")}
    server = make_server(home=home, specs=specs)
    async with kernels_of(server) as start:
        kernel = await start("noted")
        assert transport(server, kernel) == "tcp"
        assert tried(server) == ["ipc", "tcp"]
        await start("noted")
        assert tried(server) == ["tcp"]
    server.stop()
    successor = make_server(home=home, specs=specs)
    async with kernels_of(successor) as start:
        await start("noted")
        assert tried(successor) == ["tcp"]


async def test_a_spec_with_another_command_is_learned_anew(
    server: ServerProcess, start: KernelStarter
) -> None:
    write_kernelspec(server.home.jupyter_path, "changing", Spec(flags=("--no-ipc", "exit")))
    assert transport(server, await start("changing")) == "tcp"
    write_kernelspec(server.home.jupyter_path, "changing", Spec())
    assert transport(server, await start("changing")) == "ipc"


async def test_a_start_that_fails_on_both_teaches_nothing(
    server: ServerProcess, start: KernelStarter
) -> None:
    script = NOTES_TRANSPORT + "if [ -e broken ]; then exit 9; fi; exec $FAKE"
    write_kernelspec(server.home.jupyter_path, "repaired", shell_spec(script))
    broken = server.home.root_dir / "broken"
    broken.touch()
    kernel = await start("repaired", ready=False)
    assert "exited with code 9" in (await kernel.becomes("dead"))["reason"]
    assert tried(server) == ["ipc", "tcp"]
    broken.unlink()
    assert transport(server, await start("repaired")) == "ipc"


@pytest.mark.parametrize("only", ["ipc", "tcp"])
async def test_a_transport_that_is_asked_for_is_the_only_one(
    make_server: MakeServer, only: str
) -> None:
    specs = {
        "fake": Spec(),
        "failing": shell_spec(NOTES_TRANSPORT + "exit 4"),
        "no-ipc": Spec(flags=("--no-ipc", "exit")),
    }
    server = make_server("--transport", only, specs=specs)
    async with kernels_of(server) as start:
        info = connection(server, (await start("fake")).id)
        assert info["transport"] == only
        assert len(info["key"]) >= 32
        if only == "tcp":  # only this machine can connect
            assert info["ip"] == "127.0.0.1"
        failed = await start("failing", ready=False)
        await failed.becomes("dead")
        assert tried(server) == [only]
        refusing = await start("no-ipc", ready=False)
        model = await refusing.becomes("idle" if only == "tcp" else "dead")
        if only == "ipc":
            assert "the transport ipc is not supported" in model["reason"]


async def test_a_state_directory_with_a_long_name_has_its_sockets_elsewhere(
    make_server: MakeServer, home: Home
) -> None:
    home.state_dir = home.path / ("s" * 100)
    server = make_server("--transport", "ipc", home=home)
    async with kernels_of(server) as start:
        kernel = await start()
        directory = Path(connection(server, kernel.id)["ip"]).parent
        assert not directory.is_relative_to(home.state_dir)
        assert directory.stat().st_mode & 0o777 == 0o700
        assert (await kernel.channels.execute("print here")).text == "here\n"
    server.stop()
    assert not directory.exists()


class Gate:
    """A kernel that waits, at each start, until its port was taken or the way is free."""

    script = "while [ ! -e go ]; do sleep 0.02; done; exec $FAKE"

    def __init__(self, server: ServerProcess) -> None:
        self._server = server
        self._go = server.home.root_dir / "go"

    def open(self) -> None:
        self._go.touch()

    def close(self) -> None:
        self._go.unlink()

    async def take_a_port(self, kernel: RunningKernel, channel: str) -> socket.socket:
        """Listens on a port that is meant for the kernel; the caller closes it."""
        port = connection(self._server, kernel.id)[f"{channel}_port"]
        thief = socket.socket()
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)

        def bind() -> bool:
            try:
                thief.bind(("127.0.0.1", port))
            except OSError:
                return False  # the process before still has it
            thief.listen()
            return True

        await eventually(bind)
        return thief


async def test_a_port_that_somebody_takes_before_the_kernel_does_is_given_up_for_new_ones(
    make_server: MakeServer,
) -> None:
    server = make_server("--transport", "tcp", specs={"gated": shell_spec(Gate.script)})
    gate = Gate(server)
    async with kernels_of(server) as start:
        for channel in ("shell", "iopub", "hb"):
            kernel = await start("gated", ready=False)
            pending = await kernel.channels.send_execute("print here")
            with await gate.take_a_port(kernel, channel) as thief:
                gate.open()
                exchange = await kernel.channels.exchange(pending)
                assert exchange.text == "here\n", channel
                ports = connection(server, kernel.id)
                assert thief.getsockname()[1] not in ports.values()
            gate.close()


async def test_a_port_that_somebody_takes_during_a_restart_is_given_up_for_new_ones(
    make_server: MakeServer,
) -> None:
    server = make_server("--transport", "tcp", specs={"gated": shell_spec(Gate.script)})
    gate = Gate(server)
    async with kernels_of(server) as start:
        gate.open()
        kernel = await start("gated")
        gate.close()
        await kernel.rest.restart(kernel.id)
        pending = await kernel.channels.send_execute("print here")
        with await gate.take_a_port(kernel, "control"):
            gate.open()
            assert (await kernel.channels.exchange(pending)).text == "here\n"
            assert (await kernel.model())["execution_state"] == "idle"
